"""The states of a job's server optimizer: one for each training call that was combined, until the next is published.

A restarted server replays the workflow. A call that is combined again begins with the state of the call before it, so
that state stays until the round is over in which the next call's model was published.
"""

import shutil
from pathlib import Path

from flcore.errors import JobError, SpecError
from flcore.model.atomic_replace import publish
from flcore.model.checkpoint import open_model, save
from flcore.model.chunks import GlobalModel
from flcore.model.stored_model import StoredModel, resolve_checkpoint
from flcore.server.run_directory import OPTIMIZER_DIRECTORY


class OptimizerStates:
    """The states by the numbers of their calls, in memory or in the files of a run.

    Args:
        run: The run's directory. None: in memory.
    """

    def __init__(self, run: Path | None) -> None:
        self._directory = None if run is None else run / OPTIMIZER_DIRECTORY
        self._states: dict[int, GlobalModel] = {}

    def before(self, call: int) -> GlobalModel | None:
        """Return the state of the last call before a call; None if there is none.

        Raises `JobError` if its file is damaged.
        """
        earlier = [number for number in self._numbers() if number < call]
        if not earlier:
            return None
        if self._directory is None:
            return self._states[max(earlier)]
        path = self._directory / str(max(earlier))
        try:
            return open_model(path)
        except SpecError as error:
            raise JobError(
                f"{path}, the state of the server's optimizer, is damaged: {error}; put the files of the run's "
                "directory back as the server left them, or begin anew (--fresh)"
            ) from error

    def keep(self, call: int, state: GlobalModel) -> None:
        """Keep the state after a call. In a run's directory it is on the disk when this returns."""
        if self._directory is None:
            self._states[call] = state
        elif isinstance(state, StoredModel):
            publish(state, self._directory / str(call))
        else:
            save(state, self._directory / str(call))

    def release(self, call: int) -> None:
        """The models of the calls up to a call are published: only the last state of these is needed any more."""
        for number in sorted(number for number in self._numbers() if number <= call)[:-1]:
            self._states.pop(number, None)
            if self._directory is not None:
                shutil.rmtree(self._directory / str(number), ignore_errors=True)

    def _numbers(self) -> list[int]:
        if self._directory is None:
            return list(self._states)
        # A directory without a model is what a kill has left of a state.
        found = self._directory.iterdir() if self._directory.is_dir() else ()
        return [int(each.name) for each in found if each.name.isdecimal() and resolve_checkpoint(each).exists()]
