"""Models on disk that are there as long as somebody holds them."""

import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from flcore.model.model_writer import ShardWriter
from flcore.model.open_file import OpenFile
from flcore.model.shard_layout import ShardLayout, plan_shards
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel


class TemporaryModels:
    """Makes models in files of a directory; the files of each go when it is let go, and all with this object.

    Who wants one to stay gives it another name (`publish`), which takes no second copy. `before_create` is called
    before a model is begun: what was reserved for it can be given back.
    """

    def __init__(self, directory: Path, before_create: Callable[[], None] = lambda: None) -> None:
        self._directory, self._before_create = directory, before_create
        self._numbers = count(1)
        shutil.rmtree(directory, ignore_errors=True)  # what a server that was killed left behind
        self.close = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        """Remove the directory; what is still read stays readable."""

    def __call__(self, spec: ModelSpec) -> "TemporaryWriter":
        """Begin a new model."""
        self._before_create()
        return TemporaryWriter(spec, self._directory / str(next(self._numbers)))


class TemporaryWriter(ShardWriter):
    """Writes one temporary model (a `Target`); nothing waits for the disk."""

    def __init__(self, spec: ModelSpec, directory: Path) -> None:
        super().__init__(plan_shards(spec), _TemporaryDestination(directory))
        self._directory = directory

    def commit(self) -> StoredModel:
        """Return the model, whole."""
        stored = super().commit()
        weakref.finalize(stored, shutil.rmtree, self._directory, ignore_errors=True)
        return stored


class _TemporaryDestination:
    """A directory of its own, for files that nobody else looks at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True)

    def create(self, number: int) -> OpenFile:
        return OpenFile(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def discard(self, count: int) -> None:  # noqa: ARG002 - all files are in the directory
        shutil.rmtree(self._directory, ignore_errors=True)

    def commit(self, shards: ShardLayout, files: Sequence[OpenFile]) -> tuple[Path, ...]:  # noqa: ARG002 - they are in place
        return tuple(self._path(number) for number in range(len(files)))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.safetensors"
