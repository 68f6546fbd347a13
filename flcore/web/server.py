"""The page's server: a thread with an event loop of its own. What goes wrong in it never reaches a run."""

import asyncio
import logging
import socket
import threading
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Self

import uvicorn
from flcore_transport import join_address

from flcore.errors import JobError
from flcore.web.access import Token
from flcore.web.app import make_app
from flcore.web.connections import MAX_CONNECTIONS, BoundedConnection, BoundedListener
from flcore.web.event_loop import PageLoop
from flcore.web.feeds import Feeds
from flcore.web.share import Share
from flcore.web.sources import Source
from flcore.web.tls import PageTls

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0

MAX_LOOP_SHARE = 0.02
"""The largest share of a core, over time, for connections, requests and streams."""

MAX_WORK_SHARE = 0.02
"""The largest share of a core, over time, for what the page asks for."""

BURST_S = 0.5
"""The processor's time of each that may be taken at once: pages that open after a quiet time do not wait."""

MAX_HEAD_BYTES = 16 << 10
"""The largest head of a request."""


class WebServer:
    """Serves the page while a block lasts. A context manager.

    Args:
        source: The jobs.
        host: The address to listen on.
        port: The port; 0 chooses a free one.
        hosts: The names and addresses by which browsers call it. Default: those of loopback.
        certificates: The directory of the server's certificates, for TLS. Default: None, plaintext.
        token: The token that opens the page. Default: None, no token is needed.

    Attributes:
        url: The page's address.

    Raises:
        JobError: The port cannot be bound.
        CertificateError: The certificate cannot be used.
    """

    def __init__(
        self,
        source: Source,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        hosts: Collection[str] = (),
        certificates: Path | None = None,
        token: Token | None = None,
    ) -> None:
        tls = None if certificates is None else PageTls(certificates).context
        self._socket = _bind(host, port)
        names = [*hosts, host, "localhost", "127.0.0.1", "::1"]
        scheme = "http" if tls is None else "https"
        shown = next(iter(hosts), "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0") else host)  # noqa: S104
        self.url = f"{scheme}://{join_address(shown, self._socket.getsockname()[1])}/"
        self._feeds = Feeds(source)
        self._loop_share, self._work_share = Share(MAX_LOOP_SHARE, BURST_S), Share(MAX_WORK_SHARE, BURST_S)
        self._make_loop = partial(PageLoop, self._loop_share, tls)
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(source, self._feeds, self._work_share, names, token, is_secure=tls is not None),
                http=BoundedConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # not "warning": a line for each malformed request would push others out of the log
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="flcore-web", daemon=True)

    def __enter__(self) -> Self:
        self._feeds.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send the last state to all who look at the page, and end."""
        for share in (self._loop_share, self._work_share):
            share.lift()
        self._feeds.close()
        self._server.should_exit = True
        self._thread.join(CLOSE_TIMEOUT_S)

    def _serve(self) -> None:
        try:
            with self._socket, asyncio.Runner(loop_factory=self._make_loop) as runner:
                runner.run(self._server.serve(sockets=[self._socket]))
        except Exception:
            logger.exception("the web page has ended; the run goes on")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = BoundedListener(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(MAX_CONNECTIONS)
        except BaseException:
            listening.close()
            raise
        return listening
    except OSError as error:
        shown = join_address(host, port)
        raise JobError(f"cannot show the web page on {shown}: {error.strerror}; give another port (--web)") from error
