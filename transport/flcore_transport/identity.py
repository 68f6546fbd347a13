"""Who is at the other end of a call, as TLS has verified it. The transport's user says who a certificate stands for."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that the other end has proven to own, and the version of TLS that it was proven with.

    Its chain, its dates and its extended key usage are verified by TLS already; its names are not looked at.
    """

    pem: bytes
    tls_version: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's name, and the SHA-256 fingerprint (hexadecimal) of the certificate that proves it."""

    name: str
    fingerprint: str


class Authenticator(Protocol):
    """Says who a certificate stands for. Called on the server's event loop for each call, so both return at once."""

    def identify(self, certificate: PeerCertificate) -> Identity:
        """Return whose certificate it is, or raise `Refused` if its owner may not call, also if it is revoked."""
        ...

    def is_revoked(self, identity: Identity) -> bool:
        """Whether an identity that was let in may stay no longer."""
        ...
