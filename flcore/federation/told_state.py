"""The state of a job and its reason, as a caller is told them.

The reason of an end quotes sites: their names, their errors, and the metrics at which a job stopped early. That is for
the job's lead and the admins. Other leads are told what concerns the queue.
"""

from typing import NamedTuple

from flcore.federation.job_queue import NOT_THERE
from flcore.federation.job_rows import JobLine, JobRow
from flcore.federation.messages import ToldState
from flcore.federation.roles import Caller

INTERRUPTED = "interrupted: "
"""How the reason of a job begins that its server has interrupted. It is running for the queue, as it goes on later."""

FOR_ITS_LEAD = "its lead and the admins can read why"


class Told(NamedTuple):
    """A state, and why a job is in it; empty where there is nothing to say."""

    state: ToldState
    reason: str


def may_read(caller: Caller, row: JobRow | JobLine) -> bool:
    """Whether a caller may read all that is known of a job: its lead and admins may."""
    return caller.role == "admin" or caller.owner == row.owner


def told_state(row: JobRow | JobLine, reason: str, *, is_own: bool) -> Told:
    """Return the state and the reason of a job.

    Args:
        row: The job.
        reason: What it waits for, or why it ended.
        is_own: Whether the caller is the job's lead or an admin.
    """
    is_interrupted = row.state == "running" and reason.startswith(INTERRUPTED)
    state: ToldState = "interrupted" if is_interrupted else row.state
    if is_own:
        return Told(state, reason.removeprefix(INTERRUPTED) if is_interrupted else reason)
    if state in ("failed", "interrupted"):
        return Told(state, FOR_ITS_LEAD)
    if state == "done":
        return Told(state, "")
    return Told(state, reason.partition(NOT_THERE)[0])
