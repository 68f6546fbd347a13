"""The server process of the transport benchmark: bare, checking, or checking and folding."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flcore_layout import Layout
from flcore_transport import ClientLink, GrpcServer, Inbox, Outbox, Receipt

import flcore
from flcore_bench.bare_grpc import serve_bare
from flcore_bench.federation import SYNTHETIC_JOB
from flcore_bench.internals import AttemptPolicy, Federation, Staging, TaskContent, WireFormat
from flcore_bench.process import receive_setup, send_to_parent
from flcore_bench.shapes import spec_named
from flcore_bench.synthetic_payload import DiscardingSink, SyntheticPayload
from flcore_bench.transport_tuning import Tuning

FOREVER_S = 1e6

TICK_S, IDLE_S = 0.002, 0.05
BUSY_SHARE = 0.25
"""A process counts as busy if it used at least this share of a tick."""


class CheckingService:
    """A `Service` that admits every client, checks received pieces, and discards them."""

    def __init__(self, spec: flcore.ModelSpec) -> None:
        self._model = SyntheticPayload(WireFormat.uncompressed(spec))

    def authorize(self, client: str) -> None:
        """Let every client join."""

    def admit(self, client: str, content: bytes) -> bytes:  # noqa: ARG002 - as a `Service` has it
        """Admit a client."""
        return b""

    def join_refused(self, client: str, reason: str) -> None:
        """Ignore a refused join."""

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        """Ignore a refused call."""

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        """Ignore an ended session."""

    def client_connected(self, client: str, link: ClientLink) -> None:
        """Assign no task."""

    def client_disconnected(self, client: str) -> None:
        """Ignore that a client left."""

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:  # noqa: ARG002 - as a `Service` has it
        """Return the same model for every assignment."""
        return Outbox(self._model)

    def begin_upload(
        self,
        client: str,  # noqa: ARG002 - as a `Service` has it
        assignment_id: int,
        token: bytes,  # noqa: ARG002
        content: bytes,  # noqa: ARG002
        layout: Layout,
    ) -> "CheckedUpload":
        """Begin an upload."""
        return CheckedUpload(assignment_id, layout)

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        """Ignore a failed task."""


class CheckedUpload(Inbox):
    """An upload of which only the count of pieces is kept."""

    def __init__(self, assignment_id: int, layout: Layout) -> None:
        super().__init__(layout, DiscardingSink())
        self._assignment_id = assignment_id

    @property
    def expected(self) -> int:
        """The number of its pieces."""
        return len(self.piece_ranges)

    def begin(self) -> "Future[None]":
        """Accept pieces at once."""
        begun: Future[None] = Future()
        begun.set_result(None)
        return begun

    def commit(self) -> Receipt:
        """Acknowledge the complete upload."""
        self.finish()
        return Receipt(self._assignment_id)

    def end(self) -> None:
        """Release nothing: nothing is held."""


def serve_checking(setup: dict[str, Any]) -> None:
    """Serve uploads and downloads of models of the setup's size, until the parent ends."""
    server = GrpcServer(CheckingService(spec_named("flat", setup["size"])))
    send_to_parent({"address": server.address})
    time.sleep(FOREVER_S)


def serve_folding(setup: dict[str, Any]) -> None:
    """Run streaming rounds for ever, and report after each how long folding continued."""
    job = flcore.Job.load(SYNTHETIC_JOB, **setup["contract"])
    # Its pages are zeros that are never touched, so they take no memory.
    model = flcore.Model(spec_named("flat", setup["size"]))
    federation = Federation(job, model.spec)
    server = GrpcServer(federation)
    send_to_parent({"address": server.address})
    clients = federation.state.wait_for_clients(setup["clients"], None)
    message = TaskContent(task="train", round=1, rounds=1, seed=0, hyperparameters={})
    while True:
        aggregator = flcore.Aggregator(model.spec, accumulate=setup["accumulate"], plan="streaming")
        open_attempt = federation.open_attempt(
            dict.fromkeys(clients, message), model, AttemptPolicy(FOREVER_S), aggregator
        )
        federation.state.wait_until_closed(open_attempt, Staging())
        if open_attempt.attempt.failed:
            raise RuntimeError(f"clients have failed: {open_attempt.attempt.failed}")
        folding_s = wait_until_idle()
        aggregator.finish()
        send_to_parent({"folding_s": folding_s})


def wait_until_idle() -> float:
    """Wait until this process is idle, and return how long it was busy.

    This includes the plan's work after an upload. It excludes the division, which is part of `finish`.
    """
    started = busy_until = time.perf_counter()
    used = time.process_time()
    while time.perf_counter() < busy_until + IDLE_S:
        time.sleep(TICK_S)
        before, used = used, time.process_time()
        if used - before > BUSY_SHARE * TICK_S:
            busy_until = time.perf_counter()
    return busy_until - started


SERVERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "bare": lambda _: serve_bare(lambda address: send_to_parent({"address": address})),
    "checking": serve_checking,
    "folding": serve_folding,
}
"""By the setup's `kind`."""


def main() -> None:
    """Run the server of the setup's kind."""
    setup = receive_setup()
    Tuning(**setup["tuning"]).apply()
    SERVERS[setup["kind"]](setup)
