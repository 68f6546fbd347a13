"""Packs that `flcore job pack` would not write: zip files of which each field can be another one."""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flcore.identity.lead_keys import SigningKey
from flcore.job.code import CodeDigest, code_names
from flcore.job.contract import Contract
from flcore.job.pack_manifest import FORMAT, Signature, in_order

REGULAR, LINK, DEVICE, FOLDER = 0o100644, 0o120777, 0o020666, 0o040755
STORED, DEFLATED = 0, 8

JOB = b"""name = "small"
clients = ["north", "south"]

[server]
model = "train.py:initial_model"
rounds = 3

[client]
executor = "train.py"

[tasks.train]
returns = "weights"
hyperparameters = { rate = 0.5 }
"""
TRAIN = b"def initial_model(seed):\n    return {}\n\n\ndef train(model, task):\n    return None\n"
FILES = {"job.toml": JOB, "sub/more.py": b"x = 1\n", "train.py": TRAIN}


@dataclass(frozen=True)
class Part:
    """One entry of a zip file. None stands for the value that fits the content."""

    name: str | bytes
    content: bytes
    mode: int = REGULAR
    method: int = STORED
    flags: int | None = None
    date: int = 0x21
    crc: int | None = None
    nbytes: int | None = None
    extra: bytes = b""
    offset: int | None = None

    @property
    def raw_name(self) -> bytes:
        return self.name if isinstance(self.name, bytes) else self.name.encode()

    @property
    def fields(self) -> tuple[int, ...]:
        flags = self.flags if self.flags is not None else 0 if self.raw_name.isascii() else 0x800
        crc = zlib.crc32(self.content) if self.crc is None else self.crc
        nbytes = len(self.content) if self.nbytes is None else self.nbytes
        return 20, flags, self.method, 0, self.date, crc, len(self.content), nbytes, len(self.raw_name), len(self.extra)

    @property
    def local(self) -> bytes:
        return struct.pack("<4s5H3I2H", b"PK\3\4", *self.fields) + self.raw_name + self.extra

    def central(self, offset: int) -> bytes:
        offset = offset if self.offset is None else self.offset
        row = struct.pack("<4s6H3I5H2I", b"PK\1\2", 0x314, *self.fields, 0, 0, 0, self.mode << 16, offset)
        return row + self.raw_name + self.extra


def zipped(parts: Sequence[Part], central: Sequence[Part] | None = None, comment: bytes = b"") -> bytes:
    """Return a zip file. `central` are the entries of its directory, if they are others than those of the file."""
    body, offsets = b"", []
    for part in parts:
        offsets.append(len(body))
        body += part.local + part.content
    listed = parts if central is None else central
    rows = b"".join(part.central(offset) for part, offset in zip(listed, [*offsets, 0, 0], strict=False))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(listed), len(listed), len(rows), len(body), len(comment))
    return body + rows + end + comment


def manifest_of(packed: dict[str, bytes], **changes: Any) -> bytes:
    """Return a manifest that fits these files, in this order, with some of its keys changed."""
    try:
        contract = Contract.model_validate_json(json.dumps(changes.pop("contract", CONTRACT)))
        name, fingerprint, named = contract.name, contract.fingerprint, contract.code_files
    except ValueError:
        name, fingerprint, named = "small", "0" * 64, []
    code, digest = code_names([name for name in packed if name], named), CodeDigest()
    for file in in_order(packed):
        if file in code:
            digest.begin(file, len(packed[file]))
            digest.update(packed[file])
    rows = [{"name": k, "nbytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in packed.items()]
    content = {"format": FORMAT, "name": name, "contract_fingerprint": fingerprint, "files": rows}
    return canonical({**content, "code_digest": digest.hexdigest(), **changes})


def canonical(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


CONTRACT = {
    "name": "small",
    "clients": ["north", "south"],
    "server": {"model": "train.py:initial_model", "rounds": 3},
    "client": {"executor": "train.py"},
    "tasks": {"train": {"returns": "weights", "hyperparameters": {"rate": 0.5}}},
}


def parts_of(
    files: dict[str, bytes] = FILES, manifest: bytes | None = None, signer: SigningKey | None = None
) -> list[Part]:
    """Return the entries of a pack of these files."""
    data = manifest_of(files) if manifest is None else manifest
    parts = [Part("pack.json", data), *(Part(name, content) for name, content in files.items())]
    if signer is not None:
        parts.append(Part("signature.json", Signature.make(signer, data).encoded))
    return parts


def changed(parts: Sequence[Part], index: int, **fields: Any) -> list[Part]:
    """Return the entries with one of them changed."""
    return [replace(part, **fields) if at == index else part for at, part in enumerate(parts)]
