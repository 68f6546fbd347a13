"""The HTTP server of `/metrics`: read-only, on threads of its own, a bounded number of requests at a time."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from flcore_transport import TransportError, is_loopback, join_address
from prometheus_client import CollectorRegistry, make_wsgi_app

from flcore.http_host import host_name

MAX_REQUESTS = 4
"""The most requests at a time. The connection of another one is closed."""

REQUEST_TIMEOUT_S = 5.0
"""How long a request may take, from its connection to the end of its reply. Then its connection is cut."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """Serves `/metrics` while a block lasts. A context manager.

    Args:
        registry: The metrics.
        host: The address to listen on.
        port: The port; 0 chooses a free one.
        allow_remote: Whether another address than loopback may be given. The metrics are served in plaintext.

    Attributes:
        url: The address of the metrics.

    Raises:
        TransportError: The port cannot be bound, or the address is none of loopback and `allow_remote` is False.
    """

    def __init__(
        self, registry: CollectorRegistry, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False
    ) -> None:
        shown = join_address(host, port)
        if not allow_remote and not is_loopback(host):
            raise TransportError(
                f"expected an address of this machine alone for metrics, such as 127.0.0.1, got {shown}: they are "
                "served in plaintext to all who reach the port; --metrics-remote allows it"
            )
        try:
            self._server = _Server(host, port, _only_metrics(make_wsgi_app(registry), allow_remote=allow_remote))
        except OSError as error:
            raise TransportError(
                f"cannot serve metrics on {shown}: {error.strerror}; give another port (--metrics)"
            ) from error
        self.url = f"http://{join_address(host, int(self._server.server_address[1]))}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="flcore-metrics-http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False  # a request that hangs does not keep the server from its end

    def __init__(self, host: str, port: int, app: App) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._begun: dict[socket.socket, float] = {}  # the requests that are answered, and when they began
        super().__init__((host, port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind the port. Not the inherited way, which asks the name service for the name of the address."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request on a thread of its own, or close its connection if there are too many."""
        with self._lock:
            is_free = len(self._begun) < MAX_REQUESTS
            if is_free:
                self._begun[request] = time.monotonic()
        if not is_free:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Cut the requests that have taken too long, however often they send a byte. Called twice a second."""
        latest_s = time.monotonic() - REQUEST_TIMEOUT_S
        with self._lock:
            late = [request for request, begun_s in self._begun.items() if begun_s < latest_s]
        for request in late:
            with suppress(OSError):  # it has just ended
                request.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            del self._begun[request]

    def handle_error(self, *_: Any) -> None:
        """A request has failed, mostly as its peer has gone: no news."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Scrapes are no news."""


def _only_metrics(metrics: App, *, allow_remote: bool) -> App:
    """Return the application: GET of `/metrics`, and nothing else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start_response, "405 Method Not Allowed")
        if environ.get("PATH_INFO") not in ("/metrics", "/"):
            return _refuse(start_response, "404 Not Found")
        if not allow_remote and not is_loopback(host_name(environ.get("HTTP_HOST", "localhost"))):
            return _refuse(start_response, "421 Misdirected Request")
        return metrics(environ, start_response)

    return answer


def _refuse(start_response: Callable[..., Any], status: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{status[4:]}; the metrics are at /metrics\n".encode()]
