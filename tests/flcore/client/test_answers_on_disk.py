"""A client with a state directory: what a restarted client sends, and what it does when the disk fails it."""

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import Outbox, Refused, TaskAssignment, Welcome

from flcore import Model, ModelSpec, Update
from flcore.client import answers_on_disk, stored_pieces
from flcore.client.answers_on_disk import AnswersOnDisk
from flcore.client.cached_answer import CachedAnswer
from flcore.client.state_directory import StateDirectory
from flcore.client.stored_answer import read_answer
from flcore.errors import CorruptUpdate
from flcore.job.messages import TaskContent, WelcomeContent, parse_content
from flcore.job.parsing import parse_contract
from flcore.model.model import NamedArrays
from flcore.model.open_file import OpenFile
from flcore.model.wire_format import WireFormat
from tests.flcore.client.played import Played, assignment, welcome

MODEL = Model.of(
    {"w": np.zeros(1000, np.float32), "double": np.zeros((3, 100)), "n": np.zeros(300, np.int64)},
)
"""Segments of three dtypes."""

BIG = Model.of({"w": np.zeros(1_300_000, np.float32), "n": np.zeros(300, np.int64)})
"""A segment with three pieces as floats, and with two as int8."""

CONTRACT = {
    "name": "staged",
    "clients": 1,
    "server": {"model": "code.py:initial_model", "rounds": 9},
    "client": {"executor": "code.py"},
    "tasks": {"train": {"returns": "delta"}},
}

UPLOADS = ["float32", "int8[64]", "float16"]


def played(directory: Path, upload: str = "float32", state: Path | None = None, model: Model = MODEL) -> Played:
    made = Played(directory, model, state)
    if upload != "float32":
        made.wire = {"upload": upload}
    return made


def asked(number: int, round_: int, model: Model = MODEL) -> TaskAssignment:
    return assignment(number, round_, layout=model.layout)


@pytest.mark.parametrize("upload", UPLOADS)
def test_a_restarted_client_sends_the_same_bytes_without_training(tmp_path: Path, upload: str) -> None:
    client = played(tmp_path, upload, tmp_path / "state", BIG)
    client.server.losing = [Refused("over", "the server ended")]
    client.start(asked(1, 1, BIG))
    client.server.wait_for_uploads(1)
    for number in (2, 3):
        client.leave()
        client.start(asked(number, 1, BIG))
        client.server.wait_for_uploads(number)
    client.finish()
    first, second, third = client.server.uploads
    assert first[1:] == second[1:] == third[1:]
    assert client.trained == [1] and client.server.downloads == 1
    notice = f"client-1: {tmp_path}/state has the answer to this assignment: it is sent without training"
    assert client.told.count(notice) == 2


def test_another_assignment_drops_what_is_on_disk(tmp_path: Path) -> None:
    client = played(tmp_path, state=tmp_path / "state")
    client.start(asked(1, 1))
    client.server.wait_for_uploads(1)
    client.leave()
    other_model = assignment(2, 1, payload_id="another model", layout=MODEL.layout)
    client.start(other_model)
    client.server.wait_for_uploads(2)
    client.say(asked(3, 2))
    client.server.wait_for_uploads(3)
    client.finish()
    assert client.trained == [1, 1, 2]


def three_rounds(client: Played, *, lose: bool = False, restart: bool = False) -> list[list[bytes]]:
    """Train and validate in three rounds; return the pieces of the last update of each.

    Args:
        client: The client.
        lose: The server loses each update while the client validates, and asks for both again.
        restart: Restart the client before that.
    """
    sent: list[list[bytes]] = []
    number = 0
    client.start()
    for round_ in (1, 2, 3):
        for again in (False, True) if lose else (False,):
            if again and restart:
                client.leave()
                client.start()
            for task in ("train", "validate"):
                number += 1
                client.say(assignment(number, round_, f"{task}-{round_}", task, client.model.layout))
                client.wait_for_receipts(number)
        sent.append(client.server.uploads[-2][2])
    client.finish()
    return sent


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("kept", ["in memory", "on disk", "on disk, restarted"])
def test_an_update_is_kept_until_its_round_is_over(tmp_path: Path, upload: str, kept: str) -> None:
    undisturbed = three_rounds(played(tmp_path, upload))
    state = None if kept == "in memory" else tmp_path / "state"
    client = played(tmp_path, upload, state)
    assert three_rounds(client, lose=True, restart="restarted" in kept) == undisturbed
    assert client.trained == [1, 2, 3]
    first, _, second = client.server.uploads[:3]
    assert first[1:] == second[1:], "the same update, with the same id"


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
@pytest.mark.parametrize("owner", ["the job", "the client"])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_an_update_whose_arrays_another_task_overwrites_is_kept_or_computed_again(
    tmp_path: Path, upload: str, owner: str, is_on_disk: bool
) -> None:
    client = played(tmp_path, upload, tmp_path / "state" if is_on_disk else None)
    own = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in MODEL.spec.tensors}

    def train(model: Any, task: Any) -> Update:
        client.trained.append(task.round)
        for array in own.values():
            array[...] = np.linspace(0, 1, array.size).reshape(array.shape)
        return Update(own if owner == "the job" else model, weight=1)

    def validate(*_: Any) -> Update:
        own["w"][-1] += 1
        return Update(weight=1, metrics={"loss": 1})

    client.train, client.validate = train, validate
    for number, task in enumerate(("train", "validate", "train", "validate"), 1):
        message = assignment(number, 1, task, task, MODEL.layout)
        client.server.model = Model.of({name: array + (task == "validate") for name, array in MODEL.arrays().items()})
        client.start(message) if number == 1 else client.say(message)
        client.wait_for_receipts(number)
    client.finish()
    first, _, second, _ = client.server.uploads
    assert first[2] == second[2]
    is_computed_again = not is_on_disk and upload == "float32"  # a compressed one is kept as it was sent
    assert client.trained == ([1, 1] if is_computed_again else [1])
    told = [text for text in client.told if "overwritten since it was sent: the task is executed again" in text]
    assert len(told) == is_computed_again


def test_an_update_in_memory_that_was_not_sent_whole_ends_with_another_task(tmp_path: Path) -> None:
    client = played(tmp_path)
    client.server.takes = 1
    client.start(asked(1, 1))
    client.server.wait_for_uploads(1)
    client.server.takes = None
    client.say(assignment(2, 1, "validate", "validate", MODEL.layout))
    client.wait_for_receipts(1)
    client.say(asked(3, 1))
    client.wait_for_receipts(2)
    client.finish()
    assert client.trained == [1, 1]


def test_a_received_update_that_is_asked_for_again_and_not_received_leaves_no_rounding_errors(tmp_path: Path) -> None:
    for state in (None, tmp_path / "state"):
        client = played(tmp_path, "int8[64]", state)
        client.start(asked(1, 1))
        client.wait_for_receipts(1)
        client.server.losing = [Refused("over", "the task is over")]
        client.say(asked(2, 1))
        client.server.wait_for_uploads(2)
        client.say(asked(3, 3))
        client.wait_for_receipts(2)
        client.finish()
        assert client.server.uploads[0][2] == client.server.uploads[2][2]
        assert client.trained == [1, 3]


def four_rounds(client: Played, *, restart: bool = False, lose: bool = False) -> list[list[bytes]]:
    """Run four rounds; return the pieces of each.

    Args:
        client: The client.
        restart: Restart the client after each receipt.
        lose: Lose each first receipt, and restart the client before the second one.
    """
    sent: list[list[bytes]] = []
    client.start()
    for round_ in (1, 2, 3, 4):
        client.server.losing = [Refused("over", "the server ended")] if lose else []
        client.say(asked(round_, round_, client.model))
        client.server.wait_for_uploads(2 * round_ - 1 if lose else round_)
        if lose:
            client.leave()
            client.start(asked(round_, round_, client.model))
        client.wait_for_receipts(round_)
        sent.append(client.server.uploads[-1][2])
        if restart:
            client.leave()
            client.start()
    client.finish()
    assert client.trained == [1, 2, 3, 4]
    return sent


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("lose", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_rounding_errors_survive_a_restart(tmp_path: Path, upload: str, restart: bool, lose: bool) -> None:
    undisturbed = four_rounds(played(tmp_path, upload))
    assert (undisturbed[0] == undisturbed[1]) == (upload == "float32"), "a rounding error goes into the next update"
    assert four_rounds(played(tmp_path, upload, tmp_path / "state"), restart=restart, lose=lose) == undisturbed
    left = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert left == ["client.json", "client.lock"], "the job is done"


def test_rounding_errors_of_several_pieces_survive_a_restart(tmp_path: Path) -> None:
    undisturbed = four_rounds(played(tmp_path, "int8[64]", model=BIG))
    assert four_rounds(played(tmp_path, "int8[64]", tmp_path / "state", BIG), restart=True) == undisturbed


def test_an_answer_is_on_disk_before_its_upload_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def name_of(descriptor: int) -> str:
        return os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path / "state")

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"fsync {name_of(descriptor)}")
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    client = played(tmp_path, "int8[64]", tmp_path / "state")
    client.server.uploading = lambda: calls.append("upload")
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    client.start(asked(1, 1))
    client.wait_for_receipts(1)
    client.finish()
    begin, end = calls.index("fsync .answer.partial/payload.pieces"), calls.index("upload")
    assert calls[begin:end] == [
        "fsync .answer.partial/payload.pieces",
        "fsync .answer.partial/residuals.pieces",
        "fsync .answer.partial/answer.json",
        "fsync .answer.partial",
        "rename .answer.partial answer-train",
        "fsync .",
    ]
    assert calls[end + 1 :][:2] == ["fsync answer-train/received", "fsync answer-train"]


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
@pytest.mark.parametrize("file", ["answer.json", "payload.pieces"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "absent", "directory"])
def test_a_damaged_answer_is_dropped_and_its_task_executed_again(
    tmp_path: Path, upload: str, file: str, damage: str
) -> None:
    client = played(tmp_path, upload, tmp_path / "state")
    client.server.losing = [Refused("over", "the server ended")]
    client.start(asked(1, 1))
    client.server.wait_for_uploads(1)
    client.leave()
    path = tmp_path / "state/answer-train" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "absent":
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        cut, rest = content[:middle], content[middle + 1 :]
        damaged = {"flip": cut + flipped + rest, "cut": cut, "empty": b"", "longer": content + b" x"}
        path.write_bytes(damaged[damage])
    client.start(asked(2, 1))
    client.server.wait_for_uploads(2)
    client.finish()
    assert client.trained == [1, 1]
    assert client.server.uploads[0][2] == client.server.uploads[1][2]
    told = [text for text in client.told if str(path) in text]
    if (file, damage) == ("answer.json", "absent"):
        assert not told, "there is no answer without its description"
    else:
        assert len(told) == 1 and "executed again if the server asks for it" in told[0]


def test_a_flipped_byte_of_a_payload_is_detected(tmp_path: Path) -> None:
    payload = np.arange(64, dtype=np.float32)
    source = NamedArrays(ModelSpec.of({"w": payload}), {"w": payload})
    path = tmp_path / "payload.pieces"
    stored_pieces.StoredPieces.write(path, source)
    sound = path.read_bytes()
    assert sound == Outbox(source).piece(0)
    for index in [*range(208), *range(208, len(sound), 16)]:  # header and metadata, and one of 16 bytes of elements
        path.write_bytes(sound[:index] + bytes([sound[index] ^ 0x10]) + sound[index + 1 :])
        with pytest.raises(CorruptUpdate, match=r"payload\.pieces: piece 0 cannot be read back"):
            stored_pieces.StoredPieces.open(path, source.layout)


def test_damaged_rounding_errors_are_dropped(tmp_path: Path) -> None:
    client = played(tmp_path, "int8[64]", tmp_path / "state")
    client.start(asked(1, 1))
    client.wait_for_receipts(1)
    client.say(asked(2, 2))
    client.wait_for_receipts(2)
    client.leave()
    [feedback] = (tmp_path / "state").glob("feedback-*")
    content = bytearray(feedback.read_bytes())
    content[1000] ^= 1
    feedback.write_bytes(content)
    (tmp_path / "state/answer-train/answer.json").unlink()
    client.start(asked(3, 3))
    client.wait_for_receipts(3)
    client.finish()
    first, second, third = (pieces for _, _, pieces in client.server.uploads)
    assert first == third != second
    assert any("the error feedback of task 'train' starts anew" in text for text in client.told)


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
@pytest.mark.parametrize(
    ("failing", "number"),
    [
        ("mkdir", errno.EROFS),
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("fsync", errno.EIO),
        ("rename", errno.ENOSPC),
    ],
)
def test_a_full_or_broken_disk_costs_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upload: str, number: int, failing: str
) -> None:
    client = played(tmp_path, upload, tmp_path / "state")
    client.start(asked(1, 1))
    client.wait_for_receipts(1)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        if failing == "write":
            patched.setattr(OpenFile, "write_at", fail)
        else:
            patched.setattr(os if failing == "fsync" else Path, failing, fail)
        client.say(asked(2, 2))
        client.wait_for_receipts(2)
        client.say(asked(3, 2))  # the same once more: the answer is in memory
        client.wait_for_receipts(3)
    assert not (tmp_path / "state/answer-train").exists() and not (tmp_path / "state/.answer.partial").exists()
    client.say(asked(4, 4))
    client.wait_for_receipts(4)
    assert read_answer(tmp_path / "state/answer-train") is not None, "the disk has space again"
    client.finish()
    assert client.trained == [1, 2, 4] and not client.server.reports
    first, second, again, last = (pieces for _, _, pieces in client.server.uploads)
    assert second == again
    assert last == first, "no rounding error is added twice"
    said = [text for text in client.told if os.strerror(number) in text]
    assert sum("the answer is not on disk" in text for text in said) == 1 and len(said) <= 2


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_an_answer_damaged_while_the_client_runs_is_executed_again(tmp_path: Path, upload: str, damage: str) -> None:
    undisturbed = four_rounds(played(tmp_path, upload))
    client = played(tmp_path, upload, tmp_path / "state")
    payload = tmp_path / "state/answer-train/payload.pieces"
    client.start()
    for number, round_ in enumerate([1, 1, 2, 3, 4], 1):
        if number == 2:  # the server has a receipt, and asks for it again
            damaged = bytearray(payload.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            payload.write_bytes(damaged if damage == "flip" else damaged[:100])
        client.say(asked(number, round_))
        client.wait_for_receipts(number)
    client.finish()
    assert client.trained == [1, 1, 2, 3, 4] and not client.server.reports
    assert [pieces for _, _, pieces in client.server.uploads] == [undisturbed[0], *undisturbed]
    [told] = [text for text in client.told if "executed again" in text]
    assert f"{payload}: piece " in told, "its present name, not that under which it was written"


def test_an_answer_that_is_always_damaged_fails_its_assignment_only(tmp_path: Path) -> None:
    client = played(tmp_path, state=tmp_path / "state")
    client.server.uploading = lambda: os.truncate(tmp_path / "state/answer-train/payload.pieces", 1000)
    client.start(asked(1, 1))
    client.server.wait_for_report()
    client.server.uploading = lambda: None
    client.say(asked(2, 1))
    client.wait_for_receipts(1)
    client.finish()
    [failure] = client.server.reports
    assert failure.message == "the client cannot read the stored answer back from its disk", "and no path of it"
    assert client.trained == [1, 1, 1]


def test_rounding_errors_damaged_while_the_client_runs_are_dropped(tmp_path: Path) -> None:
    client = played(tmp_path, "int8[64]", tmp_path / "state")
    client.start(asked(1, 1))
    client.wait_for_receipts(1)
    residuals = tmp_path / "state/answer-train/residuals.pieces"
    os.truncate(residuals, 1000)
    client.say(asked(2, 2))
    client.wait_for_receipts(2)
    client.finish()
    first, second = (pieces for _, _, pieces in client.server.uploads)
    assert first == second and client.trained == [1, 2] and not client.server.reports
    [told] = [text for text in client.told if "the error feedback of task 'train' starts anew" in text]
    assert f"{tmp_path}/state/feedback-train-" in told


def test_memory_holds_a_piece_of_an_answer_at_a_time(tmp_path: Path) -> None:
    arrays = {"w": np.ones(16 << 20, np.float32)}
    spec = ModelSpec.of(arrays)
    for upload in (None, "int8[64]"):
        wire_format = WireFormat.compressed(spec, upload)
        contract = parse_contract(CONTRACT, "the test's contract")
        with StateDirectory(tmp_path / f"state-{upload}", client="a", contract=contract) as state:
            answers = AnswersOnDisk(state, lambda _: None)
            answer = CachedAnswer(
                asked(1, 1), "train", 1, b"{}", NamedArrays(spec, arrays), wire_format if upload else None
            )
            tracemalloc.start()
            kept = answers.keep(answer)
            for piece in wire_format.pieces:
                kept.source.read(piece)
            del kept
            AnswersOnDisk(state, lambda _: None)
            answers.mark_received(answer)
            answers.find(asked(2, 2), parse_content(TaskContent, asked(2, 2).content))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 48 << 20, "the model has 64 MiB"


def of_run(run: str) -> Welcome:
    content = parse_content(WelcomeContent, welcome("secret", MODEL).content)
    return Welcome(run or "secret", content.model_copy(update={"run": run}).to_bytes())


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
@pytest.mark.parametrize("record", ["another run", "damaged", "absent"])
def test_a_restarted_client_takes_nothing_of_another_run_into_a_run(tmp_path: Path, upload: str, record: str) -> None:
    """The server was killed and started with --fresh, and so were its clients, on their directories."""
    client, state = played(tmp_path, upload, tmp_path / "state"), tmp_path / "state"
    client.start(of_run("a"), asked(1, 1), asked(2, 2))
    client.wait_for_receipts(2)
    client.leave()
    if record == "damaged":
        (state / "run.json").write_bytes(b"[1]")
    elif record == "absent":
        (state / "run.json").unlink()
    told = len(client.told)
    client.start(of_run("b"), asked(3, 1), asked(4, 2))
    client.wait_for_receipts(4)
    client.leave()
    first, second, third, fourth = (pieces for _, _, pieces in client.server.uploads)
    assert first == third and second == fourth and (first == second) == (upload == "float32")
    assert client.trained == [1, 2, 1, 2]
    where = "run 'a'" if record == "another run" else "an unknown run"
    notices = [text for text in client.told[told:] if "are removed" in text]
    expected = f"{state}: the updates and rounding errors are of {where}, and the server's run is 'b': they are removed"
    assert notices == [f"client-1: {expected}"]
    client.start(of_run("b"), asked(5, 2), asked(6, 3))
    client.wait_for_receipts(6)
    client.finish()
    assert client.trained == [1, 2, 1, 2, 3] and client.server.uploads[4][2] == second, "of the same run"
    assert sum("are removed" in text for text in client.told) == 1


def test_updates_that_cannot_be_removed_stay_those_of_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = played(tmp_path, state=tmp_path / "state")
    client.start(of_run("a"), asked(1, 1))
    client.wait_for_receipts(1)
    client.leave()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(answers_on_disk, "remove_answer", fail)
        client.start(of_run("b"), asked(2, 1))
        client.wait_for_receipts(2)
        client.leave()
    client.start(of_run("b"), asked(3, 1))
    client.wait_for_receipts(3)
    client.finish()
    assert client.trained == [1, 1, 1], "nobody knows which run the files are of"
