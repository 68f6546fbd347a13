"""Models on disk that are there as long as somebody holds them."""

import shutil
import weakref
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from flcore.model.spec import ModelSpec
from flcore.model.stored import StoredModel
from flcore.model.writer import ModelWriter


class TemporaryModels:
    """Makes models in files of a directory; the files of each go when it is let go, and the directory with the last.

    Who wants one to stay gives it another name (`publish`), which takes no second copy.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count(1)
        shutil.rmtree(directory, ignore_errors=True)  # what a server that was killed left behind

    def __call__(self, spec: ModelSpec) -> "TemporaryWriter":
        """Begin a new model."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return TemporaryWriter(ModelWriter(spec, self._directory, f"model-{next(self._numbers)}"))


class TemporaryWriter:
    """Writes one temporary model (a `Target`)."""

    def __init__(self, writer: ModelWriter) -> None:
        self.spec = writer.spec
        self._writer = writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abort()

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Return an array to fill (see `ModelWriter.chunk`)."""
        return self._writer.chunk(segment, first, stop)

    def put(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Write elements (see `ModelWriter.put`)."""
        self._writer.put(segment, first, values)

    def commit(self) -> StoredModel:
        """Return the model, whole; nothing waits for the disk."""
        stored = self._writer.commit()
        weakref.finalize(stored, _remove, stored.files)
        return stored
