"""Signing keys of leads: files, signatures, and what is refused."""

import base64
import shutil
import stat
import subprocess
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flcore.errors import CertificateError
from flcore.identity.authority import Authority
from flcore.identity.certificate import encode_private_key
from flcore.identity.kit import kit_bytes, load_signing_key, public_key_path, write_kit
from flcore.identity.lead_keys import KEY_BYTES, SIGNATURE_BYTES, PublicKey, SigningKey
from flcore.identity.names import Role

SERVER = "fl.example.org:8470"


def write_key(path: Path, pem: bytes) -> Path:
    path.write_bytes(pem)
    path.chmod(0o600)
    return path


def test_a_key_signs_and_its_public_key_verifies(tmp_path: Path) -> None:
    alice, bob = SigningKey.create("alice"), SigningKey.create("bob")
    (tmp_path / "alice.pub").write_bytes(alice.public.pem)
    public = PublicKey.load(tmp_path / "alice.pub")
    assert public == alice.public and len(public.key) == KEY_BYTES and public.name == "alice"
    signature = alice.sign(b"content")
    assert len(signature) == SIGNATURE_BYTES and signature == alice.sign(b"content")
    assert public.verifies(signature, b"content")
    assert not public.verifies(signature, b"contents") and not bob.public.verifies(signature, b"content")
    assert not public.verifies(b"", b"content") and not public.verifies(bytes(64), b"content")
    assert not PublicKey("x", b"short").verifies(signature, b"content")
    loaded = SigningKey.load(write_key(tmp_path / "signing.key", alice.pem), "alice")
    assert loaded.public == public and loaded.sign(b"content") == signature
    assert "Ed25519" not in repr(alice) and alice.pem.decode().splitlines()[1] not in repr(alice)


def test_the_first_vector_of_rfc_8032(tmp_path: Path) -> None:
    prefix = bytes.fromhex("302e020100300506032b657004220420")
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    pem = b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(prefix + seed) + b"\n-----END PRIVATE KEY-----\n"
    key = SigningKey.load(write_key(tmp_path / "signing.key", pem), "rfc")
    assert key.public.key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2"
        "4655141438e7a100b"
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_keys(tmp_path: Path) -> None:
    alice = SigningKey.create("alice")
    write_key(tmp_path / "signing.key", alice.pem)
    printed = subprocess.check_output(["openssl", "pkey", "-in", "signing.key", "-pubout"], cwd=tmp_path)
    assert printed == alice.public.pem


@pytest.mark.parametrize(
    ("name", "pem", "said"),
    [
        ("alice.pub", b"", "expected an Ed25519 public key in PEM"),
        ("alice.pub", b"ssh-ed25519 AAAA alice", "expected an Ed25519 public key in PEM"),
        ("alice.pub", SigningKey.create("a").pem, "expected an Ed25519 public key in PEM"),
        ("a b.pub", SigningKey.create("a").public.pem, "the name of a lead"),
        (
            "alice.pub",
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "expected an Ed25519 public key, got a key of another kind",
        ),
        (
            "alice.pub",
            x25519.X25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "expected an Ed25519 public key, got a key of another kind",
        ),
    ],
)
def test_no_public_key(name: str, pem: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pem)
    with pytest.raises(CertificateError, match=said) as caught:
        PublicKey.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_no_signing_key(tmp_path: Path) -> None:
    path, alice = tmp_path / "signing.key", SigningKey.create("alice")
    with pytest.raises(CertificateError, match="expected a file, got none"):
        SigningKey.load(path, "alice")
    write_key(path, alice.public.pem)
    with pytest.raises(CertificateError, match="expected an unencrypted private key in PEM"):
        SigningKey.load(path, "alice")
    write_key(path, encode_private_key(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(CertificateError, match="expected an Ed25519 key, got a key of another kind"):
        SigningKey.load(path, "alice")
    write_key(path, alice.pem).chmod(0o644)
    with pytest.raises(CertificateError, match="only its owner can read"):
        SigningKey.load(path, "alice")
    with pytest.raises(CertificateError, match="the name of a lead"):
        SigningKey.create("../alice")


def test_a_leads_kit_has_a_signing_key(authority: Authority, now: datetime, tmp_path: Path) -> None:
    key = SigningKey.create("alice")
    pair = authority.issue("alice", Role.LEAD, now=now)
    assert kit_bytes(pair, authority.certificate, SERVER, key) == kit_bytes(pair, authority.certificate, SERVER, key)
    with zipfile.ZipFile(write_kit(tmp_path, pair, authority.certificate, SERVER, key)) as kit:
        modes = {entry.filename: entry.external_attr >> 16 for entry in kit.infolist()}
        assert modes["alice/signing.key"] == 0o100600 and modes["alice/alice.pub"] == 0o100644
        readme = kit.read("alice/README.txt").decode()
        assert len(readme.splitlines()) == 5 and "flcore submit JOB --kit alice" in readme
        kit.extractall(tmp_path)
    (tmp_path / "alice/signing.key").chmod(0o600)  # unzip does, Python's zipfile does not
    assert stat.S_IMODE((tmp_path / "alice.pub").stat().st_mode) == 0o644
    assert PublicKey.load(tmp_path / "alice.pub") == key.public
    loaded = load_signing_key(tmp_path / "alice")
    assert loaded.name == "alice" and loaded.public == key.public
    with pytest.raises(CertificateError, match=r"alice\.pub: expected no file, got one; deliver that public key"):
        public_key_path(tmp_path, "alice")


def test_a_kit_without_a_signing_key(authority: Authority, now: datetime, tmp_path: Path) -> None:
    pair = authority.issue("north", now=now)
    with zipfile.ZipFile(write_kit(tmp_path, pair, authority.certificate, SERVER)) as kit:
        kit.extractall(tmp_path)
    with pytest.raises(CertificateError, match=r"signing\.key: expected the key that signs packs, got none"):
        load_signing_key(tmp_path / "north")
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CertificateError, match="expected the directory of an unpacked kit, got none"):
            load_signing_key(place)
