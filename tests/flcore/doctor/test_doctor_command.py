"""`flcore doctor`: plain lines, a table, JSON, its exit code, and checks that cannot run."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from flcore_transport import GrpcServer
from rich.console import Console

from flcore.cli import doctor
from flcore.doctor import CheckResult, run_checks
from flcore.federation.ping import answer_pings
from flcore.identity.names import Role
from flcore.identity.tls import FederationTls
from tests.flcore.command import said
from tests.flcore.lead.kits import federation_authority, unpacked_kit
from tests.flcore.processes import free_port
from tests.transport.conftest import RecordingService

MACHINE = {
    *("python", "packages", "kernel cache", "open files", "memory"),
    *("overcommit", "huge pages", "disk space", "file system", "disk rate"),
}

GOOD = [CheckResult("memory", "ok", "8 GiB"), CheckResult("disk", "warning", "slow", "buy another one")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[CheckResult]:
    """The results on this machine, which depend on it."""
    results = list(GOOD)
    monkeypatch.setattr(doctor, "_check_machine", lambda *_: list(results))
    return results


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The port of a server of one job, and a kit."""
    authority = federation_authority(tmp_path)
    serving = GrpcServer(RecordingService(), answer=answer_pings, tls=FederationTls(authority.server_directory))
    yield serving.address.replace("127.0.0.1", "localhost"), unpacked_kit(authority, tmp_path, "north", Role.CLIENT)
    serving.close("the test is over")


def test_this_machine_is_checked(tmp_path: Path) -> None:
    port = free_port()
    told = json.loads(said("doctor", "--dir", ".", "--clients", "1", "--port", str(port), "--json", cwd=tmp_path))
    assert {check["name"] for check in told["checks"]} == MACHINE | {"port"}
    assert told["failed"] == 0 and {"name", "outcome", "found", "advice"} == set(told["checks"][0])


def test_a_check_that_fails_is_exit_code_1_and_says_what_to_do(machine: list[CheckResult], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        printed = said("doctor", "--port", port, cwd=tmp_path, code=1).splitlines()
    assert printed[:2] == ["ok       memory: 8 GiB", "warning  disk: slow; buy another one"]
    assert printed[2].startswith(f"failed   port: cannot listen on 0.0.0.0:{port}: address already in use; ")
    machine.append(CheckResult("x", "failed", "y"))
    told = json.loads(said("doctor", "--port", str(free_port()), "--json", cwd=tmp_path, code=1))
    assert told["failed"] == 1


def test_warnings_alone_are_exit_code_0(machine: list[CheckResult], tmp_path: Path) -> None:
    assert "warning  disk" in said("doctor", "--port", str(free_port()), cwd=tmp_path)


def test_a_kit_is_checked_and_the_way_to_its_server(
    machine: list[CheckResult], server: tuple[str, Path], tmp_path: Path
) -> None:
    address, kit = server
    told = json.loads(said("doctor", "--kit", str(kit), "--server", address, "--json", cwd=tmp_path))
    checks = {check["name"]: check["outcome"] for check in told["checks"][2:]}
    assert list(checks) == ["certificate", "port", "server", "clock", "download", "upload"]
    assert checks["certificate"] == checks["port"] == "ok" and told["failed"] == 0
    (kit / "client.key").chmod(0o644)
    printed = said("doctor", "--kit", str(kit), "--server", address, cwd=tmp_path, code=1)
    assert "failed   certificate" in printed and "server:" not in printed
    printed = said("doctor", "--certs", str(tmp_path / "certs/server"), "--port", str(free_port()), cwd=tmp_path)
    assert "ok       certificate: the server of hospitals" in printed


def test_without_a_kit_a_server_is_reached_over_tcp_or_in_plaintext(
    machine: list[CheckResult], server: tuple[str, Path], tmp_path: Path
) -> None:
    printed = said("doctor", "--server", server[0], cwd=tmp_path)
    assert "ok       port" in printed and "clock" not in printed
    printed = said("doctor", "--server", server[0], "--insecure", cwd=tmp_path, code=1)
    assert "failed   server" in printed, "it speaks TLS"
    printed = said("doctor", "--server", f"localhost:{free_port()}", "--insecure", cwd=tmp_path, code=1)
    assert "connection refused" in printed and "failed   server" not in printed


def test_options_that_do_not_go_together(machine: list[CheckResult], tmp_path: Path) -> None:
    assert "it goes with --server" in said("doctor", "--insecure", cwd=tmp_path, code=2)
    assert "--server" in said("doctor", "--server", "nowhere", cwd=tmp_path, code=2)


def test_a_check_that_cannot_run_has_failed_and_the_others_run() -> None:
    def broken() -> CheckResult:
        raise PermissionError(13, "Permission denied", "/proc/x")

    first, second = run_checks([("memory", broken), ("disk", lambda: GOOD[1])])
    assert (first.name, first.outcome) == ("memory", "failed") and "Permission denied" in first.found
    assert second is GOOD[1]


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=100, record=True, no_color=True)
    monkeypatch.setattr(doctor, "Console", lambda **_: console)
    doctor._print(GOOD)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["check", "found", "what", "to", "do"]
    assert lines[1:3] == [["ok", "memory", "8", "GiB"], ["warning", "disk", "slow", "buy", "another", "one"]]


def test_the_page_describes_each_check() -> None:
    """docs/doctor.md: its commands are parsed by `tests/test_docs.py`, and run above; its tables name each check."""
    page = (Path(__file__).parents[3] / "docs/doctor.md").read_text()
    named = {name for row in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    way = {"server", "clock", "download", "upload"}
    assert named == MACHINE | {"port"} | way and "`certificate`" in page
