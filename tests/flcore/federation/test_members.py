"""The role none over TLS: the sessions of a client that is given it are ended, as if it were revoked."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore_transport import (
    GrpcConnection,
    GrpcServer,
    Join,
    PeerCertificate,
    Service,
    TransportError,
    Welcome,
    Withdrawal,
)

from flcore.aggregation.budget import Budget
from flcore.federation.members import MembersTls
from flcore.federation.roles import ROLES_FILE, Roles
from flcore.federation.standing_server import AnswerAsk, FederationSettings, StandingServer
from flcore.identity.credentials import ClientCertificates
from flcore.identity.names import Role
from flcore.identity.tls import FederationTls, client_keys
from flcore.job.messages import AgentJoinContent
from tests.flcore.federation.small_federation import refused
from tests.flcore.lead.kits import federation_authority, unpacked_kit

JOIN = AgentJoinContent(version="").to_bytes()


@contextmanager
def session(address: str, kit: Path, name: str) -> Iterator[tuple[threading.Event, list[TransportError]]]:
    """A site's session with the lobby, on a thread: an event of its welcome, and the error that ended it."""
    connection = GrpcConnection(address, keys=client_keys(ClientCertificates.load(kit)))
    joined, ended = threading.Event(), list[TransportError]()

    def listen() -> None:
        try:
            for message in connection.session(Join(name, "1", JOIN)):
                if isinstance(message, Welcome | Withdrawal):
                    joined.set()
        except TransportError as error:
            ended.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield joined, ended
        thread.join(20)
    finally:
        connection.close()
        thread.join(20)


def test_the_open_session_of_a_client_that_is_given_the_role_none_ends(tmp_path: Path) -> None:
    authority, directory = federation_authority(tmp_path), tmp_path / "federation"
    kits = {name: unpacked_kit(authority, tmp_path, name, Role.CLIENT) for name in ("north", "south")}
    tls = FederationTls(authority.server_directory)

    def listen(service: Service, answer: AnswerAsk) -> GrpcServer:
        return GrpcServer(service, answer=answer, tls=MembersTls(tls, Roles(directory / ROLES_FILE)))

    with StandingServer(directory, listen, FederationSettings(Budget(256 << 20))) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        with session(address, kits["south"], "south") as (south_joined, south_ended):
            with session(address, kits["north"], "north") as (north_joined, north_ended):
                assert north_joined.wait(20) and south_joined.wait(20)
                (directory / ROLES_FILE).write_text('[client]\nnorth = "none"\n')
            (error,) = north_ended
            with refused("role", "client 'north' has the role none at this server; ask the federation's operator"):
                raise error
            with session(address, kits["north"], "north") as (_, again):
                pass
            with refused("role", "client 'north' has the role none"):
                raise again[0]
            assert south_ended == []
            server.close()
    entries = (directory / "audit.jsonl").read_text()
    assert entries.count('"event":"revocation"') == 1 and entries.count('"event":"call-refused"') == 1


def test_a_table_that_cannot_be_read_ends_no_session(tmp_path: Path) -> None:
    authority, table = federation_authority(tmp_path), tmp_path / ROLES_FILE
    tls = MembersTls(FederationTls(authority.server_directory), Roles(table))
    kit = unpacked_kit(authority, tmp_path, "north", Role.CLIENT)
    certificate = PeerCertificate(ClientCertificates.load(kit).chain_pem, "TLSv1.3")
    table.write_text('[client]\nnorth = "none"\n')
    with refused("role"):
        tls.identify(certificate)
    table.write_text("[client")
    assert tls.identify(certificate).name == "north"
    table.write_text('[lead]\nnorth = "none"\n')
    assert tls.identify(certificate).name == "north", "a lead of that name is somebody else"
