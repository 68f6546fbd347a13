"""The page's TLS: the server's certificate, and each renewed one without a restart."""

import logging
import ssl
from pathlib import Path

from flcore.errors import CertificateError
from flcore.identity.credentials import ServerCertificateWatch

logger = logging.getLogger(__name__)


class PageTls:
    """The TLS of the page. Each connection gets the newest certificate, by the rules of `ServerCertificateWatch`.

    Args:
        directory: The directory of the server's certificates, with `server.pem` and `ca.pem`.

    Attributes:
        context: What the event loop's server takes.

    Raises:
        CertificateError: `server.pem` cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "server.pem"
        self._watch = ServerCertificateWatch(directory)  # first, so that no renewal is missed
        self._newest = self.context = self._read()
        self.context.sni_callback = self._choose  # called for each handshake, also for one without a name

    def _choose(self, connection: ssl.SSLObject, *_: object) -> None:
        if self._watch.poll():
            try:
                self._newest = self._read()
            except CertificateError as error:  # replaced again at this moment; the watch sees that, too
                logger.warning("%s (the web page keeps the certificate that it has)", error)
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._path)
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(
                f"{self._path}: expected the server's certificate and its key, got {error}; make them with `flcore "
                "certs`, or leave --web out"
            ) from error
        return context
