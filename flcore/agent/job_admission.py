"""The admission of an offered job: the site's policy, with the files that it decides by."""

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from flcore.agent.agent_directory import JobDirectory
from flcore.agent.local_jobs import local_contracts, read_local_jobs, resolve_job_directories
from flcore.agent.site_policy import Admitted, NoPlace, PackFacts, PackNeeded, Refusal, SitePolicy, parse_offer
from flcore.agent.site_rules import SiteRules, site_path
from flcore.errors import CertificateError, JobError, PackError
from flcore.federation.lobby_messages import JobOffer
from flcore.identity.lead_keys import PublicKey
from flcore.job.contract import Contract
from flcore.job.pack import Pack, open_pack
from flcore.text import printable

LocalTime = Callable[[], datetime]

MAX_REASON_CHARACTERS = 1_000
MAX_JOBS_NAMED = 5


class JobAdmission:
    """Decides whether an offered job runs, and with which directory of code.

    Args:
        rules: The site's rules.
        site_file: The site.toml, to which its paths are relative. None: to the working directory.
        more_directories: Job directories that the command line adds.
        now: The local time.

    Raises:
        JobError: A directory or a key of the rules does not exist or cannot be read. The error names the key.
    """

    def __init__(
        self, rules: SiteRules, site_file: Path | None, more_directories: Sequence[Path], now: LocalTime
    ) -> None:
        self._policy, self._now, self._hours = SitePolicy(rules), now, rules.limits.hours
        self._is_signed = rules.jobs == "signed"
        self._where = where = "site.toml" if site_file is None else str(site_file)
        listed = [(entry, site_path(site_file, entry), f"{where}: job_directories") for entry in rules.job_directories]
        added = [(str(path), path, "--jobs-dir") for path in more_directories]
        self._directories = resolve_job_directories([*listed, *added])
        self._keys: list[PublicKey] = []
        for signer in rules.signers:
            try:
                self._keys.append(PublicKey.load(site_path(site_file, signer)))
            except CertificateError as error:
                raise JobError(f"{where}: signers: {error}") from error

    def admit(
        self, offer: JobOffer, running: int, directory: Callable[[], JobDirectory], download: Callable[[Path], None]
    ) -> Admitted | NoPlace | Refusal:
        """Decide about an offer.

        Args:
            offer: The offer.
            running: How many jobs run at the site.
            directory: Returns the job's directory, which is made only for a job that may be admitted.
            download: Downloads the pack into a file.

        Raises:
            TransportError: The pack cannot be downloaded.
            OSError: The pack cannot be written.
        """
        contract = parse_offer(offer)
        local = [] if isinstance(contract, Refusal) else read_local_jobs(self._directories, contract)
        decision = self._policy.judge_offer(offer, self._now().time(), local, running)
        if isinstance(decision, PackNeeded) and isinstance(contract, Contract):
            decision = self._judge_pack(offer, contract, directory(), download)
        if isinstance(decision, Refusal):
            return Refusal(printable(decision.reason, MAX_REASON_CHARACTERS))
        assert not isinstance(decision, PackNeeded)  # noqa: S101 - the pack has been judged
        return decision

    def hours_left_s(self) -> float | None:
        """Return the seconds in which jobs may run from now on; 0 outside the site's hours; None: without limit."""
        return self._policy.hours_left_s(self._now().time())

    @property
    def nothing_runs(self) -> str:
        """Why no job at all can be admitted, and what to write in site.toml; "" if one can."""
        if self._is_signed:  # the rules require signers, and the names of packs are not known yet
            return ""
        if self._directories:
            return self._excluded_jobs()
        return (
            f"this site runs no job yet, as no job directory is listed; write into {self._where}: job_directories = "
            '["path/to/the/job"] for jobs that lie here, or jobs = "signed" and signers = ["LEAD.pub"] for the packs '
            "of a lead; then start the client again"
        )

    def _excluded_jobs(self) -> str:
        """Why the limits exclude each job that lies at the site; "" if they admit one."""
        contracts = local_contracts(self._directories)
        refusals = [self._policy.exclude_by_limits(contract) for contract in contracts]
        reasons = [
            f"{contract.name} ({refusal.reason})"
            for contract, refusal in zip(contracts, refusals, strict=True)
            if refusal is not None
        ]
        if not reasons or len(reasons) < len(contracts):
            return ""
        more = f" and {len(reasons) - MAX_JOBS_NAMED} more" if len(reasons) > MAX_JOBS_NAMED else ""
        return (
            f"this site runs no job, as its limits exclude all that lie here: "
            f"{', '.join(reasons[:MAX_JOBS_NAMED])}{more}; "
            f"change [limits] in {self._where}, or list another job (job_directories); then start the client again"
        )

    @property
    def hours_reason(self) -> str:
        """Why a job is ended that runs when the site's hours are over."""
        return f"limits.hours: this site's hours for jobs, {self._hours}, are over"

    def _judge_pack(
        self, offer: JobOffer, contract: Contract, directory: JobDirectory, download: Callable[[Path], None]
    ) -> Admitted | Refusal:
        """Judge the pack, and unpack it if it is admitted. What lies in the directory is checked as if it were new."""
        try:
            pack = self._open(directory.pack, offer)
            if pack is None:
                download(directory.pack)
                pack = self._open(directory.pack, offer)
            reason = self._explain_refusal(offer, contract, pack)
            if pack is not None and not reason:
                shutil.rmtree(directory.code, ignore_errors=True)  # its files may have been changed since
                return Admitted(pack.unpack(directory.code).directory)
        except (PackError, JobError) as error:
            # The message begins with the file's path, which stays at the site.
            reason = f'jobs = "signed": {str(error).replace(f"{directory.path}/", "")}'
        directory.pack.unlink(missing_ok=True)
        return Refusal(reason)

    def _explain_refusal(self, offer: JobOffer, contract: Contract, pack: Pack | None) -> str:
        """Return why a pack is refused; "" if it is admitted. Raises `JobError` for changes that it does not take."""
        if pack is None:
            return 'jobs = "signed": the pack that came is not the one that was offered'
        if pack.contract_with(offer.changes).fingerprint != contract.fingerprint:
            return 'jobs = "signed": the offered contract is not that of the pack with its changes'
        signer = None if pack.signature is None else pack.signature.verify(self._keys)
        refusal = self._policy.judge_pack(offer, PackFacts(pack.contract, pack.signature is not None, signer))
        return "" if refusal is None else refusal.reason

    def _open(self, path: Path, offer: JobOffer) -> Pack | None:
        """Open a pack that was downloaded; None if there is none, or another one."""
        if not path.is_file() or path.stat().st_size != offer.pack_nbytes:
            return None
        pack = open_pack(path, offer.pack_nbytes)
        return pack if pack.digest == offer.pack_digest else None
