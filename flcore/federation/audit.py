"""The audit log of a federation: every request that changes something, every refusal, each start and end of a job.

Joins and refused calls have the entries of a run's audit log (`flcore.server.audit_entries`).
"""

from dataclasses import dataclass
from typing import Any

from flcore.federation.roles import Caller
from flcore.server.audit_entries import MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS, describe_event
from flcore.server.events import Event
from flcore.text import printable


@dataclass(frozen=True, slots=True)
class JobRequested:
    """A request that changes something was done: "submit", "clone", "abort" or "delete"."""

    action: str
    job: str
    caller: Caller
    pack_digest: str = ""


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request was refused. `action` is empty if it could not be read."""

    action: str
    job: str
    caller: Caller
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job runs. `is_continued`: it ran before the server was restarted."""

    job: str
    is_continued: bool


@dataclass(frozen=True, slots=True)
class JobOver:
    """A job is over, or was aborted."""

    job: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class SiteRefused:
    """A site does not run a job."""

    job: str
    client: str
    reason: str


REQUEST_KINDS = {
    *("not-allowed", "no-such-id", "no-such-file", "not-over", "is-over"),
    *("bad-pack", "bad-job", "no-pack", "busy", "disk"),
}
"""Kinds of refusals of requests, which have an entry of their own. The transport reports them as refused calls, too."""

FederationEvent = Event | JobRequested | RequestRefused | JobStarted | JobOver | SiteRefused


def describe_federation_event(event: FederationEvent) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the fields of an event's entry, or None if it is not for the log."""
    match event:
        case JobRequested():
            pack = {"pack": event.pack_digest} if event.pack_digest else {}
            return event.action, {"job": _name(event.job), **_identity(event.caller), **pack}
        case RequestRefused():
            return "request-refused", {
                "request": event.action,
                "job": _name(event.job),
                **_identity(event.caller),
                "kind": _name(event.kind),
                "reason": _reason(event.reason),
            }
        case JobStarted():
            return "job-start", {"job": _name(event.job), "continued": event.is_continued}
        case JobOver():
            return "job-end", {"job": _name(event.job), "state": event.state, "reason": _reason(event.reason)}
        case SiteRefused():
            return "site-refused", {
                "job": _name(event.job),
                "client": _name(event.client),
                "reason": _reason(event.reason),
            }
        case _:
            return describe_event(event)


def _identity(caller: Caller) -> dict[str, str]:
    return {"identity": _name(caller.owner), "role": caller.role, "certificate": caller.fingerprint}


def _name(text: str) -> str:
    return printable(text, MAX_NAME_CHARACTERS + 20)


def _reason(text: str) -> str:
    return printable(" ".join(text[: 2 * MAX_REASON_CHARACTERS].split()), MAX_REASON_CHARACTERS)
