"""The manifest of a pack, `pack.json`: every file with its size and digest; and the signature of the manifest.

The bytes of a manifest are canonical: its content determines them, so that the same job gives the same pack.
"""

import json
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flcore.identity.lead_keys import KEY_BYTES, SIGNATURE_BYTES, PublicKey, SigningKey
from flcore.job.contract import Name
from flcore.strict_json import parse_json
from flcore.text import printable

MANIFEST_FILE, SIGNATURE_FILE, JOB_FILE, SITE_FILE = "pack.json", "signature.json", "job.toml", "site.toml"
FORMAT: Literal["flcore-pack-1"] = "flcore-pack-1"
MAX_FILES = 10_000
MAX_FOLDERS = 1_000
MAX_DEPTH = 16
"""The most parts of a path. With `MAX_FOLDERS`, it bounds the time to check and to unpack a small pack."""

MAX_MANIFEST_BYTES = 4 << 20
MAX_SIGNATURE_BYTES = 4 << 10
MAX_NAME_CHARACTERS = 240
"""File systems take 255 bytes for each part of a path."""

EXTENSION_MODULES = (".so", ".pyd", ".pyc")
ENVIRONMENT_FILES = ("pyvenv.cfg", "conda-meta")

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def encoded(self) -> bytes:
        """The canonical JSON."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


_Model = TypeVar("_Model", bound=_Strict)


class PackedFile(_Strict):
    """One file of a pack.

    Attributes:
        name: The file's name, relative to the job's directory, with slashes.
        nbytes: The file's size.
        sha256: The digest of its content.
    """

    name: str
    nbytes: Annotated[int, Field(ge=0, lt=2**32)]
    sha256: Digest

    @field_validator("name")
    @classmethod
    def _require_name(cls, name: str) -> str:
        if problem := explain_name(name):
            raise ValueError(f"{printable(name, 100)!r}: {problem}")
        return name


class Manifest(_Strict):
    """The content of `pack.json`.

    Attributes:
        format: The format of the pack.
        name: The job's name.
        contract_fingerprint: The fingerprint of the contract in job.toml.
        code_digest: The digest of the job's code, `Job.code_digest`.
        files: The files: job.toml, then the others, sorted by their paths.
    """

    format: Literal["flcore-pack-1"] = FORMAT
    name: Name
    contract_fingerprint: Digest
    code_digest: Digest
    files: Annotated[list[PackedFile], Field(min_length=1, max_length=MAX_FILES)]

    @field_validator("files")
    @classmethod
    def _require_distinct(cls, files: list[PackedFile]) -> list[PackedFile]:
        names = [file.name for file in files]
        if problem := explain_names(names):
            raise ValueError(problem)
        if names[0] != JOB_FILE or names != in_order(names):
            raise ValueError("expected job.toml first, then the other files in the order of their paths")
        return files

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(file.nbytes for file in self.files)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of a pack's files in the order in which they are stored, which is that of the code's digest."""
    return sorted(names, key=lambda name: (name != JOB_FILE, PurePosixPath(name)))


def explain_name(name: str) -> str | None:
    """Say why a file of this name can be in no pack; None if it can."""
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "expected a path in the job's directory, without '..'"
    if not name.isprintable() or set(name) & set("\\:"):
        return "expected a path without control characters, backslashes and colons"
    if len(name.encode()) > MAX_NAME_CHARACTERS:
        return f"expected a path of at most {MAX_NAME_CHARACTERS} bytes"
    if len(parts) > MAX_DEPTH:
        return f"expected a path of at most {MAX_DEPTH} parts, got {len(parts)}"
    if name in (MANIFEST_FILE, SIGNATURE_FILE):
        return "expected another name, as the pack itself has a file of this name"
    folded = [part.casefold() for part in parts]
    if folded[-1] == SITE_FILE:
        return "expected no site.toml, as each site has its own"
    if folded[-1].endswith(EXTENSION_MODULES):
        return "expected sources, got compiled code, which fits one platform; install it at the sites as a package"
    if set(folded) & set(ENVIRONMENT_FILES):
        return "expected no environment with installed packages"
    return None


def explain_names(names: Iterable[str]) -> str | None:
    """Say why files of these names can be in no pack together; None if they can.

    Names that differ in case only, or in the composition of accents, are one file on some file systems.
    """
    spelled: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        *above, folded = (unicodedata.normalize("NFC", prefix.casefold()) for prefix in prefixes)
        if folded in files:
            return f"{printable(name, 100)!r}: expected each file once, got two names that differ in case at most"
        for prefix, key in zip(prefixes, (*above, folded), strict=True):
            if spelled.setdefault(key, prefix) != prefix:
                return f"{printable(prefix, 100)!r}: expected one spelling, got {spelled[key]!r}, too"
        files.add(folded)
        folders.update(above)
        if len(folders) > MAX_FOLDERS:
            return f"{printable(name, 100)!r}: expected at most {MAX_FOLDERS:,} directories, got more"
    both = sorted(files & folders)
    return f"{printable(both[0], 100)!r}: expected a file or a directory, got both" if both else None


def parse_manifest(data: bytes) -> Manifest:
    """Read `pack.json`. Raises `ValueError` if its content or its bytes are not canonical."""
    content = _parse(data, MANIFEST_FILE)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{MANIFEST_FILE}: expected the format {FORMAT!r}, got {printable(repr(found), 60)}; use the version of "
            f"flcore that has made it"
        )
    return _validate(Manifest, content, data, MANIFEST_FILE)


class Signature(_Strict):
    """The content of `signature.json`: a signature of the bytes of `pack.json`.

    Attributes:
        signer: The lead's name, as the lead says it. `verify` returns the one that a site knows.
        public_key: The lead's Ed25519 public key in hexadecimal digits.
        signature: The signature in hexadecimal digits.
        signed: The bytes that were signed; not in the file.
    """

    signer: Name
    public_key: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
    signature: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}$")]
    signed: Annotated[bytes, Field(exclude=True, repr=False)] = b""

    @classmethod
    def make(cls, key: SigningKey, manifest: bytes) -> Self:
        """Sign the bytes of a manifest."""
        signature = key.sign(manifest).hex()
        return cls(signer=key.name, public_key=key.public.key.hex(), signature=signature, signed=manifest)

    def verify(self, public_keys: Iterable[PublicKey]) -> str | None:
        """Return the name of the public key by which the manifest was signed; None if it is none of these."""
        signature = bytes.fromhex(self.signature)
        return next((key.name for key in public_keys if key.verifies(signature, self.signed)), None)


def parse_signature(data: bytes, manifest: bytes) -> Signature:
    """Read `signature.json`. Raises `ValueError` if it does not sign this manifest."""
    content = _parse(data, SIGNATURE_FILE)
    found = _validate(Signature, content, data, SIGNATURE_FILE).model_copy(update={"signed": manifest})
    if found.verify([PublicKey(found.signer, bytes.fromhex(found.public_key))]) is None:
        raise ValueError(
            f"{SIGNATURE_FILE}: expected a signature of this pack, got one of other bytes or of another key"
        )
    return found


def explain_validation(error: ValidationError) -> str:
    """Return one line about the first key that is wrong."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{printable(key, 100)}: {printable(problem['msg'].removeprefix('Value error, '), 300)}"


def _parse(data: bytes, where: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON: {printable(str(error), 200)}") from error


def _validate(model: type[_Model], content: Any, data: bytes, where: str) -> _Model:
    try:
        found = model.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain_validation(error)}") from error
    if found.encoded != data:
        raise ValueError(f"{where}: expected the one form of its content, got other white space or another order")
    return found
