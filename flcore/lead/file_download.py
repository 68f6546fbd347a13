"""The download of a job's files: in parts, checked by SHA-256, never outside the given directory.

A file is `NAME.partial` until it is whole and checked. The next download of it resumes there.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from flcore.disk_errors import named
from flcore.errors import DownloadError
from flcore.federation.messages import FileList, FilePart, JobFile, ListFiles, ReadFile
from flcore.lead.pack_upload import TransferObserver, file_sha256
from flcore.lead.server_calls import TRANSFER_GIVE_UP_S, TRANSFER_TIMEOUT_S, ServerCalls
from flcore.text import printable

PARTIAL_SUFFIX = ".partial"
MAX_TRIES = 3
"""How often a file is fetched that changes meanwhile, as one of a running job does."""

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class DownloadedFile:
    """One file of a download.

    Attributes:
        name: Its name in the job, relative, with slashes.
        path: Where it is now.
        nbytes: Its size.
        sha256: Its digest.
        change: Whether it is new, replaced another file, or was there already with this content.
    """

    name: str
    path: Path
    nbytes: int
    sha256: str
    change: Literal["new", "replaced", "unchanged"]


def target_paths(files: Iterable[JobFile], directory: Path) -> dict[str, Path]:
    """Return the path of each file in a directory, by its name. Raises `DownloadError` for one that would leave it."""
    root, targets = directory.resolve(), dict[str, Path]()
    for file in files:
        parts = file.name.split("/")
        is_plain = all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts)
        target = root.joinpath(*parts)
        # A symbolic link in the directory may lead out of it.
        if not is_plain or not target.parent.resolve().is_relative_to(root) or file.name in targets:
            raise DownloadError(
                f"expected names of files within the job, each once, got {printable(file.name, 200)!r}; nothing was "
                f"downloaded: ask the operator of the server"
            )
        targets[file.name] = target
    return targets


def main_file(files: Iterable[JobFile], name: str) -> JobFile | None:
    """Return the file of this name that is in no directory, or in the fewest; None if there is none."""
    found = [file for file in files if PurePosixPath(file.name).name == name]
    return min(found, key=lambda file: file.name.count("/"), default=None)


def list_files(job: str, ask: Callable[[ListFiles], FileList]) -> list[JobFile]:
    """Return a job's files that can be downloaded. `ask` sends a request for one page of them."""
    files = list[JobFile]()
    is_more = True
    while is_more:
        page = ask(ListFiles(id=job, after=files[-1].name if files else ""))
        files += page.files
        is_more = page.is_more and bool(page.files)
    return files


def download_file(
    calls: ServerCalls,
    job: str,
    file: JobFile,
    target: Path,
    *,
    overwrite: bool = False,
    observe: TransferObserver = lambda *_: None,
) -> DownloadedFile:
    """Download one file of a job. It appears under its name whole and checked, or not at all.

    Args:
        calls: The calls to the server.
        job: The job's id.
        file: The file, from the server's list.
        target: Where it shall be.
        overwrite: Whether another file may be replaced. Default: False.
        observe: Receives the progress. Default: nothing.

    Raises:
        DownloadError: Another file is there, another process downloads it, or it came damaged each time.
        Refused: The server does not give the file.
        ConnectionLost: The server has been away for `TRANSFER_GIVE_UP_S`. What has come is kept.
        OSError: The file cannot be written.
    """
    change: Literal["new", "replaced"] = "new"
    if target.exists() or target.is_symlink():
        if digest := _same_digest(calls, job, file, target):
            observe(file.nbytes, file.nbytes)
            return DownloadedFile(file.name, target, file.nbytes, digest, "unchanged")
        if not overwrite:
            raise DownloadError(
                f"{target}: expected no file, or the one of {job}, got another one; choose another directory (--out), "
                f"or replace it (--overwrite)"
            )
        change = "replaced"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    with _open_partial(partial) as part:
        digest, nbytes = _fetch_checked(calls, ReadFile(id=job, name=file.name, offset=0), part, file.nbytes, observe)
        with named(partial):
            os.fsync(part.fileno())
        partial.replace(target)
    return DownloadedFile(file.name, target, nbytes, digest, change)


def _same_digest(calls: ServerCalls, job: str, file: JobFile, target: Path) -> str:
    """Return the digest of the file that is there if it is the job's; else ""."""
    if not target.is_file() or target.stat().st_size != file.nbytes:
        return ""
    end = _read(calls, ReadFile(id=job, name=file.name, offset=file.nbytes))[0]
    return end.sha256 if end.sha256 == file_sha256(target) else ""


@contextmanager
def _open_partial(path: Path) -> Iterator[BinaryIO]:
    """Open or create a partial file, which one process writes at a time. No symbolic link is followed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DownloadError(f"{path}: expected a file, got a symbolic link; remove it") from error
        raise
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"{path}: expected one download at a time, got two; wait for the other's end"
            ) from error
        yield file


def _fetch_checked(
    calls: ServerCalls, request: ReadFile, file: BinaryIO, expected_nbytes: int, observe: TransferObserver
) -> tuple[str, int]:
    """Fetch the rest of a file and check the whole; anew if it changes meanwhile. Return its digest and size."""
    if os.fstat(file.fileno()).st_size > expected_nbytes:
        file.truncate(0)
    for _ in range(MAX_TRIES):
        if fetched := _fetch_rest(calls, request, file, observe):
            return fetched
        file.truncate(0)
    raise DownloadError(
        f"{printable(request.name)} of {request.id}: expected the SHA-256 that the server gives, got another one in "
        f"{MAX_TRIES} downloads; if the job runs, download it again when it is over; else see the server's disk"
    )


def _fetch_rest(
    calls: ServerCalls, request: ReadFile, file: BinaryIO, observe: TransferObserver
) -> tuple[str, int] | None:
    """Append the parts that are missing. Return digest and size; None if parts of different files came together."""
    digest, nbytes = hashlib.sha256(), None
    file.seek(0)
    while block := file.read(READ_BYTES):
        digest.update(block)
    offset = file.tell()
    while True:
        part, body = _read(calls, request.model_copy(update={"offset": offset}))
        is_same = nbytes in (None, part.nbytes) and offset + len(body) <= part.nbytes
        if not is_same or not (body or offset == part.nbytes):
            return None
        view = memoryview(body)
        while view:
            view = view[file.write(view) :]
        digest.update(body)
        nbytes, offset = part.nbytes, offset + len(body)
        observe(offset, nbytes)
        if offset == nbytes:
            return (part.sha256, nbytes) if part.sha256 == digest.hexdigest() else None


def _read(calls: ServerCalls, request: ReadFile) -> tuple[FilePart, bytes]:
    return calls.call_until_answered(
        request, FilePart, timeout_s=TRANSFER_TIMEOUT_S, give_up_after_s=TRANSFER_GIVE_UP_S
    )
