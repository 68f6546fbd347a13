"""Verification of peers: from the certificate of a call to an identity, or to a refusal. Every call is verified.

A certificate that the federation's own authority has signed has its identity in its URI. One of another authority has
a name by the mapping alone: otherwise that authority could assign the federation's names.
"""

from collections.abc import Collection
from datetime import datetime
from functools import lru_cache

from flcore.errors import CertificateError, IdentityRefused
from flcore.identity.certificate import Certificate, format_time, parse_certificates, utc_now
from flcore.identity.deny_list import DenyList
from flcore.identity.mapping import CertificateMapping
from flcore.identity.names import Identity, Role
from flcore.text import printable

MEMBERS = (Role.CLIENT, Role.LEAD, Role.ADMIN)
"""The roles that call a server."""

CACHED_PEERS = 16_384
"""Parsed certificates in the cache, some KB each. Nothing that depends on the time or the deny list is cached.

More than a server has connections: it checks all sessions in turn, and with fewer places each check would find its
certificate dropped and parse it anew (0.3 ms instead of 9 us, on the event loop).
"""


class PeerVerifier:
    """Identifies peers by certificates whose chains TLS has verified. Safe to use from any thread."""

    def __init__(
        self, federation: str, authority: Certificate, deny_list: DenyList, mapping: CertificateMapping | None = None
    ) -> None:
        """Make a verifier.

        Args:
            federation: The federation's name.
            authority: Its own authority's certificate.
            deny_list: The certificates that are revoked.
            mapping: Names for certificates of other authorities. Default: none are admitted.
        """
        self._federation, self._authority = federation, authority
        self._deny_list, self._mapping = deny_list, mapping
        self._read = lru_cache(CACHED_PEERS)(self._read_certificate)

    def identify(self, pem: bytes, roles: Collection[Role] = MEMBERS, now: datetime | None = None) -> Identity:
        """Return the identity of a peer, or raise `IdentityRefused`. Called again, it notices expiry and revocation.

        Args:
            pem: The peer's certificate, `x509_pem_cert` of gRPC's authentication context.
            roles: The roles that may make this call.
            now: The present time. Default: this machine's clock.
        """
        certificate, identity = self._read(pem)
        moment = now or utc_now()
        who = f"the certificate of {identity.role} {identity.name}"
        if identity.fingerprint in self._deny_list or certificate.key_fingerprint in self._deny_list:
            raise IdentityRefused("revoked", f"{who} is revoked; ask the federation's operator for a new kit")
        if moment > certificate.expires:
            raise IdentityRefused(
                "expired",
                f"{who}: expected one that is valid at {format_time(moment)}, got one that has expired at "
                f"{format_time(certificate.expires)}; ask the federation's operator for a renewed kit",
            )
        if moment < certificate.starts:
            raise IdentityRefused(
                "not-yet-valid",
                f"{who}: expected one that is valid at {format_time(moment)}, got one that is not valid before "
                f"{format_time(certificate.starts)}; compare the clocks of server and authority",
            )
        if identity.role not in roles:
            raise IdentityRefused(
                "role",
                f"{who}: expected the role {' or '.join(roles)}, got {identity.role}; use that role's certificate",
            )
        return identity

    def _read_certificate(self, pem: bytes) -> tuple[Certificate, Identity]:
        """Return the certificate and the identity, which do not change with time."""
        try:
            certificate = parse_certificates(pem, "the peer's certificate")[0]
            if not certificate.is_issued_by(self._authority):
                identity = self._mapped(certificate)
            else:
                identity = certificate.identity("the peer's certificate")
        except IdentityRefused:
            raise
        except CertificateError as error:
            raise IdentityRefused("malformed", str(error)) from error
        if identity.federation != self._federation:
            raise IdentityRefused(
                "federation",
                f"the peer's certificate: expected one of the federation {self._federation!r}, got one of "
                f"{identity.federation!r}; use the kit of this federation",
            )
        # Our own authority restricts the use of each certificate; others need not.
        is_ours_unrestricted = certificate.uses is None and certificate.is_issued_by(self._authority)
        if certificate.is_authority or is_ours_unrestricted or not certificate.allows(identity.role):
            raise IdentityRefused(
                "usage",
                f"the certificate of {identity.role} {identity.name}: expected the extended key usage of a "
                f"{identity.role} and no authority, got another; have it issued again (flcore certs issue)",
            )
        return certificate, identity

    def _mapped(self, certificate: Certificate) -> Identity:
        found = self._mapping.find(certificate) if self._mapping else None
        if found is None:
            raise IdentityRefused(
                "unmapped",
                f"the peer's certificate: expected one of the federation's authority, or one that mapping.toml names "
                f"once, got {printable(certificate.subject, 200)!r}; ask the federation's operator for a kit",
            )
        role, name = found
        return Identity(self._federation, role, name, certificate.fingerprint)
