"""Certificates that `flcore certs` would not make, for the tests."""

import base64
import textwrap
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flcore.identity.authority import Authority
from flcore.identity.certificate import Certificate, parse_certificates, parse_private_key
from flcore.identity.signing import KeyPair

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def authority_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    key = parse_private_key((directory / "authority/ca.key").read_bytes(), "the test's key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def signed_by(
    authority: Authority,
    names: list[x509.GeneralName],
    *,
    now: datetime,
    uses: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT_AUTH,),
    common_name: str = "fl",
    ed: bool = False,
    ca: bool = False,
) -> KeyPair:
    """A certificate as the authority's key signs it, with whatever names and uses."""
    key = ed25519.Ed25519PrivateKey.generate() if ed else ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.parsed.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if uses is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    signer: CertificateIssuerPrivateKeyTypes = authority_key(authority.directory)
    pem = builder.sign(signer, SHA256()).public_bytes(Encoding.PEM)
    (certificate,) = parse_certificates(pem, "the test's certificate")
    return KeyPair(certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def resigned(certificate: Certificate) -> bytes:
    """Return a certificate with the other valid ECDSA signature, which anybody can compute: (r, n - s) for (r, s)."""
    r, s = decode_dss_signature(certificate.parsed.signature)
    old, new = certificate.parsed.signature, encode_dss_signature(r, P256_ORDER - s)
    der = certificate.parsed.public_bytes(Encoding.DER)
    body = certificate.parsed.tbs_certificate_bytes
    start = der.index(body)
    tail = der[start + len(body) : -len(old)]
    assert tail[-3] == 3  # BIT STRING, its length, no unused bits
    content = body + tail[:-2] + bytes([len(new) + 1, 0]) + new
    return to_pem(b"\x30\x82" + len(content).to_bytes(2, "big") + content)


def to_pem(der: bytes) -> bytes:
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n".encode()


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)
