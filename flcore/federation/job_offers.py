"""The offer of a job to the sites. It is built at the submission already: a job too large for a message is refused."""

import json

from pydantic import ValidationError

from flcore.errors import JobError
from flcore.federation.job_rows import JobRow, NewJob
from flcore.federation.lobby_messages import JobOffer
from flcore.federation.messages import MAX_CHANGES

MAX_OFFER_BYTES = 960 << 10
"""The largest offer. The join of the job's process has the same contract, and a join is read up to 1 MiB."""

MAX_CHANGES_BYTES = 64 << 10
"""The most bytes of changes, as JSON: they and the states of the sites fit into one reply of 256 KiB."""

MAX_ROUNDS = 1_000_000_000

_LARGEST_NUMBER = 10**18 - 1
_ANY_FEDERATION = "0" * 32


def build_offer(row: JobRow, federation: str) -> JobOffer:
    """Return the offer of a job of a federation. Raises `JobError` if no message can carry it."""
    if len(row.changes) > MAX_CHANGES:
        raise JobError(
            f"expected at most {MAX_CHANGES} changed keys, those of the cloned job included, got {len(row.changes)}; "
            "write the values into job.toml"
        )
    try:
        offer = JobOffer(
            id=row.id,
            name=row.name,
            contract=row.contract,
            contract_fingerprint=row.contract_fingerprint,
            code_digest=row.code_digest,
            pack_digest=row.pack_digest,
            pack_nbytes=row.pack_nbytes,
            changes=row.changes,
            federation=federation,
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise JobError(f"the job cannot be offered: {problem['loc']}: {problem['msg']}") from error
    _require_bytes("contract with its changes", len(offer.to_bytes()), MAX_OFFER_BYTES)
    _require_bytes("value of all changes together", len(json.dumps(row.changes)), MAX_CHANGES_BYTES)
    return offer


def require_offer(job: NewJob) -> None:
    """Raise `JobError` unless a job that has no number yet can be queued and offered."""
    if job.rounds > MAX_ROUNDS:
        raise JobError(f"server.rounds: expected at most {MAX_ROUNDS:,}, got {job.rounds:,}")
    build_offer(JobRow(**vars(job), number=_LARGEST_NUMBER), _ANY_FEDERATION)


def _require_bytes(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise JobError(
            f"expected a {what} of at most {limit >> 10}KiB in messages, got {found >> 10}KiB; put large values into a "
            "file of the job"
        )
