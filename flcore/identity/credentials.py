"""Credentials: the PEM bytes that server and clients give to TLS, read from their files and checked before use.

A server's directory:

    ca.pem           the federation's own authority
    server.pem       the server's certificate and key, 0600; replaced as one when it is renewed
    revoked.txt      the deny list
    other-cas.pem    authorities of others whose certificates `mapping.toml` names; may be absent
    mapping.toml     names for their certificates; there if and only if `other-cas.pem` is
"""

import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

from flcore.errors import CertificateError
from flcore.identity.certificate import (
    Certificate,
    encode_private_key,
    parse_certificates,
    parse_private_key,
    require_matching_key,
    require_use,
    require_valid_at,
    utc_now,
)
from flcore.identity.deny_list import DenyList
from flcore.identity.files import file_stamp, read_file, read_private_file
from flcore.identity.kit import identity_table
from flcore.identity.mapping import CertificateMapping
from flcore.identity.names import Identity, Role, require_name
from flcore.identity.peers import PeerVerifier
from flcore.job.site import read_site

RENEW_SERVER = "renew it (flcore certs renew --server), and copy server.pem to the server"
RENEW_CLIENT = "ask the federation's operator for a renewed kit (flcore certs renew NAME)"

RETRY_S = 1.0
"""Seconds after which a renewed certificate that could not be used is tried again, even if its file is the same."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerCertificates:
    """The credentials of a server for mutual TLS.

    Attributes:
        root_pem: The authorities whose clients are admitted, the federation's own one first.
        key_pem: The server's private key.
        chain_pem: The server's certificate.
        identity: The server's identity; its federation is the one that is served.
        hosts: The DNS names and IP addresses that the certificate holds for.
        expires: The last moment at which the certificate is valid.
        peers: Identifies the peer of a call.
    """

    root_pem: bytes
    key_pem: bytes = field(repr=False)  # no private key in a log
    chain_pem: bytes
    identity: Identity
    hosts: tuple[str, ...]
    expires: datetime
    peers: PeerVerifier

    @classmethod
    def load(cls, directory: Path, now: datetime | None = None) -> Self:
        """Read and check a server's directory.

        Args:
            directory: The directory `server` that `flcore certs init` has made, or a copy of it.
            now: The present time. Default: this machine's clock.

        Raises:
            CertificateError: A file is absent, malformed, expired, not yet valid, for another use, or not of this
                authority; the message says what to do.
        """
        if not (directory / "server.pem").exists() and (directory / "server" / "server.pem").exists():
            raise CertificateError(
                f"{directory}: expected the directory of a server, got that of an authority; give {directory}/server"
            )
        moment = now or utc_now()
        ca_path = directory / "ca.pem"
        authority = _read_authority(ca_path, moment)
        key_pem, certificate = _read_server(directory / "server.pem", authority, moment)
        identity = certificate.identity(str(directory / "server.pem"))
        others_pem, mapping = _read_others(directory, moment)
        peers = PeerVerifier(identity.federation, authority, DenyList(directory / "revoked.txt"), mapping)
        roots = authority.pem + others_pem
        return cls(roots, key_pem, certificate.pem, identity, certificate.hosts, certificate.expires, peers)


class ServerCertificateWatch:
    """Notices when `server.pem` is renewed. Safe to use from any thread; a call costs one `stat`.

    Only a certificate of the authority that was there at the start is a renewal: the server trusts that authority's
    clients until it ends, so a certificate of another federation would lock them out.
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._ca_path = directory / "server.pem", directory / "ca.pem"
        self._authority_fingerprint = ""
        with suppress(CertificateError):  # `ServerCertificates.load` says what is wrong with it
            self._authority_fingerprint = parse_certificates(read_file(self._ca_path), "ca.pem")[0].fingerprint
        self._lock = threading.Lock()
        self._stamp = file_stamp(self._path)
        self._retry_at = math.inf

    def poll(self, now: datetime | None = None) -> tuple[bytes, bytes] | None:
        """Return key and certificate in PEM if there are new, valid ones; else None.

        An invalid file is logged once, and the server keeps the certificate that it has.
        """
        with self._lock:
            stamp = file_stamp(self._path)
            is_changed = stamp != self._stamp
            if not is_changed and time.monotonic() < self._retry_at:
                return None
            self._stamp, self._retry_at = stamp, math.inf
        moment = now or utc_now()
        try:
            authority = _read_authority(self._ca_path, moment)
            if authority.fingerprint != self._authority_fingerprint:
                raise CertificateError(
                    f"{self._ca_path}: expected the authority that the server has started with, got another one "
                    f"({authority.common_name!r}); put the files of its own federation back, or start the server again"
                )
            key_pem, certificate = _read_server(self._path, authority, moment)
        except CertificateError as error:
            if is_changed:
                logger.warning("%s (the server keeps the certificate that it has)", error)
            # Too many open files, or a clock that is behind: the file does not change when the cause has gone.
            self._retry_at = time.monotonic() + RETRY_S
            return None
        return key_pem, certificate.pem


@dataclass(frozen=True)
class ClientCertificates:
    """The credentials of a client for mutual TLS.

    Attributes:
        root_pem: The authority by which the client knows the server.
        key_pem: The client's private key.
        chain_pem: The client's certificate, and its chain if there is one.
        identity: The client's identity.
        server: The server's address, HOST:PORT.
        expires: The last moment at which the certificate is valid.
    """

    root_pem: bytes
    key_pem: bytes = field(repr=False)  # no private key in a log
    chain_pem: bytes
    identity: Identity
    server: str
    expires: datetime

    @classmethod
    def load(cls, site: Path, now: datetime | None = None) -> Self:
        """Read and check an unpacked kit.

        Args:
            site: The kit's directory, or its site.toml.
            now: The present time. Default: this machine's clock.

        Raises:
            CertificateError: A file is absent, malformed, expired, not yet valid, for another use, or of another
                federation; the message says what to do.
        """
        moment = now or utc_now()
        path = site / "site.toml" if site.is_dir() else site
        table = identity_table(read_site(path, path.parent), str(path))
        if table is None:
            raise CertificateError(
                f"{path}: expected a table [identity], as the site.toml of a kit has, got none; give the kit's (--site)"
            )
        certificate_path, key_path, ca_path = (path.parent / name for name in (table.certificate, table.key, table.ca))
        authority = _read_authority(ca_path, moment)
        chain = parse_certificates(read_file(certificate_path), str(certificate_path))
        certificate = chain[0]
        key = parse_private_key(read_private_file(key_path), str(key_path))
        require_matching_key(certificate, key, str(key_path), "unpack the kit again")
        require_valid_at(certificate, moment, str(certificate_path), RENEW_CLIENT)
        identify = _mapped_identity if table.mapped else _member_identity
        identity = identify(certificate, authority, table.name, str(certificate_path))
        require_use(certificate, identity.role, str(certificate_path))
        chain_pem = b"".join(each.pem for each in chain)
        return cls(authority.pem, encode_private_key(key), chain_pem, identity, table.server, certificate.expires)


def _read_authority(path: Path, now: datetime) -> Certificate:
    found = parse_certificates(read_file(path), str(path))
    if len(found) != 1 or not found[0].is_authority:
        raise CertificateError(
            f"{path}: expected one certificate, the federation's authority, got {len(found)}"
            f"{'' if found[0].is_authority else ' and no authority'}; copy the file that `flcore certs init` has made"
        )
    require_valid_at(found[0], now, str(path), "make a new authority (flcore certs init) and new kits")
    return found[0]


def _read_server(path: Path, authority: Certificate, now: datetime) -> tuple[bytes, Certificate]:
    """Return the server's key in PEM, and its certificate. The file is read once, so they are of the same version."""
    pem = read_private_file(path)
    certificate = parse_certificates(pem, str(path))[0]
    key = parse_private_key(pem, str(path))
    require_matching_key(certificate, key, str(path), RENEW_SERVER)
    require_valid_at(certificate, now, str(path), RENEW_SERVER)
    if not certificate.is_issued_by(authority):
        raise CertificateError(
            f"{path}: expected a certificate of the authority {path.with_name('ca.pem')}, got one of another; copy "
            f"both files from the same federation"
        )
    require_use(certificate, Role.SERVER, str(path))
    identity = certificate.identity(str(path))
    if identity.role != Role.SERVER or identity.federation != authority.common_name:
        raise CertificateError(
            f"{path}: expected a server of the federation {authority.common_name!r}, got {identity.uri}; copy the "
            f"directory that `flcore certs init` has made"
        )
    return encode_private_key(key), certificate


def _read_others(directory: Path, now: datetime) -> tuple[bytes, CertificateMapping | None]:
    """Return the authorities of others in PEM, and the names of their certificates."""
    roots, table = directory / "other-cas.pem", directory / "mapping.toml"
    if roots.exists() != table.exists():
        present, absent = (roots, table) if roots.exists() else (table, roots)
        raise CertificateError(
            f"{directory}: expected {roots.name} and {table.name}, or neither, got {present.name} alone; add "
            f"{absent.name}"
        )
    if not roots.exists():
        return b"", None
    found = parse_certificates(read_file(roots), str(roots))
    for certificate in found:
        require_valid_at(certificate, now, str(roots), "take it out, or get the authority's new one")
        if not certificate.is_authority:
            raise CertificateError(
                f"{roots}: expected authorities, got {certificate.subject!r}, which is none; take it out"
            )
    return b"".join(certificate.pem for certificate in found), CertificateMapping.load(table, found)


def _member_identity(certificate: Certificate, authority: Certificate, name: str, where: str) -> Identity:
    """Return the identity of a client that the federation's own authority knows."""
    if not certificate.is_issued_by(authority):
        raise CertificateError(
            f"{where}: expected a certificate of the federation {authority.common_name!r}, whose authority is beside "
            f"it, got one of another authority; unpack the kit of this federation again, or set mapped = true"
        )
    identity = certificate.identity(where)
    if identity.federation != authority.common_name or identity.name != name or identity.role == Role.SERVER:
        raise CertificateError(
            f"{where}: expected the certificate of {name!r} in the federation {authority.common_name!r}, got "
            f"{identity.uri}; unpack the kit again"
        )
    return identity


def _mapped_identity(certificate: Certificate, authority: Certificate, name: str, where: str) -> Identity:
    """Return the identity of a client whose certificate another authority has signed: the site says its name."""
    if certificate.flcore_uris or certificate.is_issued_by(authority):
        raise CertificateError(
            f"{where}: expected a certificate of another authority, as mapped = true says, got one of an flcore "
            f"federation; take mapped out of site.toml"
        )
    return Identity(authority.common_name, Role.CLIENT, require_name(name, "a client"), certificate.fingerprint)
