"""The port of a server on this machine."""

from flcore_transport import GrpcServer

from flcore.doctor.result import CheckResult
from flcore.errors import FlcoreError


def check_port_free(host: str, port: int) -> CheckResult:
    """Check that a server can listen on a port of this machine now."""
    try:
        GrpcServer.require_free(host, port)
    except FlcoreError as error:
        found, _, advice = str(error).partition("; ")
        return CheckResult("port", "failed", found, advice or "choose another address or port (flcore server --port)")
    return CheckResult("port", "ok", f"a server can listen on {host}:{port}")
