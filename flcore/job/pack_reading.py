"""Reading a pack: each part is compared with the manifest, and the manifest with the contract and the code."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from flcore.job.code import CodeDigest, code_names
from flcore.job.contract import Contract
from flcore.job.pack_archive import ArchiveReader, Entry
from flcore.job.pack_contract import parse_packed_contract, require_job_file_size
from flcore.job.pack_files import require_files
from flcore.job.pack_manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE_FILE,
    Manifest,
    PackedFile,
    Signature,
    parse_manifest,
    parse_signature,
)
from flcore.text import printable

Tap = Callable[[str, Iterator[bytes]], Iterator[bytes]]
"""Takes a file's name and its content, and gives the content on."""


class PackContent(NamedTuple):
    """What `read_pack` finds; the attributes are those of `flcore.job.pack.Pack`."""

    digest: str
    nbytes: int
    manifest: Manifest
    contract: Contract
    signature: Signature | None


def pass_on(_name: str, content: Iterator[bytes]) -> Iterator[bytes]:
    """Give content on as it is: the tap of a reader that only checks."""
    return content


def write_into(directory: Path) -> Tap:
    """Return a tap that writes each file into a directory. They are not flushed to disk."""

    def tap(name: str, content: Iterator[bytes]) -> Iterator[bytes]:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in content:
                file.write(chunk)
                yield chunk

    return tap


def read_pack(path: Path, max_bytes: int, tap: Tap) -> PackContent:
    """Read a pack from its first byte to its last, and check all of it.

    Args:
        path: The file.
        max_bytes: The largest file that is read.
        tap: Sees the content of the job's files on its way, before it is known to be sound.

    Raises:
        PackError: The file is larger, or is no pack, or is not as its manifest says.
        OSError: The tap cannot write.
    """
    with ArchiveReader(path, max_bytes) as reader:
        try:
            entry = _next(reader, MANIFEST_FILE, MAX_MANIFEST_BYTES)
            data = b"".join(reader.content(entry))
            manifest = parse_manifest(data)
            contract = _read_job(reader, manifest, tap)
            signature = _read_signature(reader, data)
        except ValueError as error:
            raise reader.error(str(error)) from error
        reader.finish()
        return PackContent(reader.digest.hexdigest(), reader.size, manifest, contract, signature)


def _read_job(reader: ArchiveReader, manifest: Manifest, tap: Tap) -> Contract:
    """Read the files of a manifest, and compare them with it. Return the contract."""
    job_file, *others = manifest.files
    require_job_file_size(job_file.nbytes)
    contract = parse_packed_contract(b"".join(_content(reader, job_file, tap)), manifest)
    names = [file.name for file in manifest.files]
    require_files(contract, names)
    code, digest = code_names(names, contract.code_files), CodeDigest()
    for file in others:
        is_code = file.name in code
        if is_code:
            digest.begin(file.name, file.nbytes)
        for chunk in _content(reader, file, tap):
            if is_code:
                digest.update(chunk)
    if digest.hexdigest() != manifest.code_digest:
        raise ValueError(f"expected the code digest {manifest.code_digest}, got code with {digest.hexdigest()}")
    return contract


def _content(reader: ArchiveReader, file: PackedFile, tap: Tap) -> Iterator[bytes]:
    """Read the next entry, which is a file of the manifest, in chunks."""
    entry = _next(reader, file.name, file.nbytes)
    if entry.nbytes != file.nbytes:
        raise ValueError(f"{file.name}: expected {file.nbytes:,} bytes, got {entry.nbytes:,}")
    digest = hashlib.sha256()
    for chunk in tap(file.name, reader.content(entry)):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != file.sha256:
        raise ValueError(f"{file.name}: expected content with the SHA-256 {file.sha256}, got {digest.hexdigest()}")


def _read_signature(reader: ArchiveReader, manifest: bytes) -> Signature | None:
    """Read what comes after the files: a signature, or nothing."""
    entry = reader.next_entry()
    if entry is None:
        return None
    if entry.name != SIGNATURE_FILE:
        raise ValueError(f"expected no other file than {MANIFEST_FILE} says, got {printable(entry.name, 100)!r}")
    _require_size(entry, MAX_SIGNATURE_BYTES)
    signature = parse_signature(b"".join(reader.content(entry)), manifest)
    if (entry := reader.next_entry()) is not None:
        raise ValueError(f"expected no file after {SIGNATURE_FILE}, got {printable(entry.name, 100)!r}")
    return signature


def _next(reader: ArchiveReader, name: str, max_bytes: int) -> Entry:
    entry = reader.next_entry()
    if entry is None or entry.name != name:
        found = "the end" if entry is None else repr(printable(entry.name, 100))
        raise ValueError(f"expected the file {name!r}, got {found}")
    _require_size(entry, max_bytes)
    return entry


def _require_size(entry: Entry, max_bytes: int) -> None:
    if entry.nbytes > max_bytes:
        raise ValueError(f"{entry.name}: expected at most {max_bytes:,} bytes, got {entry.nbytes:,}")
