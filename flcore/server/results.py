"""The results of a run: its history, its last model and its best one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flcore.errors import JobError
from flcore.model.atomic_replace import publish
from flcore.model.checkpoint import open_model, save
from flcore.model.chunks import GlobalModel
from flcore.model.model_paths import MODEL_SUFFIX
from flcore.model.shard_layout import total_bytes
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel, resolve_checkpoint
from flcore.server.events import ModelPublished, NoBestModel, Observer, ignore_events
from flcore.server.history import RoundRecord
from flcore.server.run_directory import RunDirectory

MAX_HASHED_BYTES = 1 << 20
"""A published file up to this size is read again for its digest, in 1.5 ms at 0.7 GB/s. Larger ones are not."""

MODEL_HEADER_BYTES = 1 << 20
"""Disk space reserved for the headers of a model's files: enough for some thousand tensors."""


class Publication(NamedTuple):
    """What became of a published model: whether it is the best one so far, and the file of its checkpoint, or ""."""

    is_best: bool
    checkpoint: str = ""


class Results:
    """The history and the last model, in memory; with a directory, also on disk after every round.

    Args:
        directory: The run's directory. None: nothing is written.
        best: The contract's `server.best`, such as "accuracy:max". None: there is no best model. The best model is kept
            on disk only.
        observe: Receives `NoBestModel` events. Default: ignores them.
        metadata: The metadata of the models' files. Default: none.
        checkpoint_every: The models of every so many rounds are kept, in files of their own. Default: None, no round's.
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        best: str | None,
        observe: Observer = ignore_events,
        metadata: Mapping[str, str] | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        self.history: list[RoundRecord] = []
        self.model: GlobalModel | None = None
        self._directory, self._best, self._observe = directory, best, observe
        self._metadata, self._checkpoint_every = metadata, checkpoint_every
        self._best_value: float | None = None

    def add(self, record: RoundRecord) -> None:
        """Add the record of a finished round to the history."""
        self.history.append(record)
        if self._directory is not None:
            self._directory.append(record)

    def reserve(self, spec: ModelSpec) -> None:
        """Reserve disk space for the next model, before updates use it. Raises `OSError`."""
        if self._directory is not None:
            self._directory.reserve(total_bytes(spec) + MODEL_HEADER_BYTES)

    def free_reserve(self) -> None:
        """Free the reserved disk space, because the next model is written now."""
        if self._directory is not None:
            self._directory.free_reserve()

    def publish(self, model: GlobalModel, metrics: dict[str, float], round_number: int = 0) -> Publication:
        """Make a model the last one, the best one if its metrics are the best so far, and its round's checkpoint."""
        self.model = model
        is_best, checkpoint = self._is_best(metrics), ""
        if self._directory is not None:
            path = self._directory.path / "model.safetensors"
            self.free_reserve()
            if isinstance(model, StoredModel):
                publish(model, path)
            else:
                save(model, path, self._metadata)
            if self._checkpoint_every is not None and round_number and round_number % self._checkpoint_every == 0:
                checkpoint = f"round-{round_number:05d}.safetensors"
            # Links: the files are not copied (see `publish`).
            for name in (["best.safetensors"] if is_best else []) + ([checkpoint] if checkpoint else []):
                with open_model(path) as stored:
                    publish(stored, self._directory.path / name)
            self._report_publication(model, resolve_checkpoint(path), round_number, is_best=is_best)
        return Publication(is_best, checkpoint)

    def last(self) -> GlobalModel:
        """Return the last model. One in files is opened at its published path, because temporary files are removed."""
        if self._directory is not None and isinstance(self.model, StoredModel):
            return open_model(self._directory.path / "model.safetensors")
        if self.model is None:
            raise JobError("no model was published")
        return self.model

    def _report_publication(self, model: GlobalModel, file: Path, round_number: int, *, is_best: bool) -> None:
        is_small = file.stat().st_size <= MAX_HASHED_BYTES and file.suffix == MODEL_SUFFIX
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if is_small else None
        spec = model.spec
        self._observe(ModelPublished(round_number, file.name, is_best, spec.fingerprint, spec.nbytes, digest))

    def _is_best(self, metrics: dict[str, float]) -> bool:
        if self._best is None:
            return False
        name, _, direction = self._best.partition(":")
        if name not in metrics:
            self._observe(NoBestModel(name, tuple(sorted(metrics))))
            return False
        value = metrics[name] if direction == "max" else -metrics[name]
        if self._best_value is not None and value <= self._best_value:
            return False
        self._best_value = value
        return True
