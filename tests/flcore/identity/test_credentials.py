"""Credentials: files are checked before they are used, and each fault says what to do about it."""

import logging
import os
import threading
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from flcore.errors import CertificateError, JobError
from flcore.identity import credentials
from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates, parse_private_key
from flcore.identity.credentials import ClientCertificates, ServerCertificates, ServerCertificateWatch
from flcore.identity.files import replace_file
from flcore.identity.kit import write_kit
from flcore.identity.signing import KeyPair
from tests.flcore.identity.certificates import CLIENT_AUTH, SERVER_AUTH, signed_by, uri

SERVER = "fl.example.org:8470"


def unpack(kit: Path, place: Path) -> Path:
    """Unpack as `unzip` does: with the modes that the zip names."""
    with zipfile.ZipFile(kit) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, place))
            path.chmod(entry.external_attr >> 16 & 0o777)
    return place / kit.stem


@pytest.fixture
def kit(authority: Authority, tmp_path: Path, now: datetime) -> Path:
    pair = authority.issue("north", now=now)
    return unpack(write_kit(tmp_path / "out", pair, authority.certificate, SERVER), tmp_path / "elsewhere")


def replace_pair(kit: Path, pair: KeyPair) -> None:
    replace_file(kit / "client.pem", pair.certificate.pem)
    replace_file(kit / "client.key", pair.key_pem, mode=0o600)


def test_a_kit_unpacked_elsewhere_loads(kit: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    by_directory = ClientCertificates.load(kit, now)
    assert by_directory == ClientCertificates.load(kit / "site.toml", now)
    monkeypatch.chdir(kit.parent)
    assert by_directory == ClientCertificates.load(Path("north"), now)
    assert by_directory.identity.uri == "flcore://hospitals/client/north"
    assert by_directory.server == SERVER and (by_directory.expires - now).days == 365
    (certificate,) = parse_certificates(by_directory.chain_pem, "the chain")
    key = parse_private_key(by_directory.key_pem, "the key")
    assert key.public_key() == certificate.parsed.public_key()
    assert certificate.fingerprint == by_directory.identity.fingerprint


def test_files_of_a_kit_may_lie_elsewhere(kit: Path, tmp_path: Path, now: datetime) -> None:
    (tmp_path / "secrets").mkdir()
    (kit / "client.key").rename(tmp_path / "secrets/key")
    site = (kit / "site.toml").read_text().replace('"client.key"', f'"{tmp_path}/secrets/key"')
    (kit / "site.toml").write_text(f'path = "/data"\n{site}')
    assert ClientCertificates.load(kit, now).identity.name == "north"


def test_times_that_are_wrong(kit: Path, authority: Authority, now: datetime) -> None:
    with pytest.raises(CertificateError, match=r"client\.pem: .* has expired at 2031-06-01T12:00:00Z; ask the fed.*"):
        ClientCertificates.load(kit, now + timedelta(days=366))
    with pytest.raises(CertificateError, match=r"not valid before 2030-06-01T11:55:00Z; set the clock"):
        ClientCertificates.load(kit, now - timedelta(minutes=6))
    ClientCertificates.load(kit, now - timedelta(minutes=5))
    server = authority.server_directory
    with pytest.raises(CertificateError, match=r"server\.pem: .* has expired .*; renew it \(flcore certs renew --serv"):
        ServerCertificates.load(server, now + timedelta(days=366))
    with pytest.raises(CertificateError, match=r"ca\.pem: .* has expired .*; make a new authority"):
        ServerCertificates.load(server, now + timedelta(days=3651))
    with pytest.raises(CertificateError, match="set the clock of this machine"):
        ServerCertificates.load(server, now - timedelta(days=1))


def test_pairs_that_do_not_belong_together(kit: Path, authority: Authority, other: Authority, now: datetime) -> None:
    own = (kit / "client.pem").read_bytes()
    replace_file(kit / "client.pem", authority.renew("north", now=now).certificate.pem)
    with pytest.raises(CertificateError, match=r"client\.key: expected the private key of .*; unpack the kit again"):
        ClientCertificates.load(kit, now)
    replace_pair(kit, authority.issue("south", now=now))
    with pytest.raises(CertificateError, match=r"expected the certificate of 'north' in .*, got flcore://.*/south"):
        ClientCertificates.load(kit, now)
    replace_pair(kit, other.issue("north", now=now))
    with pytest.raises(CertificateError, match="got one of another authority; unpack the kit of this federation"):
        ClientCertificates.load(kit, now)
    replace_file(kit / "client.pem", own)
    replace_file(kit / "ca.pem", own)
    with pytest.raises(CertificateError, match=r"ca\.pem: expected one certificate, .* got 1 and no authority"):
        ClientCertificates.load(kit, now)


@pytest.mark.parametrize(
    ("name", "uses", "said"),
    [
        (
            "client/north",
            (SERVER_AUTH,),
            "expected a certificate with the extended key usage clientAuth.*got serverAuth",
        ),
        ("server/north", (CLIENT_AUTH,), "expected the certificate of 'north'"),
        ("superuser/north", (CLIENT_AUTH,), "expected flcore://FEDERATION/ROLE/NAME"),
    ],
)
def test_certificates_for_something_else(
    kit: Path, authority: Authority, now: datetime, name: str, uses: tuple[object, ...], said: str
) -> None:
    replace_pair(kit, signed_by(authority, [uri(f"flcore://hospitals/{name}")], now=now, uses=uses))  # type: ignore[arg-type]
    with pytest.raises(CertificateError, match=said):
        ClientCertificates.load(kit, now)


def test_a_certificate_of_another_authority_is_used_under_the_sites_name(
    kit: Path, other: Authority, now: datetime
) -> None:
    replace_pair(kit, signed_by(other, [uri("spiffe://other/x")], now=now))
    with pytest.raises(CertificateError, match=r"got one of another authority; .*, or set mapped = true"):
        ClientCertificates.load(kit, now)
    with (kit / "site.toml").open("a") as site:
        site.write("mapped = true\n")
    loaded = ClientCertificates.load(kit, now)
    assert loaded.identity.uri == "flcore://hospitals/client/north"
    replace_pair(kit, signed_by(other, [], now=now, uses=None))
    assert ClientCertificates.load(kit, now).identity.name == "north"
    replace_pair(kit, signed_by(other, [], now=now, ed=True))
    with pytest.raises(CertificateError, match="expected an ECDSA or RSA key, got Ed25519"):
        ClientCertificates.load(kit, now)
    replace_pair(kit, other.issue("north", now=now))
    with pytest.raises(CertificateError, match=r"site\.toml"):
        ClientCertificates.load(kit, now)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n" + b"A" * 60_000 + b"\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\n" * 1000,
    ],
)
@pytest.mark.parametrize("file", ["client.pem", "client.key", "ca.pem"])
def test_malformed_files_are_refused_by_name(kit: Path, now: datetime, file: str, content: bytes) -> None:
    replace_file(kit / file, content, mode=0o600)
    with pytest.raises(CertificateError, match=rf"{file}: expected .* in PEM, got something else") as caught:
        ClientCertificates.load(kit, now)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("file", ["client.pem", "client.key", "ca.pem"])
def test_every_cut_and_many_flips_are_refused_or_change_nothing(kit: Path, now: datetime, file: str) -> None:
    expected, whole = ClientCertificates.load(kit, now), (kit / file).read_bytes()
    variants = [whole[:size] for size in range(0, len(whole) - 1, 7)]
    variants += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
    for variant in variants:
        (kit / file).write_bytes(variant)
        try:
            found = ClientCertificates.load(kit, now)
        except CertificateError:
            continue
        # A changed signature of the authority's own certificate: TLS trusts this file, and does not verify it.
        assert found == expected or (file == "ca.pem" and found.identity == expected.identity)


def test_keys_that_cannot_be_used(kit: Path, now: datetime) -> None:
    key = parse_private_key((kit / "client.key").read_bytes(), "the key")
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (kit / "client.key").write_bytes(locked)
    with pytest.raises(CertificateError, match="expected an unencrypted private key"):
        ClientCertificates.load(kit, now)
    ed = ed25519.Ed25519PrivateKey.generate()
    (kit / "client.key").write_bytes(ed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(CertificateError, match="got another key"):
        ClientCertificates.load(kit, now)
    (kit / "client.key").chmod(0o644)
    with pytest.raises(CertificateError, match=r"run `chmod 600 .*client\.key`"):
        ClientCertificates.load(kit, now)


def test_a_site_that_is_no_kits(kit: Path, tmp_path: Path, now: datetime) -> None:
    (kit / "site.toml").write_text('path = "/data"\n')
    with pytest.raises(CertificateError, match=r"site\.toml: expected a table \[identity\]"):
        ClientCertificates.load(kit, now)
    (kit / "site.toml").write_text("[identity")
    with pytest.raises(JobError, match=r"site\.toml: cannot be read"):
        ClientCertificates.load(kit, now)
    for absent in (tmp_path / "nowhere", kit / "nothing.toml"):
        with pytest.raises(JobError, match="cannot be read"):
            ClientCertificates.load(absent, now)


def test_a_servers_directory_loads(authority: Authority, tmp_path: Path, now: datetime) -> None:
    loaded = ServerCertificates.load(authority.server_directory, now)
    assert loaded.identity.uri == "flcore://hospitals/server/server"
    assert loaded.hosts == ("fl.example.org", "10.0.0.7") and (loaded.expires - now).days == 365
    assert loaded.root_pem == authority.certificate.pem
    assert b"PRIVATE KEY" in loaded.key_pem and b"CERTIFICATE" not in loaded.key_pem
    assert b"CERTIFICATE" in loaded.chain_pem and b"PRIVATE KEY" not in loaded.chain_pem
    peer = authority.issue("north", now=now)
    assert loaded.peers.identify(peer.certificate.pem, now=now).name == "north"
    with pytest.raises(CertificateError, match=r"got that of an authority; give .*certs/server"):
        ServerCertificates.load(authority.directory, now)
    with pytest.raises(CertificateError, match=r"ca\.pem: expected a file, got none"):
        ServerCertificates.load(tmp_path, now)


def test_key_and_certificate_may_stand_in_any_order(authority: Authority, now: datetime) -> None:
    path = authority.server_directory / "server.pem"
    before = ServerCertificates.load(authority.server_directory, now)
    certificate, mark, key = path.read_bytes().partition(b"-----BEGIN PRIVATE")
    replace_file(path, mark + key + certificate, mode=0o600)
    after = ServerCertificates.load(authority.server_directory, now)
    assert (after.key_pem, after.chain_pem) == (before.key_pem, before.chain_pem)


def test_servers_files_that_are_wrong(authority: Authority, other: Authority, now: datetime) -> None:
    server, path = authority.server_directory, authority.server_directory / "server.pem"
    path.chmod(0o640)
    with pytest.raises(CertificateError, match=r"server\.pem: expected a key file that only its owner can read"):
        ServerCertificates.load(server, now)

    def load(pair: KeyPair) -> None:
        replace_file(path, pair.certificate.pem + pair.key_pem, mode=0o600)
        ServerCertificates.load(server, now)

    with pytest.raises(CertificateError, match="got one of another; copy both files"):
        load(other.renew_server(now=now))
    with pytest.raises(CertificateError, match="serverAuth, as a server needs, got clientAuth"):
        load(authority.issue("north", now=now))
    with pytest.raises(CertificateError, match="expected a server of the federation 'hospitals', got flcore://other/"):
        load(signed_by(authority, [uri("flcore://other/server/server")], now=now, uses=(SERVER_AUTH,)))
    with pytest.raises(CertificateError, match=r"with one URI .*, got 0"):
        load(signed_by(authority, [], now=now, uses=(SERVER_AUTH,)))
    pair, foreign = authority.renew_server(now=now), authority.renew_server(now=now)
    replace_file(path, pair.certificate.pem + foreign.key_pem, mode=0o600)
    with pytest.raises(CertificateError, match=r"server\.pem: expected the private key of"):
        ServerCertificates.load(server, now)
    replace_file(path, pair.certificate.pem, mode=0o600)
    with pytest.raises(CertificateError, match="expected an unencrypted private key"):
        ServerCertificates.load(server, now)
    replace_file(path, pair.certificate.pem + pair.key_pem, mode=0o600)
    (server / "revoked.txt").unlink()
    with pytest.raises(CertificateError, match=r"revoked\.txt: expected a file, got none"):
        ServerCertificates.load(server, now)


def test_authorities_of_others_come_with_their_mapping(authority: Authority, other: Authority, now: datetime) -> None:
    server = authority.server_directory
    replace_file(server / "other-cas.pem", other.certificate.pem)
    with pytest.raises(CertificateError, match=r"got other-cas\.pem alone; add mapping\.toml"):
        ServerCertificates.load(server, now)
    replace_file(server / "mapping.toml", b'[[certificate]]\nsubject = "CN=fl"\nname = "south"\n')
    loaded = ServerCertificates.load(server, now)
    assert loaded.root_pem == authority.certificate.pem + other.certificate.pem
    peer = signed_by(other, [], now=now).certificate.pem
    assert loaded.peers.identify(peer, now=now).uri == "flcore://hospitals/client/south"
    replace_file(server / "other-cas.pem", signed_by(other, [], now=now).certificate.pem)
    with pytest.raises(CertificateError, match="expected authorities, got 'CN=fl', which is none"):
        ServerCertificates.load(server, now)
    (server / "other-cas.pem").unlink()
    with pytest.raises(CertificateError, match=r"got mapping\.toml alone; add other-cas\.pem"):
        ServerCertificates.load(server, now)


def test_a_renewed_certificate_is_noticed_once(authority: Authority, now: datetime) -> None:
    watch = ServerCertificateWatch(authority.server_directory)
    assert watch.poll(now) is None
    pair = authority.renew_server(now=now)
    assert watch.poll(now) == (pair.key_pem, pair.certificate.pem)
    assert watch.poll(now) is None


def test_a_renewal_of_another_federation_is_refused_even_with_its_authority(
    authority: Authority, other: Authority, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    server = authority.server_directory
    watch, own = ServerCertificateWatch(server), (server / "ca.pem").read_bytes()
    pair = other.renew_server(now=now)
    replace_file(server / "ca.pem", other.certificate.pem)
    replace_file(server / "server.pem", pair.certificate.pem + pair.key_pem, mode=0o600)
    with caplog.at_level(logging.WARNING):
        assert watch.poll(now) is None and watch.poll(now) is None
    (told,) = caplog.messages
    assert "ca.pem: expected the authority that the server has started with, got another one ('hospitals')" in told
    assert "the server keeps the certificate that it has" in told
    replace_file(server / "ca.pem", own)
    renewed = authority.renew_server(now=now)
    assert watch.poll(now) == (renewed.key_pem, renewed.certificate.pem)


def test_an_unsound_renewal_is_told_once_and_not_used(
    authority: Authority, other: Authority, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    watch, path = ServerCertificateWatch(authority.server_directory), authority.server_directory / "server.pem"
    pair = other.renew_server(now=now)
    for content in (b"junk", pair.certificate.pem + pair.key_pem):
        replace_file(path, content, mode=0o600)
        with caplog.at_level(logging.WARNING):
            assert watch.poll(now) is None and watch.poll(now) is None
        assert len(caplog.records) == 1 and "keeps the certificate that it has" in caplog.text
        caplog.clear()
    path.unlink()
    assert watch.poll(now) is None
    assert len(caplog.records) == 1
    good = authority.renew_server
    with pytest.raises(CertificateError, match=r"server\.pem: expected the server's certificate, whose hosts"):
        good(now=now)
    renewed = good(now=now, hosts=["fl.example.org"])
    assert watch.poll(now) == (renewed.key_pem, renewed.certificate.pem)


def test_a_renewal_is_used_as_soon_as_the_clock_is_right(
    authority: Authority, now: datetime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ServerCertificateWatch(authority.server_directory)
    renewed = authority.renew_server(now=now)
    monkeypatch.setattr(credentials, "RETRY_S", 0.0)
    behind = now - timedelta(hours=1)
    with caplog.at_level(logging.WARNING):
        assert watch.poll(behind) is None and watch.poll(behind) is None
        assert watch.poll(now) == (renewed.key_pem, renewed.certificate.pem)
    assert len(caplog.records) == 1 and "set the clock of this machine" in caplog.text
    assert watch.poll(now) is None


def test_keys_stand_in_no_representation(kit: Path, authority: Authority, now: datetime) -> None:
    pair = authority.issue("south", now=now)
    server = ServerCertificates.load(authority.server_directory, now)
    for shown in map(repr, (ClientCertificates.load(kit, now), server, pair)):
        assert "key_pem" not in shown and "PRIVATE KEY" not in shown


def test_readers_meet_no_pair_that_does_not_match(authority: Authority, now: datetime) -> None:
    is_done, count = threading.Event(), 0

    def renew() -> None:
        for _ in range(15):
            authority.renew_server(now=now)
        is_done.set()

    writer = threading.Thread(target=renew)
    writer.start()
    while not is_done.is_set():
        ServerCertificates.load(authority.server_directory, now)
        count += 1
    writer.join()
    assert count > 0


def test_a_poll_reads_nothing_where_nothing_has_changed(
    authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ServerCertificateWatch(authority.server_directory)
    monkeypatch.setattr(os, "open", None)
    assert watch.poll(now) is None
