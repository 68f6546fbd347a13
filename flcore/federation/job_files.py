"""The files of a federation's jobs.

    jobs/<ID>/job/           the unpacked pack
    jobs/<ID>/run/           the run's directory (`flcore.server.run_directory`)
    jobs/<ID>/server.log     what happened at the server; server.log.1 is its earlier part
    jobs/<ID>/sites/         <client>.log, what each site shares

A directory without a job in the database is one of a job that was deleted, and `remove_others` removes it.
"""

import os
import re
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from flcore_transport import Refused

from flcore.federation.bounded_log import SITE_LOG_BYTES, BoundedLog, earlier_log
from flcore.federation.messages import MAX_BODY_BYTES, JobFile
from flcore.federation.pack_store import file_digest
from flcore.job.pack import Pack
from flcore.model.atomic_replace import create_directory
from flcore.server.history import RoundRecord
from flcore.server.run_directory import HISTORY_FILE, has_ended
from flcore.text import printable

RESULT_NAME = re.compile(
    r"run\.json|audit\.jsonl|results\.json|history\.(jsonl|png)|(model|best|round-\d+)(-[\w-]+)?\.safetensors(\.index\.json)?"
)
"""The files of a run that can be downloaded."""

MAX_DIGESTS = 256
"""Digests of whole files that are kept, so that a file is read once for all who download it."""

FileVersion = tuple[int, int, int]


class JobDirectories:
    """The directories of all jobs, below `directory`. Thread-safe; no lock is held during I/O."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._digests: OrderedDict[FileVersion, str] = OrderedDict()
        self._site_logs: WeakValueDictionary[Path, BoundedLog] = WeakValueDictionary()
        create_directory(directory)

    def job(self, job_id: str) -> Path:
        """Return the directory of a job's code."""
        return self._directory / job_id / "job"

    def run(self, job_id: str) -> Path:
        """Return the directory of a job's run."""
        return self._directory / job_id / "run"

    def server_log(self, job_id: str) -> Path:
        """Return the server's log of a job."""
        return self._directory / job_id / "server.log"

    def site_log(self, job_id: str, client: str) -> Path:
        """Return a site's log of a job."""
        return self._directory / job_id / "sites" / f"{client}.log"

    def unpack(self, job_id: str, pack: Pack) -> Path:
        """Unpack a job's code unless it is there. Returns its directory, which appears whole."""
        directory = self.job(job_id)
        if not directory.exists():
            create_directory(directory.parent)
            for entry in directory.parent.glob(".*"):  # what a kill has left of another attempt
                shutil.rmtree(entry, ignore_errors=True)
            pack.unpack(directory)
        return directory

    def append_to_site_log(self, job_id: str, client: str, lines: bytes) -> None:
        """Append what a site shares to its log of a job. The log is bounded."""
        path = self.site_log(job_id, client)
        with self._lock:  # one object for each file, so that calls of one site write one after the other
            log = self._site_logs.get(path)
            if log is None:
                log = self._site_logs[path] = BoundedLog(path, SITE_LOG_BYTES)
        log.write(lines)

    @contextmanager
    def trial(self, pack: Pack) -> Iterator[Path]:
        """A block with a job's code in a directory that is removed after it."""
        directory = self._directory / f".trial-{secrets.token_hex(8)}"
        try:
            pack.unpack(directory)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def has_ended(self, job_id: str) -> bool:
        """Whether the directory holds a run that is over, as after a kill between its end and the database."""
        return has_ended(self.run(job_id))

    def last_record(self, job_id: str) -> RoundRecord | None:
        """Return the record of a job's last finished round; None if there is none."""
        last = b""
        try:
            with (self.run(job_id) / HISTORY_FILE).open("rb") as file:
                for line in file:
                    last = line if line.endswith(b"\n") else last
        except FileNotFoundError:
            pass
        return RoundRecord.from_json(last.decode("utf-8")) if last else None

    def list_files(self, job_id: str) -> list[JobFile]:
        """Return the files of a job that can be downloaded."""
        root = self._directory / job_id
        found = [(path, path.relative_to(root).as_posix()) for path in self._downloadable(job_id)]
        return [JobFile(name=name, nbytes=path.stat().st_size) for path, name in found if path.is_file()]

    def read_file(self, job_id: str, name: str, offset: int) -> tuple[bytes, int, str]:
        """Read a part of a file, at most `MAX_BODY_BYTES`.

        Returns:
            The bytes, the size of the file, and with its last part the SHA-256 of all of it; else an empty string.

        Raises:
            Refused: The job has no such file.
        """
        root = self._directory / job_id
        # The name is compared with those of the listing, so that no name leads to another file.
        path = next((each for each in self._downloadable(job_id) if each.relative_to(root).as_posix() == name), None)
        try:
            if path is None:
                raise FileNotFoundError
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                body = os.pread(file.fileno(), MAX_BODY_BYTES, offset)
            is_last = offset + len(body) >= status.st_size
            return body, status.st_size, self._digest(path, status) if is_last else ""
        except FileNotFoundError:
            raise Refused(
                "no-such-file", f"expected a file of {job_id}, got {printable(name, 100)!r}; list its files first"
            ) from None

    def remove(self, job_id: str) -> None:
        """Remove all files of a job that the database does not have any more. Can be done again."""
        shutil.rmtree(self._directory / job_id, ignore_errors=True)

    def remove_others(self, job_ids: Collection[str]) -> None:
        """Remove the directories of jobs that are deleted. At the start: a kill may have left one."""
        for path in list(self._directory.iterdir()):
            if path.name not in job_ids:
                shutil.rmtree(path, ignore_errors=True)

    def _downloadable(self, job_id: str) -> Iterator[Path]:
        run, log = self.run(job_id), self.server_log(job_id)
        if run.is_dir():
            yield from sorted(path for path in run.iterdir() if RESULT_NAME.fullmatch(path.name))
        yield from (path for path in (earlier_log(log), log) if path.exists())
        if (sites := log.with_name("sites")).is_dir():
            yield from sorted(sites.iterdir())

    def _digest(self, path: Path, status: os.stat_result) -> str:
        """Return the digest of a file, from an earlier call if it is the same file with the same time and size."""
        version = status.st_ino, status.st_mtime_ns, status.st_size
        with self._lock:
            known = self._digests.get(version)
        if known is not None:
            return known
        digest = file_digest(path)
        with self._lock:
            self._digests[version] = digest
            while len(self._digests) > MAX_DIGESTS:
                self._digests.popitem(last=False)
        return digest
