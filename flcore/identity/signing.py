"""Signing: the certificate of an authority, and those that it issues. Keys are ECDSA P-256; gRPC takes no Ed25519."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from flcore.errors import CertificateError
from flcore.identity.certificate import USES, Certificate, encode_private_key, format_time, parse_certificates
from flcore.identity.names import Identity, Role, build_uri, require_name

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
CLIENT_DAYS = 365
"""Default lifetimes."""

MAX_DAYS = 36_500

CLOCK_SKEW = timedelta(minutes=5)
"""How far back a certificate's validity begins: clocks of other machines may be behind this one's."""

_NO_KEY_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


@dataclass(frozen=True)
class KeyPair:
    """A certificate, and its private key as PKCS #8 in PEM."""

    certificate: Certificate
    key_pem: bytes = field(repr=False)  # no private key in a log


def sign_authority(federation: str, days: int, now: datetime) -> KeyPair:
    """Make a federation's authority: a key, and a certificate that this key has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(require_name(federation, "a federation"), "flcore federation")
    builder = (
        _builder(name, name, key, now, _expiry(now, days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**_NO_KEY_USAGE | {"key_cert_sign": True, "crl_sign": True}), critical=True)
    )
    return _signed(builder, key, key)


def sign_member(
    authority: Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    role: Role,
    name: str,
    days: int,
    now: datetime,
    hosts: Sequence[str] = (),
) -> KeyPair:
    """Make a new key for a member of a federation, and a certificate that the authority has signed.

    Args:
        authority: The authority's certificate. Its common name is the federation.
        authority_key: The key of this certificate.
        role: The member's role.
        name: The member's name.
        days: The lifetime in days.
        now: The present time.
        hosts: For a server, its DNS names and IP addresses in canonical form.

    Raises:
        CertificateError: The name is invalid, or the lifetime is longer than the authority's.
    """
    federation = authority.common_name
    uri = build_uri(federation, role, name)
    expires = _expiry(now, days)
    if expires > authority.expires:
        remaining = (authority.expires - now.replace(microsecond=0)).days
        raise CertificateError(
            f"the lifetime of {name!r}: expected one that ends before the authority's, at "
            f"{format_time(authority.expires)}, got {days} days; "
            + (f"use --days {remaining} or less" if remaining > 0 else "make a new authority (flcore certs init)")
        )
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *map(_host_name, hosts)]
    builder = (
        _builder(_subject(name, federation), authority.parsed.subject, key, now, expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**_NO_KEY_USAGE | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USES[role]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    return _signed(builder, key, authority_key)


def _expiry(now: datetime, days: int) -> datetime:
    """Return the end of a lifetime in whole seconds, as certificates have them; or raise `CertificateError`."""
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(f"a lifetime: expected 1 to {MAX_DAYS} days, got {days}; choose another one (--days)")
    return now.replace(microsecond=0) + timedelta(days=days)


def identity_of(pair: KeyPair) -> Identity:
    """Return the identity of a pair that `sign_member` has made."""
    return pair.certificate.identity("the new certificate")


def _subject(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> KeyPair:
    pem = builder.sign(signer, SHA256()).public_bytes(Encoding.PEM)
    (certificate,) = parse_certificates(pem, "the new certificate")
    return KeyPair(certificate, encode_private_key(key))
