"""The identity of the other end of a call. TLS verifies a certificate; a `ServerTls` maps it to an identity."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that the other end has proven to own, as PEM, and the version of TLS that it was proven with.

    TLS has verified its chain, its dates and its extended key usage, but not its names.
    """

    pem: bytes
    tls_version: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 digest of the certificate, in hexadecimal; also of one that identifies nobody."""
        lines = self.pem.partition(b"-----END")[0].splitlines()[1:]
        return hashlib.sha256(base64.b64decode(b"".join(lines))).hexdigest()


CLIENT_ROLE = "client"
"""The role that joins, downloads, uploads and reports."""

ASKING_ROLES = (CLIENT_ROLE, "lead", "admin")
"""The roles that may ask."""


class Identity(Protocol):
    """The holder of a certificate."""

    @property
    def name(self) -> str:
        """The holder's name. A client joins under this name and no other."""
        ...

    @property
    def role(self) -> str:
        """The holder's role: `client`, `lead` or `admin`. It decides which calls are open to the holder."""
        ...

    @property
    def federation(self) -> str:
        """The name of the federation."""
        ...

    @property
    def fingerprint(self) -> str:
        """The SHA-256 digest of the certificate, in hexadecimal."""
        ...


@dataclass(frozen=True, slots=True)
class TlsKeys:
    """The keys of one end of TLS, as PEM: its private key, its certificate chain, and the CAs that it trusts."""

    private_key: bytes
    certificate_chain: bytes
    root_certificates: bytes

    def __repr__(self) -> str:
        return "TlsKeys(...)"  # no private key in a log


class ServerTls(Protocol):
    """A server's side of mutual TLS: its keys, and the certificates that it accepts."""

    def keys(self) -> TlsKeys:
        """Return the server's keys. Called at each handshake; the same object means that nothing has changed."""
        ...

    def identify(self, certificate: PeerCertificate) -> Identity:
        """Return the identity of a certificate of any role, or raise `Refused`.

        Called on the server's event loop, for each call and twice a second for each session, so it returns at once.
        A session ends as soon as this raises for its certificate: when it is revoked, or has expired.
        """
        ...
