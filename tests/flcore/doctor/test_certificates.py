"""Certificates of kits and servers: valid, about to expire, expired, readable by others, revoked, of another use."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from flcore.doctor.certificates import check_kit, check_server_directory
from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates, utc_now
from flcore.identity.deny_list import deny
from flcore.identity.names import Role
from tests.flcore.lead.kits import federation_authority, unpacked_kit


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return federation_authority(tmp_path)


def test_a_kit_that_is_valid(authority: Authority, tmp_path: Path) -> None:
    found = check_kit(unpacked_kit(authority, tmp_path, "north", Role.CLIENT))
    assert found.outcome == "ok" and found.found.startswith("north, client of hospitals; its certificate expires in ")


def test_a_kit_that_expires_soon_and_one_that_has_expired(authority: Authority, tmp_path: Path) -> None:
    kit = unpacked_kit(authority, tmp_path, "north", Role.CLIENT)
    expires = parse_certificates((kit / "client.pem").read_bytes(), "")[0].expires
    found = check_kit(kit, expires - timedelta(days=10, hours=1))
    assert found.outcome == "warning" and "expires in 10 days" in found.found and "renew" in found.advice
    found = check_kit(kit, expires + timedelta(days=1))
    assert found.outcome == "failed" and "renew" in found.advice


def test_a_key_that_others_can_read(authority: Authority, tmp_path: Path) -> None:
    kit = unpacked_kit(authority, tmp_path, "north", Role.CLIENT)
    (kit / "client.key").chmod(0o644)
    found = check_kit(kit)
    assert found.outcome == "failed" and "got mode 0644" in found.found and "chmod 600" in found.advice


def test_a_kit_with_the_authority_of_another_federation(authority: Authority, tmp_path: Path) -> None:
    kit = unpacked_kit(authority, tmp_path, "north", Role.CLIENT)
    other = federation_authority(tmp_path / "other")
    shutil.copy(other.server_directory / "ca.pem", kit / "ca.pem")
    assert check_kit(kit).outcome == "failed"


def test_a_server(authority: Authority) -> None:
    found = check_server_directory(authority.server_directory)
    assert found.outcome == "ok" and found.found.startswith(
        "the server of hospitals, for localhost, 127.0.0.1, ::1; its"
    )
    expires = parse_certificates((authority.server_directory / "server.pem").read_bytes(), "")[0].expires
    assert check_server_directory(authority.server_directory, expires - timedelta(days=3)).outcome == "warning"
    assert check_server_directory(authority.server_directory, utc_now() - timedelta(days=3)).outcome == "failed"


def test_a_server_that_is_revoked(authority: Authority) -> None:
    directory = authority.server_directory
    own = parse_certificates((directory / "server.pem").read_bytes(), "")[0]
    deny(directory / "revoked.txt", {own.key_fingerprint: "the server"})
    found = check_server_directory(directory)
    assert found.outcome == "failed" and "is revoked" in found.found


def test_a_directory_that_is_none_of_a_server(tmp_path: Path) -> None:
    found = check_server_directory(tmp_path)
    assert found.outcome == "failed" and "expected a file, got none" in found.found and found.advice


def test_what_is_no_kit(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "empty", "pipe"):
        result = check_kit(tmp_path / name)
        assert result.outcome == "failed" and result.advice.startswith("unpack the kit (unzip KIT.zip -d DIR)")
        assert result.found.endswith(f"{name}: expected the directory of an unpacked kit, with the file site.toml")
    (tmp_path / "empty/site.toml").write_text("no toml")
    result = check_kit(tmp_path / "empty")
    assert result.outcome == "failed" and "empty/site.toml: cannot be read" in result.found
    assert result.advice == "unpack the kit again, or correct its site.toml"
