"""`results.json`: what a workflow found besides models, such as a matrix of evaluations or statistics."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from flcore.disk_errors import named
from flcore.errors import JobError
from flcore.model.atomic_replace import sync_directory

RESULTS_FILE = "results.json"
_PARTIAL_FILE = ".results.json.partial"


def encode_results(results: Any) -> bytes:
    """Return results as indented JSON. Raises `JobError` for values that are not JSON.

    >>> encode_results({"loss": {"a": 0.5}}).decode()
    '{\\n  "loss": {\\n    "a": 0.5\\n  }\\n}\\n'
    """
    try:
        content = json.dumps(results, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(
            f"control.save_results: expected JSON values with finite numbers: {error}; convert NumPy values with "
            "`float` or `.tolist()`"
        ) from error
    return content.encode() + b"\n"


def digest_of_results(content: bytes) -> str:
    """Return the SHA-256 of encoded results, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_results(directory: Path, content: bytes) -> None:
    """Replace the results of a run atomically. They are on the disk when this returns."""
    partial = directory / _PARTIAL_FILE
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file, named(partial):
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    partial.replace(directory / RESULTS_FILE)
    sync_directory(directory)
