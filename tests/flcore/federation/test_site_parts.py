"""What each site has done in a job: counted from events, and from the audit log of an earlier process."""

from pathlib import Path

from flcore.federation.site_parts import MAX_REASON_CHARACTERS, SitePart, SiteParts
from flcore.server.audit_chain import NO_DIGEST, seal


def test_a_round_counts_once_whatever_its_tasks_and_an_answer_ends_a_failure() -> None:
    parts = SiteParts()
    for client, round_ in (("north", 1), ("north", 1), ("south", 1), ("north", 2), ("north", 1)):
        parts.answered(client, round_)
    parts.joined("north")
    parts.joined("east")
    parts.failed("south", "train: \x1b[2J" + "x" * 5_000)
    assert parts.all()["north"] == SitePart(2) and parts.all()["east"] == SitePart(0)
    rounds, reason = parts.all()["south"]
    assert rounds == 1 and "\x1b" not in reason and len(reason) <= MAX_REASON_CHARACTERS + 20
    parts.answered("south", 4)
    assert parts.all()["south"] == SitePart(2)


def test_answers_of_an_earlier_process_are_in_the_audit_log_of_which_a_crash_cut_the_last_line(tmp_path: Path) -> None:
    log, parts = tmp_path / "audit.jsonl", SiteParts()
    parts.load(log)
    assert parts.all() == {}
    content = b""
    for number, (event, client, round_) in enumerate(
        [("join", "east", 0), ("receipt", "north", 1), ("receipt", "south", 1), ("receipt", "north", 2)], start=1
    ):
        content += seal(NO_DIGEST, number, "2026-01-31T12:00:00.000Z", event, {"client": client, "round": round_})[0]
    log.write_bytes(content + content[-40:] + b'{"event":"receipt","client":"nor')
    parts.load(log)
    parts.answered("north", 2)  # the same round, after the restart
    assert parts.all() == {"north": SitePart(2), "south": SitePart(1)}
