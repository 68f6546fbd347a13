"""Who may ask over mutual TLS, as whom, and what the audit log says of those who may not."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flcore_transport import Ask, GrpcConnection, GrpcServer, Identity, Join, Refused, Reply, TlsKeys, Welcome

from flcore.identity.certificate import utc_now
from flcore.identity.names import Role
from flcore.identity.tls import FederationTls
from tests.flcore.identity.certificate_attempts import server_pair
from tests.flcore.identity.certificates import CLIENT_AUTH, SERVER_AUTH, uri
from tests.flcore.identity.federation_site import Counts, FederationSite
from tests.flcore.identity.forged import Signer, sign, subject
from tests.transport.conftest import RecordingService

MEMBERS = [Role.CLIENT, Role.LEAD, Role.ADMIN]


class AskedSite(FederationSite):
    """A federation whose server answers each ask with the caller's identity."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Counts())
        self.asked: list[Identity | None] = []
        self.waiting: Future[Reply] = Future()
        self.server.close()
        self.server = GrpcServer(self.service, tls=FederationTls(self.directory), answer=self.answer)
        self.servers.append(self.server)

    def answer(self, identity: Identity | None, ask: Ask) -> "Reply | Future[Reply]":
        self.asked.append(identity)
        if ask.content == b"wait":
            return self.waiting
        if ask.content == b"refuse":
            raise Refused("not-allowed", "expected an admin, got a lead; ask one")
        assert identity is not None
        return Reply(f"{identity.federation}/{identity.role}/{identity.name} {identity.fingerprint}".encode())

    def member_of(self, role: Role, name: str) -> TlsKeys:
        pair = self.authority.issue(name, role, now=utc_now())
        return TlsKeys(pair.key_pem, pair.certificate.pem, self.home.pem)

    def refusals(self, count: int) -> list[dict[str, Any]]:
        """Return the refused calls in the audit log, as soon as there are so many."""
        until = time.monotonic() + 10
        while len(found := [each for each in self.audited() if each["event"] == "call-refused"]) < count:
            assert time.monotonic() < until
            time.sleep(0.01)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AskedSite]:
    made = AskedSite(tmp_path)
    yield made
    made.close()


def refusal(call: Callable[..., object], *arguments: object) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize("role", MEMBERS)
def test_the_certificate_names_the_caller_and_its_role(site: AskedSite, role: Role) -> None:
    pair = site.authority.issue("someone", role, now=utc_now())
    keys = TlsKeys(pair.key_pem, pair.certificate.pem, site.home.pem)
    reply = site.connect(keys).ask(Ask(b"who am I?"))
    assert reply.content.decode() == f"hospitals/{role}/someone {pair.certificate.fingerprint}"


@pytest.mark.parametrize("role", [Role.LEAD, Role.ADMIN])
def test_the_mapping_names_leads_and_admins_too(site: AskedSite, role: Role) -> None:
    mapping = site.directory / "mapping.toml"
    mapping.write_text(
        f'[[certificate]]\nsubject = "CN=me,O=North"\nname = "boss"\nrole = "{role}"\nca = "CN=North CA"\n'
    )
    server = GrpcServer(site.service, tls=FederationTls(site.directory), answer=site.answer)
    site.servers.append(server)
    keys = sign(site.north, subject("CN=me,O=North"))
    assert site.connect(keys, server.address).ask(Ask(b"?")).content.startswith(f"hospitals/{role}/boss".encode())
    assert refusal(next, site.connect(keys, server.address).session(Join("boss", "1")))[0] == "role"


FORGED: dict[str, tuple[str, Callable[[AskedSite], Signer]]] = {
    "an unknown role": ("malformed", lambda site: own(site, "flcore://hospitals/superuser/x")),
    "a server's name": ("usage", lambda site: own(site, "flcore://hospitals/server/server")),
    "another federation": ("federation", lambda site: own(site, "flcore://banks/admin/root")),
    "two roles": ("malformed", lambda site: own(site, "flcore://hospitals/client/x", "flcore://hospitals/admin/x")),
    "an authority": ("usage", lambda site: sign(site.home, subject("CN=x"), [uri(ADMIN)], is_ca=True)),
    "no use": ("usage", lambda site: sign(site.home, subject("CN=x"), [uri(ADMIN)], uses=None)),
    "our URI by a mapped authority": ("unmapped", lambda site: sign(site.north, subject("CN=x"), [uri(ADMIN)])),
}
ADMIN = "flcore://hospitals/admin/root"


def own(site: AskedSite, *names: str) -> Signer:
    return sign(site.home, subject("CN=x"), [uri(name) for name in names], uses=(CLIENT_AUTH,))


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_certificate_asks_nothing(site: AskedSite, forged: str) -> None:
    kind, make = FORGED[forged]
    keys = make(site)
    assert refusal(site.connect(keys).ask, Ask(b"?"))[0] == kind
    (found,) = site.refusals(1)
    assert found["kind"] == kind and found["certificate"]
    assert not site.asked


def test_certificates_that_tls_refuses_ask_nothing(site: AskedSite) -> None:
    stranger = sign(None, subject("CN=x"), [uri(ADMIN)])
    server = sign(site.home, subject("CN=x"), [uri(ADMIN)], uses=(SERVER_AUTH,))
    for keys in (None, stranger, server, server_pair(site)):
        kind, _ = site.outcome(lambda keys=keys: site.connect(keys).ask(Ask(b"?")))  # type: ignore[misc]
        assert kind == "handshake"
    assert not site.asked


@pytest.mark.parametrize("role", [Role.LEAD, Role.ADMIN])
def test_leads_and_admins_join_nothing(site: AskedSite, role: Role) -> None:
    site.server.host("a-1", RecordingService())
    keys = site.member_of(role, "boss")
    for job in ("", "a-1"):
        connection = GrpcConnection(site.server.address, keys=keys, job=job)
        site.opened.append(connection)
        kind, said = refusal(next, connection.session(Join("boss", "1")))
        assert kind == "role" and f"the certificate of {role} boss: expected the role client, got {role};" in said
    assert [each["kind"] for each in site.refusals(2)] == ["role"] * 2


def test_a_refused_ask_is_in_the_audit_log_with_its_caller(site: AskedSite) -> None:
    pair = site.authority.issue("boss", Role.LEAD, now=utc_now())
    keys = TlsKeys(pair.key_pem, pair.certificate.pem, site.home.pem)
    assert refusal(site.connect(keys).ask, Ask(b"refuse"))[0] == "not-allowed"
    (found,) = site.refusals(1)
    assert (found["client"], found["certificate"], found["kind"], found["reason"]) == (
        "boss",
        pair.certificate.fingerprint,
        "not-allowed",
        "expected an admin, got a lead; ask one",
    )


def test_a_revoked_lead_asks_nothing_and_gets_nothing_that_it_waits_for(site: AskedSite) -> None:
    keys = site.member_of(Role.LEAD, "boss")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(site.connect(keys).ask, Ask(b"wait"))
        until = time.monotonic() + 10
        while not site.asked and time.monotonic() < until:
            time.sleep(0.01)
        site.authority.revoke("boss", now=utc_now())
        site.waiting.set_result(Reply(b"a secret"))
        assert refusal(asked.result, 20)[0] == "revoked"
    assert refusal(site.connect(keys).ask, Ask(b"?"))[0] == "revoked"
    assert len(site.asked) == 1
    assert [each["kind"] for each in site.refusals(2)] == ["revoked"] * 2


def test_a_revoked_client_is_out_of_all_jobs(site: AskedSite) -> None:
    keys, services = site.issue("north"), {job: RecordingService() for job in ("a-1", "b-1")}
    sessions = []
    for job, service in services.items():
        site.server.host(job, service)
        connection = GrpcConnection(site.server.address, keys=keys, job=job)
        site.opened.append(connection)
        sessions.append(connection.session(Join("north", "1")))
        assert isinstance(next(sessions[-1]), Welcome)
    site.authority.revoke("north", now=utc_now())
    for session in sessions:
        assert refusal(next, session)[0] == "revoked"
    for service in services.values():
        service.wait_until(lambda service=service: not service.connected)  # type: ignore[misc]
        assert [name for name, _, _ in service.refused_certificates] == ["north"]
