"""Packs: a job in one file, `NAME.flpack`, as it travels to a standing federation and to its sites.

    pack.json        the manifest: the files with their sizes and digests, the contract's fingerprint, the code's digest
    job.toml         the contract
    ...              the other files, sorted
    signature.json   a signature of pack.json by a lead's key; may be absent

The same job gives the same bytes, anywhere and at any time. A pack is checked as a whole before its files appear.
"""

import hashlib
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flcore.errors import JobError, PackError
from flcore.identity.lead_keys import SigningKey
from flcore.job.changes import change_contract
from flcore.job.code import CodeDigest, code_names
from flcore.job.contract import Contract
from flcore.job.functions import FUNCTIONS_FILE
from flcore.job.job import Job
from flcore.job.pack_archive import CHUNK_BYTES, MAX_PACK_BYTES, ArchiveWriter, Entry, archive_bytes
from flcore.job.pack_contract import packed_job_file, parse_packed_contract, require_job_file_size
from flcore.job.pack_files import JobFiles, LeftOut, find_job_files, require_files
from flcore.job.pack_manifest import (
    JOB_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    SIGNATURE_FILE,
    Manifest,
    PackedFile,
    Signature,
    explain_name,
    explain_validation,
    in_order,
)
from flcore.job.pack_reading import pass_on, read_pack, write_into
from flcore.job.tree_sync import sync_tree
from flcore.model.atomic_replace import create_directory, sync_directory, sync_file
from flcore.text import counted, printable

FIXED_KEYS = ("name", "client.executor")
"""Keys that a pack's changes leave alone: a site decides by the pack's name and by the code that its signer names."""


@dataclass(frozen=True)
class Packed:
    """The result of `pack_job`.

    Attributes:
        path: The pack.
        digest: The SHA-256 of the file.
        files: The files in it.
        left_out: The files of the job's directory that are not, each with the reason.
    """

    path: Path
    digest: str
    files: Sequence[PackedFile]
    left_out: Sequence[LeftOut]


@dataclass(frozen=True)
class Pack:
    """A pack that `open_pack` has checked.

    Attributes:
        path: The file.
        digest: The SHA-256 of the file.
        nbytes: The size of the file.
        manifest: The manifest.
        contract: The contract in job.toml.
        signature: The signature, which is one of this pack; None if there is none. Whose it is `verify` says.
    """

    path: Path
    digest: str
    nbytes: int
    manifest: Manifest
    contract: Contract
    signature: Signature | None

    def contract_with(self, changes: Mapping[str, Any]) -> Contract:
        """Return the contract with changes by dotted key.

        Raises:
            JobError: A key does not exist or is one of `FIXED_KEYS`, or the changed contract is invalid or names files
                that are not in the pack.
        """
        for key in changes:
            if any(key == fixed or fixed.startswith(f"{key}.") for fixed in FIXED_KEYS):
                raise JobError(
                    f"{key}: expected a key other than {', '.join(FIXED_KEYS)}; change job.toml, and pack it"
                )
        changed = change_contract(self.contract, changes)
        try:
            require_files(changed, [file.name for file in self.manifest.files])
        except ValueError as error:
            raise JobError(f"the changed contract: {error}") from error
        return changed

    def code_digest_with(self, contract: Contract) -> str:
        """Return the `Job.code_digest` of the pack's files with a changed contract, which may name other code.

        Raises:
            PackError: The pack's file is not the one any more that was opened.
        """
        if set(contract.code_files) == set(self.contract.code_files):
            return self.manifest.code_digest
        sizes = {file.name: file.nbytes for file in self.manifest.files}
        code, digest = code_names(list(sizes), contract.code_files), CodeDigest()

        def add(name: str, content: Iterator[bytes]) -> Iterator[bytes]:
            if name in code:
                digest.begin(name, sizes[name])
            for chunk in content:
                if name in code:
                    digest.update(chunk)
                yield chunk

        if read_pack(self.path, self.nbytes, add).digest != self.digest:
            raise PackError(f"{self.path}: expected the pack that was checked, got another file; try again")
        return digest.hexdigest()

    def unpack(self, directory: Path) -> Job:
        """Write the job's files into a directory, which appears whole or not at all.

        Args:
            directory: A path where there is nothing, or an empty directory.

        Returns:
            The job, with this directory.

        Raises:
            PackError: The directory has content, or the pack's file is not the one any more that was opened.
            OSError: The files cannot be written.
        """
        target = directory.absolute()
        create_directory(target.parent)
        hidden = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))  # 0700
        try:
            if read_pack(self.path, self.nbytes, write_into(hidden)).digest != self.digest:
                raise PackError(f"{self.path}: expected the pack that was checked, got another file; try again")
            sync_tree(hidden)
            try:
                hidden.rename(target)  # replaces an empty directory, and nothing else
            except OSError as error:
                raise PackError(
                    f"{directory}: expected a path where there is nothing, or an empty directory: {error.strerror}; "
                    f"choose another one"
                ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        sync_directory(target.parent)
        return Job(self.contract, target.resolve())


def pack_job(job: Job, out: Path, signer: SigningKey | None = None) -> Packed:
    """Write the pack of a job by an atomic replace.

    Args:
        job: The job. If its contract is not that of its job.toml, the pack has a job.toml of the contract.
        out: The file.
        signer: A lead's key, which signs the pack. Default: None, no signature.

    Returns:
        What went in, and what was left out.

    Raises:
        PackError: The job cannot be packed: files that its contract names are absent, a name is refused, or it is too
            large.
        OSError: The file cannot be written.

    Example:
        >>> packed = pack_job(Job.load("digits"), tmp_path / "digits.flpack")
        >>> [file.name for file in packed.files], open_pack(packed.path).contract.name
        (['job.toml', 'digits.py'], 'digits')
    """
    if job.functions is None:
        found = find_job_files(job.contract, job.directory)
    else:
        found = JobFiles({FUNCTIONS_FILE: job.functions.file()})
    job_file = packed_job_file(job)
    sources: dict[str, Path | bytes] = {JOB_FILE: job_file, **found.packed}
    for name in sources:
        if problem := explain_name(name):
            raise PackError(f"{sources[name]!s}: {problem}; rename it, or take it out of the job's directory")
    sizes = {
        name: source.stat().st_size if isinstance(source, Path) else len(source) for name, source in sources.items()
    }
    _require_size(job, sum(sizes.values()), sizes)  # before gigabytes are read
    entries, manifest = _describe(job, sources)
    try:
        require_job_file_size(entries[0].nbytes)
        parse_packed_contract(job_file, manifest)
    except ValueError as error:
        raise PackError(f"{job.directory}: {error}") from error
    data = [(MANIFEST_FILE, manifest.encoded)]
    if signer is not None:
        data.append((SIGNATURE_FILE, Signature.make(signer, manifest.encoded).encoded))
    rows: list[tuple[Entry, Path | bytes]] = [(_scan(name, content, None)[0], content) for name, content in data]
    rows[1:1] = [(entry, sources[entry.name]) for entry in entries]
    _require_size(job, archive_bytes(entry for entry, _ in rows), sizes)
    if len(manifest.encoded) > MAX_MANIFEST_BYTES:
        raise PackError(
            f"{job.directory}: expected a manifest of at most {MAX_MANIFEST_BYTES >> 10:,} KiB, got "
            f"{len(manifest.encoded):,} bytes for {counted(len(entries), 'file')}; take files out of the directory"
        )
    return Packed(out, _write(out, rows), manifest.files, found.left_out)


def _require_size(job: Job, nbytes: int, sizes: Mapping[str, int]) -> None:
    """Raise `PackError` unless a pack of so many bytes can be written. `sizes` has the size of each file."""
    if nbytes > MAX_PACK_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise PackError(
            f"{job.directory}: expected a job of less than 4 GiB, got {nbytes:,} bytes in "
            f"{counted(len(sizes), 'file')}, {sizes[largest]:,} of them in {printable(largest, 200)}; take large files "
            "out of the job's directory (a first model can be made by a function: server.model)"
        )


def _describe(job: Job, sources: Mapping[str, Path | bytes]) -> tuple[list[Entry], Manifest]:
    """Read the files of a job once; return their entries in order, and the manifest."""
    names = in_order(sources)
    code, code_digest = code_names(names, job.contract.code_files), CodeDigest()
    entries, files = list[Entry](), list[PackedFile]()
    for name in names:
        entry, sha256 = _scan(name, sources[name], code_digest if name in code else None)
        entries.append(entry)
        files.append(PackedFile.model_construct(name=name, nbytes=entry.nbytes, sha256=sha256))
    fields = {
        "name": job.contract.name,
        "contract_fingerprint": job.contract.fingerprint,
        "code_digest": code_digest.hexdigest(),
        "files": [file.model_dump() for file in files],
    }
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise PackError(f"{job.directory}: {explain_validation(error)}; change the job's directory") from error
    return entries, manifest


def open_pack(path: Path, max_bytes: int = MAX_PACK_BYTES) -> Pack:
    """Check a pack as a whole. Runs none of its code and writes nothing; memory is bounded, whatever the file holds.

    Args:
        path: The file.
        max_bytes: The largest file that is read.

    Returns:
        The pack.

    Raises:
        PackError: The file is larger, or is no pack, or is not as its manifest says.
    """
    return Pack(path, *read_pack(path, max_bytes, pass_on))


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _scan(name: str, source: Path | bytes, code: CodeDigest | None) -> tuple[Entry, str]:
    """Return the entry of a file and the SHA-256 of its content. Code is read whole, and is added to its digest."""
    if code is not None:
        source = b"".join(_chunks(source))
        code.begin(name, len(source))
        code.update(source)
    nbytes = crc = 0
    digest = hashlib.sha256()
    for chunk in _chunks(source):
        nbytes, crc = nbytes + len(chunk), zlib.crc32(chunk, crc)
        digest.update(chunk)
    return Entry(name, nbytes, crc), digest.hexdigest()


def _write(out: Path, rows: Sequence[tuple[Entry, Path | bytes]]) -> str:
    """Write an archive by an atomic replace. Return its digest."""
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            writer = ArchiveWriter(file)
            for entry, source in rows:
                writer.add(entry, _chunks(source))
            writer.finish()
        sync_file(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(out.parent)
    return writer.digest.hexdigest()
