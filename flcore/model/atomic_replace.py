"""Atomic replacement of a model's files: written or linked under hidden names, then renamed.

A model called `model` is either the file `model.safetensors`, or the index `model.safetensors.index.json` and its
shards. Shards get names that no earlier model had. One step replaces the old model by the new one:

- a single file: the rename of the file; loaders prefer it to an index that is still there;
- shards: the rename of the index; if an old single file is there, which loaders prefer, its removal.

All data is on disk (fsync) before this step, as are the names of directories that were created for it. The step itself
is on disk when the replacement returns, and all other old files are removed after it. A power failure before it leaves
the old model, one after it the new model, always complete (`tests/faults/test_power_loss.py`).

`publish` gives the files of a stored model another name in this way, without a second copy on disk.
"""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flcore.disk_errors import named
from flcore.disk_sync import create_directory as create_directory
from flcore.disk_sync import sync_directory as sync_directory
from flcore.disk_sync import sync_file as sync_file
from flcore.errors import SpecError
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX, PathLike, split_model_path
from flcore.model.open_file import OpenFile
from flcore.model.shard_layout import ShardLayout, encode_index, read_index, total_bytes
from flcore.model.stored_model import StoredModel

COPIED_BYTES = 2 << 20
"""The bytes that are copied at a time, if files cannot be linked."""

NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT}
"""Errors of link(2) after which the file is copied.

They mean another file system, one without hard links or with too many links, a file of another owner (protected hard
links), or a name that no longer exists.
"""

PARTIAL = re.compile(r"\.[0-9a-f]{8}\.-?\d+\.partial")
OWN_SHARD = re.compile(rf"-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}{re.escape(MODEL_SUFFIX)}")
SHARD = re.compile(rf"-([0-9a-f]{{8}}-)?\d{{5}}-of-\d{{5}}{re.escape(MODEL_SUFFIX)}")
"""How the names of a model's files go on after the model's name.

The patterns are fixed: Python caches each pattern that it compiles, and a run publishes each model under a new name.
"""


class AtomicReplace:
    """The hidden files of a new model, beside the model that it replaces. A `Destination` of a `ShardWriter`.

    Args:
        directory: The model's directory. It is created if needed.
        name: The model's name in it, without suffix.

    Raises:
        SpecError: The name is no plain file name, or the directory is a file.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Create the directory, and remove the hidden files of writers that died."""
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise SpecError(f"expected a model's name, a file name without suffix, got {name!r}")
        try:
            create_directory(directory)
        except (FileExistsError, NotADirectoryError) as error:
            raise SpecError(
                f"cannot create the directory {directory}: it, or a directory above it, is a file; choose another place"
            ) from error
        self.directory, self.name = directory, name
        _remove_stale(directory, name)
        self._token = secrets.token_hex(4)
        while any(self._token in entry.name for entry in directory.iterdir()):
            self._token = secrets.token_hex(4)

    def partial_path(self, number: int) -> Path:
        """Return the hidden path of file `number`; -1 is the index."""
        return self.directory / f".{self.name}.{self._token}.{number}.partial"

    def create(self, number: int) -> OpenFile:
        """Create the hidden file `number` and lock it. `_remove_stale` of another process leaves locked files alone."""
        file = OpenFile(self.partial_path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with suppress(OSError):  # a file system without locks, where `_remove_stale` removes nothing either
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def discard(self, count: int) -> None:
        """Remove `count` hidden files and a hidden index, those that still exist."""
        for number in range(-1, count):
            self.partial_path(number).unlink(missing_ok=True)

    def commit(self, shards: ShardLayout, files: Sequence[OpenFile]) -> tuple[Path, ...]:
        """Replace the model by the hidden files, after they are flushed to disk.

        Removes the files of the earlier model of this name, and no other file.

        Args:
            shards: The layout of the files.
            files: The hidden files, complete.

        Returns:
            The new names of the files.
        """
        for file in files:  # before any rename: a renamed file without its data would be a corrupt model
            with named(file.path):
                os.fsync(file.descriptor)
        single, index = self.directory / f"{self.name}{MODEL_SUFFIX}", self.directory / f"{self.name}{INDEX_SUFFIX}"
        previous = _previous_shards(index, self.name)  # before the index is replaced
        if not shards.has_index:
            self.partial_path(0).replace(single)
            sync_directory(self.directory)
            _remove([index, *sorted(previous)])
            return (single,)
        published = self._commit_shards(shards, index)
        sync_directory(self.directory)
        if single.exists():  # its removal replaces the model, so a power failure must not undo it
            _remove([single])
            sync_directory(self.directory)
        _remove(sorted(previous))
        return published

    def _commit_shards(self, shards: ShardLayout, index: Path) -> tuple[Path, ...]:
        """Rename the shards, then write and rename the index that names them.

        The directory is flushed in between: an index on disk must never name a shard whose rename was lost.
        """
        count = len(shards.headers)
        files = tuple(
            self.directory / f"{self.name}-{self._token}-{number + 1:05d}-of-{count:05d}{MODEL_SUFFIX}"
            for number in range(count)
        )
        try:
            for number, path in enumerate(files):
                self.partial_path(number).replace(path)
            sync_directory(self.directory)
            weight_map = {tensor.name: files[shards.locations[tensor.name].file].name for tensor in shards.spec.tensors}
            index_file = self.create(-1)
            index_file.write_at([memoryview(encode_index(weight_map, total_bytes(shards.spec)))], 0)
            with named(index):
                os.fsync(index_file.descriptor)
            index_file.path.replace(index)
        except OSError:
            _remove(files)
            raise
        return files


def _previous_shards(index: Path, name: str) -> set[Path]:
    """Return the shards of the present model: the files in its index whose names have the form of its shards.

    An index may also name files that flcore did not write for this model. They are never removed.
    """
    with suppress(FileNotFoundError, SpecError):
        return {index.with_name(file) for file in read_index(index).values() if _continues(file, name, SHARD)}
    return set()


def _remove_stale(directory: Path, name: str) -> None:
    """Remove files that dead writers of this model left: hidden files, and shards that the index does not name."""
    used = _previous_shards(directory / f"{name}{INDEX_SUFFIX}", name)
    for entry in [entry for entry in directory.iterdir() if _is_ours(entry.name, name) and entry not in used]:
        with suppress(OSError):  # locked by a writer that is alive
            file = OpenFile(entry, os.O_RDWR)
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.unlink()


def _is_ours(file: str, name: str) -> bool:
    """Whether a file has the name of a hidden file or of a shard of a model, as this module gives them."""
    return _continues(file, f".{name}", PARTIAL) or _continues(file, name, OWN_SHARD)


def _continues(file: str, start: str, rest: re.Pattern[str]) -> bool:
    return file.startswith(start) and rest.fullmatch(file, len(start)) is not None


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def publish(stored: StoredModel, path: PathLike) -> None:
    """Give a stored model another name, in place of the model that has it.

    The files are linked, not copied, so they must not be changed in place. They are copied only if they cannot be
    linked, as across file systems.

    Args:
        stored: The model.
        path: The other name (see `split_model_path`). A model with an index gets an index there.

    Raises:
        SpecError: The path is invalid.
        OSError: The files cannot be linked, copied or renamed.
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
        os.link(file.path.resolve(), hidden)  # the target of a symbolic link, as link(2) may link the symbolic link
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    else:
        if os.path.samestat(hidden.stat(), os.fstat(file.descriptor)):
            return
        hidden.unlink()  # another writer has replaced the file: the name belongs to a newer one
    _copy(file, replacement.create(number))


def _copy(file: OpenFile, target: OpenFile) -> None:
    size = file.size
    buffer = memoryview(bytearray(min(COPIED_BYTES, size)))
    for offset in range(0, size, COPIED_BYTES):
        block = buffer[: min(COPIED_BYTES, size - offset)]
        file.read_at([block], offset)
        target.write_at([block], offset)
    os.fsync(target.descriptor)
