"""`flcore certs`: what an operator types, what docs/certificates.md prints, and what is told when it is wrong."""

import json
import shutil
import stat
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates
from flcore.identity.credentials import ClientCertificates, ServerCertificates
from flcore.identity.kit import IdentityTable, identity_table
from flcore.identity.mapping import CertificateMapping
from tests.flcore.command import flcore, said
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parents[2] / "docs/certificates.md").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    said("certs", "init", "hospitals", "--host", "localhost", cwd=tmp_path)
    return tmp_path


def names(place: Path) -> dict[str, str]:
    report = json.loads(said("certs", "list", "--json", cwd=place))
    assert set(report) == {"federation", "expires", "fingerprint", "certificates"}
    assert all(set(row) == {"name", "role", "expires", "state", "fingerprint"} for row in report["certificates"])
    return {row["name"]: row["state"] for row in report["certificates"]}


def test_three_commands_in_processes_of_their_own(tmp_path: Path) -> None:
    flcore("certs", "init", "hospitals", "--host", "localhost", cwd=tmp_path)
    printed = flcore("certs", "issue", "north", cwd=tmp_path)
    assert "certs/kits/north.zip: expires 20" in printed and "server localhost:8470" in printed
    assert stat.S_IMODE((tmp_path / "certs/kits/north.zip").stat().st_mode) == 0o600
    assert "flcore: certs: expected a path where there is nothing" in flcore(
        "certs", "init", "hospitals", "--host", "localhost", cwd=tmp_path, code=1
    )


def test_the_commands_of_the_page_and_what_they_write(tmp_path: Path) -> None:
    for script in blocks("sh", PAGE):
        for words in commands(script):
            if words[:2] != ["flcore", "certs"]:
                continue  # server and client have a placeholder for the job on this page
            if words[1:3] == ["certs", "renew"] and words[3] == "north":
                (tmp_path / "certs/kits/north.zip").unlink()
            said(*words[1:], cwd=tmp_path)
    directory = tmp_path / "certs"
    for row in ("authority/ca.key", "authority/ca.pem", "authority/issued/", "server/", "server/server.pem", "kits/"):
        assert f"| `{row}` |" in PAGE and (directory / row).exists()
    with zipfile.ZipFile(directory / "kits/north.zip") as kit:
        for name in kit.namelist():
            assert name.endswith("/") or f"| `{name.partition('/')[2]}` |" in PAGE
    assert names(tmp_path) == {"north": "revoked", "south": "valid", "server": "valid"}
    assert ServerCertificates.load(directory / "server").hosts == ("fl.example.org",)


def test_the_tables_of_the_page(tmp_path: Path) -> None:
    site, mapping = blocks("toml", PAGE)
    table = identity_table(tomllib.loads(site), "the page")
    assert table == IdentityTable(name="north", server="fl.example.org:8470")
    assert [name for name in IdentityTable.model_fields if f"| `identity.{name}` |" not in PAGE] == []
    (tmp_path / "mapping.toml").write_text(mapping)
    assert len(CertificateMapping.load(tmp_path / "mapping.toml")) == 2


def test_unzip_and_load_elsewhere(place: Path) -> None:
    said("certs", "issue", "north", "--address", "fl.example.org:9000", "--out", "deep/kits", cwd=place)
    with zipfile.ZipFile(place / "deep/kits/north.zip") as kit:
        kit.extractall(place / "elsewhere")
    (place / "elsewhere/north/client.key").chmod(0o600)  # unzip does, Python's zipfile does not
    loaded = ClientCertificates.load(place / "elsewhere/north")
    assert loaded.server == "fl.example.org:9000" and loaded.identity.name == "north"


def test_a_life_of_names(place: Path) -> None:
    said("certs", "issue", "north", "south", cwd=place)
    said("certs", "issue", "boss", "--role", "lead", "--days", "3", cwd=place)
    assert names(place) == {"north": "valid", "south": "valid", "boss": "valid", "server": "valid"}
    assert "north.zip: expected no file, got one" in said("certs", "renew", "north", cwd=place, code=1)
    said("certs", "renew", "north", "--out", "renewed", "--address", "[::1]:1", cwd=place)
    assert said("certs", "revoke", "north", cwd=place).count("revoked north: ") == 2
    assert names(place)["north"] == "revoked"
    assert "server.pem: for a.example" in said("certs", "renew", "--server", "--host", "a.example", cwd=place)
    printed = said("certs", "list", cwd=place).splitlines()
    assert printed[0].split() == ["name", "role", "expires", "state", "fingerprint"]
    assert printed[1].split()[:2] == ["hospitals", "ca"] and len(printed) == 8
    said("certs", "issue", "north", "--out", "again", cwd=place)


def test_nothing_is_issued_where_one_name_is_refused(place: Path) -> None:
    (place / "certs/kits").mkdir()
    (place / "certs/kits/c.zip").write_text("mine")
    for refused in (["a", "../b"], ["a", "server", "a b"], ["a", "c"]):
        said("certs", "issue", *refused, cwd=place, code=1)
    said("certs", "issue", "a", "a", cwd=place, code=2)
    assert names(place) == {"server": "valid"} and not (place / "certs/kits/a.zip").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["init", "a/b", "--host", "localhost", "--dir", "new"], 1, "the name of a federation: expected 1 to 64"),
        (["init", "a", "--host", "0.0.0.0", "--dir", "new"], 1, "the server's host: expected a DNS name"),
        (["init", "a", "--host", "*.example.org", "--dir", "new"], 1, "the server's host: expected a DNS name"),
        (["init", "a", "--dir", "new"], 2, "--host"),
        (["init", "a", "--host", "a", "--days", "0", "--dir", "new"], 2, "--days"),
        (["init", "a", "--host", "a", "--ca-days", "9", "--dir", "new"], 1, "use --days 9 or less"),
        (["issue"], 2, "NAME"),
        (["issue", "a", "--role", "server"], 2, "--role"),
        (["issue", "a", "--address", "x"], 1, "the server's address: expected HOST:PORT"),
        (["issue", "a", "--address", "a:0"], 1, "expected a port of 1 to 65535"),
        (["issue", "a", "--dir", "nowhere"], 1, "nowhere: expected the directory of a certificate authority, got none"),
        (["issue", "a", "--days", "3660"], 1, "or less"),
        (["issue", "a", "--out", "certs/authority/ca.pem"], 1, "ca.pem: File exists"),
        (["revoke", "a"], 1, "expected a client or lead with a valid certificate, got 'a'"),
        (["revoke", "server"], 1, "expected a client or lead with a valid certificate"),
        (["renew", "a"], 1, "expected a name with a certificate that is not revoked, got 'a'"),
        (["renew"], 2, "give the name of a client or a lead, or --server"),
        (["renew", "a", "--server"], 2, "give the name of a client or a lead, or --server"),
        (["renew", "a", "--host", "b"], 2, "--host goes with --server"),
        (["renew", "--server", "--out", "b"], 2, "--host goes with --server"),
        (["list", "--dir", "nowhere"], 1, "expected the directory of a certificate authority, got none"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(place: Path, arguments: list[str], code: int, message: str) -> None:
    before = Authority(place / "certs").issued()
    printed = said("certs", *arguments, cwd=place, code=code)
    assert message in " ".join(printed.replace("│", " ").split())
    assert code == 2 or printed.count("\n") == 1
    assert Authority(place / "certs").issued() == before and not (place / "new").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(place: Path) -> None:
    said("certs", "issue", "north", cwd=place)
    with zipfile.ZipFile(place / "certs/kits/north.zip") as kit:
        kit.extractall(place)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "certs/server/ca.pem"]
    for purpose, file in [("sslclient", "north/client.pem"), ("sslserver", "certs/server/server.pem")]:
        for wanted in ("sslclient", "sslserver"):
            done = subprocess.run([*verify, "-purpose", wanted, file], cwd=place, capture_output=True, check=False)
            assert (done.returncode == 0) == (wanted == purpose)
    (script,) = (script for script in blocks("sh", PAGE) if "openssl" in script)
    printed = subprocess.check_output(script.replace("south.pem", "north/client.pem"), shell=True, cwd=place, text=True)
    (certificate,) = parse_certificates((place / "north/client.pem").read_bytes(), "north")
    assert printed.split()[0] == certificate.key_fingerprint
