"""The name of a job where the directory of its run was expected: the error names the run."""

from pathlib import Path

import pytest

from flcore.cli.run_argument import suggest_run
from flcore.errors import HistoryError
from flcore.server.run_directory import RUN_FILE
from tests.flcore.command import said


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A job and its run, and another run."""
    (tmp_path / "myjob").mkdir()
    for name in ("myjob", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / RUN_FILE).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("command", [["status"], ["show"], ["report"]])
@pytest.mark.parametrize("given", ["myjob/", "runs/my-job"])
def test_the_error_names_the_run_that_was_meant(command: list[str], given: str, place: Path) -> None:
    printed = said(*command, given, cwd=place, code=1)
    assert printed.endswith("; did you mean runs/myjob?\n"), printed


def test_an_error_about_a_run_that_is_there_stays_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(HistoryError, match=r"^damaged$"), suggest_run("runs/myjob", Path("runs/other")):
        raise HistoryError("damaged")
    with pytest.raises(HistoryError, match=r"^gone$"), suggest_run(None, "unlike"):
        raise HistoryError("gone")
