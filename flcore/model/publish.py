"""The same files under another name: a checkpoint that takes no second copy on the disk."""

import errno
import os

from flcore.model.atomic_replace import AtomicReplace
from flcore.model.model_paths import PathLike, split_model_path
from flcore.model.open_file import OpenFile
from flcore.model.stored_model import StoredModel

COPIED_BYTES = 2 << 20
"""How much is copied at a time, where files cannot be linked."""

NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT}
"""Another file system, one without links, a file that is not ours to link, or one that has lost its name."""


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
