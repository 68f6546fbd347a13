"""The answers in a client's state directory: written and flushed to disk before they are sent, read after a restart."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from flcore_layout import Layout, PayloadPart, Segment
from flcore_transport import TaskAssignment
from pydantic import BaseModel, ConfigDict, Field

from flcore.client.cached_answer import CachedAnswer
from flcore.client.private_files import read_regular, write_synced
from flcore.client.state_directory import ANSWER_PATTERN, FORMAT, PARTIAL_ANSWER
from flcore.client.stored_feedback import NextResiduals
from flcore.client.stored_pieces import StoredPieces
from flcore.errors import CorruptUpdate
from flcore.job.contract import TaskName
from flcore.model.atomic_replace import sync_directory
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat

ANSWER_FILE, PAYLOAD_FILE, RESIDUALS_FILE, RECEIVED_FILE = (
    "answer.json",
    "payload.pieces",
    "residuals.pieces",
    "received",
)

MAX_DESCRIPTION_BYTES = 32 << 20
"""Of answer.json. It has the contents of an assignment and of an answer, at most 1 MiB each, and a list of segments."""


@dataclass(frozen=True, eq=False)
class StoredAnswer:
    """An answer on disk.

    Attributes:
        answer: The answer, whose source reads from the file.
        feedback_name: The name that the file of its rounding errors gets; empty if it is not compressed.
        residuals: The rounding errors, if this process has written them.
        is_received: Whether an earlier process had a receipt for it.
    """

    answer: CachedAnswer
    feedback_name: str = ""
    residuals: StoredPieces | None = None
    is_received: bool = False


class AnswerDescription(BaseModel):
    """The content of answer.json. It comes from a disk, so it is checked like a message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    task: TaskName
    round: int
    assignment: str
    payload_id: str
    content: str
    layout: list[tuple[str, list[tuple[str, Annotated[int, Field(ge=0)]]]]]
    feedback: str


def answer_directory(directory: Path, task: str) -> Path:
    """Return the directory of the answer to a task, in a client's state directory."""
    return directory / ANSWER_PATTERN.replace("*", task)


def feedback_name(task: str, wire_format: WireFormat) -> str:
    """Return the name of the file with a task's rounding errors."""
    return f"feedback-{task}-{wire_format.spec.fingerprint[:16]}.pieces"


def feedback_pattern(task: str) -> str:
    """Return the regular expression of the names of files with a task's rounding errors."""
    return rf"feedback-{re.escape(task)}-[0-9a-f]{{16}}\.pieces"


def write_answer(directory: Path, answer: CachedAnswer) -> StoredAnswer:
    """Write an answer, and flush it to disk. It appears by a rename, so it is complete or not there.

    Args:
        directory: The client's state directory, without an answer of this task.
        answer: The answer. Its source is a `Compressor` if it has a wire format.

    Returns:
        The answer on disk, whose source reads from the file.

    Raises:
        OSError: The disk does not take it. Nothing is left behind.
        CorruptUpdate: The rounding errors of the update before it cannot be read back. Nothing is left behind.
    """
    partial, final = directory / PARTIAL_ANSWER, answer_directory(directory, answer.task)
    residuals, name = None, ""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700)
        payload = StoredPieces.write(partial / PAYLOAD_FILE, answer.source)
        if answer.wire_format is not None and isinstance(answer.source, Compressor):
            name = feedback_name(answer.task, answer.wire_format)
            residuals = StoredPieces.write(partial / RESIDUALS_FILE, NextResiduals(answer.source, answer.wire_format))
        write_synced(partial / ANSWER_FILE, _encode(answer, name))
        sync_directory(partial)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    payload.renamed(final / PAYLOAD_FILE)
    if residuals is not None:
        residuals.renamed(final / RESIDUALS_FILE)
    sync_directory(directory)
    return StoredAnswer(replace(answer, source=payload), name, residuals)


def read_answer(directory: Path) -> StoredAnswer | None:
    """Read an answer of an earlier process, and check all of it. None if there is none.

    Args:
        directory: The answer's own directory.

    Raises:
        CorruptUpdate: The files cannot be read, or differ from those that were written.
    """
    path = directory / ANSWER_FILE
    try:
        data = read_regular(path, MAX_DESCRIPTION_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptUpdate(f"{path}: cannot be read: {error.strerror}") from error
    found = _decode(path, data)
    if directory != answer_directory(directory.parent, found.task):
        raise CorruptUpdate(f"{path}: expected the answer to another task, got that to {found.task!r}")
    # The tensors are not known yet, so the digest of the name cannot be computed. It names a file of this task.
    if found.feedback and not re.fullmatch(feedback_pattern(found.task), found.feedback):
        raise CorruptUpdate(f"{path}: expected the name of a file of rounding errors, got {found.feedback[:64]!r}")
    payload = StoredPieces.open(directory / PAYLOAD_FILE, _layout(found.layout))
    assignment = TaskAssignment(0, found.assignment.encode(), payload_id=found.payload_id)
    answer = CachedAnswer(assignment, found.task, found.round, found.content.encode(), payload)
    return StoredAnswer(answer, found.feedback, is_received=(directory / RECEIVED_FILE).exists())


def remove_answer(directory: Path) -> None:
    """Remove an answer's own directory. The description goes first: without it, there is no answer."""
    with suppress(FileNotFoundError, IsADirectoryError):
        (directory / ANSWER_FILE).unlink()
    if directory.exists():
        shutil.rmtree(directory)


def mark_received(directory: Path) -> None:
    """Record in an answer's own directory that the server has sent a receipt, and flush the record to disk."""
    write_synced(directory / RECEIVED_FILE, b"")
    sync_directory(directory)


def mark_asked_again(directory: Path) -> None:
    """Remove the record of `mark_received`: the server asks for the answer again, so it has not counted it."""
    (directory / RECEIVED_FILE).unlink(missing_ok=True)


def adopt_residuals(directory: Path, task: str, name: str) -> None:
    """Make an answer's rounding errors those that the task's next update adds, and flush the rename to disk.

    Does nothing if they have been adopted: a process may end between this and the removal of the answer.
    """
    with suppress(FileNotFoundError):
        (answer_directory(directory, task) / RESIDUALS_FILE).replace(directory / name)
    task_pattern = f"{name.rpartition('-')[0]}-*.pieces"
    for other in directory.glob(task_pattern):
        if other.name != name:
            other.unlink()
    sync_directory(directory)


def _encode(answer: CachedAnswer, name: str) -> bytes:
    fields = {
        "format": FORMAT,
        "task": answer.task,
        "round": answer.round,
        "assignment": answer.assignment.content.decode(),
        "payload_id": answer.assignment.payload_id,
        "content": answer.content.decode(),
        "layout": [
            [part.name, [[segment.dtype, segment.elements] for segment in part.segments]]
            for part in answer.source.layout.parts
        ],
        "feedback": name,
    }
    return json.dumps({"answer": fields, "sha256": _digest(fields)}).encode() + b"\n"


def _decode(path: Path, data: bytes) -> AnswerDescription:
    try:
        document = json.loads(data)
        fields, digest = document["answer"], document["sha256"]
        is_intact = isinstance(fields, dict) and _digest(fields) == digest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptUpdate(f"{path}: expected an answer's description, got {len(data)} other bytes") from error
    if not is_intact:
        raise CorruptUpdate(f"{path}: corrupt: its digest is not that of its content")
    if fields.get("format") != FORMAT:
        raise CorruptUpdate(f"{path}: expected format {FORMAT}, got {str(fields.get('format'))[:64]!r}")
    try:
        return AnswerDescription.model_validate_json(json.dumps(fields))
    except (ValueError, RecursionError) as error:
        raise CorruptUpdate(f"{path}: expected an answer's description, got other keys or values") from error


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _layout(parts: list[tuple[str, list[tuple[str, int]]]]) -> Layout:
    return Layout(
        tuple(
            PayloadPart(name, tuple(Segment(dtype, elements) for dtype, elements in segments))
            for name, segments in parts
        )
    )
