"""What a run leaves behind: its history, its last model and its best one."""

from pathlib import Path

from flcore.errors import JobError
from flcore.model.checkpoint import open_model, save
from flcore.model.chunks import GlobalModel
from flcore.model.publish import publish
from flcore.model.stored import StoredModel
from flcore.server.history import RoundRecord, write_history


class Results:
    """Keeps the history and the last model; with a directory, on disk too, after every round.

    `best` is the contract's ("accuracy:max"); the best model is kept on disk only.
    """

    def __init__(self, directory: Path | None, best: str | None) -> None:
        self.history: list[RoundRecord] = []
        self.model: GlobalModel | None = None
        self._directory, self._best = directory, best
        self._best_value: float | None = None

    def add(self, record: RoundRecord) -> None:
        """Take the record of a round that is over."""
        self.history.append(record)
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_history(self.history, self._directory / "history.jsonl")

    def keep(self, model: GlobalModel, metrics: dict[str, float]) -> bool:
        """Keep a model as the last one, and as the best one if it is; return whether it is."""
        self.model = model
        is_best = self._is_best(metrics)
        if self._directory is not None:
            path = self._directory / "model.safetensors"
            if isinstance(model, StoredModel):
                publish(model, path)
            else:
                save(model, path)
            if is_best:
                with open_model(path) as stored:
                    publish(stored, self._directory / "best.safetensors")
        return is_best

    def last(self) -> GlobalModel:
        """Return the last model: the published one, if it is on disk, so that no other copy of it need stay."""
        if self._directory is not None and isinstance(self.model, StoredModel):
            return open_model(self._directory / "model.safetensors")
        if self.model is None:
            raise JobError("no model was kept")
        return self.model

    def _is_best(self, metrics: dict[str, float]) -> bool:
        if self._best is None or not metrics:
            return False
        name, _, direction = self._best.partition(":")
        if name not in metrics:
            raise JobError(f"server.best: the clients report {', '.join(metrics)}, but not {name!r}")
        value = metrics[name] if direction == "max" else -metrics[name]
        if self._best_value is not None and value <= self._best_value:
            return False
        self._best_value = value
        return True
