"""Signing keys of leads (Ed25519, RFC 8032): a lead signs its packs, and a site runs those of the keys that it lists.

They are apart from the keys of certificates: gRPC takes no Ed25519, and a signature stays valid when a certificate is
renewed. Files are PEM: `signing.key` (PKCS #8, 0600) at the lead, `NAME.pub` (SubjectPublicKeyInfo) at the sites.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from flcore.errors import CertificateError
from flcore.identity.certificate import MALFORMED, parse_private_key
from flcore.identity.files import read_file, read_private_file
from flcore.identity.names import require_name
from flcore.text import printable

SIGNING_KEY_FILE = "signing.key"
PUBLIC_KEY_SUFFIX = ".pub"
KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class PublicKey:
    """The public key by which a site knows a lead's signatures.

    Attributes:
        name: The lead's name, as the site calls it.
        key: The 32 bytes of the key.
    """

    name: str
    key: bytes

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file `NAME.pub`; its name gives the lead's.

        Raises:
            CertificateError: The file is absent, or holds no Ed25519 public key in PEM.
        """
        try:
            found = load_pem_public_key(read_file(path))
        except MALFORMED as error:
            raise CertificateError(
                f"{path}: expected an Ed25519 public key in PEM, got something else: {printable(str(error), 150)}; "
                f"copy the file NAME{PUBLIC_KEY_SUFFIX} of the lead's kit again"
            ) from error
        if not isinstance(found, Ed25519PublicKey):
            raise CertificateError(
                f"{path}: expected an Ed25519 public key, got a key of another kind; copy the file "
                f"NAME{PUBLIC_KEY_SUFFIX} of the lead's kit"
            )
        name = require_name(path.name.removesuffix(PUBLIC_KEY_SUFFIX), f"a lead ({path})")
        return cls(name, found.public_bytes_raw())

    @property
    def pem(self) -> bytes:
        """The content of `NAME.pub`."""
        key = Ed25519PublicKey.from_public_bytes(self.key)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Whether a signature of `content` was made with this key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, content)
        except (InvalidSignature, ValueError):  # ValueError: no 32 bytes, or no point of the curve
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A lead's private key.

    Attributes:
        name: The lead's name; it goes into signatures.
    """

    name: str
    _key: Ed25519PrivateKey = field(repr=False)  # no private key in a log

    @classmethod
    def create(cls, name: str) -> Self:
        """Make a new key for a lead, or raise `CertificateError` for an invalid name."""
        return cls(require_name(name, "a lead"), Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, name: str) -> Self:
        """Read a file `signing.key`. For the one of a kit, use `flcore.identity.kit.load_signing_key`.

        Raises:
            CertificateError: The file is absent, others than its owner may read it, or it holds no Ed25519 key.
        """
        found = parse_private_key(read_private_file(path), str(path))
        if not isinstance(found, Ed25519PrivateKey):
            raise CertificateError(
                f"{path}: expected an Ed25519 key, got a key of another kind; copy {SIGNING_KEY_FILE} of the lead's kit"
            )
        return cls(require_name(name, "a lead"), found)

    @property
    def public(self) -> PublicKey:
        """The public key of the pair."""
        return PublicKey(self.name, self._key.public_key().public_bytes_raw())

    @property
    def pem(self) -> bytes:
        """The content of `signing.key`."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, content: bytes) -> bytes:
        """Return the 64 bytes of the signature of `content`. The same content gives the same signature."""
        return self._key.sign(content)
