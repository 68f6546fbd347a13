"""`parse_status` takes what `to_json` gives, and refuses all else in one line that names the place."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from flcore.server.history import RoundRecord
from flcore.server.run_directory import RUN_FILE, STATUS_FILE
from flcore.status import ClientStatus, FederationStatus, JobStatus, Refusal, RoundStatus, SiteStatus, parse_status
from flcore.status.rounds import round_status
from flcore.status.status_content import MAX_STATUS_BYTES, MalformedStatus
from flcore.status.stored_status import read_status
from tests.flcore.command import said
from tests.flcore.reports.written_runs import STOPPED, write_hospital

STATUS = JobStatus(
    "digits",
    "run-1",
    "running",
    round=2,
    rounds=3,
    updated_s=1_700_000_000.0,
    metrics={"loss": -0.5},
    refusals={"non-finite": 1},
    last_refusals=(Refusal(1_700_000_000.0, "odd", "non-finite", "element 7 is nan"),),
    clients=(ClientStatus("north", True, "training", progress=0.5), ClientStatus("odd")),
    last_rounds=(RoundStatus(1, "over", seconds={"round": 1}), RoundStatus(2, "running")),
)
DEEP = "[" * 100_000 + "]" * 100_000

ALTERED = [
    ('"round": 2', '"round": "2"', "round: input should be a valid integer, got '2'"),
    ('"round": 2', '"round": true', "round: input should be a valid integer, got True"),
    ('"round": 2', '"round": null', "round: input should be a valid integer, got None"),
    ('"round": 2', '"round": -1', "round: input should be greater than or equal to 0, got -1"),
    ('"round": 2', f'"round": {2**63}', "round: input should be less than"),
    ('"round": 2', f'"round": 1{"0" * 5_000}', "expected JSON"),
    ('"round": 2', '"round": 2, "round": 2', "expected JSON: 'round' appears twice"),
    ('"round": 2', '"round": 2, "colour": "red"', "colour: there is no such key in this version of flcore"),
    ('"round": 2', f'"round": {DEEP}', "expected JSON"),
    ('"job": "digits", ', "", "job: field required"),
    ('"state": "running"', '"state": "asleep"', "state: input should be 'queued', 'waiting'"),
    ('"state": "running"', '"state": []', "state: input should be 'queued', 'waiting'"),
    ('"updated_s": 1700000000.0', '"updated_s": NaN', "updated_s: input should be a finite number, got nan"),
    ('"updated_s": 1700000000.0', '"updated_s": 1e300', "updated_s: input should be less than"),
    ('"updated_s": 1700000000.0', '"updated_s": -1.0', "updated_s: input should be greater than or equal to 0"),
    ('"loss": -0.5', '"loss": Infinity', "metrics.loss: input should be a finite number, got inf"),
    ('"loss": -0.5', '"loss": 1e999', "metrics.loss: input should be a finite number, got inf"),
    ('"loss": -0.5', '"loss": [1]', "metrics.loss: input should be a valid number"),
    ('{"non-finite": 1}', '["non-finite"]', "refusals: input should be"),
    ('"phase": "training"', '"phase": "asleep"', "clients.0.phase: input should be 'queued', 'downloading'"),
    ('"progress": 0.5', '"progress": 7', "clients.0.progress: input should be less than or equal to 1, got 7"),
    ('"name": "odd"', '"name": "\\ud800"', "expected JSON|clients.1|invalid JSON"),
    ('"name": "odd"', f'"name": "{"x" * 5_000}"', "clients.1.name: string should have at most 4000 characters"),
    ('"at_s": 1700000000.0', '"at_s": null', "last_refusals.0.at_s: input should be a valid number, got None"),
    ('"seconds": {"round": 1}', '"seconds": {"round": -1}', "last_rounds.0.seconds.round: input should be greater"),
    ('"resources": null', '"resources": {}', "resources.budget_bytes: field required"),
    ('"resources": null', '"resources": null,', "expected JSON"),
]


def content(status: JobStatus | FederationStatus = STATUS) -> str:
    return json.dumps(status.to_json())


def test_what_was_written_is_read() -> None:
    assert parse_status("job", content().encode()) == STATUS
    federation = FederationStatus((STATUS, JobStatus("other")), (SiteStatus("north", True, ("run-1",)),))
    assert parse_status("federation", content(federation).encode()) == federation


@pytest.mark.parametrize(("text", "altered", "expected"), ALTERED)
def test_an_altered_value_is_named(text: str, altered: str, expected: str) -> None:
    assert content().count(text) >= 1
    with pytest.raises(MalformedStatus, match=expected) as raised:
        parse_status("job", content().replace(text, altered, 1).encode())
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


@pytest.mark.parametrize("other", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe{\x00}\x00", DEEP.encode(), b"{}"])
def test_what_is_no_status_is_refused(other: bytes) -> None:
    for kind in ("job", "federation"):
        if (kind, other) != ("federation", b"{}"):  # a federation without jobs
            with pytest.raises(MalformedStatus):
                parse_status(kind, other)


def test_a_large_content_is_refused_unread() -> None:
    with pytest.raises(MalformedStatus, match="expected at most 16,777,216 bytes, got more"):
        parse_status("job", bytes(MAX_STATUS_BYTES + 1))


def test_many_faults_are_counted_and_not_explained() -> None:
    with pytest.raises(MalformedStatus, match=r"^10,000 keys or values are not as expected$"):
        parse_status("job", json.dumps({"job": "digits", "clients": [7] * 10_000}).encode())


def test_an_average_that_overflowed_is_left_out_of_the_status() -> None:
    found = round_status(RoundRecord(1, train={"loss": math.inf, "accuracy": 0.5}), None)
    assert dict(found.train) == {"accuracy": 0.5}
    status = JobStatus("digits", last_rounds=(found,))
    assert parse_status("job", content(status).encode()) == status


# The file.


@pytest.fixture
def stopped_run(tmp_path: Path) -> Path:
    """A run that was stopped, and whose status file is altered by the test."""
    return write_hospital(tmp_path / "run", STOPPED)


def written(run: Path, **fields: Any) -> str:
    described = json.loads((run / RUN_FILE).read_text())
    return content(JobStatus(described["job"], described["id"], "stopped", run=described["id"], **fields))


def test_the_file_is_read(stopped_run: Path) -> None:
    (stopped_run / STATUS_FILE).write_text(written(stopped_run, rounds=9))
    assert read_status(stopped_run).rounds == 9


@pytest.mark.parametrize("options", [(), ("--watch",), ("--json",), ("--watch", "--json")])
def test_each_form_of_the_command_names_the_file_and_the_fault(stopped_run: Path, options: tuple[str, ...]) -> None:
    (stopped_run / STATUS_FILE).write_text(written(stopped_run).replace('"round": 0', '"round": "many"'))
    line = said("status", "run", *options, cwd=stopped_run.parent, code=1)
    assert re.fullmatch(
        "flcore: expected the status of a run in run/status.json; round: input should be a valid integer, got 'many': "
        "the file was altered, or another version of flcore has written it; remove it, and the rest of the directory "
        "says how the run stands\n",
        line,
    )
    (stopped_run / STATUS_FILE).unlink()
    assert "state    stopped" in said("status", "run", cwd=stopped_run.parent)


def test_a_file_of_100_mb_is_not_read(stopped_run: Path) -> None:
    with (stopped_run / STATUS_FILE).open("wb") as file:
        file.truncate(100 << 20)
    line = said("status", "run", cwd=stopped_run.parent, code=1)
    assert line.startswith("flcore: run/status.json: expected a file of at most 16,777,216 bytes, got a larger one")


def test_a_file_of_another_run_is_left_alone(stopped_run: Path) -> None:
    (stopped_run / STATUS_FILE).write_text(written(stopped_run).replace('"run": "', '"run": "another-'))
    assert read_status(stopped_run).rounds_over == 3
