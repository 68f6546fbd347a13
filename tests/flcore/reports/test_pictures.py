"""The pictures of docs/reports.md: made here from a fixed run, and by `FLCORE_PICTURES=1` written to docs/."""

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from flcore.server.events import AnswerRefused, ClientJoined, Event, JoinRefused
from flcore.server.history import Participation, RoundRecord
from tests.flcore.command import said
from tests.flcore.reports.written_runs import write_run
from tests.pictures import DOCS, keep

CHROMIUM = shutil.which("chromium")
HOSPITALS = ("aachen", "bergen", "coimbra", "dijon", "espoo", "florence")
TOO_LARGE = "piece 0 of layer1.weight: expected at most 1000 in absolute value, got 41200"


def picture_rounds() -> list[RoundRecord]:
    """Return 40 rounds in which one hospital is slow, one misses rounds, and one is refused three times."""
    rng, found = random.Random(22), []
    for number in range(1, 41):
        level = 0.9**number
        failed = {"dijon": "no answer within 60 s"} if number in (12, 13, 14, 27) else {}
        failed |= {"espoo": TOO_LARGE} if number in (8, 21, 22) else {}
        updates = {}
        for index, name in enumerate(HOSPITALS):
            loss = 0.3 + 2 * level + 0.06 * index + rng.gauss(0, 0.03)
            seconds = 3.0 + rng.random() + (4 if name == "florence" else 0) + (12 if number == 1 else 0)
            if name not in failed:
                updates[name] = Participation(100.0 + 60 * index, {"loss": loss}, 4_200_000, seconds)
        longest = max(each.seconds for each in updates.values())
        phases = {"train": longest, "aggregate": 0.4, "validate": 1.5 + rng.random() / 2, "keep": 0.1}
        average = sum(each.metrics["loss"] for each in updates.values()) / len(updates)
        found.append(
            RoundRecord(
                number,
                HOSPITALS,
                updates,
                {"train": failed} if failed else {},
                {"loss": average},
                {"accuracy": 0.92 - 0.5 * level + rng.gauss(0, 0.006)},
                4_200_000 * 12,
                4_200_000 * len(updates),
                {**phases, "round": sum(phases.values()) + 0.3},
            )
        )
    return found


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events: list[Event] = [
        *(ClientJoined(name, index) for index, name in enumerate(HOSPITALS, 1)),
        *(AnswerRefused("train", "espoo", number, number, "out-of-bounds", TOO_LARGE) for number in (8, 21, 22)),
        JoinRefused("genoa", "'genoa' is not in the job: it is for 6 named clients"),
    ]
    return write_run(
        tmp_path_factory.mktemp("picture") / "lung-nodules", picture_rounds(), events=events, job="lung-nodules"
    )


def size_of(png: Path) -> tuple[int, int]:
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def test_the_picture_of_the_plot(picture_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said("plot", str(picture_run), "--out", "plot.png", cwd=tmp_path)
    width, height = size_of(tmp_path / "plot.png")
    assert width > 1_000 and height > 1_500
    keep(tmp_path / "plot.png")


@pytest.mark.skipif(CHROMIUM is None, reason="takes a screenshot with Debian's chromium")
def test_the_picture_of_the_report(picture_run: Path, tmp_path: Path) -> None:
    said("report", str(picture_run), "--out", "report.html", cwd=tmp_path)
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1500"]
    page = (tmp_path / "report.html").as_uri()
    command = [str(CHROMIUM), *switches, f"--user-data-dir={tmp_path}/profile", "--screenshot=report.png", page]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert size_of(tmp_path / "report.png") == (1_000, 1_500)
    assert (tmp_path / "report.png").stat().st_size > 50_000  # an empty page has 8 kB
    keep(tmp_path / "report.png")


def test_the_page_has_both_pictures() -> None:
    page = (DOCS / "reports.md").read_text()
    for name in ("plot.png", "report.png"):
        assert f"({name})" in page and size_of(DOCS / name)[0] >= 1_000
