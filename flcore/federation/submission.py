"""What a submission is checked for, before its job gets an id: pack, changes, contract, clients and memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flcore_transport import Refused
from pydantic import JsonValue

from flcore.errors import BudgetError, JobError, PackError
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_offers import require_offer
from flcore.federation.job_rows import NewJob
from flcore.federation.job_runner import RunSettings
from flcore.federation.model_trial import try_model
from flcore.federation.roles import Caller
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.job.pack import Pack, open_pack
from flcore.text import without_folders
from flcore.workflows.bundled import load_workflow


@dataclass(frozen=True)
class SubmissionLimits:
    """What a job may take.

    Attributes:
        settings: What all jobs have in common.
        max_pack_bytes: The largest pack.
        free_bytes: Memory for jobs beside the budget, while no job runs.
    """

    settings: RunSettings
    max_pack_bytes: int
    free_bytes: int


def read_submission(
    path: Path, changes: Mapping[str, JsonValue], caller: Caller, limits: SubmissionLimits, files: JobDirectories
) -> NewJob:
    """Check a pack and the changes of its contract.

    Returns:
        The job, ready to be queued.

    Raises:
        Refused: The pack, the changes or the contract are invalid, or the job could never run on this server.
    """
    try:
        pack = open_pack(path, limits.max_pack_bytes)
    except PackError as error:
        raise Refused("bad-pack", str(error).removeprefix(f"{path}: ")) from error  # no path of the server
    try:
        contract = pack.contract_with(changes)
        clients = contract.clients
        limits.settings.budget.require_connections(clients if isinstance(clients, int) else len(clients))
        if ":" not in contract.server.workflow:
            load_workflow(Job(contract, path.parent))
        resident_bytes = _resident_bytes(pack, contract, limits, files)
        code_digest = pack.code_digest_with(contract)
    except PackError as error:
        raise Refused("bad-pack", str(error).removeprefix(f"{path}: ")) from error
    except (JobError, BudgetError) as error:
        raise Refused("bad-job", without_folders(str(error))) from error
    job = NewJob(
        name=contract.name,
        lead=caller.name,
        owner=caller.owner,
        pack_digest=pack.digest,
        pack_nbytes=pack.nbytes,
        signer="" if pack.signature is None else pack.signature.signer,
        contract=contract.to_json(),
        contract_fingerprint=contract.fingerprint,
        code_digest=code_digest,
        changes=dict(changes),
        rounds=contract.server.rounds,
        resident_bytes=resident_bytes,
    )
    try:
        require_offer(job)
    except JobError as error:
        raise Refused("bad-job", str(error)) from error
    return job


def _resident_bytes(pack: Pack, contract: Contract, limits: SubmissionLimits, files: JobDirectories) -> int:
    """Return the memory that a job takes beside its share of the budget: with the plan "batch" none.

    With "streaming", models and a total are in memory, and their size is known when the model is.

    Raises:
        BudgetError: The server has too little memory for the job, whatever else runs.
    """
    plan = limits.settings.plan
    if plan == "batch":
        return 0
    with files.trial(pack) as directory:
        needs = try_model(contract, directory)
    if needs.resident_bytes > limits.free_bytes:
        raise BudgetError(
            f"a model of {needs.model_nbytes >> 20}MiB with the plan {plan} takes {needs.resident_bytes >> 20}MiB of "
            f"memory beside the budget, and the server has {limits.free_bytes >> 20}MiB; ask its operator for the plan "
            "batch"
        )
    return needs.resident_bytes
