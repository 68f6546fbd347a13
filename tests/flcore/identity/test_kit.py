"""Kits: one zip per client, the same for the same content, and nothing of the authority's key in it."""

import io
import stat
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from flcore.errors import CertificateError
from flcore.identity.authority import Authority
from flcore.identity.kit import identity_table, kit_bytes, kit_path, require_server_address, write_kit
from flcore.identity.names import Role
from flcore.identity.signing import KeyPair

SERVER = "fl.example.org:8470"


@pytest.fixture
def pair(authority: Authority, now: datetime) -> KeyPair:
    return authority.issue("north", now=now)


def test_a_kit_has_these_files(authority: Authority, pair: KeyPair, tmp_path: Path) -> None:
    path = write_kit(tmp_path / "out", pair, authority.certificate, SERVER)
    assert path == tmp_path / "out/north.zip" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        assert archive.testzip() is None
    assert modes == {
        "north/": 0o40700,
        "north/README.txt": 0o100644,
        "north/ca.pem": 0o100644,
        "north/client.key": 0o100600,
        "north/client.pem": 0o100644,
        "north/site.toml": 0o100644,
    }
    assert contents["north/client.key"] == pair.key_pem and contents["north/client.pem"] == pair.certificate.pem
    assert contents["north/ca.pem"] == authority.certificate.pem
    readme = contents["north/README.txt"].decode()
    assert len(readme.splitlines()) == 5 and SERVER in readme and "2031-06-01" in readme


def test_the_same_content_is_the_same_kit(authority: Authority, pair: KeyPair) -> None:
    assert kit_bytes(pair, authority.certificate, SERVER) == kit_bytes(pair, authority.certificate, SERVER)


def test_the_authoritys_key_is_in_no_kit(authority: Authority, pair: KeyPair) -> None:
    packed = kit_bytes(pair, authority.certificate, SERVER)
    lines = (authority.directory / "authority/ca.key").read_bytes().splitlines()[1:-1]
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        everything = packed + b"".join(archive.read(name) for name in archive.namelist())
    assert everything.count(b"BEGIN PRIVATE KEY") == 2  # stored, not compressed: the client's own, twice here
    assert lines and not any(line in everything for line in lines)


def test_a_kit_overwrites_nothing(authority: Authority, pair: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "north.zip").write_text("mine")
    with pytest.raises(CertificateError, match=r"north\.zip: expected no file, got one; deliver that kit"):
        write_kit(tmp_path, pair, authority.certificate, SERVER)
    assert (tmp_path / "north.zip").read_text() == "mine"
    (tmp_path / "south.zip").symlink_to(tmp_path / "absent")
    with pytest.raises(CertificateError, match="expected no file"):
        kit_path(tmp_path, "south")
    assert not (tmp_path / "absent").exists()


def test_a_leads_kit(authority: Authority, now: datetime) -> None:
    packed = kit_bytes(authority.issue("boss", Role.LEAD, now=now), authority.certificate, SERVER)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert "the lead boss in the federation hospitals" in archive.read("boss/README.txt").decode()


@pytest.mark.parametrize("address", ["fl.example.org:1", "[::1]:65535", "10.0.0.7:8470", "localhost:8470"])
def test_addresses_of_servers(address: str) -> None:
    assert require_server_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "a", "a:", ":1", "a:0", "a:65536", "0.0.0.0:1", "::1:8470", 'a"b:1', "a\n[x]:1", "http://a:1", "a_b:1"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(CertificateError, match="expected") as caught:
        require_server_address(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"identity": 3}, "identity: expected the keys name, server"),
        ({"identity": {"name": "a"}}, "identity.server: expected the keys"),
        ({"identity": {"name": 3, "server": "a:1"}}, "identity.name: expected the keys"),
        ({"identity": {"name": "a", "server": "a:1", "kee": "x"}}, "identity.kee: expected the keys"),
        ({"identity": {"name": "a", "server": "a"}}, "identity.server: expected HOST:PORT"),
    ],
)
def test_a_table_that_is_not_sound_is_refused(content: dict[str, object], said: str) -> None:
    with pytest.raises(CertificateError, match=f"site.toml: {said}"):
        identity_table(content, "site.toml")


def test_a_site_without_an_identity() -> None:
    assert identity_table({"path": "/data"}, "site.toml") is None
