"""The trackers of a server: each has a queue and a thread of its own for each run, and none can slow or stop one."""

import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flcore.errors import JobError
from flcore.server.background_observer import MAX_QUEUED_EVENTS, BackgroundObserver, LeftAlone
from flcore.server.events import Observer, RoundFinished, RunEnded, RunStarted, notify_all
from flcore.status.observed_run import ObservedRun
from flcore.tracking.best_model import best_model_files
from flcore.tracking.run_values import flat_parameters, round_values
from flcore.tracking.settings import TrackingSettings
from flcore.tracking.tracker import MakeTracker, TrackedRun, Tracker

logger = logging.getLogger(__name__)

PRIVATE = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Variables of the packages that keep reports about their use at home, unless the operator has set them."""

TrackedEvent = RunStarted | RoundFinished | RunEnded


class Trackers:
    """The trackers of a server.

    Args:
        makers: Makes the tracker of one run, by the tracker's name.
        max_model_bytes: The largest best model that trackers get.
        timeout_s: How long the end of a run waits for all trackers together.
        max_events: The most events of a run that wait for a tracker.
    """

    def __init__(
        self,
        makers: Mapping[str, MakeTracker],
        *,
        max_model_bytes: int,
        timeout_s: float,
        max_events: int = MAX_QUEUED_EVENTS,
    ) -> None:
        self._makers, self._max_model_bytes = makers, max_model_bytes
        self._timeout_s, self._max_events = timeout_s, max_events
        self._left_alone = {name: LeftAlone() for name in makers}

    @classmethod
    def of(cls, settings: TrackingSettings) -> "Trackers":
        """Return the trackers that a site.toml names. Imports their packages.

        Raises:
            JobError: A package is not installed, or cannot be imported, or lacks what it needs.
        """
        makers: dict[str, MakeTracker] = {}
        if (directory := settings.tensorboard) is not None:
            tensorboard = _import("tensorboard_tracker", "tensorboard").TensorBoardTracker
            makers["tensorboard"] = lambda: tensorboard(directory)
        if (mlflow_settings := settings.mlflow) is not None:
            mlflow = _import("mlflow_tracker", "mlflow").MlflowTracker
            makers["mlflow"] = lambda: mlflow(mlflow_settings)
        if (wandb_settings := settings.wandb) is not None:
            wandb = _import("wandb_tracker", "wandb").WandbTracker
            if wandb_settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
                raise JobError(
                    'site.toml: tracking.wandb.mode: "online" needs the key of an account in the variable '
                    'WANDB_API_KEY, and it is not set; set it, or take mode = "offline"'
                )
            makers["wandb"] = lambda: wandb(wandb_settings)
        return cls(makers, max_model_bytes=settings.max_model_bytes, timeout_s=settings.timeout_s)

    @contextmanager
    def observe_run(self, run: ObservedRun) -> Iterator[Observer]:
        """Track a run while a block lasts. The end of the block waits for the trackers, for `timeout_s` at most."""
        observers = [
            BackgroundObserver[TrackedEvent](
                name,
                lambda event: event if isinstance(event, TrackedEvent) else None,
                _RunTracking(make, run, name, self._max_model_bytes).handle,
                max_events=self._max_events,
                left_alone=self._left_alone[name],
            )
            for name, make in self._makers.items()
        ]
        for each in observers:
            each.__enter__()
        try:
            yield notify_all(*(each.observe for each in observers))
        finally:
            until_s = time.monotonic() + self._timeout_s
            for each in observers:
                each.begin_close()
            for each in observers:
                each.close(until_s)


class _RunTracking:
    """One run and one tracker, on the tracker's thread."""

    def __init__(self, make: MakeTracker, run: ObservedRun, name: str, max_model_bytes: int) -> None:
        self._make, self._run, self._name, self._max_model_bytes = make, run, name, max_model_bytes
        self._tracked: TrackedRun | None = None
        self._tracker: Tracker | None = None

    def handle(self, event: TrackedEvent) -> None:
        """Pass an event on."""
        match event:
            case RunStarted():
                self._tracked = _tracked(event, self._run)
                self._begun()
            case RoundFinished():
                self._begun().log_values(event.record.round, round_values(event.record))
            case RunEnded():
                if self._tracked is not None:  # else the server could not start
                    self._end(event)

    def _begun(self) -> Tracker:
        """Return the tracker, which has begun the run. One that could not begin it tries it again."""
        if self._tracker is None:
            assert self._tracked is not None  # noqa: S101 - a run starts before its rounds
            tracker = self._make()
            tracker.begin(self._tracked)
            self._tracker = tracker
        return self._tracker

    def _end(self, event: RunEnded) -> None:
        tracker = self._begun()
        try:
            if event.end in ("done", "failed", "aborted"):
                self._log_best_model(tracker)
        finally:
            tracker.end(event.end)

    def _log_best_model(self, tracker: Tracker) -> None:
        files = best_model_files(self._run.directory)
        nbytes = sum(file.stat().st_size for file in files)
        if nbytes > self._max_model_bytes:
            logger.warning(
                "%s does not get the best model: it has %d bytes, and tracking.max_model is %d",
                self._name,
                nbytes,
                self._max_model_bytes,
            )
        elif files:
            tracker.log_best_model(files)


def _tracked(event: RunStarted, run: ObservedRun) -> TrackedRun:
    digests = {
        "contract_fingerprint": event.contract_fingerprint,
        "code_digest": event.code_digest,
        "flcore_version": event.version,
    }
    return TrackedRun(event.run, f"{run.id}-{event.run}", event.job, flat_parameters(run.contract), digests)


def _import(module: str, package: str) -> Any:
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(f"flcore.tracking.{module}")
    except ImportError as error:
        raise JobError(
            f"site.toml: tracking.{package}: the package {package} cannot be imported ({error}); install it with "
            f"`pip install 'flcore[{package}]'`, or remove the key"
        ) from error
