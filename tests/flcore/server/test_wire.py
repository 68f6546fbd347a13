"""Jobs whose payloads travel in narrower dtypes, and jobs about some of the tensors; over gRPC and in-process."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flcore import Arrays, JobError, Task, Update
from tests.flcore.conftest import Stage, adding, mean_of

UPLOADS = ["float16", "bfloat16", "int8[32]", "int8[64]", "int8[128]", "int8[256]"]


def third(model: Arrays, task: Task) -> Update:
    """A difference that no narrow dtype holds: a third."""
    return Update({name: np.full(array.shape, 1 / 3, np.float32) for name, array in model.items()}, weight=1)


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_compressed_differences_add_up_over_the_rounds(stage: Stage, upload: str, plan: str) -> None:
    stage.open(wait_for=2, clients=2, rounds=6, tasks={"train": "delta"}, wire={"upload": upload}, plan=plan)
    for name in stage.job.contract.client_names:
        stage.client(name, third)
    outcome = stage.result()
    (value,) = mean_of(outcome)
    assert abs(value - 2.0) < 1e-3, "without feedback, six times the same rounding error"
    assert outcome.history[0].bytes_received < 2 * 1024 * 4


def test_clients_train_on_what_they_decode_and_the_server_keeps_its_own(stage: Stage) -> None:
    seen: list[float] = []

    def train(model: Arrays, task: Task) -> Update:
        seen.append(float(model["b"][0]))
        return third(model, task)

    stage.open(wait_for=1, clients=1, rounds=3, tasks={"train": "delta"}, wire={"download": "bfloat16"})
    stage.client("client-1", train)
    (value,) = mean_of(stage.result())
    assert value == pytest.approx(1.0, abs=1e-6)
    assert seen == [0.0, float(ml_dtypes.bfloat16(1 / 3)), float(ml_dtypes.bfloat16(2 / 3))]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_whole_weights_may_be_compressed_both_ways(stage: Stage, dtype: str) -> None:
    stage.open(wait_for=2, clients=2, rounds=2, wire={"upload": dtype, "download": dtype})
    stage.client("client-1", adding(1.0, weight=1))
    stage.client("client-2", adding(4.0, weight=2))
    assert mean_of(stage.result()) == {6.0}


def test_the_same_bits_every_time(stage: Stage) -> None:
    found: list[Any] = []
    for _ in range(2):
        stage.open(wait_for=2, clients=2, rounds=3, tasks={"train": "delta"}, wire={"upload": "int8[64]"})
        for name in stage.job.contract.client_names:
            stage.client(name, third)
        found.append(stage.result().model.arrays()["w"].tobytes())
        stage.close()
    assert found[0] == found[1]


def test_a_client_whose_update_int8_cannot_hold_has_failed_and_says_where(stage: Stage) -> None:
    def train(model: Arrays, task: Task) -> Update:
        update = third(model, task)
        update.arrays["w"][1, 2] = np.inf
        return update

    stage.open(wait_for=2, clients=2, tasks={"train": "delta"}, wire={"upload": "int8[64]"})
    stage.client("client-1", train)
    stage.client("client-2", third)
    outcome = stage.result()
    assert "tensor 'w': element 5 is inf" in outcome.history[0].failed["train"]["client-1"]
    assert list(outcome.history[0].updates) == ["client-2"]


def test_int8_is_for_differences(stage: Stage) -> None:
    with pytest.raises(JobError, match=r"wire.upload = 'int8\[64\]' is for differences; tasks.train returns weights"):
        stage.open(wire={"upload": "int8[64]"})


def test_unknown_wire_dtypes_are_refused(stage: Stage) -> None:
    for table in ({"upload": "int4"}, {"download": "int8[64]"}, {"compress": True}):
        with pytest.raises(JobError, match="wire"):
            stage.open(wire=table)


def test_a_job_may_be_about_some_of_the_tensors(stage: Stage) -> None:
    def train(model: Arrays, task: Task) -> Update:
        assert list(model) == ["b"], "nothing else travels"
        return adding(1.0)(model, task)

    stage.open(wait_for=1, clients=1, wire={"tensors": ["b*"]})
    stage.client("client-1", train)
    outcome = stage.result()
    assert list(outcome.model.arrays()) == ["b"] and mean_of(outcome) == {1.0}


def test_patterns_that_fit_no_tensor_are_refused(stage: Stage) -> None:
    with pytest.raises(JobError, match=r"wire.tensors: no tensor of the model matches lora.\*; it has b, w"):
        stage.open(wait_for=1, clients=1, wire={"tensors": ["b", "lora.*"]})
