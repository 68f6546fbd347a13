"""Issued certificates: the authority's database, one file for each, and the state of each at a given time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flcore.identity.certificate import Certificate, parse_certificates
from flcore.identity.files import read_file
from flcore.identity.names import Identity, Role

USABLE = ("valid", "not yet valid")
"""The states of certificates that someone may join with, now or later."""


@dataclass(frozen=True)
class IssuedCertificate:
    """A row of the authority's database."""

    identity: Identity
    certificate: Certificate
    is_revoked: bool

    def state(self, now: datetime) -> str:
        """Return `valid`, `revoked`, `expired` or `not yet valid`."""
        if self.is_revoked:
            return "revoked"
        if now > self.certificate.expires:
            return "expired"
        return "valid" if now >= self.certificate.starts else "not yet valid"


def read_issued(directory: Path, denied: frozenset[str]) -> list[IssuedCertificate]:
    """Return the certificates of a directory, by role, name and expiry.

    Args:
        directory: The directory of the files SERIAL.pem.
        denied: The fingerprints on the deny list.
    """
    found = []
    for path in directory.glob("[0-9a-f]*.pem"):
        certificate = parse_certificates(read_file(path), str(path))[0]
        identity = certificate.identity(str(path))
        fingerprints = (certificate.fingerprint, certificate.key_fingerprint)
        found.append(IssuedCertificate(identity, certificate, not denied.isdisjoint(fingerprints)))
    return sorted(found, key=lambda row: (row.identity.role, row.identity.name, row.certificate.expires))


def members_called(rows: Sequence[IssuedCertificate], name: str) -> list[IssuedCertificate]:
    """Return the rows of the client or lead of a name."""
    return [row for row in rows if row.identity.name == name and row.identity.role != Role.SERVER]
