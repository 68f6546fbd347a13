"""The published models in `.published`, under the numbers of their calls: a server that goes on needs their files.

They are kept until the round in which they are replaced is over. Of the rounds that are over, the model that was
published last and the best one are kept; of the round under way, all that it has published. Most are links to the files
of results, and take no space of their own.
"""

from pathlib import Path

from flcore.errors import RecordError, SpecError
from flcore.model.checkpoint import open_model
from flcore.model.chunks import elements_digest
from flcore.model.model_paths import MODEL_SUFFIX
from flcore.model.stored_model import StoredModel, resolve_checkpoint
from flcore.server.run_directory import PUBLISHED_DIRECTORY


class PublishedModels:
    """The published models of one run. It follows the workflow's calls, also those that are answered from the record.

    Args:
        run: The run's directory.
    """

    def __init__(self, run: Path) -> None:
        self._directory = run / PUBLISHED_DIRECTORY
        self._last = self._best = 0
        self._of_round: dict[int, bool] = {}

    def path(self, call: int) -> Path:
        """Return the path of the model of a call."""
        return self._directory / f"{call}{MODEL_SUFFIX}"

    def has(self, call: int) -> bool:
        """Whether the model of a call is there."""
        return resolve_checkpoint(self.path(call)).exists()

    def open(self, call: int) -> StoredModel:
        """Open the model of a call. Raises `RecordError` if it is gone."""
        if not self.has(call):
            raise RecordError(
                f"{self.path(call)}: expected the model that the run has published, got no file; begin anew (--fresh)"
            )
        return open_model(self.path(call))

    def require_undamaged(self, call: int, digest: str) -> None:
        """Raise `RecordError` unless the model of a call is there, and has the digest that is on record."""
        path = self.path(call)
        try:
            with open_model(path) as model:
                reason = "" if elements_digest(model) == digest else "is damaged: it has another digest than on record"
        except FileNotFoundError:
            reason = "is missing, or the run's record has lost its end"
        except SpecError as error:
            reason = f"is damaged: {error}"
        if reason:
            raise RecordError(
                f"{path}, a model that the run has published, {reason}. The run cannot go on without it: put the files "
                f"of its directory back as the server left them, or keep that run beside a new one (--fresh)"
            )

    def add(self, call: int, *, is_best: bool) -> None:
        """A call of the round under way has published its model."""
        self._of_round[call] = is_best

    def end_round(self) -> bool:
        """The round under way is over. Returns whether it has published a model."""
        for call, is_best in self._of_round.items():
            self._last = call
            self._best = call if is_best else self._best
        has_published = bool(self._of_round)
        self._of_round.clear()
        return has_published

    def remove_others(self, *kept: int) -> None:
        """Remove the models that no call needs any more, but keep those of `kept` calls."""
        if not self._directory.exists():
            return
        calls = {self._last, self._best, *self._of_round, *kept}
        starts = tuple(f"{call}{separator}" for call in calls for separator in "-.")
        for path in self._directory.iterdir():
            if not path.name.startswith(starts):
                path.unlink(missing_ok=True)
