"""The clients' end of the transport benchmark: one flat model, split evenly over the connections.

Each sample transfers the whole model once, and returns the seconds.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from flcore_transport import (
    DownloadRequest,
    GrpcConnection,
    Inbox,
    Join,
    Outbox,
    TaskAssignment,
    UploadRequest,
    Welcome,
)

import flcore
from flcore_bench.bare_grpc import BareClient
from flcore_bench.federation import SYNTHETIC_JOB, FederationSpec
from flcore_bench.internals import AnswerContent, JoinContent, WireFormat
from flcore_bench.process import ChildProcess
from flcore_bench.shapes import spec_named
from flcore_bench.synthetic_payload import DiscardingSink, SyntheticPayload
from flcore_bench.timing import Sample
from flcore_bench.transport_tuning import Tuning

UPDATES = 4
"""Consecutive uploads of a connection in a sample with folding."""


class JoinedClient:
    """A client that has joined a flcore server, with a model of `spec` to upload."""

    def __init__(self, address: str, name: str, spec: flcore.ModelSpec, content: bytes = b"") -> None:
        self._connection = GrpcConnection(address)
        self._session = self._connection.session(Join(name, secrets.token_hex(8), content))
        self._spec = spec
        self._model = SyntheticPayload(WireFormat.uncompressed(spec))
        welcome = next(self._session)
        assert isinstance(welcome, Welcome)  # noqa: S101 - the endpoint sends it first
        self._secret = welcome.session_secret

    def upload(self, assignment_id: int, token: bytes = b"") -> None:
        """Send the model as the answer to an assignment."""
        content = AnswerContent(
            returns="weights", upload_id=secrets.token_hex(8), weight=100.0, spec_fingerprint=self._spec.fingerprint
        )
        request = UploadRequest(self._secret, assignment_id, content.to_bytes(), self._model.layout, token)
        self._connection.upload(request, Outbox(self._model))

    def download(self) -> None:
        """Download the model, check its pieces and discard them."""
        inbox = Inbox(self._model.layout, DiscardingSink())
        for piece in self._connection.download(DownloadRequest(self._secret, 1)):
            inbox.accept(piece)
        inbox.finish()

    def next_assignment(self) -> TaskAssignment:
        """Wait for the next assignment."""
        assignment = next(self._session)
        assert isinstance(assignment, TaskAssignment)  # noqa: S101 - the server says nothing else before its goodbye
        return assignment

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def bare_samples(size: int, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield samples of bare grpcio streams: in both directions, uploads with and without acknowledgements."""
    share, piece = size // tuning.connections, tuning.piece
    with _server({"kind": "bare"}, tuning, threads) as (_, address), ExitStack() as stack:
        clients = [stack.enter_context(closing(BareClient(address))) for _ in range(tuning.connections)]
        yield {
            "upload, bare, acknowledged": lambda: _concurrently(
                [partial(client.upload_acknowledged, share, piece, tuning.window) for client in clients]
            ),
            "upload, bare": lambda: _concurrently([partial(client.upload, share, piece) for client in clients]),
            "download, bare": lambda: _concurrently([partial(client.download, share, piece) for client in clients]),
        }


@contextmanager
def checked_samples(size: int, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield samples of flcore's streams whose receiver checks pieces and discards them."""
    share = size // tuning.connections
    spec = spec_named("flat", share)
    with _server({"kind": "checking", "size": share}, tuning, threads) as (_, address), ExitStack() as stack:
        clients = [
            stack.enter_context(closing(JoinedClient(address, f"c{k}", spec))) for k in range(tuning.connections)
        ]
        yield {
            "upload, flcore, checked": lambda: _concurrently([partial(client.upload, 1) for client in clients]),
            "download, flcore, checked": lambda: _concurrently([client.download for client in clients]),
        }


@contextmanager
def folded_sample(size: int, accumulate: str, tuning: Tuning, threads: int) -> Iterator[dict[str, Sample]]:
    """Yield a sample of uploads into a federation, which checks, scans and folds one while the next one arrives.

    A sample makes `UPDATES` uploads in a row and waits until folding ends. It returns the seconds per upload.
    """
    share = size // tuning.connections
    spec = spec_named("flat", share)
    count = UPDATES * tuning.connections
    run = FederationSpec("flat", share, clients=count, accumulate=accumulate)
    setup = {
        "kind": "folding",
        "size": share,
        "clients": count,
        "accumulate": accumulate,
        "contract": run.overrides,
    }
    job = flcore.Job.load(SYNTHETIC_JOB, **run.overrides)
    content = JoinContent(contract=job.contract.to_json(), code_digest=job.code_digest, version=flcore.__version__)
    with _server(setup, tuning, threads) as (server, address), ExitStack() as stack:
        names = [f"c{number}" for number in range(count)]
        clients = [
            stack.enter_context(closing(JoinedClient(address, name, spec, content.to_bytes()))) for name in names
        ]

        def sample() -> float:
            assignments = [client.next_assignment() for client in clients]
            uploads = [
                partial(client.upload, assignment.assignment_id, assignment.token)
                for client, assignment in zip(clients, assignments, strict=True)
            ]
            turns = [uploads[first::UPDATES] for first in range(UPDATES)]
            taken = sum(_concurrently(turn) for turn in turns)
            return (taken + float(server.receive()["folding_s"])) / UPDATES

        yield {f"upload, flcore, checked and folded, {accumulate}": sample}


@contextmanager
def _server(setup: dict[str, Any], tuning: Tuning, threads: int) -> Iterator[tuple[ChildProcess, str]]:
    module = "flcore_bench.transport_server"
    with ChildProcess(module, setup | {"tuning": vars(tuning)}, threads) as server:
        yield server, server.receive()["address"]


def _concurrently(calls: Sequence[Callable[[], object]]) -> float:
    """Run calls at the same time, and return the seconds until the last one ends."""
    with ThreadPoolExecutor(len(calls)) as pool:
        started = time.perf_counter()
        for future in [pool.submit(call) for call in calls]:
            future.result()
        return time.perf_counter() - started
