"""The authority: what it signs, what it records, and what a crash between two steps leaves."""

import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from flcore.errors import CertificateError
from flcore.identity.authority import Authority
from flcore.identity.certificate import Certificate, parse_certificates, parse_private_key
from flcore.identity.deny_list import read_deny_list
from flcore.identity.names import Role
from tests.flcore.identity.test_names import BAD_NAMES


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def server_certificate(authority: Authority) -> Certificate:
    return parse_certificates((authority.server_directory / "server.pem").read_bytes(), "the server")[0]


def verify(authority: Authority, leaf: Certificate, moment: datetime, host: str | None = None) -> None:
    builder = verification.PolicyBuilder().store(verification.Store([authority.certificate.parsed])).time(moment)
    if host is None:
        builder.build_client_verifier().verify(leaf.parsed, [])
    else:
        builder.build_server_verifier(x509.DNSName(host)).verify(leaf.parsed, [])


def test_a_new_authority_has_these_files_and_modes(authority: Authority) -> None:
    root = authority.directory
    found = {str(path.relative_to(root)): mode(path) for path in root.rglob("*") if path.parent.name != "issued"}
    assert found == {
        ".gitignore": 0o644,
        "authority": 0o700,
        "authority/ca.key": 0o600,
        "authority/ca.pem": 0o644,
        "authority/issued": 0o700,
        "server": 0o700,
        "server/ca.pem": 0o644,
        "server/server.pem": 0o600,
        "server/revoked.txt": 0o644,
    }
    assert mode(root) == 0o700 and (root / ".gitignore").read_text() == "*\n"
    assert sorted(path.name for path in root.parent.iterdir()) == ["certs"]


def test_the_authoritys_certificate_signs_members_and_nothing_else(authority: Authority, now: datetime) -> None:
    parsed = authority.certificate.parsed
    constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign and not usage.value.digital_signature
    assert authority.federation == "hospitals"
    assert (authority.certificate.expires - now).days == 3650


@pytest.mark.parametrize(
    ("role", "use"),
    [(Role.CLIENT, ExtendedKeyUsageOID.CLIENT_AUTH), (Role.LEAD, ExtendedKeyUsageOID.CLIENT_AUTH)],
)
def test_a_members_certificate(authority: Authority, now: datetime, role: Role, use: x509.ObjectIdentifier) -> None:
    pair = authority.issue("north", role, now=now, days=30)
    parsed = pair.certificate.parsed
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not (usage.value.key_cert_sign or usage.value.key_encipherment or usage.value.key_agreement)
    assert list(parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [use]
    assert pair.certificate.alternative_names == (f"URI:flcore://hospitals/{role}/north",)
    assert not pair.certificate.is_authority and parsed.version is x509.Version.v3
    assert pair.certificate.starts == now - timedelta(minutes=5)
    assert pair.certificate.expires == now + timedelta(days=30)
    key = parse_private_key(pair.key_pem, "the key")
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    assert key.public_key() == parsed.public_key()
    verify(authority, pair.certificate, now)
    verify(authority, pair.certificate, now + timedelta(days=29))
    for moment in (now - timedelta(days=1), now + timedelta(days=31)):
        with pytest.raises(verification.VerificationError):
            verify(authority, pair.certificate, moment)
    with pytest.raises(verification.VerificationError):
        verify(authority, pair.certificate, now, "fl.example.org")  # no server


def test_the_servers_certificate(authority: Authority, other: Authority, now: datetime) -> None:
    certificate = server_certificate(authority)
    assert certificate.hosts == authority.server_hosts == ("fl.example.org", "10.0.0.7")
    assert certificate.flcore_uris == ("flcore://hospitals/server/server",)
    verify(authority, certificate, now, "fl.example.org")
    for wrong_authority, host in [(other, "fl.example.org"), (authority, "example.org")]:
        with pytest.raises(verification.VerificationError):
            verify(wrong_authority, certificate, now, host)
    with pytest.raises(verification.VerificationError):
        verify(authority, certificate, now)  # no client


def test_a_names_life(authority: Authority, now: datetime) -> None:
    first = authority.issue("north", now=now, days=10)
    with pytest.raises(CertificateError, match=r"'north', which is a client until .*; renew it"):
        authority.issue("north", Role.LEAD, now=now)
    second = authority.renew("north", now=now + timedelta(days=1), days=20)
    assert first.key_pem != second.key_pem
    with pytest.raises(CertificateError, match="without a valid certificate"):
        authority.issue("north", now=now + timedelta(days=12))
    later = now + timedelta(days=12)
    states = [row.state(later) for row in authority.issued() if row.identity.name == "north"]
    assert states == ["expired", "valid"]
    revoked = authority.revoke("north", now=now)
    assert {row.identity.fingerprint for row in revoked} == {
        first.certificate.fingerprint,
        second.certificate.fingerprint,
    }
    denied = {row.identity.fingerprint for row in revoked} | {row.certificate.key_fingerprint for row in revoked}
    assert read_deny_list(authority.server_directory / "revoked.txt") == denied and len(denied) == 4
    for again in (lambda: authority.revoke("north", now=now), lambda: authority.renew("north", now=now)):
        with pytest.raises(CertificateError, match=r"got 'north'; .*flcore certs list"):
            again()
    third = authority.issue("north", Role.LEAD, now=now)
    assert third.certificate.fingerprint not in read_deny_list(authority.server_directory / "revoked.txt")
    assert Authority(authority.directory).issued() == authority.issued()


def test_an_expired_name_is_renewed_with_its_role(authority: Authority, now: datetime) -> None:
    authority.issue("boss", Role.LEAD, now=now, days=1)
    authority.renew("boss", now=now + timedelta(days=100))
    assert [row.identity.role for row in authority.issued()] == [Role.LEAD, Role.LEAD, Role.SERVER]


@pytest.mark.parametrize("name", ["server", "absent", "../x", "no\x1b[2Jrth"])
def test_names_without_a_certificate_are_neither_revoked_nor_renewed(
    authority: Authority, now: datetime, name: str
) -> None:
    for call in (lambda: authority.revoke(name, now=now), lambda: authority.renew(name, now=now)):
        with pytest.raises(CertificateError, match="expected a ") as caught:
            call()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_hostile_names_are_issued_nothing(authority: Authority, now: datetime, name: str) -> None:
    before = sorted(authority.directory.parent.rglob("*"))
    with pytest.raises(CertificateError, match="expected 1 to 64"):
        authority.issue(name, now=now)
    assert [path for path in sorted(authority.directory.parent.rglob("*")) if path.name != "lock"] == before


@pytest.mark.parametrize("name", BAD_NAMES)
def test_hostile_federations_make_nothing(tmp_path: Path, now: datetime, name: str) -> None:
    with pytest.raises(CertificateError, match="expected 1 to 64"):
        Authority.create(tmp_path / "certs", name, ["localhost"], now=now)
    assert not list(tmp_path.iterdir())


def test_an_authority_is_made_where_there_is_nothing(tmp_path: Path, authority: Authority, now: datetime) -> None:
    (tmp_path / "empty").mkdir()
    assert Authority.create(tmp_path / "empty", "a", ["localhost"], now=now).federation == "a"
    assert Authority.create(tmp_path / "deep/er", "a", ["localhost"], now=now).federation == "a"
    before = (authority.directory / "authority/ca.key").read_bytes()
    (tmp_path / "file").write_text("mine")
    for place in (authority.directory, tmp_path / "file"):
        with pytest.raises(CertificateError, match=r"got one that has content .*--dir"):
            Authority.create(place, "hospitals", ["localhost"], now=now)
    assert (authority.directory / "authority/ca.key").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_lifetimes_end_before_the_authoritys(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(tmp_path / "a", "a", ["localhost"], now=now, authority_days=30, server_days=30)
    with pytest.raises(CertificateError, match="got 365 days; use --days 20 or less"):
        authority.issue("north", now=now + timedelta(days=10))
    authority.issue("north", now=now + timedelta(days=10), days=20)
    with pytest.raises(CertificateError, match=r"has expired at .*; make a new authority"):
        authority.issue("south", now=now + timedelta(days=31), days=1)
    with pytest.raises(CertificateError, match="use --days 10 or less"):
        Authority.create(tmp_path / "b", "a", ["localhost"], now=now, authority_days=10)
    precise = now + timedelta(microseconds=999_999)  # certificates have whole seconds
    Authority.create(tmp_path / "c", "a", ["localhost"], now=precise, authority_days=9, server_days=9)
    for days in (0, -1, 36_501):
        with pytest.raises(CertificateError, match="expected 1 to 36500 days"):
            authority.issue("south", now=now, days=days)


def test_a_damaged_certificate_of_the_server_is_renewed_with_its_hosts(authority: Authority, now: datetime) -> None:
    (authority.server_directory / "server.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nx")
    with pytest.raises(CertificateError, match=r"damaged file; give the hosts \(flcore certs renew --server --host"):
        authority.renew_server(now=now)
    authority.renew_server(now=now, hosts=["fl.example.org"])
    assert authority.server_hosts == ("fl.example.org",)


def test_the_servers_certificate_is_replaced_as_one(authority: Authority, now: datetime) -> None:
    before = authority.server_directory / "server.pem"
    old = before.read_bytes()
    pair = authority.renew_server(now=now, days=10)
    new = before.read_bytes()
    assert new != old and mode(before) == 0o600
    assert new == pair.certificate.pem + pair.key_pem
    assert authority.server_hosts == ("fl.example.org", "10.0.0.7")
    authority.renew_server(now=now, hosts=["new.example.org"])
    assert list(authority.server_hosts) == ["new.example.org"]
    assert [row.identity.role for row in authority.issued()] == [Role.SERVER] * 3


def test_an_authoritys_key_is_read_by_its_owner_alone(authority: Authority, other: Authority, now: datetime) -> None:
    key = authority.directory / "authority/ca.key"
    key.chmod(0o644)
    with pytest.raises(CertificateError, match=r"ca\.key: expected a key file that only its owner can read"):
        authority.issue("north", now=now)
    key.chmod(0o600)
    key.write_bytes((other.directory / "authority/ca.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key: expected the private key of the certificate"):
        authority.issue("north", now=now)
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n")
    with pytest.raises(CertificateError, match=r"ca\.key: expected an unencrypted private key in PEM"):
        authority.issue("north", now=now)
    assert len(authority.issued()) == 1


def test_a_damaged_directory_is_named(authority: Authority, tmp_path: Path, now: datetime) -> None:
    with pytest.raises(CertificateError, match="got none; give another one"):
        Authority(tmp_path / "absent")
    (record,) = (authority.directory / "authority/issued").iterdir()
    record.write_bytes(b"junk")
    with pytest.raises(CertificateError, match=rf"{record.name}: expected certificates in PEM"):
        authority.issued()
    record.unlink()
    (authority.server_directory / "revoked.txt").unlink()
    with pytest.raises(CertificateError, match=r"revoked\.txt: expected a file, got none"):
        authority.issue("north", now=now)


def test_concurrent_issues_are_all_recorded_and_one_name_once(authority: Authority, now: datetime) -> None:
    def issue(number: int) -> str:
        try:
            Authority(authority.directory).issue(f"site-{number % 8}", now=now)
        except CertificateError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(issue, range(32)))
    assert said.count("") == 8 and sum("without a valid certificate" in each for each in said) == 24
    names = [row.identity.name for row in authority.issued()]
    assert sorted(names) == ["server", *(f"site-{number}" for number in range(8))]


CRASHES = """
import json, os, shutil, sys
from datetime import UTC, datetime
from pathlib import Path
from flcore.identity import files
from flcore.identity.authority import Authority
from flcore.identity.names import Role
from flcore.identity.kit import write_kit

NOW, root = datetime(2030, 6, 1, tzinfo=UTC), Path(sys.argv[1])
KINDS = ("open", "write", "fsync", "link", "replace", "rename", "unlink", "mkdir", "close")

def init(place):
    Authority.create(place, "hospitals", ["localhost"], now=NOW)

def issue(place):
    authority = Authority(place)
    write_kit(place / "kits", authority.issue("north", now=NOW), authority.certificate, "localhost:1")

def renew(place):
    Authority(place).renew_server(now=NOW)

def revoke(place):
    Authority(place).revoke("south", now=NOW)

template = root / ".template"
init(template)
Authority(template).issue("south", now=NOW)

def begin(action, place):
    if action is not init:
        shutil.copytree(template, place)

def killed_at(step, action, place):
    '''Run an action in a child that vanishes before its call number `step` to the system; whether it got so far.'''
    child = os.fork()
    if child == 0:
        count = 0
        def counted(call):
            def run(*arguments, **keywords):
                nonlocal count
                count += 1
                if count > step:
                    os._exit(9)
                return call(*arguments, **keywords)
            return run
        for kind in KINDS:
            setattr(os, kind, counted(getattr(os, kind)))
        action(place)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

for action in (init, issue, renew, revoke):
    step = 0
    while True:
        place = root / f"{action.__name__}-{step}"
        begin(action, place)
        if not killed_at(step, action, place):
            break
        step += 1
    print(json.dumps([action.__name__, step]))
"""


@pytest.mark.long
def test_a_crash_between_any_two_steps_leaves_a_sound_directory(tmp_path: Path, now: datetime) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    steps = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(steps) == {"init", "issue", "renew", "revoke"} and all(count > 8 for count in steps.values())
    seen: dict[str, set[str]] = {action: set() for action in steps}
    for place in sorted(path for path in tmp_path.iterdir() if not path.name.startswith(".")):
        action = place.name.partition("-")[0]
        authority = Authority(place)
        names = [row.identity.name for row in authority.issued()]
        denied = read_deny_list(authority.server_directory / "revoked.txt")
        pem = (authority.server_directory / "server.pem").read_bytes()
        (certificate,) = parse_certificates(pem, "the server")
        key = parse_private_key(pem, "the server")
        assert key.public_key() == certificate.parsed.public_key()
        assert certificate.fingerprint in {row.identity.fingerprint for row in authority.issued()}
        kits = [path.name for path in (place / "kits").glob("*.zip")]
        assert not kits or names.count("north") == 1, "a kit that nobody could revoke"
        for path in place.rglob("*"):
            if path.name.endswith((".partial", ".key", ".zip", "server.pem")):
                assert mode(path) in (0o600, 0o644)
                assert mode(path) == 0o600 or b"PRIVATE KEY" not in path.read_bytes()
        seen[action].add(f"{len(names)} {len(denied)} {len(kits)}")
        authority.renew_server(now=now)  # everything goes on, and what the killed process left is swept away
        assert not list((place / "server").glob(".*")) and not list((place / "authority/issued").glob(".*"))
    assert seen["init"] == {"1 0 0"}
    assert seen["issue"] == {"2 0 0", "3 0 0", "3 0 1"}
    assert seen["renew"] == {"2 0 0", "3 0 0"}
    assert seen["revoke"] == {"2 0 0", "2 2 0"}
