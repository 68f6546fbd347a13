"""What the clients of a job do now, in a few words: for the lines that show a run's progress."""

from flcore.number_text import share_text
from flcore.status.client_entry import OUT_PHASES
from flcore.status.job_status import JobStatus
from flcore.text import counted, printable

MAX_NAME_CHARACTERS = 32


def clients_text(status: JobStatus) -> str:
    """Return the task and how many of its answers are in; the state of a job that waits or is over.

    Clients without an answer are counted by phase. The last client whose code has told how far it is, is named.

    >>> clients_text(JobStatus("digits", connected=2))
    '2 clients connected'
    >>> clients_text(JobStatus("digits", state="running", task="train", asked=3, answered=1))
    'train 1/3 clients'
    """
    if status.is_over:
        return status.state
    if status.state == "waiting":
        return f"{counted(status.connected, 'client')} connected" if status.connected else "waiting for clients"
    at_task = [client for client in status.clients if (client.task, client.round) == (status.task, status.round)]
    telling = [client for client in at_task if client.phase == "training" and client.progress is not None]
    last = max(telling, key=lambda client: client.last_seen_s or 0.0, default=None)
    progress = "" if last is None else f" ({_name(last.name)} {share_text(last.progress or 0.0)})"
    counts = {phase: sum(client.phase == phase for client in at_task) for phase in OUT_PHASES}
    out = "".join(f", {count} {phase}" for phase, count in counts.items() if count)
    return f"{_name(status.task)} {status.answered}/{status.asked} clients{progress}{out}"


def _name(text: str) -> str:
    return printable(text, MAX_NAME_CHARACTERS)
