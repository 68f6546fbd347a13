"""The event loop of the page: it takes a bounded share of a core, and has its own TLS with a bounded handshake."""

import asyncio
import selectors
import ssl
import time
from typing import Any

from flcore.web.connections import REQUEST_TIMEOUT_S
from flcore.web.share import Share


class PageLoop(asyncio.SelectorEventLoop):
    """An event loop that waits when it has taken more than its share.

    Args:
        share: The share.
        tls: The TLS of its servers. None: plaintext.
    """

    def __init__(self, share: Share, tls: ssl.SSLContext | None) -> None:
        super().__init__(_PacedSelector(share))
        self._tls = tls

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """Create a server with the loop's TLS. A peer has `REQUEST_TIMEOUT_S` for a handshake."""
        if self._tls is not None:
            limits = {"ssl_handshake_timeout": REQUEST_TIMEOUT_S, "ssl_shutdown_timeout": REQUEST_TIMEOUT_S}
            options |= {"ssl": self._tls} | limits
        return await super().create_server(*args, **options)


class _PacedSelector(selectors.DefaultSelector):
    """Waits for the share before it waits for files. All that a loop does lies between two of its calls."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share
        self._counted_s: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        now_s = time.thread_time()
        if self._counted_s is not None:
            self._share.spend(now_s - self._counted_s)
        self._counted_s = now_s
        self._share.wait()
        return super().select(timeout)
