"""Event files of TensorBoard. Needs the extra `tensorboard`, and neither TensorFlow nor PyTorch."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from flcore.server.events import RunEnd
from flcore.tracking.tracker import TrackedRun


class TensorBoardTracker:
    """Writes a run's event files to a directory of its own. A best model is not copied: it is in the run's directory.

    Args:
        directory: The directory of all runs, for `tensorboard --logdir`.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        """Open an event file, and write the contract as hyperparameters."""
        self._writer = EventFileWriter(str(self._directory / run.name))
        parameters = {**run.parameters, **run.digests}
        self._write(hparams_pb(parameters, trial_id=run.id, start_time_secs=time.time()), 0)
        self._writer.flush()

    def log_values(self, round_number: int, values: Mapping[str, float]) -> None:
        """Write the values as scalars, with the round as their step."""
        for name, value in values.items():
            self._write(scalar_pb(name, value), round_number)
        self._writer.flush()

    def log_best_model(self, files: Sequence[Path]) -> None:
        """TensorBoard keeps no models."""

    def end(self, end: RunEnd) -> None:  # noqa: ARG002 - the signature of a tracker
        """Close the event file."""
        self._writer.close()

    def _write(self, summary: Any, step: int) -> None:
        # Serialized and parsed: the summary may be of another protobuf package than the event (TensorFlow's).
        event = Event(wall_time=time.time(), step=step)
        event.summary.ParseFromString(summary.SerializeToString())
        self._writer.add_event(event)
