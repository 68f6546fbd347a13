"""The facts of an audit log that a report needs: versions, digests, joins, answers, refusals and the end."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flcore.regular_file import open_regular
from flcore.server.audit_chain import AUDIT_FILE, MAX_LINE_BYTES, Verification, verify
from flcore.status.job_status import JOIN_KIND, REVOKED_KIND

MAX_REFUSALS = 1_000
"""Refusals that are kept by client, kind and reason. A client can write as many reasons as it likes."""

REFUSALS = ("join-refused", "call-refused", "answer-refused", "revocation")
WORDS = {"join-refused": JOIN_KIND, "revocation": REVOKED_KIND}


class Refusal(NamedTuple):
    """A kind of refusal of one client: the event, its kind and the reason."""

    client: str
    event: str
    kind: str
    reason: str

    @property
    def word(self) -> str:
        """The kind, in the words of `flcore status`."""
        return WORDS.get(self.event) or self.kind or self.event


class Publication(NamedTuple):
    """A published model: its round, and the SHA-256 of its file (empty for a large file)."""

    round: int
    file_digest: str


@dataclass
class AuditFacts:
    """What an audit log says of its run.

    Attributes:
        verification: The state of the chain. None: the directory has no log.
        version: The version of flcore that began the run.
        code_digest: The digest of the job's code.
        ended: When the last start ended; empty if there is no end.
        continued: How many times a server went on with the run.
        joins: The number of joins by client.
        answered: The rounds in which a client's answer to any task counted, by client.
        refusals: How often each refusal happened.
        refused: The kind of the last refusal of an answer, by client, round and task.
        publications: The last publication of each file.
        omitted: The number of entries that the log has left out, and of refusals beyond `MAX_REFUSALS` kinds.
    """

    verification: Verification | None = None
    version: str = ""
    code_digest: str = ""
    ended: str = ""
    continued: int = 0
    joins: Counter[str] = field(default_factory=Counter)
    answered: dict[str, set[int]] = field(default_factory=dict)
    refusals: Counter[Refusal] = field(default_factory=Counter)
    refused: dict[tuple[str, int, str], str] = field(default_factory=dict)
    publications: dict[str, Publication] = field(default_factory=dict)
    omitted: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry of the log."""
        event, client, number = _text(entry, "event"), _text(entry, "client"), _number(entry, "round")
        match event:
            case "start":
                self.version, self.code_digest = _text(entry, "version"), _text(entry, "code")
                self.ended = ""
            case "continued":
                self.continued += 1
            case "join":
                self.joins[client] += 1
            case "receipt":
                self.answered.setdefault(client, set()).add(number)
            case "publication":
                self._add_publication(entry, number)
            case "end":
                self.ended = _text(entry, "time")
            case "omitted":
                self.omitted += _number(entry, "entries")
            case name if name in REFUSALS:
                self._add_refusal(entry, client, number)

    def _add_publication(self, entry: dict[str, Any], number: int) -> None:
        publication = Publication(number, _text(entry, "file_sha256"))
        self.publications[_text(entry, "file")] = publication
        if entry.get("is_best") is True:
            self.publications["best.safetensors"] = publication

    def _add_refusal(self, entry: dict[str, Any], client: str, number: int) -> None:
        kind, event = _text(entry, "kind"), _text(entry, "event")
        if event == "answer-refused":
            self.refused[client, number, _text(entry, "task")] = kind
        refusal = Refusal(client, event, kind, _text(entry, "reason"))
        if refusal in self.refusals or len(self.refusals) < MAX_REFUSALS:
            self.refusals[refusal] += 1
        else:
            self.omitted += 1


def read_audit_facts(run: Path) -> AuditFacts:
    """Read the audit log of a run's directory; a directory without one has no facts.

    Lines that are no entries are skipped. `AuditFacts.verification` tells of them.
    """
    path, facts = run / AUDIT_FILE, AuditFacts()
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return facts
    with file:
        for entry in _entries(file):
            facts.add(entry)
    facts.verification = verify(path)
    return facts


def _entries(file: BinaryIO) -> Iterator[dict[str, Any]]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _number(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    return value if type(value) is int else 0
