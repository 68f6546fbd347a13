"""Peers: what a call's certificate is worth to the server."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from flcore_transport import MAX_CONNECTIONS

from flcore.errors import IdentityRefused
from flcore.identity.authority import Authority
from flcore.identity.deny_list import DenyList, deny
from flcore.identity.mapping import CertificateMapping
from flcore.identity.names import Role
from flcore.identity.peers import CACHED_PEERS, PeerVerifier
from flcore.job.site import MOST_CONNECTIONS
from tests.flcore.identity.certificates import CLIENT_AUTH, SERVER_AUTH, resigned, signed_by, uri

NORTH = uri("flcore://hospitals/client/north")


@pytest.fixture
def peers(authority: Authority, tmp_path: Path) -> PeerVerifier:
    (tmp_path / "mapping.toml").write_text('[[certificate]]\nsan = "DNS:fl.south"\nname = "south"\n')
    return PeerVerifier(
        "hospitals",
        authority.certificate,
        DenyList(authority.server_directory / "revoked.txt"),
        CertificateMapping.load(tmp_path / "mapping.toml"),
    )


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(IdentityRefused, match=r".+; .+|revoked") as caught:
        call()
    assert str(caught.value).isprintable() and caught.value.kind == "identity"
    return caught.value.reason


def test_members_are_known_by_their_uri(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    north, boss = authority.issue("north", now=now), authority.issue("boss", Role.LEAD, now=now)
    identity = peers.identify(north.certificate.pem, now=now)
    assert identity.uri == "flcore://hospitals/client/north" and identity.fingerprint == north.certificate.fingerprint
    assert peers.identify(boss.certificate.pem, (Role.LEAD,), now).role == Role.LEAD
    assert reason(lambda: peers.identify(north.certificate.pem, (Role.LEAD,), now)) == "role"
    server = (authority.server_directory / "server.pem").read_bytes()
    assert reason(lambda: peers.identify(server, now=now)) == "role"


def test_time_passes_while_a_peer_is_connected(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    pem = authority.issue("north", now=now, days=1).certificate.pem
    peers.identify(pem, now=now)
    assert reason(lambda: peers.identify(pem, now=now + timedelta(days=1, seconds=1))) == "expired"
    assert reason(lambda: peers.identify(pem, now=now - timedelta(minutes=6))) == "not-yet-valid"
    peers.identify(pem, now=now)
    assert reason(lambda: peers.identify(pem)) in ("not-yet-valid", "expired")  # the machine's clock is used


def test_a_revoked_peer_is_refused_at_its_next_call(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    old = authority.issue("north", now=now).certificate.pem
    peers.identify(old, now=now)
    authority.revoke("north", now=now)
    assert reason(lambda: peers.identify(old, now=now)) == "revoked"
    peers.identify(authority.issue("north", now=now).certificate.pem, now=now)


def test_another_signature_of_the_same_certificate_is_as_revoked(
    peers: PeerVerifier, authority: Authority, now: datetime
) -> None:
    certificate = authority.issue("north", now=now).certificate
    disguised = peers.identify(resigned(certificate), now=now)  # valid, with another fingerprint
    assert disguised.name == "north" and disguised.fingerprint != certificate.fingerprint
    authority.revoke("north", now=now)
    assert reason(lambda: peers.identify(resigned(certificate), now=now)) == "revoked"


def test_others_certificates_have_names_by_the_mapping_alone(
    peers: PeerVerifier, authority: Authority, other: Authority, now: datetime
) -> None:
    south = signed_by(other, [x509.DNSName("fl.south")], now=now).certificate
    assert peers.identify(south.pem, now=now).uri == "flcore://hospitals/client/south"
    deny(authority.server_directory / "revoked.txt", {south.fingerprint: "south"})
    assert reason(lambda: peers.identify(south.pem, now=now)) == "revoked"
    # Another authority's word about our names is worth nothing.
    assert reason(lambda: peers.identify(other.issue("north", now=now).certificate.pem, now=now)) == "unmapped"
    assert reason(lambda: peers.identify(signed_by(other, [], now=now).certificate.pem, now=now)) == "unmapped"
    without = PeerVerifier("hospitals", authority.certificate, DenyList(authority.server_directory / "revoked.txt"))
    assert reason(lambda: without.identify(south.pem, now=now)) == "unmapped"


@pytest.mark.parametrize(
    ("names", "uses", "expected"),
    [
        ([NORTH], (SERVER_AUTH,), "usage"),
        ([uri("flcore://clinics/client/north")], (CLIENT_AUTH,), "federation"),
        ([uri("flcore://Hospitals/client/north")], (CLIENT_AUTH,), "federation"),
        ([uri("flcore://hospitals/server/x")], (CLIENT_AUTH,), "usage"),
        ([uri("flcore://hospitals/superuser/x")], (CLIENT_AUTH,), "malformed"),
        ([uri("flcore://hospitals/client/../x")], (CLIENT_AUTH,), "malformed"),
        ([uri("flcore://hospitals/client/" + "a" * 65)], (CLIENT_AUTH,), "malformed"),
        ([uri("FLCORE://hospitals/client/x")], (CLIENT_AUTH,), "malformed"),
        ([NORTH, uri("flcore://hospitals/client/south")], (CLIENT_AUTH,), "malformed"),
        ([NORTH, NORTH], (CLIENT_AUTH,), "malformed"),
        ([x509.DNSName("fl.south")], (CLIENT_AUTH,), "malformed"),
        ([], (CLIENT_AUTH,), "malformed"),
    ],
)
def test_our_own_authoritys_certificates_with_something_odd(
    peers: PeerVerifier,
    authority: Authority,
    now: datetime,
    names: list[x509.GeneralName],
    uses: tuple[x509.ObjectIdentifier, ...],
    expected: str,
) -> None:
    pem = signed_by(authority, names, now=now, uses=uses).certificate.pem
    assert reason(lambda: peers.identify(pem, now=now)) == expected


def test_an_authority_is_no_peer(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    assert reason(lambda: peers.identify(signed_by(authority, [NORTH], now=now, ca=True).certificate.pem)) == "usage"
    assert reason(lambda: peers.identify(authority.certificate.pem, now=now)) == "malformed"


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(peers: PeerVerifier, now: datetime, pem: bytes) -> None:
    assert reason(lambda: peers.identify(pem, now=now)) == "malformed"


def test_extra_names_beside_the_uri_change_nothing(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    names = [x509.DNSName("fl.south"), uri("spiffe://x/y"), NORTH]
    pem = signed_by(authority, names, now=now).certificate.pem
    assert peers.identify(pem, now=now).name == "north"


def test_a_servers_sessions_all_have_a_place_among_the_peers_that_are_kept() -> None:
    assert CACHED_PEERS > MOST_CONNECTIONS > MAX_CONNECTIONS


def test_a_call_costs_microseconds(peers: PeerVerifier, authority: Authority, now: datetime) -> None:
    pem = authority.issue("north", now=now).certificate.pem
    peers.identify(pem, now=now)
    started = time.process_time()
    for _ in range(1000):
        peers.identify(pem, now=now)
    assert time.process_time() - started < 0.5, "some 5 ms; parsing at each call would take ten times as long"
