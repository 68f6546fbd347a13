"""The metrics of a server and of its jobs, as a collector of prometheus-client."""

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from flcore.federation.standing_server import FederationState
from flcore.metrics.families import BUCKETS_S, FAMILIES, Family
from flcore.metrics.job_metrics import JobMetrics, JobSample, Sample
from flcore.server.events import Observer
from flcore.status.job_status import RUNNING_STATES
from flcore.status.observed_run import ObservedRun

MAX_OVER_JOBS = 20
"""The jobs that are over and still have metrics, so that their last values are scraped. Older ones are removed."""

BOUNDS = [*(str(bound) for bound in BUCKETS_S), "+Inf"]


class ServerMetrics:
    """The metrics of a server. Thread-safe; a scrape reads boards, memory and disk, and holds no lock of a run.

    Args:
        directory: The server's directory, whose disk is shown.

    Attributes:
        registry: The registry of prometheus-client that has these metrics, and those of the process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._federation: Callable[[], FederationState] | None = None
        self._lock = threading.Lock()
        self._running: dict[str, JobMetrics] = {}
        self._over: OrderedDict[str, JobSample] = OrderedDict()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def show_federation(self, state: Callable[[], FederationState]) -> None:
        """Show the queue and the sites of a standing federation. `state` is called at each scrape, from any thread."""
        self._federation = state

    @contextmanager
    def observe_run(self, run: ObservedRun) -> Iterator[Observer]:
        """Show the metrics of a run while a block lasts, and its last values after it (`MAX_OVER_JOBS`)."""
        job = JobMetrics(run.board)
        with self._lock:
            self._over.pop(run.id, None)
            self._running[run.id] = job
        try:
            with job.observing() as observe:
                yield observe
        finally:
            sample = job.sample()
            with self._lock:
                del self._running[run.id]
                self._over[run.id] = sample
                while len(self._over) > MAX_OVER_JOBS:
                    self._over.popitem(last=False)

    def describe(self) -> list[Any]:
        """Return the metrics without values: what prometheus-client asks for at the registration."""
        return [_empty(family) for family in FAMILIES]

    def collect(self) -> list[Any]:
        """Return the metrics. Called at each scrape."""
        with self._lock:
            running, samples = dict(self._running), dict(self._over)
        samples |= {job: metrics.sample() for job, metrics in running.items()}
        found = {family.name: _empty(family) for family in FAMILIES}
        for job, sample in samples.items():
            _add_job(found, job, sample, is_running=job in running)
        found["flcore_running_jobs"].add_metric([], len(running))
        with suppress(OSError):
            usage = shutil.disk_usage(_existing(self._directory))
            found["flcore_disk_free_bytes"].add_metric([], usage.free)
            found["flcore_disk_size_bytes"].add_metric([], usage.total)
        if self._federation is not None:
            state = self._federation()
            found["flcore_queued_jobs"].add_metric([], state.queued_jobs)
            found["flcore_connected_sites"].add_metric([], state.connected_sites)
        return [family for family in found.values() if family.samples]


def _add_job(found: dict[str, Any], job: str, sample: JobSample, *, is_running: bool) -> None:
    status = sample.status
    values = {
        **sample.counts,
        "flcore_received_bytes": status.bytes_received,
        "flcore_sent_bytes": status.bytes_sent,
        "flcore_current_round": status.round,
        "flcore_planned_rounds": status.rounds,
        "flcore_job_running": int(is_running and status.state in RUNNING_STATES),
        "flcore_connected_clients": status.connected if is_running else 0,
    }
    if is_running and (resources := status.resources) is not None:
        values["flcore_budget_bytes"] = resources.budget_bytes
        values["flcore_staging_budget_bytes"] = resources.staging_budget_bytes
        values["flcore_staged_bytes"] = resources.staged_bytes
    for name, value in values.items():
        found[name].add_metric([job], value)
    for kind, count in status.refusals.items():
        found["flcore_refusals"].add_metric([job, kind], count)
    if is_running:
        for phase, count in sample.clients.items():
            found["flcore_clients"].add_metric([job, phase], count)
    for name, histograms in (
        ("flcore_round_phase_seconds", sample.round_seconds),
        ("flcore_client_phase_seconds", sample.client_seconds),
    ):
        for phase, content in histograms.items():
            found[name].add_metric([job, phase], _buckets(content), content.total_s)


def _buckets(sample: Sample) -> list[tuple[str, int]]:
    return list(zip(BOUNDS, sample.cumulative, strict=True))


def _empty(family: Family) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[family.kind](family.name, family.help, labels=family.labels)


def _existing(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that is there."""
    return next((each for each in (directory, *directory.absolute().parents) if each.exists()), Path("/"))
