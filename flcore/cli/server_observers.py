"""What watches the runs of `flcore server`: metrics, traces and trackers. Each needs an extra of its own."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcore.cli.addresses import listen_address
from flcore.errors import JobError
from flcore.event_log.log import Log
from flcore.federation.standing_server import FederationState
from flcore.status.observed_run import OpenObserver
from flcore.tracking import Trackers, tracking_settings


@dataclass(frozen=True)
class ObserverOptions:
    """The options of `flcore server` that choose what watches its runs.

    Attributes:
        metrics: "[HOST:]PORT" of `/metrics`. None: no metrics.
        metrics_remote: Whether the address may be another one than loopback.
        traces: Whether traces are exported.
        site: The content of the server's site.toml; its table `tracking` names trackers.
        site_directory: The directory of that file.
    """

    metrics: str | None
    metrics_remote: bool
    traces: bool
    site: dict[str, Any]
    site_directory: Path


@dataclass(frozen=True)
class ServerObservers:
    """What watches the runs of a server.

    Attributes:
        observe_runs: Open the observers of a run.
        show_federation: Takes the function that returns the state of a standing federation.
    """

    observe_runs: tuple[OpenObserver, ...]
    show_federation: Callable[[Callable[[], FederationState]], None]


@contextmanager
def open_server_observers(options: ObserverOptions, directory: Path, log: Log) -> Iterator[ServerObservers]:
    """Open what watches the runs of a server, while a block lasts.

    Args:
        options: The options.
        directory: The server's output directory.
        log: Gets the address of the metrics.

    Raises:
        JobError: A package is not installed, or the table `tracking` has a wrong key.
        TransportError: The port of the metrics cannot be bound.
    """
    opened: list[OpenObserver] = []
    show_federation: Callable[[Callable[[], FederationState]], None] = lambda _: None  # noqa: E731 - replaced below
    settings = tracking_settings(options.site, options.site_directory)
    with ExitStack() as stack:
        if options.metrics is not None:
            host, port = listen_address(options.metrics, "--metrics")
            metrics = _import("server_metrics", "--metrics", "metrics").ServerMetrics(directory)
            metrics_server = _import("metrics_server", "--metrics", "metrics").MetricsServer
            served = metrics_server(metrics.registry, host, port, allow_remote=options.metrics_remote)
            url = stack.enter_context(served).url
            log.write_block(f"metrics: {url}", "metrics", url=url)
            opened.append(metrics.observe_run)
            show_federation = metrics.show_federation
        if options.traces:
            traces = stack.enter_context(_import("round_traces", "--traces", "traces").RoundTraces())
            opened.append(traces.observe_run)
        opened.append(Trackers.of(settings).observe_run)
        yield ServerObservers(tuple(opened), show_federation)


def _import(module: str, option: str, extra: str) -> Any:
    try:
        return importlib.import_module(f"flcore.metrics.{module}")
    except ImportError as error:
        raise JobError(
            f"{option}: a package that it needs cannot be imported ({error}); install it with "
            f"`pip install 'flcore[{extra}]'`, or leave {option} out"
        ) from error
