"""The page's TLS: a silent peer is cut in time, and a renewed certificate is taken without a restart."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from cryptography import x509

from flcore.errors import CertificateError
from flcore.identity.authority import Authority
from flcore.identity.certificate import utc_now
from flcore.web import RunSource, WebServer
from tests.flcore.web.small_client import PageClient
from tests.flcore.web.synthetic_job import SyntheticJob

TIMEOUT_S = 60.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "hospitals", ["localhost"], now=utc_now())


@pytest.fixture
def page(authority: Authority) -> Iterator[PageClient]:
    job = SyntheticJob()
    with WebServer(RunSource(job.board, job.contract, None), certificates=authority.directory / "server") as server:
        assert server.url.startswith("https://")
        yield PageClient(server.url)


def certificate_of(page: PageClient, certificates: Path, name: str | None = "localhost") -> int:
    """Return the serial number of the certificate that the page shows, after a request over it."""
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.check_hostname = name is not None
    with (
        socket.create_connection(page.place, TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert secure.recv(12) == b"HTTP/1.1 200"
        shown = secure.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_a_peer_without_a_handshake_is_cut(monkeypatch: pytest.MonkeyPatch, authority: Authority, sent: bytes) -> None:
    """An event loop waits 60 s for a handshake, if nobody says otherwise."""
    monkeypatch.setattr("flcore.web.event_loop.REQUEST_TIMEOUT_S", 0.2)
    job = SyntheticJob()
    with (
        WebServer(RunSource(job.board, job.contract, None), certificates=authority.directory / "server") as server,
        socket.create_connection(PageClient(server.url).place, 30) as silent,
    ):
        silent.sendall(sent)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("name", ["localhost", None])
def test_a_renewed_certificate_is_taken_without_a_restart(
    page: PageClient, authority: Authority, name: str | None
) -> None:
    certificates = authority.directory / "server"
    first = certificate_of(page, certificates, name)
    assert certificate_of(page, certificates, name) == first
    authority.renew_server(now=utc_now())
    renewed = certificate_of(page, certificates, name)
    assert renewed != first
    (certificates / "server.pem").write_text("no certificate\n")
    assert certificate_of(page, certificates, name) == renewed, "a file that is wrong changes nothing"


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    job = SyntheticJob()
    (tmp_path / "server.pem").write_text("no certificate\n")
    with pytest.raises(CertificateError, match=r"server\.pem: expected the server's certificate and its key"):
        WebServer(RunSource(job.board, job.contract, None), certificates=tmp_path)
