"""Runs in MLflow: a tracking server, or a directory with a database. Needs the extra `mlflow`."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from flcore.server.events import RunEnd
from flcore.tracking.settings import MlflowSettings, is_uri
from flcore.tracking.tracker import TrackedRun

RUN_TAG = "flcore.run"
"""The tag with the run's id, by which a run that goes on is found."""

MAX_METRICS, MAX_PARAMETERS = 1_000, 100
"""The most of each in one request."""

STATES: Mapping[RunEnd, str] = {
    "done": "FINISHED",
    "failed": "FAILED",
    "interrupted": "FAILED",
    "aborted": "KILLED",
    "stopped": "KILLED",
}

Item = TypeVar("Item")

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


class MlflowTracker:
    """Tracks a run with a client of MLflow. Not with its global functions: jobs run side by side.

    Args:
        settings: The table of site.toml.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._run_id = ""

    def begin(self, run: TrackedRun) -> None:
        """Create the run, or go on with the one that has the same id. The contract's keys are its parameters."""
        uri, artifacts = self._settings.uri, None
        if not is_uri(uri):  # MLflow has no more than databases for directories
            directory = Path(uri)
            directory.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{directory / 'mlflow.db'}", (directory / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(self._settings.experiment or run.job, artifacts)
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.id, **{f"flcore.{name}": value for name, value in run.digests.items()}}
            self._run_id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        for batch in _batches([Param(name, str(value)) for name, value in run.parameters.items()], MAX_PARAMETERS):
            self._client.log_batch(self._run_id, params=batch)

    def log_values(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values as metrics, with the round as their step."""
        now_ms = int(time.time() * 1000)
        for batch in _batches(
            [Metric(name, float(value), now_ms, round_number) for name, value in values.items()], MAX_METRICS
        ):
            self._client.log_batch(self._run_id, metrics=batch)

    def log_best_model(self, files: Sequence[Path]) -> None:
        """Store the best model under the artifacts of the run, in `best-model`."""
        for file in files:
            self._client.log_artifact(self._run_id, str(file), "best-model")

    def end(self, end: RunEnd) -> None:
        """Give the run its state."""
        self._client.set_tag(self._run_id, "flcore.end", end)
        self._client.set_terminated(self._run_id, STATES[end])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """Return the id of the experiment, which is created if it is missing."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another job has just created it
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
