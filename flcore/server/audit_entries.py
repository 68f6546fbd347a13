"""The entries of an audit log: which events of a server have one, and its fields. `docs/audit.md` lists them."""

from typing import Any

from flcore.server.events import (
    AnswerRefused,
    CallRefused,
    ClientJoined,
    ClientRevoked,
    Event,
    JoinRefused,
    ModelPublished,
    RunContinued,
    RunEnded,
    RunStarted,
    TaskAnswered,
)
from flcore.text import printable, without_folders

MAX_NAME_CHARACTERS = 64
MAX_REASON_CHARACTERS = 500
"""An escaped character takes up to twelve bytes, so that a line stays below `MAX_LINE_BYTES`."""

LIMITED = {"join", "join-refused", "call-refused", "answer-refused", "request-refused", "site-refused"}
"""Entries that one client can cause without end. Their rate is limited, so that a flood does not fill the disk."""

SYNCED = {"start", "continued", "receipt", "publication", "revocation", "end"} | {
    *("submit", "clone", "abort", "delete", "job-start", "job-end")  # of a federation
}
"""Entries that are synced to the disk. The others follow with the next of these, or with the end of the log."""


def describe_event(event: Event) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the fields of an event's entry, or None if it is not for the log.

    Text that clients wrote is truncated, and its control characters are escaped.
    """
    match event:
        case RunStarted() | RunContinued() | RunEnded():
            return _describe_run(event)
        case ClientJoined():
            return "join", {"client": _name(event.client), "connected": event.connected}
        case JoinRefused():
            return "join-refused", {"client": _name(event.client), "reason": _reason(event.reason)}
        case CallRefused():
            return "call-refused", {
                "client": _name(event.client),
                "certificate": _name(event.certificate_fingerprint),
                "kind": _name(event.kind),
                "reason": _reason(event.reason),
            }
        case AnswerRefused():
            return "answer-refused", {
                "client": _name(event.client),
                "round": event.round,
                "task": _name(event.task),
                "assignment": event.assignment_id,
                "kind": _name(event.kind),
                "reason": _reason(event.reason),
            }
        case TaskAnswered():
            return "receipt", {
                "client": _name(event.client),
                "round": event.round,
                "task": _name(event.task),
                "assignment": event.assignment_id,
                "weight": event.weight,
                "bytes": event.received_bytes,
                "content_sha256": event.content_digest,
            }
        case ModelPublished():
            return "publication", {
                "round": event.round,
                "file": event.file,
                "is_best": event.is_best,
                "model": event.model_fingerprint,
                "bytes": event.tensor_bytes,
                "file_sha256": event.file_digest,
            }
        case ClientRevoked():
            return "revocation", {
                "client": _name(event.client),
                "certificate": _name(event.certificate_fingerprint),
                "reason": _reason(event.reason),
            }
        case _:
            return None


def _describe_run(event: RunStarted | RunContinued | RunEnded) -> tuple[str, dict[str, Any]]:
    match event:
        case RunStarted():
            return "start", {
                "run": event.run,
                "job": _name(event.job),
                "contract": event.contract_fingerprint,
                "code": event.code_digest,
                "version": event.version,
            }
        case RunContinued():
            return "continued", {"run": event.run, "rounds": event.rounds}
        case RunEnded():
            return "end", {
                "failed": event.failed,
                "end": event.end,
                "reason": _reason(event.reason),
                "cause": _reason(event.cause),
            }


def _name(text: str) -> str:
    return printable(text, MAX_NAME_CHARACTERS)


def _reason(text: str) -> str:
    """Return a reason on one line, without the server's folders: leads download the log of their run."""
    lines = without_folders(text[: 2 * MAX_REASON_CHARACTERS]).splitlines()
    return printable("; ".join(line.strip() for line in lines), MAX_REASON_CHARACTERS)
