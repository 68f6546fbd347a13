"""What can go wrong between two ends.

TransportError
├── ProtocolMismatch      the other end speaks another version of the protocol
├── PieceError            a piece that is corrupt, truncated, out of order or not what was announced
├── PayloadIncomplete     a payload that ended before its last piece
├── ConnectionLost        the other end is gone; what was sent may be sent again
├── AddressUnavailable    the server's address cannot be bound
├── InsecureAddress       plaintext was asked for beyond this machine
└── Refused               the other end said no, and why: `kind` is a word for programs, the message is for people
"""

from flcore_layout import FlcoreError


class TransportError(FlcoreError):
    """The root of everything that the transport raises on purpose."""


class ProtocolMismatch(TransportError):
    """The other end speaks another version of the protocol."""


class PieceError(TransportError):
    """A piece that is corrupt, truncated, out of order or not what was announced."""


class PayloadIncomplete(TransportError):
    """A payload ended before its last piece."""


class ConnectionLost(TransportError):
    """The other end is gone; what was sent may be sent again."""


class AddressUnavailable(TransportError):
    """The server's address cannot be bound."""


class InsecureAddress(TransportError):
    """Plaintext was asked for beyond this machine."""


class Refused(TransportError):
    """The other end said no: `kind` is a word for programs, the message is for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
