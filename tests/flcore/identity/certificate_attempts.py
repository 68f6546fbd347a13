"""Attempts with certificates: each function returns what one client presents, or what prepares such an attempt."""

import dataclasses
import ipaddress
from collections.abc import Callable
from functools import partial

from cryptography import x509
from flcore_transport import GrpcServer, Join, PeerCertificate, TlsKeys

from flcore.identity.certificate import utc_now
from flcore.identity.credentials import ServerCertificates
from flcore.identity.names import Role
from tests.flcore.identity.certificates import SERVER_AUTH, uri
from tests.flcore.identity.federation_site import FederationSite
from tests.flcore.identity.forged import Signer, chained, member, sign, subject

Attempt = Callable[[], object]
Prepare = Callable[[FederationSite], Attempt]


def presents(make: Callable[[FederationSite], TlsKeys | Signer], name: str = "alice") -> Prepare:
    """Join under a name with a certificate."""

    def prepare(site: FederationSite) -> Attempt:
        keys = make(site)
        site.require_sound_pair(keys)
        return partial(site.join, keys, name)

    return prepare


def own(*names: str, **how: object) -> Prepare:
    """Join with a certificate that the federation's own authority has signed."""
    return presents(lambda site: sign(site.home, subject("CN=alice"), [uri(name) for name in names], **how))  # type: ignore[arg-type]


def mapped(text: str, *names: str, name: str = "north") -> Prepare:
    """Join with a certificate of the authority whose certificates are mapped."""
    return presents(lambda site: sign(site.north, subject(text), [x509.DNSName(each) for each in names]), name)


def claims(name: str, **more: object) -> Prepare:
    """Join with one's own certificate, and say something else in the join."""

    def prepare(site: FederationSite) -> Attempt:
        connection = site.connect(site.issue(site.fresh_name()))
        join = dataclasses.replace(Join(name, "1"), **more)  # type: ignore[arg-type]
        return lambda: next(connection.session(join))

    return prepare


def another_authority_of_the_same_name(site: FederationSite) -> Signer:
    return member(sign(None, site.home.certificate.subject, is_ca=True), "alice")


def client_certificate_as_authority(site: FederationSite) -> TlsKeys:
    mallory = member(site.home, "mallory")
    return chained(member(mallory, "alice"), mallory)


def through_intermediate(site: FederationSite) -> TlsKeys:
    between = sign(site.north, subject("CN=between"), is_ca=True)
    return chained(sign(between, subject("CN=fl,O=North")), between)


def without_intermediate(site: FederationSite) -> TlsKeys:
    return sign(sign(site.north, subject("CN=between"), is_ca=True), subject("CN=fl,O=North")).keys


def intermediate_of_our_own(site: FederationSite) -> TlsKeys:
    between = sign(site.home, subject("CN=between"), is_ca=True)
    return chained(member(between, "alice"), between)


def issued_as(role: Role) -> Callable[[FederationSite], TlsKeys]:
    def make(site: FederationSite) -> TlsKeys:
        pair = site.authority.issue(site.fresh_name(), role, now=utc_now())
        return TlsKeys(pair.key_pem, pair.certificate.pem, site.home.pem)

    return make


def server_pair(site: FederationSite) -> TlsKeys:
    certificates = ServerCertificates.load(site.directory)
    return TlsKeys(certificates.key_pem, certificates.chain_pem, site.home.pem)


class FixedKeys:
    """The TLS of an impostor's server, which asks nobody who he is."""

    def __init__(self, keys: TlsKeys) -> None:
        self._keys = keys

    def keys(self) -> TlsKeys:
        return self._keys

    def identify(self, certificate: PeerCertificate) -> object:
        raise AssertionError("the client has made a call")


def meets_server(make: Callable[[FederationSite], Signer]) -> Prepare:
    """Join a server with another certificate; the client must not say a word to it."""

    def prepare(site: FederationSite) -> Attempt:
        pair = make(site).keys
        tls = FixedKeys(TlsKeys(pair.private_key, pair.certificate_chain, site.home.pem))
        server = GrpcServer(site.service, tls=tls)  # type: ignore[arg-type]
        keys = site.issue(site.fresh_name())

        def join() -> None:
            try:
                site.join(keys, "alice", address=server.address)
            finally:
                server.close()

        return join

    return prepare


def server_of(
    issuer: Callable[[FederationSite], Signer | None], host: str = "127.0.0.1", **how: object
) -> Callable[[FederationSite], Signer]:
    def make(site: FederationSite) -> Signer:
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        names = [uri("flcore://hospitals/server/server"), name]
        return sign(issuer(site), subject("CN=server"), names, **{"uses": (SERVER_AUTH,)} | how)  # type: ignore[arg-type]

    return make


def home(site: FederationSite) -> Signer:
    return site.home


def nobody(_: FederationSite) -> Signer:
    return sign(None, subject("CN=nobody"), is_ca=True)
