"""A federation's certificate authority: a directory with its key, what it has issued, and the server's files.

    authority/ca.key         the authority's key, 0600; it never leaves this directory
    authority/ca.pem         its certificate; the common name is the federation
    authority/issued/        SERIAL.pem of every certificate that it has issued: the database
    authority/lock           held while something is issued, renewed or revoked
    server/                  what `flcore server --certs` reads; copy this directory to the server's machine
        ca.pem               the authority's certificate
        server.pem           the server's key and certificate, 0600, replaced as one
        revoked.txt          the deny list

A certificate is recorded before it is handed out, so a crash can leave a record without a kit, and never a kit that
`list` and `revoke` do not know.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from flcore.errors import CertificateError
from flcore.identity.certificate import (
    Certificate,
    format_time,
    parse_certificates,
    parse_private_key,
    require_matching_key,
    require_valid_at,
)
from flcore.identity.deny_list import create_deny_list, deny, read_deny_list
from flcore.identity.files import (
    PARTIAL_SUFFIX,
    PRIVATE,
    create_file,
    locked,
    read_file,
    read_private_file,
    remove_partial_files,
    replace_file,
)
from flcore.identity.issued import USABLE, IssuedCertificate, members_called, read_issued
from flcore.identity.names import Role, require_hosts, require_name
from flcore.identity.signing import (
    AUTHORITY_DAYS,
    CLIENT_DAYS,
    SERVER_DAYS,
    KeyPair,
    sign_authority,
    sign_member,
)
from flcore.model.atomic_replace import sync_directory
from flcore.text import printable

SERVER_NAME = "server"
"""The server's name in its identity; a federation has one server."""


class Authority:
    """An open authority. Its key is read for each signature, and is not kept in memory.

    Attributes:
        directory: The directory that `create` has made.
        certificate: The authority's certificate.
        federation: The federation's name.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory, or raise `CertificateError`."""
        self.directory = directory
        self._private, self._server = directory / "authority", directory / "server"
        if not self._private.is_dir():
            raise CertificateError(
                f"{directory}: expected the directory of a certificate authority, got none; give another one "
                f"(--dir), or make one (flcore certs init)"
            )
        path = self._private / "ca.pem"
        self.certificate = parse_certificates(read_file(path), str(path))[0]
        self.federation = require_name(self.certificate.common_name, f"the federation ({path})")

    @classmethod
    def create(
        cls,
        directory: Path,
        federation: str,
        hosts: Sequence[str],
        *,
        now: datetime,
        authority_days: int = AUTHORITY_DAYS,
        server_days: int = SERVER_DAYS,
    ) -> "Authority":
        """Make an authority and the server's certificate. The directory appears whole, or not at all.

        Args:
            directory: A path where there is nothing, or an empty directory.
            federation: The federation's name.
            hosts: The DNS names and IP addresses that clients connect to.
            now: The present time.
            authority_days: The lifetime of the authority.
            server_days: The lifetime of the server's certificate.

        Raises:
            CertificateError: An argument is refused, or the directory has content.
        """
        server_hosts = require_hosts(hosts)
        authority = sign_authority(federation, authority_days, now)
        server = _sign(
            authority.certificate, authority.key_pem, Role.SERVER, SERVER_NAME, server_days, now, server_hosts
        )
        directory.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(PARTIAL_SUFFIX, f".{directory.name}.", directory.parent))  # 0700
        try:
            _write_files(hidden, authority, server)
            _publish(hidden, directory)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        return cls(directory)

    @property
    def server_directory(self) -> Path:
        """The directory that `flcore server --certs` reads."""
        return self._server

    @property
    def server_hosts(self) -> tuple[str, ...]:
        """The DNS names and IP addresses of the server's present certificate; the first one is the main one."""
        return self._server_certificate().hosts

    def issued(self) -> list[IssuedCertificate]:
        """Return all certificates that were issued, by role, name and expiry."""
        return read_issued(self._private / "issued", read_deny_list(self._server / "revoked.txt"))

    def issue(self, name: str, role: Role = Role.CLIENT, *, now: datetime, days: int = CLIENT_DAYS) -> KeyPair:
        """Issue the certificate of a new client, lead or admin.

        Raises:
            CertificateError: The name is refused, or has a certificate that is neither expired nor revoked.
        """
        if role == Role.SERVER:
            raise CertificateError(
                "a role: expected client, lead or admin, got server; see `flcore certs renew --server`"
            )
        with self._locked():
            self.require_new([name], now=now)
            return self._issue(role, name, days, now)

    def renew(self, name: str, *, now: datetime, days: int = CLIENT_DAYS) -> KeyPair:
        """Issue another certificate, with a new key, for a name that has one. The old one stays valid until it expires.

        Raises:
            CertificateError: The name has no certificate that is not revoked.
        """
        with self._locked():
            return self._issue(self.require_renewable(name), name, days, now)

    def renew_server(self, *, now: datetime, days: int = SERVER_DAYS, hosts: Sequence[str] = ()) -> KeyPair:
        """Replace the server's key and certificate in one step. A running server takes them up by itself.

        Args:
            now: The present time.
            days: The lifetime in days.
            hosts: New DNS names and IP addresses. Default: those of the present certificate.
        """
        with self._locked():
            kept = require_hosts(hosts) if hosts else self._server_certificate().hosts
            pair = self._issue(Role.SERVER, SERVER_NAME, days, now, kept)
            replace_file(self._server / "server.pem", _server_pem(pair), mode=PRIVATE)
            return pair

    def revoke(self, name: str, *, now: datetime) -> list[IssuedCertificate]:
        """Put all of a name's certificates that are not expired on the deny list, in one step; return them.

        Raises:
            CertificateError: The name has no such certificate.
        """
        with self._locked():
            rows = [row for row in members_called(self.issued(), name) if row.state(now) in USABLE]
            if not rows:
                raise CertificateError(
                    f"{self.directory}: expected a client or lead with a valid certificate, got "
                    f"{printable(name, 100)!r}; see the names (flcore certs list)"
                )
            comment = f"{name}, revoked {format_time(now)}"
            denied = {row.certificate.fingerprint: comment for row in rows}
            denied |= {row.certificate.key_fingerprint: f"its public key: {comment}" for row in rows}
            deny(self._server / "revoked.txt", denied)
            return rows

    def require_new(self, names: Sequence[str], *, now: datetime) -> None:
        """Raise `CertificateError` where `issue` would refuse one of the names."""
        issued = self.issued()
        for name in names:
            require_name(name, "a client or lead")
            if usable := [row for row in members_called(issued, name) if row.state(now) in USABLE]:
                raise CertificateError(
                    f"{self.directory}: expected a name without a valid certificate, got {name!r}, which is a "
                    f"{usable[0].identity.role} until {format_time(usable[-1].certificate.expires)}; renew it (flcore "
                    f"certs renew {name}), or revoke it first (flcore certs revoke {name})"
                )

    def require_renewable(self, name: str) -> Role:
        """Return the role of a name that has a certificate; raise `CertificateError` where `renew` would refuse it."""
        rows = [row for row in members_called(self.issued(), name) if not row.is_revoked]
        if not rows:
            raise CertificateError(
                f"{self.directory}: expected a name with a certificate that is not revoked, got "
                f"{printable(name, 100)!r}; issue one (flcore certs issue), or see the names (flcore certs list)"
            )
        return rows[-1].identity.role

    def _server_certificate(self) -> Certificate:
        path = self._server / "server.pem"
        try:
            return parse_certificates(read_private_file(path), str(path))[0]
        except CertificateError as error:
            raise CertificateError(
                f"{path}: expected the server's certificate, whose hosts the new one keeps, got a damaged file; give "
                f"the hosts (flcore certs renew --server --host HOST)"
            ) from error

    def _issue(self, role: Role, name: str, days: int, now: datetime, hosts: Sequence[str] = ()) -> KeyPair:
        path = self._private / "ca.key"
        require_valid_at(self.certificate, now, str(path), "make a new authority (flcore certs init)")
        pair = _sign(self.certificate, read_private_file(path), role, name, days, now, hosts, where=str(path))
        _record(self._private, pair)
        return pair

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._private / "lock"):
            for directory in (self._private / "issued", self._server):
                remove_partial_files(directory)
            yield


def _sign(
    authority: Certificate,
    key_pem: bytes,
    role: Role,
    name: str,
    days: int,
    now: datetime,
    hosts: Sequence[str] = (),
    where: str = "the new authority",
) -> KeyPair:
    key = parse_private_key(key_pem, where)
    require_matching_key(authority, key, where, "restore the authority's directory from a backup")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{where}: expected an ECDSA key, got another one; restore it from a backup")
    return sign_member(authority, key, role, name, days, now, hosts)


def _record(private: Path, pair: KeyPair) -> None:
    create_file(private / "issued" / f"{pair.certificate.parsed.serial_number:040x}.pem", pair.certificate.pem)


def _server_pem(pair: KeyPair) -> bytes:
    """Return key and certificate in one file: a reader never sees one of them without the other."""
    return pair.certificate.pem + pair.key_pem


def _write_files(directory: Path, authority: KeyPair, server: KeyPair) -> None:
    private, server_directory = directory / "authority", directory / "server"
    for made in (private, private / "issued", server_directory):
        made.mkdir(mode=0o700)
    create_file(private / "ca.key", authority.key_pem, mode=PRIVATE)
    create_file(private / "ca.pem", authority.certificate.pem)
    _record(private, server)
    create_file(server_directory / "ca.pem", authority.certificate.pem)
    create_file(server_directory / "server.pem", _server_pem(server), mode=PRIVATE)
    create_deny_list(server_directory / "revoked.txt")
    create_file(directory / ".gitignore", b"*\n")  # keys belong into no repository
    sync_directory(private)


def _publish(hidden: Path, directory: Path) -> None:
    try:
        hidden.rename(directory)  # replaces an empty directory, and nothing else
    except OSError as error:
        raise CertificateError(
            f"{directory}: expected a path where there is nothing, or an empty directory, got one that has content "
            f"({error.strerror}); choose another one (--dir), or, if it is this federation's authority, change the "
            f"server's hosts with `flcore certs renew --server --host HOST`"
        ) from error
    sync_directory(directory.parent)
