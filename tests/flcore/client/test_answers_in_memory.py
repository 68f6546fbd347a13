"""A client without a state directory: error feedback does not depend on arrays that another task overwrites."""

import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import Refused

from flcore import Arrays, Model, ModelSpec, Task, Update
from flcore.client.answers_in_memory import AnswersInMemory
from flcore.client.cached_answer import CachedAnswer
from flcore.job.messages import TaskContent, parse_content
from flcore.model.model import NamedArrays
from flcore.model.wire_format import WireFormat
from tests.flcore.client.played import Played, assignment

MODEL = Model.of({"w": np.zeros(1_300_000, np.float32), "head": np.zeros(300, np.float32)})
"""Several pieces."""

UPLOADS = ["int8[64]", "bfloat16", "float16"]


def model_of(number: int) -> Model:
    draw = np.random.default_rng(number)
    return Model.of({name: draw.normal(size=array.shape).astype("f4") for name, array in MODEL.arrays().items()})


def three_rounds(client: Played, upload: str, *, validates: bool = True) -> list[list[bytes]]:
    """Train and validate, each with a model of its own; return the pieces of each update."""
    client.wire, sent, number = {"upload": upload}, list[list[bytes]](), 0
    client.start()
    for round_ in (1, 2, 3):
        for task in ("train", "validate") if validates else ("train",):
            number += 1
            client.server.model = model_of(10 * round_ + (task == "validate"))
            client.say(assignment(number, round_, f"{task}-{round_}", task, MODEL.layout))
            client.wait_for_receipts(number)
            if task == "train":
                sent.append(client.server.uploads[-1][2])
    client.finish()
    assert not client.server.reports
    return sent


def noise(task: Task) -> Any:
    return np.random.default_rng(task.round).normal(size=1_300_000).astype(np.float32)


def played(directory: Path, owner: str) -> Played:
    """A client whose tasks return copies, the arrays of one network, or arrays of the model that was downloaded."""
    client = Played(directory, MODEL)
    network = {name: np.zeros_like(array) for name, array in MODEL.arrays().items()}

    def load(model: Arrays) -> None:
        for name, array in network.items():
            array[...] = model[name]

    def train(model: Arrays, task: Task) -> Update:
        if owner == "the model":
            return Update({"w": model["w"], "head": noise(task)[:300]}, weight=1)
        load(model)
        if owner == "copies of the model's":
            return Update({"w": network["w"].copy(), "head": noise(task)[:300]}, weight=1)
        network["w"] += noise(task)
        own = {name: array.copy() for name, array in network.items()} if owner == "copies" else network
        return Update(own, weight=1)

    def validate(model: Arrays, task: Task) -> Update:
        load(model)
        return Update(weight=1, metrics={"loss": 1})

    client.train, client.validate = train, validate
    return client


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize(("owner", "copies"), [("network", "copies"), ("the model", "copies of the model's")])
def test_arrays_that_another_task_overwrites_give_the_bits_of_copies(
    tmp_path: Path, upload: str, owner: str, copies: str
) -> None:
    expected = three_rounds(played(tmp_path, copies), upload)
    assert three_rounds(played(tmp_path, owner), upload) == expected
    assert three_rounds(played(tmp_path, owner), upload, validates=False) == expected


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_a_dtype_cannot_hold_after_the_receipt_costs_no_round(tmp_path: Path, upload: str, value: float) -> None:
    client, own = Played(tmp_path, MODEL), np.zeros(1_300_000, np.float32)

    def train(model: Arrays, task: Task) -> Update:
        own[...] = noise(task)
        return Update({"w": own, "head": noise(task)[:300]}, weight=1)

    def validate(model: Arrays, task: Task) -> Update:
        own[600_000] = value
        return Update(weight=1, metrics={"loss": 1})

    client.train, client.validate = train, validate
    undisturbed = Played(tmp_path, MODEL)
    undisturbed.train = lambda _, task: Update({"w": noise(task), "head": noise(task)[:300]}, weight=1)
    assert three_rounds(client, upload) == three_rounds(undisturbed, upload)


@pytest.mark.parametrize("next_task", ["train", "validate"])
@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_arrays_that_change_before_another_task_begins_leave_no_rounding_errors(
    tmp_path: Path, value: float, next_task: str
) -> None:
    """As by a thread of the job's code: it is told to the client's owner."""
    client, own = Played(tmp_path, MODEL), {name: np.zeros_like(array) for name, array in MODEL.arrays().items()}
    client.wire = {"upload": "float16"}

    def train(*_: Any) -> Update:
        own["w"][...] = np.linspace(0, 1, 1_300_000)
        return Update(own, weight=1)

    client.train = train
    client.start(assignment(1, 1, layout=MODEL.layout))
    client.wait_for_receipts(1)
    own["w"][900_000] = value
    client.say(assignment(2, 2 if next_task == "train" else 1, "m-2", next_task, MODEL.layout))
    client.wait_for_receipts(2)
    client.say(assignment(3, 3, layout=MODEL.layout))
    client.wait_for_receipts(3)
    client.finish()
    assert client.server.uploads[0][2] == client.server.uploads[1 if next_task == "train" else 2][2]
    told = [text for text in client.told if "the error feedback of task 'train' starts anew: " in text]
    assert len(told) == 1 and not client.server.reports


def again_after_validation(tmp_path: Path, state: Path | None, losing: bool) -> Played:
    """Train, validate, train once more as the same task, and train in the next round."""
    client = Played(tmp_path, MODEL, state)
    client.wire = {"upload": "int8[64]"}
    client.start()
    for number, (round_, task) in enumerate([(1, "train"), (1, "validate"), (1, "train"), (2, "train")], 1):
        client.server.losing = [Refused("over", "the task is over")] if losing and number == 3 else []
        client.say(assignment(number, round_, f"{task}-{round_}", task, MODEL.layout))
        client.server.wait_for_uploads(number)
    client.finish()
    assert client.trained == [1, 2]
    assert client.server.uploads[0][1:] == client.server.uploads[2][1:]
    return client


def test_an_update_that_the_server_has_lost_after_its_receipt_is_sent_again(tmp_path: Path) -> None:
    clients = [again_after_validation(tmp_path, state, losing=False) for state in (None, tmp_path / "state")]
    in_memory, on_disk = (client.server.uploads[-1][2] for client in clients)
    assert in_memory == on_disk != clients[0].server.uploads[0][2]


def test_an_update_that_is_not_counted_after_its_receipt_leaves_no_rounding_errors(tmp_path: Path) -> None:
    clients = [again_after_validation(tmp_path, state, losing=True) for state in (None, tmp_path / "state")]
    for client in clients:
        assert client.server.uploads[-1][2] == client.server.uploads[0][2]
    [told] = [text for text in clients[0].told if "starts anew" in text]
    assert told.endswith("task 'train' starts anew: the server has not counted the last update after its receipt")


def test_a_compressed_update_without_a_receipt_ends_with_another_task(tmp_path: Path) -> None:
    client = Played(tmp_path, MODEL)
    client.wire = {"upload": "int8[64]"}
    refused = Refused("untimely", "the round has closed without it")
    client.server.losing = [refused]
    client.start()
    for number, task in enumerate(("train", "validate", "train"), 1):
        client.say(assignment(number, 1, task, task, MODEL.layout))
        client.server.wait_for_uploads(number)
    client.finish()
    assert client.trained == [1, 1]
    assert client.server.uploads[0][2] == client.server.uploads[2][2]


@pytest.mark.parametrize(("upload", "part"), [("int8[64]", 4), ("bfloat16", 2)])
def test_memory_of_an_update_that_another_task_follows(upload: str, part: int) -> None:
    nbytes, few = 64 << 20, 32 << 20  # a piece of int8 has 8 MiB as float32
    spec = ModelSpec.of({"w": np.zeros(nbytes // 4, np.float32)})
    wire_format = WireFormat.compressed(spec, upload)
    answers = AnswersInMemory(lambda _: None)
    own = np.ones(nbytes // 4, np.float32)
    is_free = weakref.ref(own)
    tracemalloc.start()
    first = assignment(1, 1)
    answer = answers.keep(CachedAnswer(first, "train", 1, b"{}", NamedArrays(spec, {"w": own}), wire_format))
    del own
    for index in range(len(wire_format.pieces)):
        answer.outbox.piece(index)
    answers.mark_received(answer)
    _, sending = tracemalloc.get_traced_memory()
    del answer
    second = assignment(2, 1, task="validate")
    answers.find(second, parse_content(TaskContent, second.content))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert is_free() is None, "the cache has let the task's arrays go"
    assert nbytes < sending < nbytes + few, "the rounding errors"
    assert peak < nbytes + nbytes // part * 1.1 + few, "and the update as it is sent"
    assert answers.find(first, parse_content(TaskContent, first.content)) is not None
