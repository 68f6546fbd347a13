"""What agents and the lobby send each other within a session, as strict JSON."""

from pydantic import Field

from flcore.federation.messages import Changes, Digest, JobId
from flcore.job.content import Content

ALL_OFFERED = 0
"""The number in the lobby's withdrawal that follows the offers of a welcome: an agent's other jobs are over."""


class JobOffer(Content):
    """Content of the assignment by which the lobby offers a job to an agent.

    Attributes:
        id: The job's id.
        name: The contract's name.
        contract: The contract with the changes, as JSON.
        contract_fingerprint: Its digest.
        code_digest: The digest of the code.
        pack_digest: The SHA-256 of the pack.
        pack_nbytes: The pack's size.
        changes: The keys of the contract that were replaced.
        federation: A random id of the federation. One that is set up anew gives the ids of its jobs again.
    """

    id: JobId
    name: str
    contract: str
    contract_fingerprint: str
    code_digest: str
    pack_digest: Digest
    pack_nbytes: int
    changes: Changes = Field(default={})
    federation: str = Field(default="", max_length=64)
