"""Who is at the other end of a call, as TLS has verified it. The transport's user says who a certificate stands for."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The certificate that the other end has proven to own, as PEM, and the version of TLS that it was proven with.

    TLS has verified its chain, its dates and its extended key usage; nobody has looked at its names.
    """

    pem: bytes
    tls_version: str


class Identity(Protocol):
    """Who a certificate stands for."""

    @property
    def name(self) -> str:
        """The client's name. A client joins under this name and no other."""
        ...

    @property
    def fingerprint(self) -> str:
        """The SHA-256 digest of the certificate, in hexadecimal."""
        ...


class Authenticator(Protocol):
    """Says who a certificate stands for."""

    def identify(self, certificate: PeerCertificate) -> Identity:
        """Return whose certificate it is, or raise `Refused`.

        Called on the server's event loop, for each call and every second for each session, so it returns at once.
        A session ends as soon as this raises for its certificate: when it is revoked, or has expired.
        """
        ...
