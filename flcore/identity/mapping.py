"""The mapping: names for certificates of another authority, from an explicit table in TOML.

[[certificate]]
san = "DNS:fl.north.example"            # or subject = "CN=fl,O=Hospital North"
name = "north"
role = "client"                         # the default; or "lead", "admin"
ca = "CN=North CA"                      # required where other-cas.pem has more than one authority
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from flcore.errors import CertificateError
from flcore.identity.certificate import Certificate
from flcore.identity.files import read_file
from flcore.identity.names import Role, require_name
from flcore.text import decode_text, printable

KEYS = ("subject", "san", "name", "role", "ca")
SAN_KINDS = ("URI", "DNS", "IP", "email")
Member = tuple[Role, str]


class CertificateMapping:
    """From subjects (as RFC 4514 writes them) and alternative names (such as `DNS:...`) to roles and names."""

    def __init__(self, members: Mapping[str, Member], issuers: Mapping[str, Certificate] | None = None) -> None:
        """Make a mapping; a row that has an issuer holds for certificates that this authority itself has signed."""
        self._members, self._issuers = dict(members), dict(issuers or {})

    def __len__(self) -> int:
        return len(self._members)

    @classmethod
    def load(cls, path: Path, authorities: Sequence[Certificate] = ()) -> "CertificateMapping":
        """Read a table, or raise `CertificateError`, which names the row.

        Args:
            path: The table.
            authorities: The authorities of others. With more than one, each row names its own: otherwise one of them
                could sign a certificate for another one's row.
        """
        try:
            content = tomllib.loads(decode_text(read_file(path)))
        except (ValueError, RecursionError) as error:
            raise CertificateError(
                f"{path}: expected TOML with tables [[certificate]], got something else: {printable(str(error), 150)}; "
                f"see docs/certificates.md"
            ) from error
        rows = content.get("certificate")
        if set(content) != {"certificate"} or not isinstance(rows, list):
            raise CertificateError(
                f"{path}: expected tables [[certificate]] and nothing else, got "
                f"{printable(', '.join(content), 100) or 'an empty file'}; see docs/certificates.md"
            )
        members: dict[str, Member] = {}
        issuers: dict[str, Certificate] = {}
        for number, row in enumerate(rows, 1):
            where = f"{path}, certificate {number}"
            key, member = _row(row, where)
            if key in members or member in members.values():
                what = printable(key, 200) if key in members else f"the {member[0]} {member[1]}"
                raise CertificateError(
                    f"{where}: expected each certificate and each name once, got {what} again; leave one row out"
                )
            members[key] = member
            if "ca" in row or len(authorities) > 1:
                issuers[key] = _issuer(row.get("ca", ""), authorities, where)
        return cls(members, issuers)

    def find(self, certificate: Certificate) -> Member | None:
        """Return the role and the name of a certificate; None where the table has none, or more than one."""
        keys = (f"subject:{certificate.subject}", *certificate.alternative_names)
        found = {key for key in keys if key in self._members}
        if len(found) != 1:
            return None
        key = found.pop()
        issuer = self._issuers.get(key)
        return self._members[key] if issuer is None or certificate.is_issued_by(issuer) else None


def _row(row: Any, where: str) -> tuple[str, Member]:
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise CertificateError(f"{where}: expected a table of strings, got {_shown([str(row)])}; quote the values")
    if unknown := set(row) - set(KEYS):
        raise CertificateError(f"{where}: expected the keys {', '.join(KEYS)}, got {_shown(unknown)}; correct the key")
    if ("subject" in row) == ("san" in row) or "name" not in row:
        raise CertificateError(
            f"{where}: expected name, and one of subject and san, got {_shown(row)}; correct the row"
        )
    role = row.get("role", Role.CLIENT)
    if role not in (Role.CLIENT, Role.LEAD, Role.ADMIN):
        raise CertificateError(f"{where}: role: expected client, lead or admin, got {_shown([role])}; correct the role")
    name = require_name(row["name"], f"a {role} ({where})")
    return _key(row, where), (Role(role), name)


def _key(row: Mapping[str, str], where: str) -> str:
    """Return the key of a row: its subject in canonical RFC 4514 form, or its alternative name."""
    if "san" in row:
        kind, separator, value = row["san"].partition(":")
        if separator and value and kind in SAN_KINDS:
            return row["san"]
        raise CertificateError(
            f"{where}: san: expected KIND:VALUE with a kind of {', '.join(SAN_KINDS)}, got {_shown([row['san']])}; "
            f"write it as `openssl x509 -ext subjectAltName` prints it, but IP and email for their longer names"
        )
    try:
        subject = x509.Name.from_rfc4514_string(row["subject"]).rfc4514_string()
        if not subject:
            raise ValueError("an empty subject is no name")
        return f"subject:{subject}"
    except ValueError as error:
        raise CertificateError(
            f"{where}: subject: expected one as RFC 4514 writes it, such as CN=fl,O=Hospital, got "
            f"{_shown([row['subject']])}; write it as `openssl x509 -subject -nameopt RFC2253` prints it"
        ) from error


def _issuer(subject: str, authorities: Sequence[Certificate], where: str) -> Certificate:
    """Return the one authority with a subject."""
    found = [authority for authority in authorities if authority.subject == subject]
    if len(found) != 1:
        raise CertificateError(
            f"{where}: ca: expected the subject of one authority in other-cas.pem, one of "
            f"{_shown(authority.subject for authority in authorities)}, got {_shown([subject])}; name the authority "
            f"that signs this row's certificate"
        )
    return found[0]


def _shown(texts: Iterable[str]) -> str:
    return repr(printable(", ".join(texts), 150))
