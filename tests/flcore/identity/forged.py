"""Authorities and certificates of every kind that a hostile or careless client may present."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flcore_transport import TlsKeys

from flcore.identity.authority import Authority
from tests.flcore.identity.certificates import CLIENT_AUTH, authority_key, uri

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Signer:
    """A key and a certificate that sign others, whether they may or not."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def keys(self) -> TlsKeys:
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return TlsKeys(private, self.pem, self.pem)


def signer_of(authority: Authority) -> Signer:
    return Signer(authority_key(authority.directory), authority.certificate.parsed)


def subject(text: str) -> x509.Name:
    return x509.Name.from_rfc4514_string(text)


def sign(
    issuer: Signer | None,
    name: x509.Name,
    names: Sequence[x509.GeneralName] = (),
    *,
    uses: Sequence[x509.ObjectIdentifier] | None = (CLIENT_AUTH,),
    is_ca: bool = False,
    starts_in_days: float = -1,
    ends_in_days: float = 1,
    key: PrivateKey | None = None,
) -> Signer:
    """Sign a certificate; without an issuer, its own key signs it."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=starts_in_days))
        .not_valid_after(now + timedelta(days=ends_in_days))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
    )
    if uses is not None and not is_ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Signer(own, builder.sign(own if issuer is None else issuer.key, SHA256()))


def member(issuer: Signer | None, name: str, *, federation: str = "hospitals", **how: object) -> Signer:
    """Sign a client's certificate as `flcore certs issue` does, but for `how`."""
    names = [uri(f"flcore://{federation}/client/{name}")]
    return sign(issuer, subject(f"CN=fl,O={federation}"), names, **how)  # type: ignore[arg-type]


def chained(leaf: Signer, *others: Signer) -> TlsKeys:
    """Return the keys of a leaf, whose client also sends other certificates."""
    return TlsKeys(leaf.keys.private_key, leaf.pem + b"".join(other.pem for other in others), leaf.pem)


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def private_pair(folder: Path, keys: TlsKeys) -> Path:
    """Write key and certificate into one file, as `ssl` reads them."""
    path = folder / "pair.pem"
    path.write_bytes(keys.private_key + keys.certificate_chain)
    return path
