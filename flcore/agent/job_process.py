"""The process of one job at a site: today's `Client`, with a session of its own. `SupervisedJob` starts it.

It waits for its setup on standard input with all imports done, so that a job's first task does not wait for them. Its
messages to the agent are JSON lists:

    ["ready"]                                          the imports are done
    ["notice", text]                                   a line of the client for the site's owner
    ["error", text]                                    type and message of an exception that the job's code raised
    ["progress", task, round, rounds, done, total]     how far the task is
    ["ended", outcome, text]                           the last message; `outcome` is one of `OUTCOMES`
"""

import logging
import os
import resource
import sys
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from flcore_transport import Failure, GrpcConnection, Receipt, Refused, TlsKeys
from pydantic import BaseModel, ConfigDict, Field

from flcore.agent.site_rules import job_config
from flcore.child_process import MessagesToParent, end_with_parent
from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.state_directory import StateDirectory
from flcore.client.task import Site, Task, Update
from flcore.errors import FlcoreError, JobError, JobFailed, TaskFailed
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.job.parsing import contract_from_json
from flcore.job.site import read_site
from flcore.model.model import Arrays
from flcore.process import exit_on_sigterm, keep_freed_memory
from flcore.progress import TaskProgress
from flcore.text import counted, printable

OUTCOMES = ("over", "failed", "refused", "unusable", "error")
"""How a process ends: the job is done, or has failed at the server; the server does not admit the client; the job's
code or settings cannot be used; anything else, after which the process is started again."""

HIDDEN = 'the message stays at the site (share_logs = "none")'


class JobSetup(BaseModel):
    """All that a job's process needs, as one line of JSON on its standard input.

    Attributes:
        id: The job's id.
        contract: The offered contract, as JSON.
        directory: The directory of the job's code.
        code_digest: The digest that the code must have. None: any.
        client: The client's name.
        address: The server's address.
        keys: Private key, certificate chain and authority, as PEM. None: plaintext.
        allow_remote: Whether plaintext may leave this machine.
        site_file: The site.toml. None: there is none.
        state: The client's state directory.
        work: The process's working directory.
        memory_bytes: The most memory. None: not limited.
        max_rounds: The number of the last round that the site takes part in. None: any.
        shares_errors: Whether the server may get the messages of exceptions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    contract: str
    directory: str
    code_digest: str | None = None
    client: str
    address: str
    keys: Annotated[list[str], Field(min_length=3, max_length=3)] | None
    allow_remote: bool
    site_file: str | None
    state: str
    work: str
    memory_bytes: int | None
    max_rounds: int | None
    shares_errors: bool

    def __repr__(self) -> str:
        return f"JobSetup({self.id!r})"  # no private key in a log


class _SiteExecutor(Executor):
    """An executor within the site's limits. It tells the agent of errors and progress."""

    def __init__(self, job: Job, site: Site, setup: JobSetup, to_agent: MessagesToParent) -> None:
        self._setup, self._to_agent = setup, to_agent
        super().__init__(job, site, on_progress=self._send_progress)

    def run(self, model: Arrays, task: Task) -> Update:
        last = self._setup.max_rounds
        if last is not None and task.round > last:  # the contract's number of rounds does not bind a workflow
            raise TaskFailed(
                f"limits.max_rounds: this site runs {counted(last, 'round')} at most, and was asked for {task.round}"
            )
        try:
            return super().run(model, task)
        except TaskFailed as error:
            self._to_agent.send(["error", printable(str(error), 2_000)])
            raise

    def _send_progress(self, now: TaskProgress) -> None:
        self._to_agent.send_if_room(["progress", now.task, now.round, now.rounds, now.done, now.total])


class _QuietConnection(GrpcConnection):
    """A connection that tells the server of failures without their messages."""

    def report(self, failure: Failure) -> Receipt:
        """Tell the server that a task failed."""
        return super().report(replace(failure, message=f"the task failed; {HIDDEN}"))


def main() -> int:
    """Run one job until the server has ended it. Ends at once if the agent ends before it sends a setup."""
    keep_freed_memory()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    to_agent = MessagesToParent()
    to_agent.send(["ready"])
    line = sys.stdin.readline()
    if not line:
        return 0
    end_with_parent()
    exit_on_sigterm()
    setup = JobSetup.model_validate_json(line)
    try:
        outcome, text = "over", _take_part(setup, to_agent)
    except JobFailed as error:
        outcome, text = "failed", str(error)
    except Refused as error:
        outcome, text = "refused", str(error)
    except JobError as error:
        outcome, text = "unusable", str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("the job's process ends")
        outcome, text = "error", str(error) if isinstance(error, FlcoreError) else f"{type(error).__name__}: {error}"
    to_agent.send(["ended", outcome, printable(text, 2_000)])
    return int(outcome != "over")


def _take_part(setup: JobSetup, to_agent: MessagesToParent) -> str:
    """Take part in the job until the server's goodbye; return its reason."""
    os.chdir(setup.work)
    if setup.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (setup.memory_bytes, setup.memory_bytes))
    contract = contract_from_json(setup.contract, "the offered contract")
    job = Job(contract, Path(setup.directory))
    if setup.code_digest is not None and job.code_digest != setup.code_digest:
        raise JobError(
            "same_code: the code in this site's directory is not the submitted code any more: it was edited after the "
            "job was admitted; restore it, or submit the edited job"
        )
    content = {} if setup.site_file is None else read_site(Path(setup.site_file), Path(setup.directory))
    keys = None if setup.keys is None else TlsKeys(*(pem.encode() for pem in setup.keys))

    def say(text: str) -> None:
        to_agent.send(["notice", printable(text.removeprefix(f"{setup.client}: "), 2_000)])

    with _open_state(setup, contract) as state:
        config = job_config(content)
        site = Site(setup.client, contract.client_names, contract.seed, config, state.job_directory())
        executor = _SiteExecutor(job, site, setup, to_agent)
        connect = GrpcConnection if setup.shares_errors else _QuietConnection
        connection = connect(setup.address, keys=keys, allow_remote=setup.allow_remote, job=setup.id)
        ended = Client(job, executor, connection, say, state=state).start()
        while not wait([ended], timeout=1.0).done:  # a signal that comes just before the wait is handled after it
            pass
        return ended.result()


def _open_state(setup: JobSetup, contract: Contract) -> StateDirectory:
    """Open the client's state directory. The process of an agent that was killed may still have it for a moment."""
    try:
        return StateDirectory(Path(setup.state), client=setup.client, contract=contract)
    except JobError as error:
        raise FlcoreError(str(error)) from error
