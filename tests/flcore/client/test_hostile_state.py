"""State directories that somebody has changed: no file outside is written, nothing hangs, no traceback comes."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import JobError, Model
from tests.flcore.client.played import Played, assignment
from tests.flcore.client.test_state_directory import opened

MODEL = Model.of({"w": np.zeros(1000, np.float32)})


@pytest.fixture
def client(tmp_path: Path) -> Played:
    """A client that has left, with a received answer and rounding errors in `state`."""
    played = Played(tmp_path, MODEL, tmp_path / "state")
    played.wire = {"upload": "int8[64]"}
    played.start(assignment(1, 1, layout=MODEL.layout))
    played.wait_for_receipts(1)
    played.say(assignment(2, 2, layout=MODEL.layout))
    played.wait_for_receipts(2)
    played.leave()
    return played


def ask_again(client: Played) -> list[str]:
    """Start the client, ask for its last answer and for another one; return what it says."""
    said = len(client.told)
    client.start(assignment(3, 2, layout=MODEL.layout), assignment(4, 3, layout=MODEL.layout))
    client.wait_for_receipts(4)
    client.finish()
    assert not client.server.reports
    return client.told[said:]


def change_description(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change answer.json, and give it a valid digest."""
    file = directory / "state/answer-train/answer.json"
    fields = json.loads(file.read_text())["answer"]
    change(fields)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"answer": fields, "sha256": digest}))


KEYS = ("format", "task", "round", "assignment", "payload_id", "content", "layout", "feedback")


def layout_of(dtype: Any, elements: Any) -> list[Any]:
    return [["model", [[dtype, elements]]]]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("how", ["absent", "null", "another type"])
def test_a_description_with_other_keys_is_dropped(client: Played, tmp_path: Path, key: str, how: str) -> None:
    def change(fields: dict[str, Any]) -> None:
        if how == "absent":
            del fields[key]
        else:
            fields[key] = None if how == "null" else {"a": [1]}

    change_description(tmp_path, change)
    told = ask_again(client)
    assert client.trained == [1, 2, 2, 3]
    assert sum("the answer is dropped" in text for text in told) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "../x"),
        ("task", "other"),
        ("round", -1.5),
        ("content", "\ud800"),
        ("feedback", "../victim"),
        ("feedback", "../../victim"),
        ("feedback", "feedback-train-0123456789abcdef.pieces/../../../victim"),
        ("feedback", "feedback-*-0123456789abcdef.pieces"),
        ("feedback", "feedback-other-0123456789abcdef.pieces"),
        ("feedback", "client.json"),
        ("layout", []),
        ("layout", [[]]),
        ("layout", layout_of("float32", -1024)),
        ("layout", layout_of("float32", 1024.5)),
        ("layout", layout_of("float32", "1024")),
        ("layout", layout_of("float32", 1000)),
        ("layout", layout_of("float", 1024)),
        ("layout", layout_of("float32", 256 * 10**15)),
        ("layout", layout_of("int8[256]", 256 * 10**300)),
        ("layout", [["model", [["float32", 256]]] * 2]),
    ],
)
def test_a_description_with_other_values_is_dropped(client: Played, tmp_path: Path, key: str, value: Any) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    change_description(tmp_path, lambda fields: fields.__setitem__(key, value))
    told = ask_again(client)
    assert client.trained == [1, 2, 2, 3] and victim.read_text() == "precious"
    assert sum("the answer is dropped" in text for text in told) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "victim"]


@pytest.mark.parametrize("file", ["answer.json", "payload.pieces", "residuals.pieces", "received"])
@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_file_of_an_answer_that_is_none(client: Played, tmp_path: Path, file: str, kind: str) -> None:
    path, victim = tmp_path / "state/answer-train" / file, tmp_path / "victim"
    content = path.read_bytes()
    path.unlink()
    make_special(path, kind, victim)
    victim.write_bytes(content)
    told = ask_again(client)
    assert client.trained == ([1, 2, 2, 3] if file in ("answer.json", "payload.pieces") else [1, 2, 3])
    assert victim.read_bytes() == content
    if file != "received":
        assert any(part in text for text in told for part in ("is dropped", "starts anew", "are not recorded"))


@pytest.mark.parametrize(
    "name", ["client.lock", "client.json", "run.json", ".client.json.partial", "feedback-train-x.pieces"]
)
@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_file_of_a_state_that_is_none_is_refused(client: Played, tmp_path: Path, name: str, kind: str) -> None:
    path, victim = tmp_path / "state" / name, tmp_path / "victim"
    victim.write_text("precious")
    path.unlink(missing_ok=True)
    make_special(path, kind, victim)
    with pytest.raises(JobError, match=rf"{name}: expected a regular file, and no link; remove it"):
        client.start()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["answer-train", "answer-x", ".answer.partial", "job"])
@pytest.mark.parametrize("kind", ["pipe", "link", "file"])
def test_a_directory_of_a_state_that_is_none_is_refused(client: Played, tmp_path: Path, name: str, kind: str) -> None:
    path, victim = tmp_path / "state" / name, tmp_path / "victim"
    victim.mkdir()
    (victim / "answer.json").write_text("precious")
    if path.exists():
        path.rename(tmp_path / "moved")
    make_special(path, kind, victim)
    with pytest.raises(JobError, match=rf"{name}: expected a directory, and no link; remove it"):
        client.start()
    assert (victim / "answer.json").read_text() == "precious"


def make_special(path: Path, kind: str, victim: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(victim)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_text("x")


@pytest.mark.parametrize("content", [b" " * (2 << 20), b'{"run": "' + b"x" * (2 << 20) + b'"}'])
def test_a_record_that_is_too_long_is_not_read(client: Played, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state/run.json").write_bytes(content)
    assert any("are of an unknown run" in text for text in ask_again(client))
    client.start()
    client.leave()
    (tmp_path / "state/client.json").write_bytes(content)
    with pytest.raises(JobError, match="it has more than 1,048,576 bytes"):
        client.start()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    expected = f"expected a directory that no other user can write to, got .*state with mode {mode:04o}; run chmod go-w"
    with pytest.raises(JobError, match=expected):
        opened(state)
    assert not list(state.iterdir())
    state.chmod(0o755)
    opened(state).close()
    (state / "answer-train").mkdir()
    (state / "answer-train").chmod(mode)
    with pytest.raises(JobError, match="answer-train: another user can write to it; remove it"):
        opened(state)


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "state").close()
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    expected = rf"expected a directory of this user \(user id {own + 1}\), got .*state of user id {own}; give another"
    with pytest.raises(JobError, match=expected):
        opened(tmp_path / "state")


def test_all_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Also in a directory that others can read."""
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    played = Played(tmp_path, MODEL, state)
    played.wire = {"upload": "int8[64]"}
    played.start(assignment(1, 1, layout=MODEL.layout), assignment(2, 2, layout=MODEL.layout))
    played.wait_for_receipts(2)
    files = [path for path in state.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {"payload.pieces", "residuals.pieces", "received", "answer.json"} < {path.name for path in files}
    assert len(list(state.glob("feedback-*"))) == 1
    played.leave()
