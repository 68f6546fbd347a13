"""The errors of the transport.

TransportError
├── ProtocolMismatch      the other end speaks another version of the protocol
├── PieceError            a piece is corrupt, truncated, out of order or not as announced
├── PayloadIncomplete     a payload ended before its last piece
├── ConnectionLost        the connection is lost; the call can be retried
│   ├── CorruptMessage    a control message does not match its checksum
│   └── Unreachable       nothing listens at the server's address, or nothing answers there
├── WrongServer           the server is not the expected one, so no retry helps: an untrusted certificate, TLS or not
├── AddressUnavailable    the server cannot listen on its address
├── InsecureAddress       plaintext to or from another machine, without the option that allows it
└── Refused               the other end refused the call: `kind` is for programs, the message for people
"""

from flcore_layout import FlcoreError


class TransportError(FlcoreError):
    """The root of the transport's errors."""


class ProtocolMismatch(TransportError):
    """The other end speaks another version of the protocol."""


class PieceError(TransportError):
    """A piece is corrupt, truncated, out of order or not as announced."""


class PayloadIncomplete(TransportError):
    """A payload ended before its last piece."""


class ConnectionLost(TransportError):
    """The connection is lost. The call can be retried."""


class CorruptMessage(ConnectionLost):
    """A control message does not match its checksum. The receiver uses nothing of it, and the call can be retried."""

    kind = "corrupt-message"


class Unreachable(ConnectionLost):
    """No connection to the server's address can be made. The call can be retried."""


class WrongServer(TransportError):
    """The server is not the expected one: its certificate is not trusted, or one end alone speaks TLS.

    A retry does not help.
    """


class AddressUnavailable(TransportError):
    """The server cannot listen on its address."""


class InsecureAddress(TransportError):
    """Plaintext to or from another machine, without the option that allows it."""


class Refused(TransportError):
    """The other end refused the call: `kind` is for programs, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
