"""Examines images of a disk after a power loss: each is written to a directory and given to a check."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.faults.disk_model import Image
from tests.faults.operations import Mark, Operation, Sync

SHARED_MEMORY = Path("/dev/shm")
"""The place of the images where it exists: there are thousands, and none needs a disk."""

Check = Callable[[Path, Sequence[Mark]], None]
"""Recovers an image in a directory, and raises an error if that is not what the marks have promised."""


@dataclass
class Examination:
    """The result: the number of images, that of different ones, and the failures, as text."""

    images: int = 0
    different: int = 0
    failures: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, images: Iterable[Image], log: Sequence[Operation], check: Check, *, stop_at: int = 5) -> Self:
        """Check images of a log until `stop_at` have failed. An image that equals an earlier one is not checked again.

        Images are equal if they have the same content and the same marks.
        """
        found = cls()
        place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(dir=place) as folder:
            for image in images:
                found._examine(image, log, check, Path(folder) / "image")
                if len(found.failures) >= stop_at:
                    break
        return found

    def _examine(self, image: Image, log: Sequence[Operation], check: Check, directory: Path) -> None:
        self.images += 1
        key = hash((tuple(image.content.items()), len(image.marks)))
        if key in self._seen:
            return
        self._seen.add(key)
        self.different += 1
        directory.mkdir()
        try:
            image.write(directory)
            check(directory, image.marks)
        except Exception as error:  # noqa: BLE001 - each kind of error is a failed recovery
            last = log[image.position - 1] if image.position else None
            self.failures.append(f"position {image.position} after {last}, {image.variant}: {error!r}")
        finally:
            shutil.rmtree(directory)

    def require_success(self, images: int) -> None:
        """Raise `AssertionError` if an image has failed, or if there were fewer than `images`."""
        assert not self.failures, "\n".join(self.failures)
        assert self.images >= images, f"expected {images} images or more, got {self.images}"


def without_syncs(log: Sequence[Operation], matches: Callable[[str], bool]) -> list[Operation]:
    """Return the log of the same program without the fsync calls whose path matches. Raises if none does."""
    left = [each for each in log if not (isinstance(each, Sync) and matches(each.path))]
    assert len(left) < len(log), "no fsync matches: the fault was not planted"
    return left
