"""Why a connection to a server fails, in words: gRPC says no more than that the connection is gone."""

import socket
import ssl
import threading
from typing import Any

from flcore_transport.errors import ConnectionLost, TransportError, WrongServer
from flcore_transport.grpc_channel import split_address
from flcore_transport.identity import TlsKeys

PROBE_TIMEOUT_S = 3.0
"""Seconds for each probe that finds out why the server cannot be used."""

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes of an HTTP/2 client: the preface, and an empty SETTINGS frame."""

FRAME_HEADER_BYTES, SETTINGS_FRAME = 9, 4

OUT_OF_DATE = (9, 10)
"""OpenSSL's codes for certificates that are not yet valid, or have expired."""

OTHER_NAME = (62, 64)
"""OpenSSL's codes for certificates of another host name, or another IP address."""


def unreachable_reason(address: str) -> str:
    """Return why `address` (`"host:port"`) cannot be reached, or "" if it can. Waits `PROBE_TIMEOUT_S` at most."""
    host, port = split_address(address)
    reasons = [f"no answer within {PROBE_TIMEOUT_S:g} s"]

    def probe() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            _, _, _, _, (name, number, *_) = found[0]
            socket.create_connection((str(name), int(number)), timeout=PROBE_TIMEOUT_S).close()
            reasons[0] = ""
        except (socket.gaierror, UnicodeError) as error:
            reasons[0] = f"the name {host!r} is not known ({getattr(error, 'strerror', error)})"
        except OSError as error:
            reasons[0] = f"{error.strerror or error}".lower()

    probing = threading.Thread(target=probe, daemon=True)
    probing.start()
    probing.join(PROBE_TIMEOUT_S)
    return reasons[0]


def reached_server_error(address: str, keys: TlsKeys | None) -> TransportError:
    """Return why a server does not answer calls though it can be reached: `WrongServer` if no retry helps.

    No client certificate is sent, so the refusal of the client's own certificate is not detected.
    """
    if keys is not None:
        return _tls_error(address, keys.root_certificates)
    if _speaks_tls(address):
        return WrongServer(
            f"{address} speaks TLS, and plaintext was asked for; leave --insecure out, and give the kit (--kit KIT, or "
            "for the commands of a lead its profile)"
        )
    return ConnectionLost(f"{address} can be reached, but no flcore server answers there")


def _tls_error(address: str, root_certificates: bytes) -> TransportError:
    host, _ = split_address(address)
    context = ssl.create_default_context(cadata=root_certificates.decode("ascii"))
    try:
        with _connect(address) as connected, _wrap(context, connected, host):
            reason = (
                "it refused this client's certificate, or no flcore server answers there: is the certificate of its "
                "CA, and has it expired?"
            )
    except ssl.SSLCertVerificationError as error:
        return WrongServer(
            f"{address} can be reached, but its certificate is not trusted ({error.verify_message}): "
            f"{_certificate_advice(error.verify_code, context)}"
        )
    except ssl.SSLEOFError:
        reason = "it closed the connection during the TLS handshake (if it is a proxy: does the server behind it run?)"
    except ssl.SSLError as error:
        reason = f"it does not speak TLS 1.3 ({error.reason or error})"
    except OSError as error:
        reason = f"it ended the handshake ({(error.strerror or str(error)).lower()})"
    else:
        return ConnectionLost(f"{address} can be reached, but {reason}")
    if _speaks_plaintext(address):
        return WrongServer(
            f"{address} can be reached, but it does not speak TLS 1.3: it answers in plaintext; start it without "
            "--insecure, or leave the kit out and give --insecure, which is for a server on this machine"
        )
    return ConnectionLost(f"{address} can be reached, but {reason}")


def _certificate_advice(code: int, context: ssl.SSLContext) -> str:
    if code in OUT_OF_DATE:
        return "ask its operator to renew it (flcore certs renew --server), and check this machine's clock"
    if code in OTHER_NAME:
        return (
            "connect with a name that it has (--server HOST:PORT), or ask its operator to add this one (flcore certs "
            "renew --server --host NAME)"
        )
    return (
        f"expected one of {_authorities(context)}; is it a server of this client's federation? Use the kit of its "
        "federation, or correct the address (--server HOST:PORT)"
    )


def _speaks_tls(address: str) -> bool:
    """Whether a server completes its half of a TLS handshake, with any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent to it
    try:
        with _connect(address) as connected, _wrap(context, connected, split_address(address)[0]):
            return True
    except OSError:
        return False


def _speaks_plaintext(address: str) -> bool:
    """Whether a server answers HTTP/2 without TLS."""
    try:
        with _connect(address) as connected:
            connected.sendall(HTTP2_PREFACE)
            received = connected.recv(FRAME_HEADER_BYTES, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(received) == FRAME_HEADER_BYTES and received[3] == SETTINGS_FRAME


def _connect(address: str) -> socket.socket:
    return socket.create_connection(split_address(address), timeout=PROBE_TIMEOUT_S)


def _wrap(context: ssl.SSLContext, connected: socket.socket, host: str) -> ssl.SSLSocket:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(connected, server_hostname=host)


def _authorities(context: ssl.SSLContext) -> str:
    """Return the names of the authorities that a context trusts."""
    authorities: list[Any] = context.get_ca_certs()
    fields = [field for authority in authorities for part in authority["subject"] for field in part]
    names = [ascii(value) for name, value in fields if name == "commonName"]
    return f"the authority {' or '.join(names) or 'that this client was given'}"
