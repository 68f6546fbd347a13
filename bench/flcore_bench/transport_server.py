"""The server's end of the transport benchmark, in a process of its own: bare, checking, or checking and folding."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flcore_transport import GrpcServer, Inbox, Layout, Link, Outbox, Receipt

import flcore
from flcore_bench.bare_grpc import serve_bare
from flcore_bench.federated import JOB
from flcore_bench.inside import Federation, RoundRules, Staging, TaskMessage, WireFormat
from flcore_bench.process import setup_from_parent, tell_parent
from flcore_bench.shapes import spec_named
from flcore_bench.tiled import Dropped, Tiled
from flcore_bench.tuning import Tuning

FOREVER_S = 1e6

TICK_S, REST_S = 0.002, 0.05
BUSY = 0.25
"""How much of a tick's time a process that is at work has used."""


class Checking:
    """A `Service` that lets everybody in, checks the pieces that come, and drops them."""

    def __init__(self, spec: flcore.ModelSpec) -> None:
        self._model = Tiled(WireFormat.uncompressed(spec))

    def admit(self, client: str, content: bytes) -> bytes:  # noqa: ARG002 - as a `Service` has it
        """Let a client in."""
        return b""

    def arrive(self, client: str, link: Link) -> None:
        """Nobody is asked anything."""

    def depart(self, client: str) -> None:
        """Nobody is missed."""

    def payload(self, client: str, order: int) -> Outbox:  # noqa: ARG002 - as a `Service` has it
        """Return the same model for every order."""
        return Outbox(self._model)

    def answer(self, client: str, order: int, content: bytes, layout: Layout) -> "Checked":  # noqa: ARG002 - as a `Service` has it
        """Begin an answer."""
        return Checked(order, layout)

    def failed(self, client: str, order: int, message: str) -> None:
        """Nobody fails."""


class Checked(Inbox):
    """An answer on its way in, of which only the count of its pieces is kept."""

    def __init__(self, order: int, layout: Layout) -> None:
        super().__init__(layout, Dropped())
        self._order = order

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        return len(self.plan)

    def begin(self) -> "Future[None]":
        """Pieces may come at once."""
        begun: Future[None] = Future()
        begun.set_result(None)
        return begun

    def commit(self) -> Receipt:
        """Say that it was whole."""
        self.finish()
        return Receipt(self._order)

    def end(self) -> None:
        """Nothing is left of it."""


def serve_checking(setup: dict[str, Any]) -> None:
    """Serve models of the setup's size both ways, until the parent ends."""
    server = GrpcServer(Checking(spec_named("flat", setup["size"])))
    tell_parent({"address": server.address})
    time.sleep(FOREVER_S)


def serve_folding(setup: dict[str, Any]) -> None:
    """Ask the clients for updates for ever and fold them, streaming; tell how long folding went on after each round."""
    job = flcore.Job.load(JOB, **setup["contract"])
    # Its pages are zeros that nobody reads, and take no memory.
    model = flcore.Model(spec_named("flat", setup["size"]))
    federation = Federation(job, model.spec)
    server = GrpcServer(federation)
    tell_parent({"address": server.address})
    clients = federation.rounds.wait_for(setup["clients"], None)
    message = TaskMessage(task="train", round=1, rounds=1, seed=0, hyperparameters={})
    while True:
        aggregator = flcore.Aggregator(model.spec, accumulate=setup["accumulate"], plan="streaming")
        asked = federation.ask(dict.fromkeys(clients, message), model, RoundRules(FOREVER_S), aggregator)
        federation.rounds.close(asked, Staging())
        if asked.state.failed:
            raise RuntimeError(f"clients have failed: {asked.state.failed}")
        folding_s = busy_s()
        aggregator.finish()
        tell_parent({"folding_s": folding_s})


def busy_s() -> float:
    """Wait until this process has nothing to do any more, and return how long it had.

    So whatever the plan does behind an upload counts, and dividing, which `finish` does, does not.
    """
    started = busy_until = time.perf_counter()
    used = time.process_time()
    while time.perf_counter() < busy_until + REST_S:
        time.sleep(TICK_S)
        before, used = used, time.process_time()
        if used - before > BUSY * TICK_S:
            busy_until = time.perf_counter()
    return busy_until - started


SERVERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "bare": lambda _: serve_bare(lambda address: tell_parent({"address": address})),
    "checking": serve_checking,
    "folding": serve_folding,
}
"""By the setup's `kind`."""


def main() -> None:
    """Be the server that the setup says."""
    setup = setup_from_parent()
    Tuning(**setup["tuning"]).apply()
    SERVERS[setup["kind"]](setup)
