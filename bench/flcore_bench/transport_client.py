"""The clients' end of the transport benchmark: one flat model sent or fetched, split evenly over some connections."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from flcore_transport import Fetch, GrpcConnection, Inbox, Join, Offer, Order, Outbox, Welcome

import flcore
from flcore_bench.bare_grpc import BareClient
from flcore_bench.federated import JOB, Federated
from flcore_bench.inside import JoinMessage, UpdateMessage, WireFormat
from flcore_bench.process import Process
from flcore_bench.shapes import spec_named
from flcore_bench.tiled import Dropped, Tiled
from flcore_bench.tuning import Tuning

Sample = Callable[[], float]
"""Moves the whole model once, and returns the seconds."""

UPDATES = 4
"""How many updates follow each other where they are folded."""


class Line:
    """One client's connection to flcore's server, joined, with a model of `spec` to send."""

    def __init__(self, address: str, name: str, spec: flcore.ModelSpec, content: bytes = b"") -> None:
        self._connection = GrpcConnection(address)
        self._session = self._connection.session(Join(name, secrets.token_hex(8), content))
        self._spec = spec
        self._model = Tiled(WireFormat.uncompressed(spec))
        welcome = next(self._session)
        assert isinstance(welcome, Welcome)  # noqa: S101 - the endpoint sends it first
        self._secret = welcome.session

    def upload(self, order: int) -> None:
        """Send the model as the answer to an order."""
        message = UpdateMessage(
            returns="weights", attempt=secrets.token_hex(8), weight=100.0, fingerprint=self._spec.fingerprint
        )
        offer = Offer(self._secret, order, message.to_bytes(), self._model.layout)
        self._connection.upload(offer, Outbox(self._model))

    def download(self) -> None:
        """Fetch the model, check its pieces and drop them."""
        inbox = Inbox(self._model.layout, Dropped())
        for piece in self._connection.download(Fetch(self._secret, 1)):
            inbox.accept(piece)
        inbox.finish()

    def next_order(self) -> int:
        """Wait for the next order."""
        order = next(self._session)
        assert isinstance(order, Order)  # noqa: S101 - the server says nothing else before its goodbye
        return order.number

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@contextmanager
def bare_samples(size: int, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield what a bare grpcio stream does, in both directions, with acknowledgements and without."""
    share, piece = size // tuning.connections, tuning.piece
    with _server({"kind": "bare"}, tuning, threads) as (_, address), ExitStack() as stack:
        clients = [stack.enter_context(closing(BareClient(address))) for _ in range(tuning.connections)]
        yield {
            "upload, bare, acknowledged": lambda: _together(
                [partial(client.upload_acknowledged, share, piece, tuning.window) for client in clients]
            ),
            "upload, bare": lambda: _together([partial(client.upload, share, piece) for client in clients]),
            "download, bare": lambda: _together([partial(client.download, share, piece) for client in clients]),
        }


@contextmanager
def checked_samples(size: int, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield what flcore's streams do when pieces are checked at the other end, and dropped."""
    share = size // tuning.connections
    spec = spec_named("flat", share)
    with _server({"kind": "checking", "size": share}, tuning, threads) as (_, address), ExitStack() as stack:
        lines = [stack.enter_context(closing(Line(address, f"c{k}", spec))) for k in range(tuning.connections)]
        yield {
            "upload, flcore, checked": lambda: _together([partial(line.upload, 1) for line in lines]),
            "download, flcore, checked": lambda: _together([line.download for line in lines]),
        }


@contextmanager
def folded_sample(size: int, accumulate: str, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield what uploads into a federation do: checked, inspected, and folded, one while the next one comes.

    Its seconds are those of `UPDATES` uploads in a row, and those that folding goes on afterwards, for each of them.
    """
    share = size // tuning.connections
    spec = spec_named("flat", share)
    count = UPDATES * tuning.connections
    run = Federated("flat", share, clients=count, accumulate=accumulate)
    setup = {
        "kind": "folding",
        "size": share,
        "clients": count,
        "accumulate": accumulate,
        "contract": run.overrides,
    }
    job = flcore.Job.load(JOB, **run.overrides)
    held = JoinMessage(contract=job.contract.to_json(), code_digest=job.code_digest, version=flcore.__version__)
    with _server(setup, tuning, threads) as (server, address), ExitStack() as stack:
        names = [f"c{number}" for number in range(count)]
        lines = [stack.enter_context(closing(Line(address, name, spec, held.to_bytes()))) for name in names]

        def sample() -> float:
            uploads = [partial(line.upload, line.next_order()) for line in lines]
            turns = [uploads[first::UPDATES] for first in range(UPDATES)]
            taken = sum(_together(turn) for turn in turns)
            return (taken + float(server.answer()["folding_s"])) / UPDATES

        yield {f"upload, flcore, checked and folded, {accumulate}": sample}


@contextmanager
def _server(setup: dict[str, Any], tuning: Tuning, threads: int) -> Iterator[tuple[Process, str]]:
    module = "flcore_bench.transport_server"
    with Process(module, setup | {"tuning": vars(tuning)}, threads) as server:
        yield server, server.answer()["address"]


def _together(calls: Sequence[Callable[[], object]]) -> float:
    """Make calls at the same time, and return the seconds until the last has ended."""
    with ThreadPoolExecutor(len(calls)) as pool:
        started = time.perf_counter()
        for future in [pool.submit(call) for call in calls]:
            future.result()
        return time.perf_counter() - started
