"""The pack of a job that is submitted: a file that the lead gives, or a temporary one."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from flcore.errors import PackError
from flcore.job.job import Job
from flcore.lead.server_calls import Notify
from flcore.model.model_paths import PathLike
from flcore.text import printable

MAX_NAMES_SHOWN = 5


@contextmanager
def packed_job(
    job: PathLike | Job, changes: Mapping[str, JsonValue], signing_kit: Path | None, notify: Notify
) -> Iterator[tuple[Path, str]]:
    """Yield the path and the SHA-256 of a job's pack, which is there while the block lasts.

    Pack, changes and code are checked first: what the server would refuse is refused before it is sent.

    Args:
        job: A directory with job.toml, the name of a bundled job, a `Job`, or a pack.
        changes: The changes with which the job is submitted. They are not part of the pack.
        signing_kit: The kit whose key signs the pack. None: not signed.
        notify: Receives one line about files of the directory that are not in the pack.

    Raises:
        JobError: There is no job at the path, its contract is invalid, or a change is none that it takes,
            or its code has a syntax error or lacks a function that the contract names.
        PackError: The pack is damaged, or the job cannot be packed.
    """
    from flcore.identity.kit import load_signing_key  # imports cryptography, which `import flcore` must not
    from flcore.job.code_check import check_code
    from flcore.job.pack import open_pack, pack_job

    if not isinstance(job, Job) and Path(job).is_file() and Path(job).suffix != ".toml":
        if signing_kit is not None:
            raise PackError(
                f"{job}: expected a job to sign, got a pack; pack it again (flcore job pack JOB --sign KIT)"
            )
        pack = open_pack(Path(job))
        changed = pack.contract_with(changes)
        with tempfile.TemporaryDirectory(prefix="flcore-") as directory:
            check_code(Job(changed, pack.unpack(Path(directory) / "job").directory))
        yield pack.path, pack.digest
        return
    signer = None if signing_kit is None else load_signing_key(signing_kit)
    loaded = Job.load(job if isinstance(job, Job) else str(job))
    with tempfile.TemporaryDirectory(prefix="flcore-") as directory:
        packed = pack_job(loaded, Path(directory) / "job.flpack", signer)
        check_code(Job(open_pack(packed.path).contract_with(changes), loaded.directory))
        if visible := [entry.name for entry in packed.left_out if not entry.name.startswith((".", "__"))]:
            names = ", ".join(printable(name, 60) for name in visible[:MAX_NAMES_SHOWN])
            more = f" and {len(visible) - MAX_NAMES_SHOWN} more" if len(visible) > MAX_NAMES_SHOWN else ""
            notify(f"not in the pack: {names}{more} (`flcore job pack` says why)")
        yield packed.path, packed.digest
