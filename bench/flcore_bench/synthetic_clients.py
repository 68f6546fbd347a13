"""Clients that cost next to nothing, many to a process, so that the server is what is measured.

They speak the real protocol over real gRPC: each joins with the job's contract, checks the pieces of a model that it is
sent and drops them, and answers at once with a pattern of small numbers; or after `pause_s`, if the task has such a
hyperparameter. Where it has `stalls`, all clients but the job's first stop halfway. With the answer goes, as a
metric, when the order was read; the clock is the machine's, so a server on the same machine can tell how long its order
took.
"""

import os
import secrets
import threading
import time
import traceback
from collections import Counter
from functools import lru_cache

from flcore_transport import (
    ConnectionLost,
    Fetch,
    Goodbye,
    GrpcConnection,
    Inbox,
    Join,
    Layout,
    Offer,
    Order,
    Outbox,
    PieceRange,
    Refused,
    Welcome,
)

import flcore
from flcore_bench.inside import (
    JoinMessage,
    TaskMessage,
    UpdateMessage,
    WelcomeMessage,
    WireFormat,
    parse_message,
    spec_of,
)
from flcore_bench.process import setup_from_parent, tell_parent
from flcore_bench.tiled import Dropped, Tiled

STACK_BYTES = 256 << 10
"""Of each thread; there are some for each client, and the usual 8 MiB of address space add up."""

READ_AT = "read_at"
"""The metric with the time at which a client has read its order."""

_PARSING = threading.Lock()


class SyntheticClient:
    """One client of `job`, the process's `number`-th; `refused` counts what the server says no to, by kind."""

    def __init__(self, job: flcore.Job, name: str, number: int, address: str, refused: "Counter[str]") -> None:
        self._job, self._name, self._number, self._refused = job, name, number, refused
        self._connection = GrpcConnection(address)
        self._payload_id = ""

    def run(self) -> None:
        """Answer every order until the server says goodbye."""
        contract = self._job.contract.to_json()
        held = JoinMessage(contract=contract, code_digest=self._job.code_digest, version=flcore.__version__)
        welcome = Welcome("")
        try:
            for message in self._connection.session(Join(self._name, secrets.token_hex(8), held.to_bytes())):
                match message:
                    case Welcome():
                        welcome = message
                    case Order():
                        self._perform(welcome, message)
                    case Goodbye():
                        return
        except ConnectionLost:
            # A server that closes cuts off whoever has not read its goodbye in time, and counts whom it loses before.
            if not welcome.session:
                raise

    def _perform(self, welcome: Welcome, order: Order) -> None:
        read_at = time.monotonic()
        given = parse_message(TaskMessage, order.content).hyperparameters
        stalls = bool(given.get("stalls")) and self._name != self._job.contract.client_names[0]
        pause_s = given.get("pause_s", 0.0)
        if isinstance(pause_s, float) and not stalls:
            time.sleep(pause_s)
        try:
            self._download(welcome, order)
            self._upload(welcome, order, read_at, stalls=stalls)
        except Refused as error:
            self._refused[error.kind] += 1

    def _download(self, welcome: Welcome, order: Order) -> None:
        if order.payload_id == self._payload_id:
            return
        inbox = Inbox(order.payload, Dropped())
        for piece in self._connection.download(Fetch(welcome.session, order.number), order.payload):
            inbox.accept(piece)
        inbox.finish()
        self._payload_id = order.payload_id

    def _upload(self, welcome: Welcome, order: Order, read_at: float, *, stalls: bool) -> None:
        spec = spec_from(welcome.content)
        returns = self._job.contract.tasks[parse_message(TaskMessage, order.content).task].returns
        source = (
            _Nothing()
            if returns == "metrics"
            else Tiled(WireFormat.compressed(spec, self._job.contract.wire.upload), self._number)
        )
        message = UpdateMessage(
            returns=returns,
            attempt=secrets.token_hex(8),
            weight=100.0 + self._number,
            metrics={READ_AT: read_at},
            fingerprint="" if returns == "metrics" else spec.fingerprint,
        )
        outbox = Halfway(source) if stalls else Outbox(source)
        try:
            self._connection.upload(Offer(welcome.session, order.number, message.to_bytes(), source.layout), outbox)
        except ConnectionLost:
            if not stalls:
                raise


class Halfway(Outbox):
    """Sends half of its pieces, and never the others."""

    def piece(self, index: int) -> bytes:
        """Return a piece of the first half."""
        if index >= len(self.plan) // 2:
            threading.Event().wait()
        return super().piece(index)


class _Nothing:
    """The payload of an answer of metrics alone."""

    layout = Layout()

    def read(self, piece: PieceRange) -> list[bytes]:
        raise IndexError(f"there is no piece to read at {piece}")


def spec_from(welcome: bytes) -> flcore.ModelSpec:
    """Return the spec in a welcome: one for all clients of the process, as they are told the same."""
    with _PARSING:
        return _parsed(welcome)


@lru_cache(maxsize=1)
def _parsed(welcome: bytes) -> flcore.ModelSpec:
    return spec_of(parse_message(WelcomeMessage, welcome).tensors)


def _end(arguments: threading.ExceptHookArgs) -> None:
    """End the process when a client cannot go on: the server would wait for it for ever."""
    traceback.print_exception(arguments.exc_value)
    os._exit(1)


def main() -> None:
    """Host clients until the server has said goodbye to all of them, and say how often it said no."""
    setup = setup_from_parent()
    threading.excepthook = _end
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
    tell_parent({"refused": dict(refused)})
