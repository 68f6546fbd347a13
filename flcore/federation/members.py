"""The table of roles for sessions: a client with the role "none" joins neither the lobby nor a job."""

from flcore_layout import Layout
from flcore_transport import (
    UNKNOWN_SESSION,
    ClientLink,
    Identity,
    IncomingUpload,
    Outbox,
    PeerCertificate,
    Refused,
    ServerTls,
    Service,
    TlsKeys,
)

from flcore.federation.roles import Roles
from flcore.identity.names import Role

CLIENT_WITHOUT_ROLE = "role"
"""The kind of the refusal of a certificate whose holder has no role any more."""


class MembersTls:
    """A `ServerTls` that refuses the certificates of clients with the role "none", as if they were revoked.

    So their open sessions end, too: the transport looks at each certificate twice a second. A table that cannot be read
    ends no session; joins are then refused by `MembersOnly`.

    Args:
        tls: The server's side of mutual TLS.
        roles: The table.
    """

    def __init__(self, tls: ServerTls, roles: Roles) -> None:
        self._tls, self._roles = tls, roles

    def keys(self) -> TlsKeys:
        """Return the server's keys."""
        return self._tls.keys()

    def identify(self, certificate: PeerCertificate) -> Identity:
        """Return the identity of a certificate. Raises `Refused`, also for a client without a role."""
        identity = self._tls.identify(certificate)
        if identity.role == Role.CLIENT and self._roles.is_barred(identity.name):
            raise Refused(CLIENT_WITHOUT_ROLE, _no_role(identity.name))
        return identity


class MembersOnly:
    """A `Service` that is another one for all clients but those that `roles.toml` takes the role from.

    The table is looked at when a client joins, and when it begins a transfer. Sessions that are open are ended by
    `MembersTls`; over plaintext, where nobody has an identity, they stay.

    Args:
        service: The service.
        roles: The table.
    """

    def __init__(self, service: Service, roles: Roles) -> None:
        self._service, self._roles = service, roles

    def authorize(self, client: str) -> None:
        """Raise `Refused` unless the client has a role, and the service lets it join.

        While the table cannot be read, the kind of the refusal is one after which clients join again.
        """
        try:
            self._require_role(client)
        except Refused as error:
            raise Refused(UNKNOWN_SESSION, str(error)) if error.kind == "roles" else error from None
        self._service.authorize(client)

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit an authorized client."""
        return self._service.admit(client, content)

    def join_refused(self, client: str, reason: str) -> None:
        """Pass on that a join was refused."""
        self._service.join_refused(client, reason)

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        """Pass on that a call was refused."""
        self._service.call_refused(client, fingerprint, kind, reason)

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        """Pass on that a session was ended."""
        self._service.certificate_refused(client, fingerprint, reason)

    def client_connected(self, client: str, link: ClientLink) -> None:
        """Pass on that a client can be reached."""
        self._service.client_connected(client, link)

    def client_disconnected(self, client: str) -> None:
        """Pass on that a client cannot be reached any more."""
        self._service.client_disconnected(client)

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:
        """Return the payload of a client's assignment."""
        self._require_still(client)
        return self._service.begin_download(client, assignment_id, token)

    def begin_upload(
        self, client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout
    ) -> IncomingUpload:
        """Begin or resume the upload of a client's answer."""
        self._require_still(client)
        return self._service.begin_upload(client, assignment_id, token, content, layout)

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        """Pass on that a client has reported a failure."""
        self._service.task_failed(client, assignment_id, token, message)

    def _require_still(self, client: str) -> None:
        """Raise `Refused` if the role was taken since the join. A table that cannot be read ends no running job."""
        try:
            self._require_role(client)
        except Refused as error:
            if error.kind != "roles":
                raise

    def _require_role(self, client: str) -> None:
        if self._roles.caller(client, "client", "").role == "none":
            raise Refused("not-allowed", _no_role(client))


def _no_role(client: str) -> str:
    return f"client {client!r} has the role none at this server; ask the federation's operator for a role"
