"""Baselines of a federated model: each client alone, and all data in one place."""

from collections.abc import Mapping
from dataclasses import dataclass

from flcore.errors import JobError
from flcore.job.job import Job


@dataclass(frozen=True)
class Baselines:
    """The job's metric for models trained without a federation, all evaluated on the same held-out data.

    A job's function (`baselines = "file.py:name"`) takes the `Job` and returns its baselines.

    Args:
        alone: By client, the metric of a model trained on this client's data.
        centralised: The metric of a model trained on all data in one place.

    Example:
        >>> Baselines({"a": 0.81, "b": 0.78}, 0.93).centralised
        0.93
    """

    alone: Mapping[str, float]
    centralised: float


def compute_baselines(job: Job) -> Baselines | None:
    """Compute a job's baselines, or return None for a job without."""
    reference = job.contract.baselines
    if reference is None:
        return None
    baselines = job.load_reference("baselines", reference)(job)
    if not isinstance(baselines, Baselines):
        raise JobError(f"baselines: {reference} returned {type(baselines).__name__}, expected flcore.Baselines")
    return baselines
