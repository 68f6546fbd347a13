"""The options `--web` and `--web-token` of servers: a web page beside a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from flcore_transport import is_loopback

from flcore.errors import JobError
from flcore.event_log.log import Log

if TYPE_CHECKING:  # it imports the extra `web`
    from flcore.web import Source

TOKEN_FILE = "web-token"  # noqa: S105 - the name of a file


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
    address: tuple[str, int] | None,
    make_source: "Callable[[], Source]",
    say: Callable[[str, str], None],
    *,
    certificates: Path | None = None,
    hosts: tuple[str, ...] = (),
    token_file: Path | None = None,
) -> Iterator[None]:
    """Show the page while a block lasts; without an address, do nothing.

    Args:
        address: The host and the port where it is shown; None: nowhere.
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
    is_remote = not is_loopback(address[0])
    if is_remote and certificates is None:
        raise JobError(
            f"expected TLS for a web page on {address[0]}, which other machines reach, got plaintext; show it on "
            "this machine only: --web PORT, or run `flcore server` with certificates (--certs)"
        )
    from flcore.web import Token, WebServer

    path = token_file or (certificates / TOKEN_FILE if is_remote and certificates is not None else None)
    token = None if path is None else Token.read_or_create(path)
    page = WebServer(
        make_source(),
        *address,
        hosts=hosts if is_remote else (),
        certificates=certificates if is_remote else None,
        token=token,
    )
    with page:
        say(f"the web page is {page.url}" + (f"; its token is in {path}" if path is not None else ""), page.url)
        yield
