"""Mutual TLS over gRPC: the credentials of both ends, and the certificate that a call was made with.

gRPC's Python API has no setting for the lowest version of TLS and none for revocation lists. So the server looks at the
version and the certificate of each call (`peer_certificate`) before it reads the call's first message.
"""

from typing import Any

import grpc
import grpc.aio

from flcore_transport.errors import Refused
from flcore_transport.grpc_workers import Context
from flcore_transport.identity import PeerCertificate, ServerTls, TlsKeys

MINIMUM_TLS = "TLSv1.3"


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return credentials that ask each client for a certificate, and follow the server's keys when they are renewed."""
    current = tls.keys()

    def fetch() -> Any:  # None: nothing has changed; the types of gRPC lack it
        nonlocal current
        latest = tls.keys()
        if latest is current:
            return None
        current = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(_configuration(current), fetch, require_client_authentication=True)


def channel_credentials(keys: TlsKeys) -> grpc.ChannelCredentials:
    """Return a client's credentials: it presents its certificate, and takes a server of its CA only."""
    return grpc.ssl_channel_credentials(keys.root_certificates, keys.private_key, keys.certificate_chain)


def peer_certificate(context: Context) -> PeerCertificate:
    """Return the certificate that a call was made with, and its version of TLS."""
    properties = context.auth_context()
    version = b"".join(properties.get("ssl_tls_version", ())).decode("ascii", "replace")
    return PeerCertificate(b"".join(properties.get("x509_pem_cert", ())), version)


def require_tls_version(certificate: PeerCertificate) -> None:
    """Raise `Refused` unless the certificate's connection is TLS 1.3."""
    if certificate.tls_version != MINIMUM_TLS:
        raise Refused(
            "tls-version", f"expected {MINIMUM_TLS}, the connection has {certificate.tls_version or 'no TLS'}"
        )


def _configuration(keys: TlsKeys) -> grpc.ServerCertificateConfiguration:
    pair = (keys.private_key, keys.certificate_chain)
    return grpc.ssl_server_certificate_configuration([pair], keys.root_certificates)
