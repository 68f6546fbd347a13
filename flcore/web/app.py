"""The application: the page's files, the streams of states, and the values that the page asks for."""

from collections.abc import Callable, Collection, Coroutine
from http import HTTPStatus
from importlib.resources import files
from typing import Any, BinaryIO, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flcore.server.run_directory import HISTORY_FILE
from flcore.web.access import Access, App, Token
from flcore.web.feeds import Feeds
from flcore.web.replies import Download, EventStream
from flcore.web.share import Share
from flcore.web.sources import Source
from flcore.web.views import full_status, rounds_view, sites_view, timeline_view, to_bytes

MAX_STREAMS = 24
MAX_KEY_CHARACTERS = 200
MAX_WORKERS = 2
"""The threads that make what the page asks for. More requests wait."""

MODULES = ("page", "state", "format", "round", "timeline", "rounds", "charts", "tables")
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in MODULES},
}

DOWNLOADS = {
    HISTORY_FILE: "application/jsonl",
    "history.png": "image/png",
    "plot.png": "image/png",
    "report.html": "text/html",
    "results.json": "application/json",
    "audit.jsonl": "application/jsonl",
}
"""The files of a run that can be downloaded."""


def make_app(
    source: Source, feeds: Feeds, share: Share, hosts: Collection[str], token: Token | None, *, is_secure: bool = False
) -> App:
    """Return the application.

    Args:
        source: The jobs.
        feeds: Their states.
        share: The share of a core for what is asked for.
        hosts: The names and addresses by which the server is called.
        token: The token that opens the page. None: no token is needed.
        is_secure: Whether it is served over TLS.

    Returns:
        The ASGI application.
    """
    pages = Pages(source, feeds, share, token, is_secure=is_secure)
    routes = [
        *(Route(path, _static(*file)) for path, file in PAGE_FILES.items()),
        Route("/status.json", pages.status),
        Route("/api/login", pages.login),
        Route("/api/events", pages.events),
        Route("/api/jobs/{key}/timeline", pages.timeline),
        Route("/api/jobs/{key}/rounds", pages.rounds),
        Route("/api/jobs/{key}/sites", pages.sites),
        Route("/api/jobs/{key}/contract", pages.contract),
        Route("/api/jobs/{key}/files", pages.files),
        Route("/api/jobs/{key}/files/{name}", pages.file),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # a redirect would name a host
    return Access(app, hosts, token, [*PAGE_FILES, "/api/login"])


Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def _static(name: str, media_type: str) -> Endpoint:
    """Return an endpoint for a file of the page, which is read once."""
    content = files("flcore.web").joinpath("static", name).read_bytes()

    async def reply(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return reply


ResultT = TypeVar("ResultT")


class Pages:
    """The replies that have data. All read the source in a few threads of their own, never in the event loop's."""

    def __init__(self, source: Source, feeds: Feeds, share: Share, token: Token | None, *, is_secure: bool) -> None:
        self._source, self._feeds, self._share, self._token, self._is_secure = source, feeds, share, token, is_secure
        self._streams = 0
        self._limiter: CapacityLimiter | None = None

    async def status(self, _: Request) -> Response:
        """All that is known now, for machines."""
        return await self._json(lambda: full_status(self._source))

    async def login(self, request: Request) -> Response:
        """Give the cookie to a browser that has the token."""
        if self._token is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if not self._token.is_bearer(request.headers.get("authorization", "")):
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "expected the page's token")
        cookie = self._token.cookie_header(is_secure=self._is_secure)
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": cookie})

    async def events(self, request: Request) -> Response:
        """The stream of states: of all jobs in short, and of one job. One stream serves a page: browsers open few."""
        topic = request.query_params.get("job", "")[:MAX_KEY_CHARACTERS]
        if self._streams >= MAX_STREAMS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "10"})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        self._streams += 1  # here: before a stream has begun, others are asked for
        return EventStream(
            self._feeds.messages(topic, lambda: self._in_thread(lambda: self._feeds.state(topic))), self._end_stream
        )

    async def timeline(self, request: Request) -> Response:
        """The timeline of a round that is kept."""
        key, round_number = request.path_params["key"], _number(request, "round")

        def make() -> dict[str, Any] | None:
            board = self._source.board(key)
            return None if board is None else timeline_view(board, round_number)

        return await self._json(make)

    async def rounds(self, request: Request) -> Response:
        """The rounds that are over, after one that the page has."""
        key, after = request.path_params["key"], _number(request, "after")
        return await self._json(lambda: rounds_view(self._source.records(key), after))

    async def sites(self, request: Request) -> Response:
        """A metric of each site by round."""
        key, after = request.path_params["key"], _number(request, "after")
        metric = request.query_params.get("metric", "")[:200]
        return await self._json(lambda: sites_view(self._source.records(key), metric, after))

    async def contract(self, request: Request) -> Response:
        """A job's contract."""
        text = await self._in_thread(lambda: self._source.contract(request.path_params["key"]))
        if text is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(text, media_type="application/json")

    async def files(self, request: Request) -> Response:
        """The names and sizes of a run's files that can be downloaded."""

        def make() -> dict[str, Any] | None:
            directory = self._source.directory(request.path_params["key"])
            if directory is None:
                return {"files": []}
            found = [(name, directory / name) for name in DOWNLOADS]
            return {"files": [(name, path.stat().st_size) for name, path in found if path.is_file()]}

        return await self._json(make)

    async def file(self, request: Request) -> Response:
        """A file of a run."""
        key, name = request.path_params["key"], request.path_params["name"]

        def find() -> BinaryIO | None:
            directory = self._source.directory(key) if name in DOWNLOADS else None
            is_there = directory is not None and (directory / name).is_file()
            return (directory / name).open("rb") if directory is not None and is_there else None

        file = await self._in_thread(find)
        if file is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        safe = "".join(char if char.isascii() and (char.isalnum() or char in "-._") else "-" for char in key)
        return Download(file, DOWNLOADS[name], f"{safe}-{name}", self._in_thread)

    def _end_stream(self) -> None:
        self._streams -= 1

    async def _json(self, make: Callable[[], dict[str, Any] | None]) -> Response:
        def encode() -> bytes | None:
            values = make()
            return None if values is None else to_bytes(values)

        body = await self._in_thread(encode)
        if body is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(body, media_type="application/json")

    async def _in_thread(self, make: Callable[[], ResultT]) -> ResultT:
        self._limiter = self._limiter or CapacityLimiter(MAX_WORKERS)
        return await anyio.to_thread.run_sync(self._share.run, make, limiter=self._limiter)


def _number(request: Request, name: str) -> int:
    """Return a number of the query, 0 without it."""
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"expected a number as {name}")
    return int(text)
