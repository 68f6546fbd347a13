"""Mutual TLS for the transport: the keys of a server and its checks of clients; the keys of a client."""

from pathlib import Path

from flcore_transport import PeerCertificate, Refused, TlsKeys

from flcore.errors import IdentityRefused
from flcore.identity.credentials import ClientCertificates, ServerCertificates, ServerCertificateWatch
from flcore.identity.names import Identity


class FederationTls:
    """A server's side of mutual TLS, from its directory (see `flcore.identity.credentials`): the `ServerTls` of flcore.

    A renewed certificate and a changed deny list take effect without a restart.

    Raises:
        CertificateError: The directory cannot be used; the message says what to do.
    """

    def __init__(self, directory: Path) -> None:
        self._watch = ServerCertificateWatch(directory)  # first, so that no renewal is missed
        self.certificates = ServerCertificates.load(directory)
        self._keys = TlsKeys(self.certificates.key_pem, self.certificates.chain_pem, self.certificates.root_pem)

    def keys(self) -> TlsKeys:
        """Return the server's keys; the same object until they are renewed."""
        if renewed := self._watch.poll():
            self._keys = TlsKeys(*renewed, self.certificates.root_pem)
        return self._keys

    def identify(self, certificate: PeerCertificate) -> Identity:
        """Return the client, lead or admin of a certificate. Raises `Refused`: revoked, expired, a server's, other CA.

        The transport opens sessions to clients only, and asks to all three.
        """
        try:
            return self.certificates.peers.identify(certificate.pem)
        except IdentityRefused as error:
            raise Refused(error.reason, str(error)) from error


def client_keys(certificates: ClientCertificates) -> TlsKeys:
    """Return a client's keys as the transport takes them."""
    return TlsKeys(certificates.key_pem, certificates.chain_pem, certificates.root_pem)
