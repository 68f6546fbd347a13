"""Which offered jobs a site runs. Pure: it reads no file and no clock.

A job is admitted in two steps. `judge_offer` compares the offer with the site's limits and, with `jobs = "local"`, with
the job directories that lie at the site. With `jobs = "signed"` the pack has to be downloaded, and `judge_pack` looks
at its signature. The reason of a refusal names the key of site.toml that decides. It goes to the lead, so it contains
no path of the site.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from fnmatch import fnmatchcase
from pathlib import Path

from flcore.agent.site_rules import SiteRules
from flcore.errors import JobError
from flcore.federation.lobby_messages import JobOffer
from flcore.job.changes import change_contract
from flcore.job.contract import Contract, differences
from flcore.job.parsing import contract_from_json
from flcore.text import counted, printable

FREE_KEYS = re.compile(r"(server|seed|client\.hyperparameters|tasks\.[a-z0-9_]+\.(hyperparameters|schedule))(\..*)?")
"""Keys that a lead may change for one submission. They do not decide which code runs at a site, and their values come
with each task from the server."""

MAX_KEYS_NAMED = 5


@dataclass(frozen=True)
class LocalJob:
    """A job directory that lies at the site: its contract, and the digest of its code."""

    directory: Path
    contract: Contract
    code_digest: str


@dataclass(frozen=True)
class PackFacts:
    """What a site knows of a pack that it has downloaded and checked.

    Attributes:
        contract: The contract in the pack, without the offer's changes.
        is_signed: Whether the pack has a signature.
        signer: The site's name for the key that has signed it; None if no key of the site has.
    """

    contract: Contract
    is_signed: bool
    signer: str | None


@dataclass(frozen=True)
class Admitted:
    """The job runs, with the code of this directory.

    Attributes:
        directory: The directory.
        code_digest: The digest that the code must have whenever it is loaded; None with any code.
    """

    directory: Path
    code_digest: str | None = None


@dataclass(frozen=True)
class PackNeeded:
    """The pack's signature decides."""


@dataclass(frozen=True)
class NoPlace:
    """The site runs as many jobs as it may. The job is judged again when one of them is over."""

    reason: str


@dataclass(frozen=True)
class Refusal:
    """The job does not run. The reason is one line for the lead."""

    reason: str


class SitePolicy:
    """A site's decisions about offered jobs."""

    def __init__(self, rules: SiteRules) -> None:
        self._rules = rules

    def judge_offer(
        self, offer: JobOffer, now: time, local_jobs: Sequence[LocalJob], running: int = 0
    ) -> Admitted | PackNeeded | NoPlace | Refusal:
        """Decide about an offer.

        Args:
            offer: The offer.
            now: The local time of the day.
            local_jobs: The site's job directories whose contract has the offer's name.
            running: How many jobs run at the site. Default: 0.
        """
        contract = parse_offer(offer)
        if isinstance(contract, Refusal):
            return contract
        refusal = self._refuse_by_limits(contract, now)
        if refusal is not None:
            return refusal
        signed = self._rules.jobs == "signed"
        decision = PackNeeded() if signed else self._judge_local(offer, contract, local_jobs)
        max_jobs = self._rules.limits.max_jobs
        if running >= max_jobs and not isinstance(decision, Refusal):
            return NoPlace(f"limits.max_jobs: this site runs {counted(max_jobs, 'job')} at a time")
        return decision

    def judge_pack(self, offer: JobOffer, pack: PackFacts) -> Refusal | None:
        """Return why a downloaded pack is refused; None if it is admitted."""
        if not pack.is_signed:
            return Refusal('jobs = "signed": the pack has no signature; sign it (flcore submit --sign)')
        if pack.signer is None:
            return Refusal("signers: the pack has no valid signature of a key that this site lists")
        contract = parse_offer(offer)
        if isinstance(contract, Refusal):
            return contract
        difference = _difference(offer, contract, pack.contract)
        return Refusal(f'jobs = "signed": the offer and the pack: {difference}') if difference else None

    def exclude_by_limits(self, contract: Contract) -> Refusal | None:
        """Return why the site's limits refuse a contract at any time of the day; None if they do not."""
        limits = self._rules.limits
        if limits.names is not None and not any(fnmatchcase(contract.name, name) for name in limits.names):
            return Refusal(f"limits.names: this site does not run jobs of the name {contract.name!r}")
        other_tasks = sorted(contract.tasks.keys() - set(contract.tasks if limits.tasks is None else limits.tasks))
        if other_tasks:
            return Refusal(f"limits.tasks: this site does not run the task {_listed(other_tasks)}")
        if limits.max_rounds is not None and contract.server.rounds > limits.max_rounds:
            return Refusal(
                f"limits.max_rounds: this site runs {counted(limits.max_rounds, 'round')} at most, the job has "
                f"{contract.server.rounds}"
            )
        return None

    def _refuse_by_limits(self, contract: Contract, now: time) -> Refusal | None:
        limits = self._rules.limits
        if (refusal := self.exclude_by_limits(contract)) is not None:
            return refusal
        if limits.window is not None and not limits.window.include(now):
            return Refusal(
                f"limits.hours: this site runs jobs during {limits.hours} of its local time; there it is {now:%H:%M}"
            )
        return None

    def hours_left_s(self, now: time) -> float | None:
        """Return the seconds in which jobs may run from now on; 0 outside the hours; None: without limit."""
        window = self._rules.limits.window
        if window is None:
            return None
        return window.seconds_left(now) if window.include(now) else 0.0

    def _judge_local(self, offer: JobOffer, contract: Contract, local_jobs: Sequence[LocalJob]) -> Admitted | Refusal:
        named = [job for job in local_jobs if job.contract.name == contract.name]
        if not named:
            return Refusal(f"job_directories: this site has no directory of a job {contract.name!r}")
        compared = [(_difference(offer, contract, job.contract), job) for job in named]
        equal = [job for difference, job in compared if not difference]
        if not equal:
            return Refusal(f"job_directories: this site's directory of {contract.name!r}: {compared[0][0]}")
        is_strict = contract.same_code or self._rules.same_code
        same_code = [job for job in equal if job.code_digest == offer.code_digest]
        if same_code:
            return Admitted(same_code[0].directory, offer.code_digest if is_strict else None)
        if is_strict:
            which = "same_code" if self._rules.same_code else "same_code of the contract"
            return Refusal(f"{which}: the code in this site's directory of {contract.name!r} is not the submitted code")
        if len(equal) > 1:
            return Refusal(
                f"job_directories: {len(equal)} directories of this site have this contract, with different code"
            )
        return Admitted(equal[0].directory)


def parse_offer(offer: JobOffer) -> Contract | Refusal:
    """Return the contract of an offer, or why the offer is refused by every site."""
    try:
        contract = contract_from_json(offer.contract, "the offered contract")
    except JobError as error:
        return Refusal(str(error).splitlines()[0])
    if contract.name != offer.name or contract.fingerprint != offer.contract_fingerprint:
        return Refusal("the offered contract has another name or fingerprint than the offer says")
    if offer.id.rpartition("-")[0] != offer.name:
        return Refusal(f"the id of the offer, {offer.id}, is not that of a job {offer.name!r}")
    return contract


def _difference(offer: JobOffer, offered: Contract, held: Contract) -> str:
    """Return why the offered contract is not the one that the site has, with the lead's changes; "" if it is."""
    try:
        changed = change_contract(held, offer.changes)
    except JobError as error:
        return f"another contract: {printable(str(error), 300)}"
    if changed.fingerprint != offered.fingerprint:
        return f"another contract: {_listed(_differing_keys(offered, changed))} differ"
    fixed = [key for key in _differing_keys(offered, held) if not FREE_KEYS.fullmatch(key)]
    return f"a submission cannot change {_listed(fixed)}; change job.toml" if fixed else ""


def _differing_keys(one: Contract, other: Contract) -> list[str]:
    lines = differences(json.loads(one.to_json()), json.loads(other.to_json()))
    return [line.partition(":")[0] for line in lines]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_KEYS_NAMED])
    return f"{shown} and {len(names) - MAX_KEYS_NAMED} more" if len(names) > MAX_KEYS_NAMED else shown
