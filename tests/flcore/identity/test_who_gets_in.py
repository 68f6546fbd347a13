"""Who gets in: each row presents or does something else, and is refused before the server does any work for it.

`handshake` means that TLS or HTTP/2 has ended the connection, so no call began. Any other kind is that of the refusal.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.x509 import DNSName
from flcore_transport import TlsKeys

from flcore.identity.names import Role
from tests.flcore.identity import certificate_attempts as certificates
from tests.flcore.identity import session_attempts as sessions
from tests.flcore.identity import token_attempts as tokens
from tests.flcore.identity.certificate_attempts import (
    Prepare,
    claims,
    home,
    mapped,
    meets_server,
    own,
    presents,
    server_of,
)
from tests.flcore.identity.certificates import CLIENT_AUTH, SERVER_AUTH
from tests.flcore.identity.federation_site import Counts, FederationSite, counted
from tests.flcore.identity.forged import member, rsa_key, sign, subject
from tests.transport.test_grpc_tls import SESSION_CALL

ALICE = "flcore://hospitals/client/alice"
METHODS = ("Upload", "Download", "Report")
REFUSED = {"join-refused", "call-refused", "answer-refused", "revocation"}
"""The events of the audit log of which each refused call that passed the handshake has one."""

NOTHING, ONE_MESSAGE = 0, 400
"""The most bytes that the server may read: nothing, or one small message, where the name or the secret is in it."""


class Case(NamedTuple):
    """One way to try to get in.

    Attributes:
        name: What is presented or done.
        prepare: Returns the attempt, for a site; it does what has to be so before.
        kind: The expected outcome.
        may_read: The most bytes of messages that the server may read.
        said: A part of the error's message.
    """

    name: str
    prepare: Prepare
    kind: str
    may_read: int = NOTHING
    said: str = ""


CASES = [
    # What the client presents.
    Case("no certificate", lambda site: lambda: site.exchange(site.tls(None), SESSION_CALL), "handshake"),
    Case("another authority", presents(lambda site: member(certificates.nobody(site), "alice")), "handshake"),
    Case("another authority of the same name", presents(certificates.another_authority_of_the_same_name), "handshake"),
    Case("self-signed", presents(lambda site: member(None, "alice")), "handshake"),
    Case("a client's certificate as an authority", presents(certificates.client_certificate_as_authority), "handshake"),
    Case("an intermediate under our own authority", presents(certificates.intermediate_of_our_own), "unmapped"),
    Case("expired", own(ALICE, starts_in_days=-2, ends_in_days=-1), "handshake"),
    Case("not yet valid", own(ALICE, starts_in_days=1, ends_in_days=2), "handshake"),
    Case("the authority itself", presents(home), "handshake"),
    Case("an authority as a client", own(ALICE, is_ca=True), "usage"),
    Case("the server's certificate", presents(certificates.server_pair), "handshake"),
    Case("a server's use", own(ALICE, uses=(SERVER_AUTH,)), "handshake"),
    Case("no extended key usage", own(ALICE, uses=None), "usage"),
    Case("a server's name with a client's use", own("flcore://hospitals/server/server"), "usage"),
    Case("a lead's certificate", presents(certificates.issued_as(Role.LEAD)), "role"),
    Case("an admin's certificate", presents(certificates.issued_as(Role.ADMIN)), "role"),
    Case("an unknown role", own("flcore://hospitals/superuser/alice"), "malformed"),
    Case("another federation of our authority", own("flcore://banks/client/alice"), "federation"),
    Case("the federation in capitals", own("flcore://Hospitals/client/alice"), "federation"),
    Case("the scheme in capitals", own("FLCORE://hospitals/client/alice"), "malformed"),
    Case("two identities", own(ALICE, "flcore://hospitals/client/bob"), "malformed"),
    Case("the same identity twice", own(*[ALICE] * 2), "malformed"),
    Case("a path that goes up", own("flcore://hospitals/client/../alice"), "malformed"),
    Case("a query", own("flcore://hospitals/client/alice?x"), "malformed"),
    Case("a user in the URI", own("flcore://alice@hospitals/client/alice"), "malformed"),
    Case("an empty name", own("flcore://hospitals/client/"), "malformed"),
    Case("a name of 65 characters", own("flcore://hospitals/client/" + "a" * 65), "malformed"),
    Case("a look-alike, percent-encoded", own("flcore://hospitals/client/%D0%B0lice"), "malformed"),
    Case("control characters in the URI", own("flcore://hospitals/client/alice\n\x1b[2K"), "malformed"),
    Case("a zero byte in the URI", own("flcore://hospitals/client/alice\x00.evil"), "malformed"),
    Case("the name in the subject alone", own(), "malformed"),
    Case(
        "the name in the subject, another in the URI",
        own("flcore://hospitals/client/bob"),
        "wrong-identity",
        said="its certificate is that of 'bob'",
    ),
    # Certificates of another authority.
    Case("our URI, signed by a mapped authority", presents(lambda site: member(site.north, "alice")), "unmapped"),
    Case("an unmapped subject", mapped("CN=fl,O=South"), "unmapped"),
    Case("a mapped subject in capitals", mapped("CN=FL,O=NORTH"), "unmapped"),
    Case("a look-alike of a mapped subject", mapped("CN=fl,O=N\N{CYRILLIC SMALL LETTER O}rth"), "unmapped"),
    Case("a mapped subject in another order", mapped("O=North,CN=fl"), "unmapped"),
    Case("alternative names that two rows map", mapped("CN=x", "fl.east", "fl.west", name="east"), "unmapped"),
    Case("a subject and a name that two rows map", mapped("CN=fl,O=North", "fl.west"), "unmapped"),
    Case("a mapped subject, signed by nobody", presents(lambda _: sign(None, subject("CN=fl,O=North"))), "handshake"),
    Case(
        "a mapped subject, signed by our own authority",
        presents(lambda site: sign(site.home, subject("CN=fl,O=North")), "north"),
        "malformed",
    ),
    Case(
        "a mapped subject, signed by the authority of another row",
        presents(lambda site: sign(site.south, subject("CN=fl,O=North")), "north"),
        "unmapped",
    ),
    Case("an intermediate is not sent", presents(certificates.without_intermediate, "north"), "handshake"),
    Case("an intermediate of the row's authority", presents(certificates.through_intermediate, "north"), "unmapped"),
    Case("a mapped client, another's name", mapped("CN=x", "fl.east", name="alice"), "wrong-identity"),
    # Revoked.
    Case("revoked", sessions.revoked_before, "revoked"),
    Case("revoked, with the other valid signature", sessions.revoked_and_disguised, "revoked"),
    Case("revoked, of another authority", sessions.revoked_of_another_authority, "revoked"),
    Case("revoked, and then the list is damaged", sessions.revoked_and_the_list(b"\xff no fingerprint\n"), "revoked"),
    Case("revoked, and then the list is removed", sessions.revoked_and_the_list(None), "revoked"),
    Case("revoked with an open stream", sessions.revoked_on_a_stream, "revoked"),
    Case("revoked, and calls with its session's secret", sessions.revoked_and_calls_again, "revoked"),
    Case("revoked during an upload", sessions.revoked_in_an_upload, "untrusted"),
    Case("revoked during a download", sessions.revoked_in_a_download, "untrusted"),
    # Session secrets.
    *(
        Case(f"a stolen secret: {method}", sessions.stolen(method, in_metadata=True), "unknown-session")
        for method in METHODS
    ),
    *(
        Case(
            f"a stolen secret in the message: {method}",
            sessions.stolen(method, in_metadata=False),
            "unknown-session",
            400,
        )
        for method in METHODS
    ),
    Case(
        "a secret of this name's other certificate",
        sessions.secret_of_another_certificate,
        "unknown-session",
    ),
    Case("a secret of an earlier server process", sessions.secret_of_an_earlier_server, "unknown-session"),
    Case("a secret that is made up", sessions.secret_made_up, "unknown-session"),
    Case("no secret", sessions.no_secret, "unknown-session"),
    Case("two processes with one identity", sessions.two_processes_with_one_identity, "name-taken", ONE_MESSAGE),
    Case(
        "a session resumed with another certificate",
        sessions.with_another_certificate,
        "name-taken",
        ONE_MESSAGE,
    ),
    # Joins.
    Case("another's name", claims("alice"), "wrong-identity"),
    Case("another's name, and 1 MiB", claims("alice", content=sessions.LARGE_CONTENT), "wrong-identity"),
    Case(
        "another's name in the join, one's own in its call", sessions.in_the_calls_name, "wrong-identity", ONE_MESSAGE
    ),
    Case("a name that the job does not list, and 1 MiB", sessions.uninvited, "not-invited"),
    Case("no name in the join's call", sessions.without_a_name, "protocol"),
    Case("another protocol version", sessions.of_another_version, "protocol", ONE_MESSAGE),
    Case("one's own name in capitals", claims("CLIENT-1"), "wrong-identity"),
    Case("a look-alike of a name", claims("\N{CYRILLIC SMALL LETTER A}lice"), "wrong-identity"),
    Case("an empty name in the join", claims(""), "wrong-identity"),
    Case("control characters in the join", claims("alice\n\x1b[2K\x00"), "wrong-identity"),
    # Tokens of assignments.
    *(
        Case(f"a token {token}: {method}", tokens.replayed(token, method), "wrong-token", ONE_MESSAGE)
        for token in tokens.TOKENS
        for method in METHODS
    ),
    # Connections.
    Case("TLS 1.2", sessions.tls_1_2, "tls-version"),
    Case("no ALPN", sessions.without_alpn, "handshake"),
    Case("HTTP/1.1", sessions.another_protocol, "handshake"),
    Case("plaintext frames to a TLS port", sessions.plaintext_call, "handshake"),
    Case("plaintext to a TLS port", lambda site: partial(site.join, None, "alice"), "handshake"),
    Case("TLS to a plaintext port", sessions.tls_to_plaintext, "handshake", said="does not speak TLS 1.3"),
    # What a client does not take from a server.
    Case("a server of another host", meets_server(server_of(home, "elsewhere.example")), "handshake", said="trusted"),
    Case(
        "an expired server",
        meets_server(server_of(home, starts_in_days=-2, ends_in_days=-1)),
        "handshake",
        said="trusted",
    ),
    Case("a server of another authority", meets_server(server_of(lambda _: None)), "handshake", said="trusted"),
    Case(
        "a server with a client's certificate",
        meets_server(server_of(home, uses=(CLIENT_AUTH,))),
        "handshake",
        said="trusted",
    ),
]


@pytest.fixture(scope="module")
def counts() -> Iterator[Counts]:
    with pytest.MonkeyPatch.context() as patch:
        yield counted(patch)


@pytest.fixture(scope="module")
def site(counts: Counts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationSite]:
    made = FederationSite(tmp_path_factory.mktemp("site"), counts)
    yield made
    made.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_each_is_refused_before_the_server_works_for_it(site: FederationSite, case: Case) -> None:
    attempt = case.prepare(site)
    site.counts.messages = site.counts.nbytes = 0
    site.counts.refusals.clear()
    asked, entries = site.service.asked, len(site.audited())
    kind, message = site.outcome(attempt)
    assert (kind, case.said in message) == (case.kind, True), message
    assert site.service.asked == asked
    assert site.counts.nbytes <= case.may_read and site.counts.messages <= bool(case.may_read)
    assert message.isprintable()
    assert all(refusal.message.isprintable() for refusal in site.counts.refusals)
    if kind == "handshake":
        assert not site.counts.refusals, "no call began"
        return
    found = wait_for_audit(site, entries)
    assert {entry["event"] for entry in found} <= REFUSED, found
    # A client that is revoked while it is connected has the line of its session's end.
    named = [entry for entry in found if entry.get("kind") == kind or entry["reason"] in message]
    assert named or (kind == "untrusted" and found[0]["event"] == "revocation"), found


def wait_for_audit(site: FederationSite, entries: int) -> list[dict[str, Any]]:
    """Return the entries of the audit log after the first ones. A refusal is audited on another thread."""
    deadline = time.monotonic() + 5
    while len(found := site.audited()) <= entries:
        assert time.monotonic() < deadline, "the refusal has no line in the audit log"
        time.sleep(0.005)
    return found[entries:]


def test_the_replayed_assignments_own_token_is_accepted(site: FederationSite) -> None:
    tokens.replayed("of another round", "Upload")(site)
    assert site.replays is not None
    assert tokens.accepted(site.replays)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(lambda site: site.issue("welcome"), "welcome", id="a kit"),
        pytest.param(lambda site: member(site.home, "rsa", key=rsa_key()), "rsa", id="an RSA key"),
        pytest.param(lambda site: sign(site.north, subject("CN=fl,O=North")), "north", id="a mapped subject"),
        pytest.param(lambda site: sign(site.south, subject("CN=x"), [DNSName("fl.west")]), "west", id="a mapped name"),
        pytest.param(
            lambda site: sign(site.north, subject("CN=y"), [DNSName("fl.east")], uses=None),
            "east",
            id="another authority's without a use",
        ),
    ],
)
def test_those_who_belong_get_in(site: FederationSite, make: Callable[[FederationSite], TlsKeys], name: str) -> None:
    assert site.join(make(site), name)


def test_an_impostors_renewed_certificate_is_not_taken_up(site: FederationSite) -> None:
    path = site.directory / "server.pem"
    sound, name = path.read_bytes(), site.fresh_name()
    impostor = server_of(certificates.nobody)(site).keys
    path.write_bytes(impostor.certificate_chain + impostor.private_key)
    try:
        assert site.join(site.issue(name), name)
    finally:
        path.write_bytes(sound)


def test_a_body_without_a_certificate_is_not_buffered(site: FederationSite) -> None:
    """Clients finish the handshake on their side and send 2 MiB at once, before the server can refuse them."""
    body = SESSION_CALL + b"\x00\x3f\xff\x00\x00\x00\x00\x00\x01" + bytes(2 << 20)
    site.counts.messages = 0
    before, held = resident_bytes(), []
    for _ in range(32):
        connected = site.tls(None)
        connected.settimeout(1)
        with suppress(OSError):
            connected.sendall(body)
        held.append(connected)
    assert resident_bytes() - before < 16 << 20, "64 MiB were sent"
    assert site.counts.messages == 0
    for connected in held:
        connected.close()


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_there_are_forty_cases_and_more() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 70
