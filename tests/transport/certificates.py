"""Certificates for tests: a CA, and what it signs."""

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flcore_transport import TlsKeys

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class TestAuthority:
    """A CA of ECDSA keys on P-256."""

    __test__ = False

    def __init__(self, name: str = "a CA") -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _named(name)
        self.root = _pem(self._sign(self._name, self._key, is_ca=True))

    def issue(
        self, name: str, usage: x509.ObjectIdentifier = CLIENT, *, starts_in_days: float = -1, ends_in_days: float = 1
    ) -> TlsKeys:
        """Return the keys of a client, or of a server on loopback."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_named(name), key, usage, starts_in_days=starts_in_days, ends_in_days=ends_in_days)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return TlsKeys(private, _pem(certificate), self.root)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        usage: x509.ObjectIdentifier | None = None,
        *,
        is_ca: bool = False,
        starts_in_days: float = -1,
        ends_in_days: float = 1,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=starts_in_days))
            .not_valid_after(now + timedelta(days=ends_in_days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if usage is not None:
            hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
