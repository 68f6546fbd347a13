"""What metrics, traces and a tracker cost: at most 1 % of a round's time, threads of their own included.

The round is the one of the board's test: clients in threads of one process that train in no time, so that the round is
transfers and sums alone. The cost is processor time of the whole process while the events are told again, and nothing
else runs.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flcore.server.events import Event
from flcore.status import StatusBoard
from flcore.status.observed_run import ObservedRun, OpenObserver, open_observers
from flcore.tracking import Trackers
from tests.flcore.metrics.observed import small_contract
from tests.flcore.status.test_cost import CLIENTS, REPETITIONS, ROUNDS, run_quick
from tests.flcore.tracking.test_trackers import Recorded

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from flcore.metrics.round_traces import RoundTraces
from flcore.metrics.server_metrics import ServerMetrics

SCRAPE_INTERVAL_S = 15.0
"""How often Prometheus usually asks for the metrics."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], float]:
    """The events of a run, and the seconds of its rounds."""
    events, (history, _) = run_quick(tmp_path_factory.mktemp("job"))
    return events, sum(record.seconds["round"] for record in history)


def seconds_to_observe(
    events: list[Event], open_observer: OpenObserver, scrape: Callable[[], object]
) -> tuple[float, float]:
    """Return the least processor times of observing these events, to the end of the observers' threads, and a scrape.

    That of opening the observers, once in a run, does not count.
    """
    least = least_scrape = float("inf")
    for _ in range(REPETITIONS):
        board = StatusBoard("quick", ROUNDS, [f"client-{n}" for n in range(1, CLIENTS + 1)])
        for event in events:
            board.observe(event)
        with open_observer(ObservedRun("quick", small_contract(), board, Path())) as observe:
            began = time.process_time()
            for event in events:
                observe(event)
            observed = time.process_time()
            scrape()
            scraped = time.process_time()
        least = min(least, time.process_time() - scraped + observed - began)
        least_scrape = min(least_scrape, scraped - observed)
    return least, least_scrape


def test_metrics_traces_and_a_tracker_cost_at_most_one_percent_of_a_round(
    finished: tuple[list[Event], float], tmp_path: Path
) -> None:
    events, rounds_s = finished
    metrics = ServerMetrics(tmp_path)
    traces = RoundTraces(InMemorySpanExporter())
    tracker = Trackers({"stand-in": Recorded}, max_model_bytes=0, timeout_s=60)
    openers = (metrics.observe_run, traces.observe_run, tracker.observe_run)
    cost_s, scrape_s = seconds_to_observe(
        events, lambda run: open_observers(openers, run), lambda: generate_latest(metrics.registry)
    )
    assert cost_s <= 0.01 * rounds_s
    assert scrape_s <= 0.01 * SCRAPE_INTERVAL_S
