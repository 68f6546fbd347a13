"""The server of a standing federation in memory, as a lead's connection. It can be away, and take small parts only."""

import hashlib
import threading
from typing import Any

from flcore_transport import Ask, Refused, Reply, Unreachable

from flcore.federation import messages
from flcore.federation.messages import (
    FilePart,
    JobDetails,
    JobFile,
    JobList,
    JobQueued,
    JobSummary,
    LogPart,
    PackReceived,
    RequestContent,
)
from flcore.job.messages import Content, parse_content

OVER = ("done", "failed", "aborted")


class FakeServer:
    """Answers requests from dicts. Its part size is small, so that a file of some bytes is a long transfer."""

    address = "fl.example.org:8470"

    def __init__(self, part_bytes: int = 4, poll_s: float = 5.0) -> None:
        self.part_bytes, self.poll_s = part_bytes, poll_s
        self.jobs: dict[str, JobSummary] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.packs: dict[str, bytes] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.logs: dict[tuple[str, str], bytes] = {}
        self.requests: list[Any] = []
        self.callers: list[tuple[str, str] | None] = []
        self.warnings: list[str] = []
        self.failures: list[Exception] = []
        self.changed = threading.Condition()

    # What tests do.

    def add_job(self, job_id: str = "digits-1", **fields: Any) -> str:
        name = job_id.rpartition("-")[0]
        values = {"state": "running", "lead": "alice", "submitted": "2026-11-30T15:53:29Z", "rounds": 20, **fields}
        with self.changed:
            self.jobs[job_id] = JobSummary(id=job_id, name=name, **values)
            self.files.setdefault(job_id, {})
            self.changed.notify_all()
        return job_id

    def update(self, job_id: str, **fields: Any) -> None:
        with self.changed:
            self.jobs[job_id] = self.jobs[job_id].model_copy(update=fields)
            self.changed.notify_all()

    def log(self, job_id: str, text: bytes, client: str = "") -> None:
        with self.changed:
            self.logs[job_id, client] = self.logs.get((job_id, client), b"") + text
            self.changed.notify_all()

    def fail_next(self, count: int = 1, error: Exception | None = None) -> None:
        lost = Unreachable(f"{self.address} cannot be reached: nothing listens there")
        self.failures += [error or lost] * count

    def count(self, kind: type[Content]) -> int:
        return sum(isinstance(request, kind) for request in self.requests)

    # The connection.

    def ask(self, ask: Ask, timeout_s: float | None = None) -> Reply:
        assert len(ask.body) <= messages.MAX_BODY_BYTES
        request = parse_content(RequestContent, ask.content).request
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        content, body = getattr(self, f"_{request.do.replace('-', '_')}")(request, ask.body)
        return Reply(content.to_bytes(), body)

    def close(self) -> None:
        pass

    def _put_pack(self, request: messages.PutPack, body: bytes) -> tuple[Content, bytes]:
        held = self.packs.get(request.digest, b"")
        if request.offset == len(held):
            self.packs[request.digest] = held = held + body[: self.part_bytes]
        return PackReceived(received=len(held)), b""

    def _submit(self, request: messages.SubmitJob, _: bytes) -> tuple[Content, bytes]:
        pack = self.packs[request.digest]
        assert hashlib.sha256(pack).hexdigest() == request.digest
        return self._queue("myjob", request.changes)

    def _clone(self, request: messages.CloneJob, _: bytes) -> tuple[Content, bytes]:
        return self._queue(self._job(request.id).name, request.changes)

    def _queue(self, name: str, changes: dict[str, Any]) -> tuple[Content, bytes]:
        job_id = self.add_job(f"{name}-{len(self.jobs) + 1}", state="queued")
        self.details[job_id] = {"changes": changes}
        return JobQueued(id=job_id, warnings=self.warnings), b""

    def _list(self, request: messages.ListJobs, _: bytes) -> tuple[Content, bytes]:
        jobs = [job for job in reversed(self.jobs.values()) if not request.states or job.state in request.states]
        return JobList(jobs=jobs[: request.limit]), b""

    def _show(self, request: messages.ShowJob, _: bytes) -> tuple[Content, bytes]:
        summary = self._job(request.id)
        fields = {"contract_fingerprint": "c" * 64, "code_digest": "d" * 64, "pack_digest": "e" * 64}
        return JobDetails.model_validate({"summary": summary, **fields, **self.details.get(request.id, {})}), b""

    def _wait(self, request: messages.WaitForJob, _: bytes) -> tuple[Content, bytes]:
        def has_changed() -> bool:
            job = self._job(request.id)
            return job.state != request.state or job.round > request.round

        with self.changed:
            self.changed.wait_for(has_changed, self.poll_s)
        return self._job(request.id), b""

    def _read_log(self, request: messages.ReadLog, _: bytes) -> tuple[Content, bytes]:
        def text() -> bytes:
            return self.logs.get((request.id, request.client), b"")[request.offset :]

        def is_over() -> bool:
            return self._job(request.id).state in OVER

        is_over()
        if request.wait:
            with self.changed:
                self.changed.wait_for(lambda: text() or is_over(), self.poll_s)
        body = text()[: self.part_bytes]
        return LogPart(next_offset=request.offset + len(body), is_over=is_over()), body

    def _abort(self, request: messages.AbortJob, _: bytes) -> tuple[Content, bytes]:
        if self._job(request.id).lead != "alice":
            raise Refused("not-allowed", f"expected the lead of {request.id}, bob, or an admin, got alice")
        if self._job(request.id).state in OVER:
            raise Refused("is-over", f"{request.id}: expected a job that waits or runs, got one that is over")
        self.update(request.id, state="aborted", reason="aborted by alice")
        return messages.Done(), b""

    def _delete(self, request: messages.DeleteJob, _: bytes) -> tuple[Content, bytes]:
        if self._job(request.id).state not in OVER:
            raise Refused("not-over", f"{request.id}: expected a job that is over, got one that runs; abort it first")
        del self.jobs[request.id]
        return messages.Done(), b""

    def _list_files(self, request: messages.ListFiles, _: bytes) -> tuple[Content, bytes]:
        self._job(request.id)
        files = [JobFile(name=name, nbytes=len(data)) for name, data in self.files[request.id].items()]
        return messages.FileList(files=files), b""

    def _read_file(self, request: messages.ReadFile, _: bytes) -> tuple[Content, bytes]:
        data = self.files[request.id][request.name]
        body = data[request.offset : request.offset + self.part_bytes]
        is_last = request.offset + len(body) == len(data)
        digest = hashlib.sha256(data).hexdigest() if is_last else ""
        return FilePart(nbytes=len(data), sha256=digest), body

    def _job(self, job_id: str) -> JobSummary:
        if job_id not in self.jobs:
            raise Refused("no-such-id", f"expected the id of a job, got {job_id!r}")
        return self.jobs[job_id]
