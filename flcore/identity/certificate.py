"""Certificates: parsed, and checked for their validity, usage and key."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flcore.errors import CertificateError
from flcore.identity.names import SCHEME, Identity, Role, parse_uri
from flcore.text import printable

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,  # where warnings are errors: for what a later release refuses
)
"""The exceptions that `cryptography` raises for malformed certificates and keys."""

USES = {
    Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.LEAD: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.ADMIN: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
}
"""The extended key usage that a role needs."""

USE_NAMES = {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}


@dataclass(frozen=True)
class Certificate:
    """One certificate, and its fields that flcore uses, parsed once.

    Attributes:
        parsed: The certificate of `cryptography`.
        fingerprint: The SHA-256 digest of its DER encoding, in hexadecimal digits.
        subject: Its subject as RFC 4514 writes it.
        alternative_names: Its alternative names as `URI:...`, `DNS:...`, `IP:...` and `email:...`.
        uses: Its extended key usages; None where it does not restrict them.
        public_key: Its public key as DER, a SubjectPublicKeyInfo.
        key_fingerprint: The SHA-256 digest of the public key, in hexadecimal digits. Unlike `fingerprint` it cannot be
            changed without the authority: an ECDSA signature (r, s) can be replaced with (r, n - s) by anybody.
        is_authority: Whether it may sign others.
        starts: The first moment at which it is valid.
        expires: The last moment at which it is valid.
    """

    parsed: x509.Certificate
    fingerprint: str
    subject: str
    alternative_names: tuple[str, ...]
    uses: frozenset[x509.ObjectIdentifier] | None
    public_key: bytes
    key_fingerprint: str
    is_authority: bool
    starts: datetime
    expires: datetime

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.parsed.public_bytes(Encoding.PEM)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The DNS names and IP addresses of a server's certificate."""
        split = (name.partition(":") for name in self.alternative_names)
        return tuple(value for kind, _, value in split if kind in ("DNS", "IP"))

    @property
    def common_name(self) -> str:
        """The common name of the subject, or "" where there is not exactly one."""
        found = self.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if len(found) == 1 else ""

    @property
    def flcore_uris(self) -> tuple[str, ...]:
        """Its URIs with the scheme `flcore`, valid or not."""
        names = (name.removeprefix("URI:") for name in self.alternative_names if name.startswith("URI:"))
        return tuple(uri for uri in names if uri.lower().startswith(SCHEME))

    def identity(self, where: str) -> Identity:
        """Return the identity in its one `flcore://` URI, or raise `CertificateError`."""
        if len(self.flcore_uris) != 1:
            raise CertificateError(
                f"{where}: expected a certificate with one URI flcore://FEDERATION/ROLE/NAME, got "
                f"{len(self.flcore_uris)} in the certificate of {printable(self.subject, 200)!r}; have it issued by "
                f"the federation's authority (flcore certs issue)"
            )
        return parse_uri(self.flcore_uris[0], self.fingerprint)

    def is_issued_by(self, authority: "Certificate") -> bool:
        """Whether an authority's key has signed it."""
        try:
            self.parsed.verify_directly_issued_by(authority.parsed)
        except (*MALFORMED, InvalidSignature):
            return False
        return True

    def allows(self, role: Role) -> bool:
        """Whether its extended key usages allow a role. One without the extension allows every use."""
        return self.uses is None or not self.uses.isdisjoint({USES[role], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


def utc_now() -> datetime:
    """Return the time of this machine's clock."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """Return a time as `2027-11-30T08:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_certificates(pem: bytes, where: str) -> list[Certificate]:
    """Return the certificates of a PEM file, in order; at least one. Other blocks, such as a key, are skipped.

    Args:
        pem: The content of the file.
        where: The file, for errors.

    Raises:
        CertificateError: The content is malformed, or has no certificate.
    """
    with _refuse_malformed(where, "certificates"):
        return [_parse_fields(parsed) for parsed in x509.load_pem_x509_certificates(pem)]


def parse_private_key(pem: bytes, where: str) -> PrivateKeyTypes:
    """Return the unencrypted private key of a PEM file, or raise `CertificateError`."""
    with _refuse_malformed(where, "an unencrypted private key"):
        return load_pem_private_key(pem, None)


@contextmanager
def _refuse_malformed(where: str, expected: str) -> Iterator[None]:
    try:
        yield
    except MALFORMED as error:
        raise CertificateError(
            f"{where}: expected {expected} in PEM, got something else: {printable(str(error), 150)}; copy the file "
            f"again from the federation's authority"
        ) from error


def _parse_fields(parsed: x509.Certificate) -> Certificate:
    public_key = _public_bytes(parsed.public_key())
    uses: frozenset[x509.ObjectIdentifier] | None = None
    is_authority, names = False, []
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            uses = frozenset(value)
        elif isinstance(value, x509.BasicConstraints):
            is_authority = value.ca
        elif isinstance(value, x509.SubjectAlternativeName):
            names = [text for name in value if (text := _alternative_name(name))]
    return Certificate(
        parsed,
        parsed.fingerprint(SHA256()).hex(),
        parsed.subject.rfc4514_string(),
        tuple(names),
        uses,
        public_key,
        hashlib.sha256(public_key).hexdigest(),
        is_authority,
        parsed.not_valid_before_utc,
        parsed.not_valid_after_utc,
    )


def _alternative_name(name: x509.GeneralName) -> str:
    kinds = {x509.UniformResourceIdentifier: "URI", x509.DNSName: "DNS", x509.IPAddress: "IP", x509.RFC822Name: "email"}
    kind = kinds.get(type(name))
    return f"{kind}:{name.value}" if kind else ""


def require_valid_at(certificate: Certificate, now: datetime, where: str, remedy: str) -> None:
    """Raise `CertificateError` where a certificate has expired or is not valid yet."""
    if now > certificate.expires:
        raise CertificateError(
            f"{where}: expected a certificate that is valid at {format_time(now)}, got one that has expired at "
            f"{format_time(certificate.expires)}; {remedy}"
        )
    if now < certificate.starts:
        raise CertificateError(
            f"{where}: expected a certificate that is valid at {format_time(now)}, got one that is not valid before "
            f"{format_time(certificate.starts)}; set the clock of this machine"
        )


def require_use(certificate: Certificate, role: Role, where: str) -> None:
    """Raise `CertificateError` where a certificate's extended key usages do not allow a role."""
    if not certificate.allows(role):
        found = sorted(USE_NAMES.get(use, use.dotted_string) for use in certificate.uses or ())
        raise CertificateError(
            f"{where}: expected a certificate with the extended key usage {USE_NAMES[USES[role]]}, as a {role} needs, "
            f"got {', '.join(found) or 'none'}; use the file that was made for the {role}"
        )


def require_matching_key(certificate: Certificate, key: PrivateKeyTypes, where: str, remedy: str) -> None:
    """Raise `CertificateError` where a private key is not that of a certificate, or not of a kind that gRPC takes."""
    public = key.public_key()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        # The file has the public key, too, and older versions of OpenSSL believe it.
        public = ec.derive_private_key(key.private_numbers().private_value, key.curve).public_key()
    if _public_bytes(public) != certificate.public_key:
        raise CertificateError(
            f"{where}: expected the private key of the certificate {certificate.fingerprint[:16]}..., got another key; "
            f"{remedy}"
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        kind = type(key).__name__.strip("_").removesuffix("PrivateKey")
        raise CertificateError(f"{where}: expected an ECDSA or RSA key, got {kind}, which gRPC does not take; {remedy}")


def encode_private_key(key: PrivateKeyTypes) -> bytes:
    """Return a private key as unencrypted PKCS #8 in PEM, the form that gRPC takes."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
