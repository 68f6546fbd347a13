"""Who may do what: the roles of certificates, and a table of the operator that overrides them.

roles.toml, in the federation's directory. It is read again when it changes:

    [lead]               # certificates of the role lead
    alice = "admin"
    bob = "none"         # may do nothing
    [client]             # certificates of the role client
    north = "lead"       # may also submit jobs
"""

import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flcore_transport import Refused

from flcore.errors import CertificateError
from flcore.identity.names import require_name
from flcore.text import decode_text, printable

ROLES_FILE = "roles.toml"
CERTIFICATE_ROLES = ("client", "lead", "admin")
GIVEN_ROLES = (*CERTIFICATE_ROLES, "none")

Signature = tuple[int, int, int]
"""Identifies a version of a file: its inode, its time and its size."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: The name in the certificate; for people.
        certificate_role: The role in the certificate.
        role: The role that counts: "client", "lead", "admin" or "none".
        fingerprint: The certificate's; empty over plaintext.
    """

    name: str
    certificate_role: str
    role: str
    fingerprint: str = ""

    @property
    def owner(self) -> str:
        """The identity that jobs belong to. A lead and a client may have the same name."""
        return f"{self.certificate_role}/{self.name}"


LOCAL = Caller("local", "admin", "admin")
"""The caller over plaintext, where nobody has an identity: the operator's own machine."""


class Roles:
    """The table of roles. Thread-safe.

    A table that cannot be read gives nobody a role: a typing error in the row that takes a role away must not leave it.

    Args:
        path: The table. It may be missing: the certificates' roles hold.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: tuple[Signature | None, Mapping[tuple[str, str], str] | CertificateError] = (None, {})

    def caller(self, name: str, certificate_role: str, fingerprint: str) -> Caller:
        """Return a caller with the role that counts. Raises `Refused` while the table cannot be read."""
        table = self._table()
        if isinstance(table, CertificateError):
            raise Refused("roles", f"the server's table of roles cannot be read, so nobody has a role: {table}")
        return Caller(name, certificate_role, table.get((certificate_role, name), certificate_role), fingerprint)

    def is_barred(self, client: str) -> bool:
        """Whether the table takes the role from a client. While it cannot be read, it takes none that was given."""
        table = self._table()
        return not isinstance(table, CertificateError) and table.get(("client", client)) == "none"

    def check(self) -> None:
        """Raise `CertificateError` if the table cannot be read."""
        if isinstance(table := self._table(), CertificateError):
            raise table

    def _table(self) -> Mapping[tuple[str, str], str] | CertificateError:
        signature = self._signature()
        with self._lock:
            was, table = self._read
        if signature == was:
            return table
        try:
            table = {} if signature is None else _parse(self._path)
        except FileNotFoundError:
            signature, table = None, {}
        except CertificateError as error:
            table = error
        with self._lock:
            self._read = signature, table
        return table

    def _signature(self) -> Signature | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _parse(path: Path) -> dict[tuple[str, str], str]:
    try:
        content = tomllib.loads(decode_text(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CertificateError(f"{path}: expected TOML: {printable(str(error), 150)}; correct the file") from error
    table: dict[tuple[str, str], str] = {}
    for certificate_role, rows in content.items():
        if certificate_role not in CERTIFICATE_ROLES or not isinstance(rows, dict):
            raise CertificateError(
                f"{path}: expected the tables [client], [lead] and [admin], got {printable(certificate_role, 64)!r}; "
                "put each name under the role of its certificate"
            )
        for name, role in rows.items():
            if role not in GIVEN_ROLES:
                raise CertificateError(
                    f"{path}: {certificate_role}.{printable(name, 64)}: expected one of {', '.join(GIVEN_ROLES)}, "
                    f"got {printable(str(role), 64)!r}; correct the role"
                )
            table[certificate_role, require_name(name, f"a {certificate_role}")] = role
    return table
