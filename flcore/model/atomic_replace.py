"""Atomic replacement of a model's files: written or linked under hidden names, then switched to in one rename.

A model called `model` is `model.safetensors`, or `model.safetensors.index.json` and its shards, whose names no earlier
model had. Loaders take the single file before the index. So the one moment at which the new model takes the place of
the old is the rename of the single file, or that of the index; or, where an old single file hides the index, the
removal of that. A power cut before it leaves the old model whole; one after it, the new one.

`publish` gives the files of a stored model another name in this way, without a second copy on the disk.
"""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flcore.errors import SpecError
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX, PathLike, split_model_path
from flcore.model.open_file import OpenFile
from flcore.model.shard_layout import ShardLayout, encode_index, read_index, total_bytes
from flcore.model.stored_model import StoredModel

COPIED_BYTES = 2 << 20
"""How much is copied at a time, where files cannot be linked."""

NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT}
"""Another file system, one without links, a file that is not ours to link, or one that has lost its name."""


class AtomicReplace:
    """The hidden places beside a model that is to be replaced, or made: `directory/name`, with no suffix."""

    def __init__(self, directory: Path, name: str) -> None:
        """Make the directory if there is none, and remove what writers that have died left beside this model."""
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise SpecError(f"a model's name is one of a file, without its suffix, not {name!r}")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise SpecError(
                f"cannot make the directory {directory}: it, or one above it, is a file; choose another place"
            ) from error
        self.directory, self.name = directory, name
        _remove_stale(directory, name)
        self._token = secrets.token_hex(4)
        while any(self._token in entry.name for entry in directory.iterdir()):
            self._token = secrets.token_hex(4)

    def partial_path(self, number: int) -> Path:
        """Return where file `number` is written."""
        return self.directory / f".{self.name}.{self._token}.{number}.partial"

    def create(self, number: int) -> OpenFile:
        """Create the hidden file `number`, and lock it: as long as it is locked, nobody sweeps it away."""
        file = OpenFile(self.partial_path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with suppress(OSError):  # a file system without locks; there, sweeping removes nothing either
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def discard(self, count: int) -> None:
        """Remove what is left of `count` hidden files, and of an index."""
        for number in range(-1, count):
            self.partial_path(number).unlink(missing_ok=True)

    def commit(self, shards: ShardLayout, files: Sequence[OpenFile]) -> tuple[Path, ...]:
        """See that the hidden files are on the disk, and make them the model; return their names.

        What an earlier model of this name consisted of is removed; nothing else is.
        """
        for file in files:
            os.fsync(file.descriptor)
        single, index = self.directory / f"{self.name}{MODEL_SUFFIX}", self.directory / f"{self.name}{INDEX_SUFFIX}"
        old = _previous_shards(index, self.name)
        if not shards.has_index:
            self.partial_path(0).replace(single)
            _fsync_directory(self.directory)
            _remove([index, *sorted(old)])
            return (single,)
        shown = self._commit_shards(shards, index)
        _fsync_directory(self.directory)
        _remove([single, *sorted(old)])
        return shown

    def _commit_shards(self, shards: ShardLayout, index: Path) -> tuple[Path, ...]:
        """Give the shards their names, then write the index that leads to them."""
        count = len(shards.headers)
        files = tuple(
            self.directory / f"{self.name}-{self._token}-{number + 1:05d}-of-{count:05d}{MODEL_SUFFIX}"
            for number in range(count)
        )
        try:
            for number, path in enumerate(files):
                self.partial_path(number).replace(path)
            _fsync_directory(self.directory)
            weight_map = {tensor.name: files[shards.locations[tensor.name].file].name for tensor in shards.spec.tensors}
            index_file = self.create(-1)
            index_file.write_at([memoryview(encode_index(weight_map, total_bytes(shards.spec)))], 0)
            os.fsync(index_file.descriptor)
            index_file.path.replace(index)
        except OSError:
            _remove(files)
            raise
        return files


def _previous_shards(index: Path, name: str) -> set[Path]:
    """Return the files that the present index names, if they are called as shards of this model are."""
    shard = re.compile(rf"{re.escape(name)}-([0-9a-f]{{8}}-)?\d{{5}}-of-\d{{5}}{re.escape(MODEL_SUFFIX)}")
    with suppress(FileNotFoundError, SpecError):
        return {index.with_name(file) for file in read_index(index).values() if shard.fullmatch(file)}
    return set()


def _remove_stale(directory: Path, name: str) -> None:
    """Remove hidden files, and shards that no index leads to, of writers of this model that have died."""
    ours = re.compile(
        rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.-?\d+\.partial|"
        rf"{re.escape(name)}-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}{re.escape(MODEL_SUFFIX)}"
    )
    used = _previous_shards(directory / f"{name}{INDEX_SUFFIX}", name)
    for entry in [entry for entry in directory.iterdir() if ours.fullmatch(entry.name) and entry not in used]:
        with suppress(OSError):  # locked: somebody is writing it
            file = OpenFile(entry, os.O_RDWR)
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.unlink()


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(stored: StoredModel, path: PathLike) -> None:
    """Make a stored model appear as `path` too (see `split_model_path`), in place of what is there.

    Its files are linked, not copied, so nobody should change them in place; only across file systems are they copied.
    A model with an index stays one, and gets an index beside `path` (see `ModelWriter`).
    """
    replacement = AtomicReplace(*split_model_path(path))
    files = stored.open_files
    try:
        for number, file in enumerate(files):
            _link(file, replacement, number)
        replacement.commit(stored.shards, files)
    finally:
        replacement.discard(len(files))


def _link(file: OpenFile, replacement: AtomicReplace, number: int) -> None:
    hidden = replacement.partial_path(number)
    try:
        os.link(file.path.resolve(), hidden)  # of a symbolic link, what it leads to
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    else:
        if os.path.samestat(hidden.stat(), os.fstat(file.descriptor)):
            return
        hidden.unlink()  # the name belongs to a newer file by now
    _copy(file, replacement.create(number))


def _copy(file: OpenFile, target: OpenFile) -> None:
    size = file.size
    buffer = memoryview(bytearray(min(COPIED_BYTES, size)))
    for offset in range(0, size, COPIED_BYTES):
        part = buffer[: min(COPIED_BYTES, size - offset)]
        file.read_at([part], offset)
        target.write_at([part], offset)
    os.fsync(target.descriptor)
