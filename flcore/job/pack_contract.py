"""The job.toml of a pack: that of the job's directory, or one of the job's contract; and how it is read again."""

import json
import re
import tomllib
from contextlib import suppress
from typing import Any

from flcore.errors import JobError, PackError
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.job.pack_manifest import JOB_FILE, Manifest
from flcore.job.parsing import parse_contract
from flcore.text import decode_text, printable

MAX_JOB_FILE_BYTES = 256 << 10
MAX_DOTS = 1_000
"""The most dots in a line: the time to parse a dotted key grows with the square of its parts."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def packed_job_file(job: Job) -> bytes:
    """Return the job.toml of a job's pack: the one of its directory, unless the job has another contract."""
    if job.functions is not None:
        return contract_toml(job.contract).encode()
    path = job.directory / JOB_FILE
    with suppress(OSError, ValueError, RecursionError, JobError):  # the job has come from another file
        data = path.read_bytes()
        if parse_contract(tomllib.loads(decode_text(data)), str(path)).fingerprint == job.contract.fingerprint:
            return data
    return contract_toml(job.contract).encode()


def require_job_file_size(nbytes: int) -> None:
    """Raise `ValueError` for a job.toml that is too large for a pack."""
    if nbytes > MAX_JOB_FILE_BYTES:
        raise ValueError(f"{JOB_FILE}: expected at most {MAX_JOB_FILE_BYTES:,} bytes, got {nbytes:,}")


def parse_packed_contract(data: bytes, manifest: Manifest) -> Contract:
    """Read the job.toml of a pack. Raises `ValueError` if it is invalid, or not the one that the manifest says."""
    if max(line.count(b".") for line in data.split(b"\n")) > MAX_DOTS:
        raise ValueError(f"{JOB_FILE}: expected at most {MAX_DOTS:,} dots in a line, got more; break the line")
    try:
        content = tomllib.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{JOB_FILE}: expected TOML: {printable(str(error), 200)}") from error
    try:
        contract = parse_contract(content, JOB_FILE)
    except JobError as error:
        first, *others = str(error).splitlines()
        raise ValueError(printable(first, 300) + (f" (and {len(others)} more errors)" if others else "")) from error
    if (contract.name, contract.fingerprint) != (manifest.name, manifest.contract_fingerprint):
        raise ValueError(
            f"{JOB_FILE}: expected the contract {manifest.name!r} with the fingerprint "
            f"{manifest.contract_fingerprint[:16]}..., got {contract.name!r} with {contract.fingerprint[:16]}...; use "
            f"the version of flcore that has made the pack"
        )
    return contract


def contract_toml(contract: Contract) -> str:
    """Return a contract as TOML, with all keys. Read again, it has the same fingerprint.

    Raises:
        PackError: A hyperparameter is null, which TOML cannot say.
    """
    content = json.loads(contract.to_json())
    tasks = content.pop("tasks")
    lines = [_line(key, value) for key, value in content.items() if not isinstance(value, dict) and value is not None]
    for name, table in content.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items() if value is not None)]
    for name, table in tasks.items():
        lines += ["", f"[tasks.{name}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join([*lines, ""])


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value, key)}"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any, key: str) -> str:
    if value is None:
        raise PackError(f"{key}: expected a value that TOML can hold, got null; leave the key out")
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_value(item, name)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + "".join(f"\n    {_value(item, key)}," for item in value) + ("\n]" if value else "]")
    return json.dumps(value)  # a boolean, an integer, or a float, which TOML writes the same way


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
