"""A fresh server process for one measurement: it serves a job to synthetic clients, and reports the figures."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flcore_transport import GrpcServer, Service

import flcore
from flcore_bench.internals import DEFAULT_BUDGET, Budget, Event, TaskSent, serve
from flcore_bench.process import receive_setup, send_to_parent
from flcore_bench.resources import DiskWatch, peak_bytes
from flcore_bench.synthetic_clients import READ_AT


class ServerObserver:
    """Records when tasks were sent, and the server's peak memory before the first one."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []
        self.idle_bytes = 0
        self._lock = threading.Lock()

    def observe(self, event: Event) -> None:
        """Record an event. The server calls this as `observe`."""
        if isinstance(event, TaskSent):
            with self._lock:
                self.idle_bytes = self.idle_bytes or peak_bytes()
                self.asked_at.append(time.monotonic())


def main() -> None:
    """Serve the job of the setup with its options. Report the address first, and the figures at the end."""
    setup = receive_setup()
    job = flcore.Job.load(setup["directory"], **setup["contract"])
    options = options_of(setup["options"])
    observer = ServerObserver()

    def listen(service: Service) -> GrpcServer:
        server = GrpcServer(service, in_flight_bytes=options["budget"].in_flight_bytes)
        send_to_parent({"address": server.address})
        return server

    with DiskWatch(options.get("directory")) as disk:
        outcome = serve(job, listen, wait_for=setup["wait_for"], observe=observer.observe, **options)
    send_to_parent(figures_of(outcome.history, observer) | {"peak_bytes": peak_bytes(), "disk_bytes": disk.peak_bytes})


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `serve` from their JSON form."""
    options = {**given, "budget": Budget(given["budget_bytes"]) if "budget_bytes" in given else DEFAULT_BUDGET}
    options.pop("budget_bytes", None)
    return options | {"directory": Path(given["directory"])} if "directory" in given else options


def figures_of(history: list[flcore.RoundRecord], observer: ServerObserver) -> dict[str, Any]:
    """Return the figures of all rounds but the first, which warms up. A single round counts."""
    rounds = list(zip(history, observer.asked_at, strict=True))[1 if len(history) > 1 else 0 :]
    records = [record for record, _ in rounds]
    failed = Counter(reason for record in history for reasons in record.failed.values() for reason in reasons.values())
    return {
        "seconds": [record.seconds["round"] for record in records],
        "phases": {phase: [record.seconds[phase] for record in records] for phase in records[0].seconds},
        "bytes_sent": records[0].bytes_sent,
        "bytes_received": records[0].bytes_received,
        "idle_bytes": observer.idle_bytes,
        "delivery_s": [_delivery_s(record, asked_at) for record, asked_at in rounds],
        "failed": dict(failed),
    }


def _delivery_s(record: flcore.RoundRecord, asked_at: float) -> float:
    """Return the seconds until the last client had read its assignment."""
    return max(part.metrics[READ_AT] for part in record.updates.values()) - asked_at
