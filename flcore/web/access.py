"""Who may read the page, and what every reply says to browsers. In front of everything else.

- Methods: GET and HEAD. No request changes anything.
- The host: one of the server's own names (`flcore.http_host`).
- The token, if there is one: as a bearer token, or as the cookie that a browser got for it. The files of the page
  itself hold no data, and need none.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any, Self

from flcore.errors import CertificateError
from flcore.http_host import host_name
from flcore.identity.files import PRIVATE, create_file, read_private_file

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "flcore-page"
"""How the cookie's name begins. A part of a digest follows: browsers send cookies to all ports of a host."""

MIN_TOKEN_CHARACTERS = 20

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Nothing is loaded from elsewhere, no script or style stands in a page, and no other page shows or reads this one."""


class Token:
    """The token that opens the page.

    Args:
        text: The token.
    """

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        # The cookie is another text than the token, so that a stolen cookie is not the token.
        self._cookie = hmac.new(self._text, b"flcore web page cookie", hashlib.sha256).hexdigest()
        self._cookie_name = f"{COOKIE}-{hmac.new(self._text, b'its name', hashlib.sha256).hexdigest()[:8]}"

    @classmethod
    def read_or_create(cls, path: Path) -> Self:
        """Read the token from its file. A file that is missing is created, for its owner alone.

        Raises:
            CertificateError: The file cannot be read or created, others may read it, or it holds no token.
        """
        try:
            create_file(path, secrets.token_urlsafe(32).encode() + b"\n", mode=PRIVATE)
        except FileExistsError:
            pass
        except OSError as error:
            raise CertificateError(
                f"expected a file for the page's token that can be created, got {path}: {error.strerror}; choose "
                "another one (--web-token)"
            ) from error
        text = read_private_file(path).decode("ascii", "replace").strip()
        if len(text) < MIN_TOKEN_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
            raise CertificateError(
                f"{path}: expected a token of at least {MIN_TOKEN_CHARACTERS} printable ASCII characters, got "
                f"{len(text)} characters; remove the file, and a new one is made"
            )
        return cls(text)

    def is_bearer(self, authorization: str) -> bool:
        """Whether a header `Authorization` has the token."""
        scheme, _, given = authorization.partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._text) and scheme.lower() == "bearer"

    def is_cookie(self, cookies: str) -> bool:
        """Whether a header `Cookie` has the cookie of the token, among those of other servers of the host."""
        # Not `http.cookies`, which gives up at a cookie that it does not like, and is quadratic in quoted ones.
        pairs = (pair.partition("=") for pair in cookies.split(";"))
        given = next((value for name, _, value in pairs if name.strip() == self._cookie_name), "")
        return hmac.compare_digest(given.strip().encode(), self._cookie.encode())

    def cookie_header(self, *, is_secure: bool) -> str:
        """Return the header `Set-Cookie`. A browser shows it to this server alone, and to no script."""
        return f"{self._cookie_name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict" + (
            "; Secure" if is_secure else ""
        )


class Access:
    """Passes requests that may read the page on to an application.

    Args:
        app: The application.
        hosts: The names and addresses by which this server is called, without ports.
        token: The token. None: no token is needed.
        open_paths: The paths that need no token.
    """

    def __init__(self, app: App, hosts: Collection[str], token: Token | None, open_paths: Collection[str]) -> None:
        self._app, self._token = app, token
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", [])}
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                if b"cache-control" not in given:
                    ours.append((b"cache-control", b"no-store"))
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        status, text = self._refusal(scope)
        if status:
            allow = [(b"allow", b"GET, HEAD")] if status == 405 else []
            ask = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            headers = [(b"content-type", b"text/plain; charset=utf-8"), *allow, *ask]
            await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
            await send_with_headers({"type": "http.response.body", "body": text.encode()})
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Message) -> tuple[int, str]:
        """Return the status and the text of a request that is refused; (0, "") for one that is not."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "this page is read-only: expected GET or HEAD\n"
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or host_name(hosts[0].decode("latin-1")) not in self._hosts:
            return 421, "expected one of this server's own names as the host; see --web\n"
        if self._token is None or scope["path"] in self._open_paths:
            return 0, ""
        authorization = b"".join(headers.get(b"authorization", [])[:1]).decode("latin-1")
        cookies = b"; ".join(headers.get(b"cookie", [])).decode("latin-1")
        if self._token.is_bearer(authorization) or self._token.is_cookie(cookies):
            return 0, ""
        return 401, "expected the page's token\n"
