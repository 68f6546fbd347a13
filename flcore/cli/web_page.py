"""The options `--web` and `--web-token` of servers: a web page beside a run."""

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from flcore_transport import split_address

from flcore.cli.addresses import LOOPBACK
from flcore.cli.log import Log
from flcore.errors import JobError

if TYPE_CHECKING:  # it imports the extra `web`
    from flcore.web import Source

TOKEN_FILE = "web-token"  # noqa: S105 - the name of a file


class WebAddress(NamedTuple):
    """Where the page is shown."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host in LOOPBACK


def parse_web_address(text: str | None) -> WebAddress | None:
    """Return the address of `[HOST:]PORT`, or raise a usage error. None for None."""
    if text is None:
        return None
    try:
        host, port = ("127.0.0.1", int(text)) if text.isdecimal() else split_address(text)
        if port > 65_535:
            raise ValueError(f"expected a port of at most 65535, got {text!r}")
    except ValueError as error:
        raise typer.BadParameter(f"expected [HOST:]PORT, such as 8480, got {text!r}", param_hint="--web") from error
    return WebAddress("127.0.0.1" if host == "localhost" else host, port)


WebOption = Annotated[
    str | None,
    typer.Option(
        "--web",
        metavar="[HOST:]PORT",
        help="Show a web page of what happens, read-only. Without HOST, to this machine only. To others with TLS and a "
        "token only. Needs the extra web.",
        show_default=False,
    ),
]

TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--web-token",
        metavar="FILE",
        help="File with the token that opens the page; created if missing. (default: web-token in --certs for other "
        "machines; no token on loopback)",
        show_default=False,
    ),
]


LocalWebOption = Annotated[
    str | None,
    typer.Option(
        "--web",
        metavar="PORT",
        help="Show a web page of what happens, read-only, to this machine only. Needs the extra web.",
        show_default=False,
    ),
]

LocalTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--web-token",
        metavar="FILE",
        help="File with the token that opens the page; created if missing. (default: no token)",
        show_default=False,
    ),
]


def log_page(log: Log) -> Callable[[str, str], None]:
    """Return a function that logs the page's address."""

    def say(text: str, url: str) -> None:
        log.write_line(text, "web", url=url)

    return say


@contextmanager
def web_page(
    address: WebAddress | None,
    make_source: "Callable[[], Source]",
    say: Callable[[str, str], None],
    *,
    certificates: Path | None = None,
    hosts: tuple[str, ...] = (),
    token_file: Path | None = None,
) -> Iterator[None]:
    """Show the page while a block lasts; without an address, do nothing.

    Args:
        address: Where it is shown; None: nowhere.
        make_source: Returns what it shows.
        say: Tells the operator a text, with the page's address.
        certificates: The directory of the server's certificates; None without TLS.
        hosts: The names that its certificate holds for.
        token_file: The file of the token. Default: None, the one in `certificates` for other machines.

    Raises:
        JobError: The extra is missing, the page would be shown to other machines without TLS, or the port cannot be
            bound.
        CertificateError: The token cannot be read.
    """
    if address is None:
        if token_file is not None:
            raise typer.BadParameter("expected --web with --web-token, got none", param_hint="--web-token")
        yield
        return
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise JobError(f"the web page needs {' and '.join(missing)}; pip install 'flcore[web]', or leave --web out")
    if not address.is_loopback and certificates is None:
        raise JobError(
            f"expected TLS for a web page on {address.host}, which other machines reach, got plaintext; show it on "
            "this machine only: --web PORT, or run `flcore server` with certificates (--certs)"
        )
    from flcore.web import Token, WebServer

    is_remote = not address.is_loopback
    path = token_file or (certificates / TOKEN_FILE if is_remote and certificates is not None else None)
    token = None if path is None else Token.read_or_create(path)
    certificate = certificates / "server.pem" if is_remote and certificates is not None else None
    page = WebServer(make_source(), *address, hosts=hosts if is_remote else (), certificate=certificate, token=token)
    with page:
        say(f"the web page is {page.url}" + (f"; its token is in {path}" if path is not None else ""), page.url)
        yield
