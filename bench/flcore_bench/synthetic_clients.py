"""Clients that cost almost nothing, many per process, so that only the server is measured.

They speak the real protocol over gRPC. Each joins with the job's contract, checks the pieces of the received model and
discards them, and uploads a pattern of small numbers. Hyperparameters of the task change that:

- `pause_s`: seconds to wait before the upload;
- `stalls`: all clients but the job's first stop halfway through the upload.

An update's metric `read_at` is the time at which the client read its assignment, on the machine's monotonic clock. A
server on the same machine computes the delivery time from it.
"""

import os
import secrets
import threading
import time
import traceback
from collections import Counter
from functools import lru_cache

from flcore_layout import Layout, SegmentRange
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Goodbye,
    GrpcConnection,
    Inbox,
    Join,
    Outbox,
    Refused,
    TaskAssignment,
    UploadRequest,
    Welcome,
)

import flcore
from flcore_bench.internals import (
    AnswerContent,
    JoinContent,
    TaskContent,
    WelcomeContent,
    WireFormat,
    decode_spec,
    parse_content,
)
from flcore_bench.process import receive_setup, send_to_parent
from flcore_bench.synthetic_payload import DiscardingSink, SyntheticPayload

STACK_BYTES = 256 << 10
"""Of each thread. There are several per client, and the default is 8 MiB of address space."""

READ_AT = "read_at"
"""The metric with the time at which a client read its assignment."""

_PARSING_LOCK = threading.Lock()


PHASES_OF_A_ROUND = 101


class SyntheticClient:
    """One client of `job`, the process's `number`-th. `refused` counts the server's refusals by kind."""

    def __init__(self, job: flcore.Job, name: str, number: int, address: str, refused: "Counter[str]") -> None:
        self._job, self._name, self._number, self._refused = job, name, number, refused
        self._connection = GrpcConnection(address)
        self._payload_id = ""

    def run(self) -> None:
        """Answer every assignment until the server says goodbye."""
        contract = self._job.contract.to_json()
        content = JoinContent(contract=contract, code_digest=self._job.code_digest, version=flcore.__version__)
        welcome = Welcome("")
        try:
            for message in self._connection.session(Join(self._name, secrets.token_hex(8), content.to_bytes())):
                match message:
                    case Welcome():
                        welcome = message
                    case TaskAssignment():
                        self._perform(welcome, message)
                    case Goodbye():
                        return
        except ConnectionLost:
            # A closing server disconnects clients that have not read its goodbye in time. It counts earlier losses.
            if not welcome.session_secret:
                raise

    def _perform(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        read_at = time.monotonic()
        hyperparameters = parse_content(TaskContent, assignment.content).hyperparameters
        stalls = bool(hyperparameters.get("stalls")) and self._name != self._job.contract.client_names[0]
        pause_s = hyperparameters.get("pause_s", 0.0)
        if isinstance(pause_s, float) and not stalls:
            time.sleep(pause_s)
        try:
            self._download(welcome, assignment)
            self._upload(welcome, assignment, read_at, stalls=stalls)
        except Refused as error:
            self._refused[error.kind] += 1

    def _download(self, welcome: Welcome, assignment: TaskAssignment) -> None:
        if assignment.payload_id == self._payload_id:
            return
        inbox = Inbox(assignment.payload, DiscardingSink())
        for piece in self._connection.download(
            DownloadRequest(welcome.session_secret, assignment.assignment_id, token=assignment.token),
            assignment.payload,
        ):
            inbox.accept(piece)
        inbox.finish()
        self._payload_id = assignment.payload_id

    def _upload(self, welcome: Welcome, assignment: TaskAssignment, read_at: float, *, stalls: bool) -> None:
        spec = spec_from(welcome.content)
        content = parse_content(TaskContent, assignment.content)
        returns = self._job.contract.tasks[content.task].returns
        number = self._number + PHASES_OF_A_ROUND * content.round  # another model each round, for clients to download
        source = (
            _EmptySource()
            if returns == "metrics"
            else SyntheticPayload(WireFormat.compressed(spec, self._job.contract.wire.upload), number)
        )
        answer = AnswerContent(
            returns=returns,
            upload_id=secrets.token_hex(8),
            weight=100.0 + self._number,
            metrics={READ_AT: read_at},
            spec_fingerprint="" if returns == "metrics" else spec.fingerprint,
        )
        outbox = StallingOutbox(source) if stalls else Outbox(source)
        try:
            self._connection.upload(
                UploadRequest(
                    welcome.session_secret,
                    assignment.assignment_id,
                    answer.to_bytes(),
                    source.layout,
                    assignment.token,
                ),
                outbox,
            )
        except ConnectionLost:
            if not stalls:
                raise


class StallingOutbox(Outbox):
    """Sends the first half of its pieces, and then blocks for ever."""

    def piece(self, index: int) -> bytes:
        """Return a piece of the first half."""
        if index >= len(self.piece_ranges) // 2:
            threading.Event().wait()
        return super().piece(index)


class _EmptySource:
    """The payload of an update with metrics only."""

    layout = Layout()

    def read(self, piece: SegmentRange) -> list[bytes]:
        raise IndexError(f"there is no piece to read at {piece}")


def spec_from(welcome: bytes) -> flcore.ModelSpec:
    """Return the spec in a welcome message. All clients of the process receive the same one, so it is parsed once."""
    with _PARSING_LOCK:
        return _parsed(welcome)


@lru_cache(maxsize=1)
def _parsed(welcome: bytes) -> flcore.ModelSpec:
    return decode_spec(parse_content(WelcomeContent, welcome).tensors)


def _exit_process(arguments: threading.ExceptHookArgs) -> None:
    """End the process if a client fails: the server would wait for it for ever."""
    traceback.print_exception(arguments.exc_value)
    os._exit(1)


def main() -> None:
    """Host clients until the server has said goodbye to all of them, and report its refusals."""
    setup = receive_setup()
    threading.excepthook = _exit_process
    job = flcore.Job.load(setup["directory"], **setup["contract"])
    refused: Counter[str] = Counter()
    clients = [
        SyntheticClient(job, name, number, setup["address"], refused) for number, name in enumerate(setup["names"])
    ]
    threading.stack_size(STACK_BYTES)
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    send_to_parent({"refused": dict(refused)})
