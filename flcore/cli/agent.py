"""`flcore client` without a job: the agent of a site in a standing federation."""

import logging
import re
import sys
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from flcore.agent.agent import Agent, AgentIdentity
from flcore.event_log.log import MAX_LINE_CHARACTERS, Log
from flcore.federation.messages import JOB_ID_PATTERN
from flcore.job.site import read_site
from flcore.text import printable

T = TypeVar("T")

PROGRESS_INTERVAL_S = 10.0
"""The shortest time between two lines of progress in a log; on a terminal each is shown."""

LINE_OF_A_JOB = re.compile(rf"(?P<job>{JOB_ID_PATTERN}): (?:round (?P<round>\d{{1,18}}) of )?")
"""How a line of an agent begins that is about a job."""


class ProgressLines:
    """Logs lines of progress: on a terminal all of them, elsewhere some at the level INFO and the others as DEBUG.

    Args:
        log: Where they are logged.
        show_all: Whether all of them have the level INFO.
    """

    def __init__(self, log: Log, *, show_all: bool) -> None:
        self._log, self._show_all, self._due_at = log, show_all, 0.0

    def __call__(self, line: str, **fields: object) -> None:
        """Log a line. May be called from any thread."""
        now = time.monotonic()
        is_due = self._show_all or now >= self._due_at
        if is_due:
            self._due_at = now + PROGRESS_INTERVAL_S
        self._log.write_line(line, "task_progress", level=logging.INFO if is_due else logging.DEBUG, **fields)


def run_agent(
    identity: AgentIdentity,
    site_file: Path | None,
    state: Path,
    jobs_dir: Path | None,
    log: Log,
    give_up_after_s: float | None,
) -> None:
    """Run a site's agent until Ctrl-C or SIGTERM, which end the processes of its jobs, too."""
    name = identity.client
    progress = ProgressLines(log, show_all=sys.stderr.isatty())

    def say(text: str) -> None:
        log.write_line(printable(f"{name}: {text}", MAX_LINE_CHARACTERS), "notice", client=name, **_job_of(text))

    agent = Agent(
        identity,
        {} if site_file is None else read_site(site_file, site_file.parent),
        site_file,
        state,
        job_directories=() if jobs_dir is None else (jobs_dir,),
        notify=say,
        show_progress=lambda line: progress(f"{name}: {line}", client=name, **_job_of(line)),
        give_up_after_s=give_up_after_s,
    )
    say(f"joining the federation at {identity.address} as soon as it can be reached; Ctrl-C leaves")
    ended = agent.start()
    try:
        await_end(ended)
    except (KeyboardInterrupt, SystemExit):
        agent.stop()
        wait([ended])
        say("has left; its jobs go on here when it is started again")
        raise


def _job_of(text: str) -> dict[str, Any]:
    """Return job and round of an agent's line, which begins with the job's id if it is about one.

    >>> _job_of("digits-12: round 3 of 10: train 20 of 80 (25 %)"), _job_of("joined localhost:8470")
    ({'job': 'digits-12', 'round': 3}, {})
    """
    found = LINE_OF_A_JOB.match(text)
    if found is None:
        return {}
    return {"job": found["job"]} | ({"round": int(found["round"])} if found["round"] else {})


def await_end(ended: "Future[T]") -> T:
    """Return the result of a future, on the main thread. A signal just before a wait is handled after it."""
    while not wait([ended], timeout=1.0).done:
        pass
    return ended.result()
