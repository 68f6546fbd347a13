"""What a run leaves behind: its history, its last model and its best one."""

import hashlib
from pathlib import Path

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
"""What a model's files take beside its elements, at most, but for models of many thousand tensors."""


class Results:
    """Keeps the history and the last model; with a directory, on disk too, after every round.

    `best` is the contract's ("accuracy:max"); the best model is kept on disk only.
    """

    def __init__(self, directory: RunDirectory | None, best: str | None, observe: Observer = ignore_events) -> None:
        self.history: list[RoundRecord] = []
        self.model: GlobalModel | None = None
        self._directory, self._best, self._observe = directory, best, observe
        self._best_value: float | None = None

    def add(self, record: RoundRecord) -> None:
        """Take the record of a round that is over."""
        self.history.append(record)
        if self._directory is not None:
            self._directory.append(record)

    def reserve(self, spec: ModelSpec) -> None:
        """Reserve disk space for the next model, before updates use it. Raises `OSError`."""
        if self._directory is not None:
            self._directory.reserve(total_bytes(spec) + MODEL_HEADER_BYTES)

    def release(self) -> None:
        """Release the reserved disk space, as the next model is written now."""
        if self._directory is not None:
            self._directory.release()

    def keep(self, model: GlobalModel, metrics: dict[str, float], round_number: int = 0) -> bool:
        """Keep a model as the last one, and as the best one if it is; return whether it is."""
        self.model = model
        is_best = self._is_best(metrics)
        if self._directory is not None:
            path = self._directory.path / "model.safetensors"
            self.release()
            if isinstance(model, StoredModel):
                publish(model, path)
            else:
                save(model, path)
            if is_best:
                with open_model(path) as stored:
                    publish(stored, self._directory.path / "best.safetensors")
            self._report_publication(model, resolve_checkpoint(path), round_number, is_best=is_best)
        return is_best

    def last(self) -> GlobalModel:
        """Return the last model: the published one, if it is on disk, so that no other copy of it need stay."""
        if self._directory is not None and isinstance(self.model, StoredModel):
            return open_model(self._directory.path / "model.safetensors")
        if self.model is None:
            raise JobError("no model was kept")
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
        if name not in metrics:  # nobody reported it: this round has no best
            self._observe(NoBestModel(name, tuple(sorted(metrics))))
            return False
        value = metrics[name] if direction == "max" else -metrics[name]
        if self._best_value is not None and value <= self._best_value:
            return False
        self._best_value = value
        return True
