"""A client's state directory: who may use it, and that a client killed at any moment finds it usable."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import Outbox

from flcore import JobError
from flcore.client.answers_on_disk import AnswersOnDisk
from flcore.client.cached_answer import CachedAnswer
from flcore.client.state_directory import StateDirectory
from flcore.job.contract import Contract
from flcore.job.messages import TaskContent, parse_content
from flcore.job.parsing import parse_contract
from flcore.model.model import NamedArrays
from flcore.model.open_file import OpenFile
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from tests.flcore.client.played import assignment

CONTENT: dict[str, Any] = {
    "name": "staged",
    "clients": 1,
    "server": {"model": "code.py:initial_model", "rounds": 9},
    "client": {"executor": "code.py"},
    "tasks": {"train": {"returns": "delta"}},
}


def contract(**changes: Any) -> Contract:
    return parse_contract(CONTENT | changes, "the test's contract")


def opened(path: Path, client: str = "a", **changes: Any) -> StateDirectory:
    return StateDirectory(path, client=client, contract=contract(**changes))


def test_a_directory_is_made_for_its_owner_alone_and_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path / "one/state") as state:
            assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_the_files_of_the_jobs_code_stay(tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        (state.job_directory() / "variate").write_text("1")
        assert stat.S_IMODE(state.job_directory().stat().st_mode) == 0o700 and state.job_directory().is_absolute()
    with opened(tmp_path / "state") as state:
        assert (state.job_directory() / "variate").read_text() == "1"


def test_a_directory_job_alone_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "state/job").mkdir(parents=True)
    with pytest.raises(JobError, match=r"expected an empty directory, or a client's state, got .* with 'job'"):
        opened(tmp_path / "state")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path / "state"):
        expected = rf"state is in use by process {os.getpid()} on .*; end that client, or give another directory"
        with pytest.raises(JobError, match=expected):
            opened(tmp_path / "state")
    opened(tmp_path / "state").close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from tests.flcore.client.test_state_directory import opened; "
        f"kept = opened(Path({str(tmp_path / 'state')!r})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -9
    opened(tmp_path / "state").close()


@pytest.mark.parametrize(
    ("client", "changes", "difference"),
    [
        ("b", {}, "client 'a', expected 'b'"),
        ("a", {"name": "other"}, "job 'staged', expected 'other'; contract '[0-9a-f]{64}', expected '"),
        ("a", {"clients": 2}, "contract '[0-9a-f]{64}', expected '"),
    ],
)
def test_the_state_of_another_client_or_contract_is_refused(
    tmp_path: Path, client: str, changes: dict[str, Any], difference: str
) -> None:
    opened(tmp_path / "state").close()
    before = sorted(tmp_path.rglob("*"))
    expected = rf"state holds the state of another client or job: {difference}.*\. Give another directory \(--state\)"
    with pytest.raises(JobError, match=expected):
        opened(tmp_path / "state", client, **changes)
    assert sorted(tmp_path.rglob("*")) == before
    opened(tmp_path / "state").close()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b'{"format": 2}', b"null"])
def test_a_damaged_owner_is_refused(tmp_path: Path, content: bytes) -> None:
    opened(tmp_path / "state").close()
    (tmp_path / "state/client.json").write_bytes(content)
    with pytest.raises(JobError, match=r"remove|holds the state of another client"):
        opened(tmp_path / "state")


def test_a_directory_with_other_files_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("")
    with pytest.raises(JobError, match=r"expected an empty directory, or a client's state, got .* with 'job\.toml'"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]
    with pytest.raises(JobError, match=r"expected a directory that can be written to, got .*job\.toml: "):
        opened(tmp_path / "job.toml")


@pytest.mark.parametrize("name", ["answer-drafts", "feedback-form.pieces", ".answer.partial"])
def test_names_like_those_of_answers_are_refused_where_no_client_has_its_state(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(JobError, match=f"expected an empty directory, or a client's state, got .* with '{name}'"):
        opened(tmp_path)
    assert (tmp_path / name).exists()


SPEC = ModelSpec.of({"w": np.zeros(1000, np.float32), "n": np.zeros(300, np.int64)})
WIRE_FORMAT = WireFormat.compressed(SPEC, "int8[64]")
ROUNDS = 3


def answer_of(round_: int) -> CachedAnswer:
    """What a client computes in a round: the same whenever it is computed."""
    arrays = {"w": np.linspace(0, round_, 1000).astype(np.float32), "n": np.arange(300)}
    content = f"answer {round_}".encode()
    return CachedAnswer(assignment(round_, round_), "train", round_, content, NamedArrays(SPEC, arrays), WIRE_FORMAT)


def pieces(answer: CachedAnswer) -> list[bytes]:
    outbox = Outbox(answer.source)
    return [outbox.piece(index) for index in range(len(outbox.piece_ranges))]


class Federation:
    """The server's side of the rounds: `asked` is the round that it asks for, the next one after each receipt."""

    def __init__(self, asked: int = 1) -> None:
        self.asked = asked
        self.is_recorded = True

    def play(self, directory: Path, sent: dict[int, list[bytes]]) -> None:
        """Play the rounds that are left with a client that begins now; add each answer's pieces to `sent`."""
        with opened(directory) as state:
            said = list[str]()
            answers = AnswersOnDisk(state, said.append)
            assert said == [], "nothing is found damaged"
            while self.asked <= ROUNDS:
                asked = self.asked
                message = assignment(asked, asked)
                answer = answers.find(message, parse_content(TaskContent, message.content))
                answer = answer or answers.keep(answer_of(asked))
                assert answer.content == f"answer {asked}".encode()
                sent[asked] = pieces(answer)
                self.asked, self.is_recorded = asked + 1, False
                answers.mark_received(answer)
                self.is_recorded = True
            answers.clear()


@contextmanager
def images_of(directory: Path, images: Path, federation: Federation, taken: list[int]) -> Iterator[None]:
    """Copy a directory before and after each call that changes it: what a process killed there leaves behind.

    `taken` gets the round that was asked for, negative if a receipt had come and was not recorded yet.
    """

    def around(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            take()
            result = function(*args, **kwargs)
            take()
            return result

        return call

    def take() -> None:
        if not is_taking and directory.exists():
            is_taking.append(True)
            shutil.copytree(directory, images / str(len(taken)))
            taken.append(federation.asked if federation.is_recorded else -federation.asked)
            is_taking.pop()

    is_taking: list[bool] = []
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in [
            *((Path, name) for name in ("mkdir", "rename", "replace", "unlink")),
            *((os, name) for name in ("open", "fsync", "write", "unlink", "rmdir")),
            (OpenFile, "write_at"),
        ]:
            patched.setattr(owner, name, around(getattr(owner, name)))
        yield


def test_a_client_killed_at_any_moment_sends_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a killed process loses no write; it takes most of the time
    undisturbed: dict[int, list[bytes]] = {}
    federation, taken = Federation(), list[int]()
    (tmp_path / "images").mkdir()
    with images_of(tmp_path / "state", tmp_path / "images", federation, taken):
        federation.play(tmp_path / "state", undisturbed)
    assert undisturbed[1] != undisturbed[2]
    assert len(taken) > 100 and {-2, -3, -4, 1, 2, 3, 4} == set(taken)
    lost = 0
    for number, asked in enumerate(taken):
        sent: dict[int, list[bytes]] = {}
        Federation(abs(asked)).play(tmp_path / "images" / str(number), sent)
        expected = {round_: undisturbed[round_] for round_ in range(abs(asked), ROUNDS + 1)}
        if asked < 0 and sent != expected:
            lost += 1  # killed between the receipt and its record: this update's rounding errors are not added
        else:
            assert sent == expected, f"image {number}"
    print(f"{len(taken)} images of a killed client, {lost} between a receipt and its record")
    assert 0 < lost < 20
