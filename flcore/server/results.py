"""What a run leaves behind: its history, its last model and its best one."""

from flcore.errors import JobError
from flcore.model.atomic_replace import publish
from flcore.model.checkpoint import open_model, save
from flcore.model.chunks import GlobalModel
from flcore.model.shard_layout import total_bytes
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel
from flcore.server.events import NoBestModel, Observer, ignore_events
from flcore.server.history import RoundRecord
from flcore.server.run_directory import RunDirectory

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

    def free_reserve(self) -> None:
        """Release the reserved disk space, as the next model is written now."""
        if self._directory is not None:
            self._directory.free_reserve()

    def publish(self, model: GlobalModel, metrics: dict[str, float]) -> bool:
        """Keep a model as the last one, and as the best one if it is; return whether it is."""
        self.model = model
        is_best = self._is_best(metrics)
        if self._directory is not None:
            path = self._directory.path / "model.safetensors"
            self.free_reserve()
            if isinstance(model, StoredModel):
                publish(model, path)
            else:
                save(model, path)
            if is_best:
                with open_model(path) as stored:
                    publish(stored, self._directory.path / "best.safetensors")
        return is_best

    def last(self) -> GlobalModel:
        """Return the last model: the published one, if it is on disk, so that no other copy of it need stay."""
        if self._directory is not None and isinstance(self.model, StoredModel):
            return open_model(self._directory.path / "model.safetensors")
        if self.model is None:
            raise JobError("no model was kept")
        return self.model

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
