"""The record of a run: begun for a new run; for one that goes on, compared with the job that is to go on."""

import json
import secrets
from difflib import unified_diff
from pathlib import Path

from flcore.errors import RunDiffers
from flcore.job.contract import differences
from flcore.job.job import Job
from flcore.model.chunks import ChunkSource, elements_digest
from flcore.server.run_directory import RunDirectory
from flcore.server.run_state import STATE_FILE, RunState
from flcore.text import printable, utc_time
from flcore.version import __version__

MAX_DIFFERENCES = 20
MAX_LINE_CHARACTERS = 200


def open_record(run: RunDirectory, job: Job, model: ChunkSource, *, is_synced: bool) -> RunState:
    """Open the record of a run, and begin it if the run is new.

    Args:
        run: The run's directory.
        job: The job.
        model: The initial global model.
        is_synced: Whether each change is on the disk when its method returns (`RunState`).

    Raises:
        RunDiffers: The run that is to go on is of another job. The error names the differences.
        RecordError: The record cannot be read or written.
    """
    state = RunState(run.path / STATE_FILE, is_synced=is_synced)
    try:
        now = _describe(job, model)
        facts = state.facts()
        if facts:
            _require_same(facts, now, run.path)
        else:
            started = utc_time()
            state.add_facts(
                now | {"id": run.id, "started": started, "version": __version__, "token_key": secrets.token_hex(32)}
            )
    except BaseException:
        state.close()
        raise
    return state


def _describe(job: Job, model: ChunkSource) -> dict[str, str]:
    """Return what a run's continuation must have in common with its beginning."""
    server = job.contract.server
    return {
        "contract": job.contract.to_json(),
        "workflow": _source_of(job, server.workflow),
        "rule": _source_of(job, server.rule),
        "model": elements_digest(model),
    }


def _source_of(job: Job, name: str) -> str:
    """Return the text of the job's file that a key of the contract names; the name where it is bundled or installed."""
    module, _, attribute = name.partition(":")
    file = job.directory / (module if module.endswith(".py") else module.replace(".", "/") + ".py")
    return file.read_text(encoding="utf-8") if attribute and file.is_file() else name


def _require_same(facts: dict[str, str], now: dict[str, str], path: Path) -> None:
    if facts["contract"] != now["contract"]:
        was, is_now = json.loads(facts["contract"]), json.loads(now["contract"])
        raise _differs(path, "contract", differences(was, is_now, "the run has", "the job has now"))
    for code in ("workflow", "rule"):
        if facts[code] != now[code]:
            was, is_now = facts[code].splitlines(), now[code].splitlines()
            raise _differs(path, code, list(unified_diff(was, is_now, "then", "now", lineterm="", n=0)))
    if facts["model"] != now["model"]:
        raise _differs(path, "initial model", [f"its digest was {facts['model']}, and is {now['model']}"])


def _differs(path: Path, what: str, lines: list[str]) -> RunDiffers:
    shown = [printable(line, MAX_LINE_CHARACTERS) for line in lines[:MAX_DIFFERENCES]]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    difference = "\n  ".join(shown)
    return RunDiffers(
        f"{path} holds a run that is not over, and its {what} is another one:\n  {difference}\n"
        "Go on with the job as it was; or give another directory (--out), or keep that run beside this one and begin "
        "anew (--fresh)"
    )
