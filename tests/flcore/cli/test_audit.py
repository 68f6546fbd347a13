"""`flcore audit verify` over the log of a real run. `docs/audit.md` shows what it prints."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.flcore.command import said
from tests.test_readme import blocks

PAGE = (Path(__file__).parents[3] / "docs/audit.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit")
    said("run", "digits", "--rounds", "2", "--workers", "0", "--out", "run", "--json", cwd=place)
    return place / "run"


def test_a_whole_log_is_one_line(run: Path) -> None:
    printed = said("audit", "verify", str(run), cwd=run)
    assert printed == said("audit", "verify", str(run / "audit.jsonl"), cwd=run)
    assert printed.count("\n") == 1
    lines = (run / "audit.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    expected = f"{len(lines)} entries from {first['time']} to {last['time']}, the chain holds; head {last['sha256']}\n"
    assert printed == f"{run / 'audit.jsonl'}: {expected}"
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("join") == 6 and events.count("receipt") == 24 and events.count("publication") == 2


def test_as_json_and_with_a_head(run: Path) -> None:
    result = json.loads(said("audit", "verify", str(run), "--json", cwd=run))
    assert result["fault"] is None and result["has_ended"] is True
    printed = said("audit", "verify", str(run), "--head", result["head"], cwd=run)
    assert "; 0 entries after the given head; head " in printed
    assert "expected 64 hexadecimal digits" in said("audit", "verify", str(run), "--head", "x", cwd=run, code=2)


def test_a_fault_is_one_line_and_exit_code_1(run: Path, tmp_path: Path) -> None:
    log, head = (run / "audit.jsonl").read_bytes(), json.loads((run / "audit.jsonl").read_bytes().splitlines()[-1])
    lines = log.splitlines(keepends=True)
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(b"".join(lines[:4] + lines[5:]))
    printed = said("audit", "verify", ".", cwd=tmp_path, code=1)
    assert printed.startswith(
        "audit.jsonl, line 5: expected entry 5, got entry 6; the 4 entries before it form a chain"
    )
    result = json.loads(said("audit", "verify", ".", "--json", cwd=tmp_path, code=1))
    assert result["fault"] == {"line": 5, "expected": "entry 5", "got": "entry 6"}
    copy.write_bytes(b"".join(lines[:-1]))
    assert "no end: the server runs or was killed, or the end was cut off" in said("audit", "verify", ".", cwd=tmp_path)
    printed = said("audit", "verify", ".", "--head", head["sha256"], cwd=tmp_path, code=1)
    assert "entries were cut off or replaced" in printed
    copy.write_bytes(log[:-30])
    assert "a torn last line of" in said("audit", "verify", ".", cwd=tmp_path)


def test_a_directory_without_a_log_is_refused(tmp_path: Path) -> None:
    printed = said("audit", "verify", "nowhere", cwd=tmp_path, code=1)
    assert printed.startswith("flcore: expected the directory of a run, which holds audit.jsonl, got nowhere")


def test_the_page_computes_a_digest_without_flcore(run: Path) -> None:
    (command,) = [block for block in blocks("sh", PAGE) if "sha256sum" in block]
    printed = subprocess.check_output(["sh", "-c", command.replace("runs/myjob", str(run))], text=True)
    first = json.loads((run / "audit.jsonl").read_bytes().splitlines()[0])
    assert printed.split()[0] == first["sha256"]


def test_the_page_has_every_event_and_its_fields(run: Path) -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}
    for line in (run / "audit.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for field in entry.keys() - {"previous", "sequence", "time", "event", "sha256"}:
            assert f"`{field}`" in rows[entry["event"]]
