"""Admission of clients to a job. Checks the client's name, then its contract, then its code.

In this order a client that is not invited learns nothing of the job. An invited one is told how its contract differs.
"""

import json

from flcore.errors import ContractMismatch, NotInvited
from flcore.job.contract import differences
from flcore.job.job import Job
from flcore.job.messages import AgentJoinContent, JoinContent, MalformedMessage, parse_content
from flcore.text import printable
from flcore.version import __version__

MAX_DIFFERENCES = 20
"""The number of differing keys that a client is told."""


class Admission:
    """Decides which clients may join one job."""

    def __init__(self, job: Job) -> None:
        self._job, self._contract, self._json = job, job.contract, job.contract.to_json()

    def require_invited(self, client: str) -> None:
        """Raise `NotInvited` unless a client of this name may join. Looks at nothing else of it."""
        if not self._contract.may_join(client):
            raise NotInvited(f"client {printable(client, 64)!r} is not among the job's clients")

    def require(self, client: str, content: bytes) -> None:
        """Raise `NotInvited`, `MalformedMessage` or `ContractMismatch` unless a client may join."""
        self.require_invited(client)
        try:
            join = parse_content(JoinContent, content)
        except MalformedMessage as error:
            raise MalformedMessage(f"client {client!r}: {self._explain_join(content)}") from error
        if join.contract != self._json:
            raise ContractMismatch(f"client {client!r} holds another contract:\n  {self._explain(join.contract)}")
        if self._contract.same_code and join.code_digest != self._job.code_digest:
            raise ContractMismatch(
                f"client {client!r} holds other code: its digest is {printable(join.code_digest, 16)}, the server's "
                f"{self._job.code_digest[:16]}, and the contract says same_code = true"
            )

    def _explain_join(self, content: bytes) -> str:
        """Return what came instead of a join of a client of this job, and what to do."""
        try:
            parse_content(AgentJoinContent, content)
        except MalformedMessage:
            return (
                f"this server runs the job {self._contract.name!r}, and the join is none of its clients'; use the "
                f"version of flcore that the server has, {__version__}"
            )
        return (
            f"this server runs one job, {self._contract.name!r}, and this client was started without a job, for a "
            "standing federation; start it with the job's directory: flcore client JOB"
        )

    def _explain(self, client_contract: str) -> str:
        """Return the keys in which the client's contract differs. It may be any text; a message's size bounds it."""
        try:
            lines = differences(json.loads(self._json), json.loads(client_contract))
        except (ValueError, RecursionError) as error:
            return f"it cannot be read: {printable(str(error), 200)}"
        shown = [printable(line, 300) for line in lines[:MAX_DIFFERENCES]]
        if len(lines) > len(shown):
            shown.append(f"and {len(lines) - len(shown)} more keys")
        return "\n  ".join(shown)
