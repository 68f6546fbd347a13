"""The metrics of a server: name, type, labels and help of each. docs/metrics.md and the dashboard follow this table.

Names follow Prometheus' conventions: base units, and `_total` for what only grows. No label has text of a client: a job
is its id, a phase and a refusal's kind are flcore's own names. The label of a job is `job_id`, as Prometheus itself
labels each sample with a `job`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

MetricType = Literal["counter", "gauge", "histogram"]


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: The name, without the suffix `_total` of a counter.
        kind: The type.
        help: What it is, in one line.
        labels: The names of its labels.
    """

    name: str
    kind: MetricType
    help: str
    labels: tuple[str, ...] = ()

    @property
    def sample_name(self) -> str:
        """The name by which queries know it; that of a histogram has one more suffix."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


JOB, JOB_AND_PHASE = ("job_id",), ("job_id", "phase")

FAMILIES: tuple[Family, ...] = (
    Family("flcore_received_bytes", "counter", "Bytes of pieces received from clients.", JOB),
    Family("flcore_sent_bytes", "counter", "Bytes of pieces sent to clients.", JOB),
    Family("flcore_received_pieces", "counter", "Pieces of updates received from clients.", JOB),
    Family("flcore_sent_pieces", "counter", "Pieces of models sent to clients.", JOB),
    Family("flcore_rounds", "counter", "Rounds that this process has finished, skipped ones included.", JOB),
    Family("flcore_skipped_rounds", "counter", "Rounds that left the model as it was.", JOB),
    Family("flcore_answers", "counter", "Answers of clients that were committed.", JOB),
    Family("flcore_client_failures", "counter", "Tasks that ended without the answer of a client.", JOB),
    Family("flcore_task_retries", "counter", "Retries of tasks below their quorum.", JOB),
    Family("flcore_refusals", "counter", "Refused answers, calls and joins, by kind of refusal.", ("job_id", "reason")),
    Family("flcore_current_round", "gauge", "Number of the present round, the last one of a job that is over.", JOB),
    Family("flcore_planned_rounds", "gauge", "Number of rounds of the contract.", JOB),
    Family("flcore_job_running", "gauge", "1 while the job waits for clients or runs, 0 after its end.", JOB),
    Family("flcore_connected_clients", "gauge", "Clients that are connected.", JOB),
    Family("flcore_clients", "gauge", "Clients by phase of their present or last task.", JOB_AND_PHASE),
    Family("flcore_budget_bytes", "gauge", "Memory budget of the job's payloads.", JOB),
    Family("flcore_staging_budget_bytes", "gauge", "Part of the budget for staged updates.", JOB),
    Family("flcore_staged_bytes", "gauge", "Bytes of staged updates in memory.", JOB),
    Family("flcore_disk_free_bytes", "gauge", "Free bytes on the file system of the server's directory."),
    Family("flcore_disk_size_bytes", "gauge", "Size of the file system of the server's directory."),
    Family("flcore_round_phase_seconds", "histogram", "Duration of each phase of a round at a server.", JOB_AND_PHASE),
    Family("flcore_client_phase_seconds", "histogram", "Duration of each phase of each client's task.", JOB_AND_PHASE),
    Family("flcore_queued_jobs", "gauge", "Jobs that wait for their turn in a standing federation."),
    Family("flcore_running_jobs", "gauge", "Jobs that run."),
    Family("flcore_connected_sites", "gauge", "Sites of a standing federation whose agent is connected."),
)
"""All metrics of flcore. `process_*` are those of prometheus-client: memory, processor, descriptors, start time."""

BUCKETS_S: Sequence[float] = (0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0)
"""The upper bounds of the histograms, in seconds."""
