"""What flcore adds at a client: one model, one more where updates are lossy, and a few pieces; in fresh processes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from flcore_bench.process import ChildProcess
from flcore_bench.round import ECHO_JOB
from flcore_transport import GrpcServer, Service

import flcore
from flcore.server.serve import serve

SMALL, LARGE = 32, 128
FEW_PIECES = 24 << 20
"""Also more than two processes' own memory differs by on a busy machine; a quarter of a model."""
LOSSY = {"wire": {"upload": "int8[256]"}, "tasks": {"train": {"returns": "delta"}}}


def peak_of(megabytes: int, contract: dict[str, Any]) -> int:
    """Run two rounds with one client, and return its process's peak."""
    overrides = {"seed": megabytes, "clients": 1, "server": SERVER, **contract}
    job = flcore.Job.load(ECHO_JOB, **overrides)
    address: Future[str] = Future()

    def listen(service: Service) -> GrpcServer:
        server = GrpcServer(service)
        address.set_result(server.address)
        return server

    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(serve, job, listen)
        setup = {"kind": "client", "directory": str(ECHO_JOB), "contract": overrides, "address": address.result(20)}
        with ChildProcess("flcore_bench.peak_memory", setup, threads=2) as client:
            peak = client.receive()["peak_bytes"]
        assert len(outcome.result(20).history) == 2
    return int(peak)


SERVER = {"model": "echo.py:initial_model", "rounds": 2, "quorum": 1}


@pytest.mark.long
@pytest.mark.parametrize(("contract", "models"), [({}, 1), (LOSSY, 2)], ids=["whole", "lossy"])
def test_a_client_takes_one_model_and_one_more_for_what_rounding_left_out(
    contract: dict[str, Any], models: int
) -> None:
    peak_of(SMALL, contract)  # so that no kernel is compiled in what is measured: that takes memory, too
    grown = peak_of(LARGE, contract) - peak_of(SMALL, contract)
    assert grown <= models * (LARGE - SMALL) * 10**6 + FEW_PIECES
    assert grown >= (LARGE - SMALL) * 10**6 - FEW_PIECES, "the models are in memory, so this test can fail"
