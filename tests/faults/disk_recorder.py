"""Records writes, syncs and changes of names below a directory, in the order in which they happen.

The recorder replaces functions of `os` and `open` for a while. A file is known by the inode of its descriptor, so that
copied descriptors, renamed files and hard links need no table. Each operation is done and logged under one lock, so
the log has the order of the effects, also with many threads.

`require_complete` replays the log and compares the result with the directory: a change that went around the recorder
is an error, not a gap.
"""

import builtins
import fcntl
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any
from unittest import mock

from tests.faults.operations import Mark, NameChange, Operation, Resize, Sync, Write

ROOT_INODE = 0


class DiskRecorder:
    """The log of the operations below one directory, which is empty at the beginning.

    Args:
        root: The directory.
        last_number: The highest number of a file or directory in an earlier log. Default: there is no earlier log.

    Attributes:
        log: The operations, in order.
    """

    def __init__(self, root: Path, last_number: int = ROOT_INODE) -> None:
        if any(root.iterdir()):
            raise ValueError(f"expected an empty directory, got {root}: recording begins with nothing on the disk")
        self.root, self.log = root.resolve(), list[Operation]()
        self.lock = threading.RLock()
        self._numbers = count(last_number + 1)
        self._inodes = {_key(root.stat()): ROOT_INODE}

    def mark(self, name: str, /, **facts: Any) -> None:
        """Log a fact that the program's caller knows from now on."""
        with self.lock:
            self.log.append(Mark(name, facts))

    def add(self, operation: Operation) -> None:
        """Log an operation that a recorder of another kind has seen. Call it with the lock."""
        self.log.append(operation)

    def inode(self, found: os.stat_result) -> int | None:
        """Return the number of a file or directory; None if it is not below the root."""
        return self._inodes.get(_key(found))

    def add_inode(self, found: os.stat_result) -> int:
        """Number a new file or directory. The system may have used its inode before, for one that is gone."""
        number = self._inodes[_key(found)] = next(self._numbers)
        return number

    def adopt(self, found: os.stat_result, inode: int) -> None:
        """Give a file or directory the number that it has in an earlier log."""
        self._inodes[_key(found)] = inode

    def drop_inode(self, found: os.stat_result) -> None:
        """Forget an inode that is gone."""
        self._inodes.pop(_key(found), None)

    def place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """Return the directory and the name that a path means; None if the directory is not below the root."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path).rstrip("/")
        try:
            found = os.stat(os.path.dirname(text) or ".", dir_fd=dir_fd)  # noqa: PTH120 - a path below a descriptor
        except OSError:
            return None
        inode = self.inode(found)
        return None if inode is None else (inode, os.path.basename(text))  # noqa: PTH119

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Replace the functions of `os` and `open` as long as the context is open."""
        shims = _Shims(self)
        replaced = [(os, name, shim) for name, shim in shims.functions().items()]
        replaced += [(builtins, "open", shims.open_file), (io, "open", shims.open_file)]
        with ExitStack() as patches:
            for module, name, shim in replaced:
                patches.enter_context(mock.patch.object(module, name, shim))
            yield


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class _Shims:
    """The functions in place of those of `os`."""

    def __init__(self, recorder: DiskRecorder) -> None:
        self._recorder, self._add = recorder, recorder.add
        self._real_open_file = io.open

    def functions(self) -> dict[str, Callable[..., Any]]:
        names = ("open", "write", "pwrite", "pwritev", "truncate", "ftruncate", "posix_fallocate", "fsync", "fdatasync")
        shims = {name: getattr(self, f"_{name}") for name in (*names, "link", "unlink", "mkdir", "rmdir")}
        return {
            name: self._locked(shim, getattr(os, name))
            for name, shim in {
                **shims, "remove": self._unlink, "rename": self._rename, "replace": self._rename
            }.items()
        }  # fmt: skip

    def _locked(self, shim: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            with self._recorder.lock:
                return shim(real, *args, **keywords)

        return call

    def open_file(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **keywords: Any) -> IO[Any]:
        """Open a file; one that is written below the root gets a raw file that logs its writes."""
        if not set(mode) & set("wax+") or self._recorder.place(file) is None or keywords.get("opener"):
            return self._real_open_file(file, mode, buffering, *args, **keywords)
        raw = _RecordedFile(self._recorder, file, mode)
        # An unbuffered file over the recorded one: text layers and buffers are the standard library's.
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **keywords)

    def _file(self, descriptor: int) -> int | None:
        found = os.fstat(descriptor)
        return self._recorder.inode(found) if stat.S_ISREG(found.st_mode) else None

    def _open(self, real: Callable[..., int], path: Any, flags: int, *args: Any, **keywords: Any) -> int:
        place = self._recorder.place(path, keywords.get("dir_fd")) if flags & (os.O_CREAT | os.O_TRUNC) else None
        before = _stat(path, keywords.get("dir_fd")) if place else None
        descriptor = real(path, flags, *args, **keywords)
        if place and before is None:
            self._add(NameChange(((*place, self._recorder.add_inode(os.fstat(descriptor))),), text=f"create {path}"))
        elif before is not None and flags & os.O_TRUNC and before.st_size:
            self._resized(descriptor, 0)
        return descriptor

    def _write(self, real: Callable[..., int], descriptor: int, data: Any) -> int:
        file = self._file(descriptor)
        if file is None:
            return real(descriptor, data)
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        offset = os.fstat(descriptor).st_size if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
        written = real(descriptor, data)
        self._add(Write(file, offset, bytes(memoryview(data).cast("B")[:written])))
        return written

    def _pwrite(self, real: Callable[..., int], descriptor: int, data: Any, offset: int) -> int:
        return self._pwritev(lambda number, buffers, at: real(number, buffers[0], at), descriptor, [data], offset)

    def _pwritev(self, real: Callable[..., int], descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        written = real(descriptor, buffers, offset, *flags)
        if (file := self._file(descriptor)) is not None:
            self._add(Write(file, offset, b"".join(bytes(memoryview(each)) for each in buffers)[:written]))
        return written

    def _truncate(self, real: Callable[..., None], path: Any, length: int) -> None:
        real(path, length)
        file = self._file(path) if isinstance(path, int) else self._recorder.inode(Path(path).stat())
        if file is not None:
            self._add(Resize(file, length))

    def _ftruncate(self, real: Callable[..., None], descriptor: int, length: int) -> None:
        real(descriptor, length)
        self._resized(descriptor, length)

    def _posix_fallocate(self, real: Callable[..., None], descriptor: int, offset: int, length: int) -> None:
        before = os.fstat(descriptor).st_size
        real(descriptor, offset, length)
        if offset + length > before:
            self._resized(descriptor, offset + length)

    def _resized(self, descriptor: int, size: int) -> None:
        if (file := self._file(descriptor)) is not None:
            self._add(Resize(file, size))

    def _fsync(self, real: Callable[..., None], descriptor: Any) -> None:
        real(descriptor)
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if (inode := self._recorder.inode(os.fstat(number))) is not None:
            path = Path(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
            self._add(Sync(inode, str(path.relative_to(self._recorder.root))))

    _fdatasync = _fsync

    def _rename(self, real: Callable[..., None], source: Any, target: Any, **folders: Any) -> None:
        source_fd, target_fd = folders.get("src_dir_fd"), folders.get("dst_dir_fd")
        old, new = self._recorder.place(source, source_fd), self._recorder.place(target, target_fd)
        found, replaced = _stat(source, source_fd), _stat(target, target_fd)
        real(source, target, **folders)
        if (old is None) != (new is None):
            raise ValueError(f"a rename across the recorded directory's border: {source} to {target}")
        if old is None or new is None or found is None or (replaced is not None and _key(found) == _key(replaced)):
            return  # the system does nothing if both names belong to one file
        self._add(NameChange(((*old, None), (*new, self._recorder.inode(found))), text=f"rename {source} to {target}"))

    def _link(self, real: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        real(source, target, **options)
        place, found = self._recorder.place(target, options.get("dst_dir_fd")), _stat(source, options.get("src_dir_fd"))
        if place is not None and found is not None:
            self._add(NameChange(((*place, self._recorder.inode(found)),), text=f"link {source} to {target}"))

    def _unlink(self, real: Callable[..., None], path: Any, *, dir_fd: int | None = None) -> None:
        place = self._recorder.place(path, dir_fd)
        real(path, dir_fd=dir_fd)
        if place is not None:
            self._add(NameChange(((*place, None),), text=f"unlink {path}"))

    def _mkdir(self, real: Callable[..., None], path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        place, found = self._recorder.place(path, dir_fd), _stat(path, dir_fd)
        if place is not None and found is not None:
            self._add(NameChange(((*place, self._recorder.add_inode(found)),), is_directory=True, text=f"mkdir {path}"))

    def _rmdir(self, real: Callable[..., None], path: Any, *, dir_fd: int | None = None) -> None:
        place, found = self._recorder.place(path, dir_fd), _stat(path, dir_fd)
        real(path, dir_fd=dir_fd)
        if place is not None and found is not None:
            self._recorder.drop_inode(found)
            self._add(NameChange(((*place, None),), text=f"rmdir {path}"))


class _RecordedFile(io.FileIO):
    """The raw file below an `open` for writing. The standard library's buffers call its methods."""

    def __init__(self, recorder: DiskRecorder, file: Any, mode: str) -> None:
        self._recorder = recorder
        super().__init__(
            file, mode.replace("b", "").replace("t", ""), opener=lambda path, flags: os.open(path, flags, 0o666)
        )

    def write(self, data: Any, /) -> int:
        return os.write(self.fileno(), data)

    def truncate(self, size: int | None = None, /) -> int:
        length = self.tell() if size is None else size
        os.ftruncate(self.fileno(), length)
        return length


def _stat(path: Any, dir_fd: int | None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return None
