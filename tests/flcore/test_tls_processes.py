"""Mutual TLS with real processes: from nothing to a federation, through a proxy, and out of it again.

The commands of README.md and docs/real-machines.md are run here as they are printed, with another host and port: a
standing federation, and a server of one job.
"""

import json
import shutil
import socket
import time
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from flcore import load
from tests.flcore.command import flcore, said
from tests.flcore.network import network_to
from tests.flcore.processes import free_port, read_until, started, write_slow_job, write_small_job
from tests.test_readme import blocks, commands

ROOT = Path(__file__).parents[2]
ROUNDS = 12
CLIENTS = ('"one", "two", "three"', '"north", "south"')


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small`, a job of twelve rounds, and the certificates of a federation."""
    folder = tmp_path_factory.mktemp("prepared")
    write_slow_job(folder, ROUNDS)
    said("certs", "init", "hospitals", "--host", "localhost", cwd=folder)
    return folder


@pytest.fixture
def operator(prepared: Path, tmp_path: Path) -> Path:
    """The server's directory, with the job and the certificates."""
    return shutil.copytree(prepared, tmp_path / "operator")


def site(operator: Path, name: str, port: int) -> Path:
    """Return another directory, of a client: its unpacked kit, and the job."""
    said("certs", "issue", name, "--address", f"localhost:{port}", cwd=operator)
    return unpacked(operator, "small", name)


def unpacked(operator: Path, job: str, name: str) -> Path:
    """Return a client's directory, with the job and the client's kit, unpacked."""
    folder = operator.parent / f"site-{name}"
    shutil.copytree(operator / job, folder / job)
    with zipfile.ZipFile(operator / f"certs/kits/{name}.zip") as kit:
        kit.extractall(folder)
    for key in folder.glob("*/*.key"):
        key.chmod(0o600)  # as `unzip` does
    return folder


def serve(port: int, *options: str) -> tuple[str, ...]:
    return ("-m", "flcore", "server", "small", "--port", str(port), *options)


def join(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", "flcore", "client", "small", "--kit", name, *options)


def printed(page: str, text: str) -> list[list[str]]:
    """Return the commands of the block on a page that has a text."""
    (block,) = [script for script in blocks("sh", (ROOT / page).read_text()) if text in script]
    return commands(block.replace("fl.example.org", "localhost"))


def write_my_job(folder: Path, rounds: int) -> None:
    """Write a job of two clients, north and south."""
    write_small_job(folder)
    (folder / "small").rename(folder / "myjob")
    contract = folder / "myjob/job.toml"
    contract.write_text(contract.read_text().replace("rounds = 100000", f"rounds = {rounds}").replace(*CLIENTS))
    contract.write_text(contract.read_text().replace('name = "small"', 'name = "myjob"'))


def test_from_nothing_to_a_standing_federation_as_printed(tmp_path: Path) -> None:
    """The operator's three commands, a site's, and the lead's. Each kit lies in a directory of its own."""
    init, issue, server = [command[1:] for command in printed("README.md", "flcore certs init")]
    port, operator = free_port(), tmp_path / "operator"
    operator.mkdir()
    write_my_job(operator, 2)
    for command in (init, [*issue, "--address", f"localhost:{port}"]):
        said(*command, cwd=operator)
    with ExitStack() as stack:
        serving = stack.enter_context(started("-m", "flcore", *server, "--port", str(port), cwd=operator))
        read_until(serving, "listening on")
        for name in ("north", "south"):
            unzip, client = printed("README.md", "unzip north.zip")
            assert unzip == ["unzip", "north.zip"]
            named = [word.replace("north", name) for word in client[1:]]
            stack.enter_context(started("-m", "flcore", *named, cwd=unpacked(operator, "myjob", name)))
        unzip, *leads = printed("README.md", "unzip alice.zip")
        assert unzip == ["unzip", "alice.zip"]
        lead = unpacked(operator, "myjob", "alice")
        for command in leads:
            flcore(*command[1:], cwd=lead)
    (run,) = (operator / "federation/jobs").glob("*/run")
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    (model,) = lead.glob("myjob-1/**/model.safetensors")
    assert (load(model)["w"] == load(run / "model.safetensors")["w"]).all()


def test_from_nothing_to_a_server_of_one_job_as_printed(tmp_path: Path) -> None:
    """The operator's three commands, and the two of each site, whose kit lies in another directory."""
    init, issue, server = [command[1:] for command in printed("docs/real-machines.md", "flcore certs init")]
    unzip, client = printed("docs/real-machines.md", "unzip north.zip")
    port = free_port()
    assert unzip == ["unzip", "north.zip"]
    operator = tmp_path / "operator"
    operator.mkdir()
    write_my_job(operator, 2)
    for command in (init, [*issue, "--address", f"localhost:{port}"]):
        said(*command, cwd=operator)
    with started("-m", "flcore", *server, "--port", str(port), cwd=operator) as serving:
        read_until(serving, "the first round begins")
        north, south = (unpacked(operator, "myjob", name) for name in ("north", "south"))
        southern = [word.replace("north", "south") for word in client[1:]]
        with (
            started("-m", "flcore", *client[1:], cwd=north) as first,
            started("-m", "flcore", *southern, cwd=south) as second,
        ):
            assert serving.wait(60) == 0
            assert first.wait(60) == second.wait(60) == 0


def test_a_job_over_tls_through_a_proxy_that_cuts_connections(operator: Path) -> None:
    port = free_port()
    with network_to(port) as proxy:
        one, two = (site(operator, name, proxy.port) for name in ("one", "two"))
        with started(*serve(port), cwd=operator) as server:
            printed = read_until(server, "the first round begins")
            assert "TLS: the federation hospitals" in printed
            with started(*join("one"), cwd=one) as first, started(*join("two"), cwd=two) as second:
                read_until(server, f"round 2/{ROUNDS}")
                proxy.cut()
                time.sleep(1)
                proxy.mend()
                assert server.wait(60) == 0
                assert first.wait(60) == second.wait(60) == 0
    assert load(operator / "runs/small/model.safetensors")["w"][0] == ROUNDS


def test_a_revoked_client_leaves_at_once_and_the_others_go_on(operator: Path) -> None:
    port, code, go_on = free_port(), operator / "small/small.py", operator / "go-on"
    wait = f"while task.round == 3 and not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.02)"
    code.write_text("import pathlib\n" + code.read_text().replace("time.sleep(0.3)", wait))
    sites = [site(operator, name, port) for name in ("one", "two", "three")]
    with started(*serve(port, "--wait-for", "3"), cwd=operator) as server:
        read_until(server, "the first round begins")
        with (
            started(*join("one"), cwd=sites[0]) as one,
            started(*join("two"), cwd=sites[1]) as two,
            started(*join("three"), cwd=sites[2]) as three,
        ):
            read_until(server, f"round 2/{ROUNDS}")
            said("certs", "revoke", "three", cwd=operator)
            # While it trains; without a grace, as it cannot come back.
            read_until(server, "the certificate of client three is revoked")
            go_on.touch()
            printed = three.communicate(timeout=60)[0]
            assert three.returncode == 1
            assert "revoked" in printed
            assert server.wait(60) == 0
            assert one.wait(60) == two.wait(60) == 0
    assert load(operator / "runs/small/model.safetensors")["w"][0] == ROUNDS
    entries = [json.loads(line) for line in (operator / "runs/small/audit.jsonl").read_text().splitlines()]
    (revocation,) = [entry for entry in entries if entry["event"] == "revocation"]
    assert revocation["client"] == "three" and "revoked" in revocation["reason"]
    assert revocation["certificate"] in (operator / "certs/server/revoked.txt").read_text()


def test_a_client_of_another_federation_is_told_that_its_server_is_none_of_its_own(operator: Path) -> None:
    port = free_port()
    said("certs", "init", "banks", "--host", "localhost", "--dir", "banks", cwd=operator)
    said("certs", "issue", "one", "--dir", "banks", "--address", f"localhost:{port}", cwd=operator)
    with zipfile.ZipFile(operator / "banks/kits/one.zip") as kit:
        kit.extractall(operator)
    (operator / "one/client.key").chmod(0o600)
    with started(*serve(port), cwd=operator) as server:
        read_until(server, "the first round begins")
        with started(*join("one"), cwd=operator) as client:
            read_until(client, "its certificate is not trusted")
            assert client.wait(60) == 1


def test_strangers_write_nothing_into_the_log(operator: Path) -> None:
    port = free_port()
    with started(*serve(port), cwd=operator) as server:
        read_until(server, "the first round begins")
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with suppress(ConnectionError):
                    while stranger.recv(1024):  # until the server has hung up
                        pass
        server.kill()
        printed = server.communicate(timeout=60)[0]
    assert "andshake" not in printed, printed


@pytest.mark.parametrize(
    ("command", "told", "code"),
    [
        (("server", "small", "--certs", "nowhere"), "make them with `flcore certs init FEDERATION --host HOST`", 1),
        (("server", "small", "--certs", "certs"), "give certs/server", 1),
        (("client", "small"), "`flcore certs issue NAME`", 1),
        (("client", "small", "--kit", "certs/kits/one.zip"), "unpack it", 1),
        (("client", "small", "--kit", "nowhere"), "nowhere", 1),
        (("client", "small", "--kit", "nowhere", "--insecure"), "a kit is for TLS", 2),
        (("client", "small", "--insecure"), "expected --name and --server", 2),
    ],
)
def test_without_certificates_each_end_is_told_what_to_do(
    operator: Path, command: tuple[str, ...], told: str, code: int
) -> None:
    assert told in said(*command, cwd=operator, code=code)


def test_a_kit_is_for_the_name_it_was_issued_for(operator: Path) -> None:
    folder = site(operator, "one", free_port())
    assert "the kit is that of 'one'" in said("client", "small", "--kit", "one", "--name", "two", cwd=folder, code=2)
