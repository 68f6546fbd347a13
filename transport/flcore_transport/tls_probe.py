"""Why a TLS connection to a server fails, in words: gRPC says no more than that the connection is gone."""

import socket
import ssl


def tls_failure_reason(host: str, port: int, root_certificates: bytes, timeout_s: float) -> str:
    """Return why TLS with a server that can be reached fails, or "" if the server's half of the handshake succeeds.

    No client certificate is sent, so the refusal of the client's own certificate is not detected.
    """
    context = ssl.create_default_context(cadata=root_certificates.decode("ascii"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as connected,
            context.wrap_socket(connected, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message}): is it a server of this client's federation?"
    except ssl.SSLEOFError:
        return "it closed the connection during the TLS handshake (if it is a proxy: does the server behind it run?)"
    except ssl.SSLError as error:
        return f"it does not speak TLS 1.3 ({error.reason or error})"
    except OSError as error:
        return f"it ended the handshake ({(error.strerror or str(error)).lower()})"
