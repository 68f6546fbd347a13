"""Everyday events with real processes: a network that is away, a process that stands still, a second server."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from flcore import load
from tests.flcore.network import network_to
from tests.flcore.processes import free_port, read_until, started, write_slow_job

ROUNDS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with `small`, a job of eight rounds that each take a third of a second."""
    write_slow_job(tmp_path, ROUNDS)
    return tmp_path


def serve(port: int, *options: str) -> tuple[str, ...]:
    return ("-m", "flcore", "server", "small", "--insecure", "--port", str(port), *options)


def join(port: int, name: str) -> tuple[str, ...]:
    return ("-m", "flcore", "client", "small", "--server", f"localhost:{port}", "--insecure", "--name", name)


def rounds_of(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


@pytest.mark.serial
@pytest.mark.long
def test_a_network_that_is_away_for_longer_than_the_grace_costs_no_job(folder: Path) -> None:
    port = free_port()
    with network_to(port) as network, started(*serve(port), cwd=folder) as server:
        read_until(server, "listening on")
        with (
            started(*join(network.port, "one"), cwd=folder) as one,
            started(*join(network.port, "two"), cwd=folder) as two,
        ):
            read_until(server, "round 2/8")
            network.cut()
            printed = read_until(server, "retry 1 of 10")  # both have failed in this round: the grace is over
            assert "its connection was lost" in printed
            time.sleep(1)
            network.mend()
            assert server.wait(60) == 0
            assert one.wait(20) == two.wait(20) == 0
    records = rounds_of(folder / "runs/small")
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    assert all(len(record["updates"]) == 2 for record in records)  # type: ignore[arg-type]
    assert load(folder / "runs/small/model.safetensors")["w"][0] == ROUNDS, "an update was lost or counted twice"


@pytest.mark.serial
def test_a_server_suspended_for_longer_than_its_deadline_fails_no_client(folder: Path) -> None:
    contract = folder / "small/job.toml"
    contract.write_text(contract.read_text().replace("quorum = 2", "quorum = 2\nstall_timeout_s = 4\ndeadline_s = 5"))
    port = free_port()
    with started(*serve(port), cwd=folder) as server:
        read_until(server, "listening on")
        with started(*join(port, "one"), cwd=folder) as one, started(*join(port, "two"), cwd=folder) as two:
            read_until(server, "round 2/8")
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(7)
            os.kill(server.pid, signal.SIGCONT)
            printed = server.communicate(timeout=60)[0]
            assert server.returncode == 0
            assert "failed in train" not in printed, "time that the server lost was counted as a client's"
            assert one.wait(20) == two.wait(20) == 0
    assert [record["failed"] for record in rounds_of(folder / "runs/small")] == [{}] * ROUNDS
    assert load(folder / "runs/small/model.safetensors")["w"][0] == ROUNDS


@pytest.mark.serial
def test_a_directory_of_a_run_is_refused_to_a_second_server_and_kept_for_a_fresh_one(folder: Path) -> None:
    port = free_port()
    with started(*serve(port), cwd=folder) as server:
        read_until(server, "listening on")
        for options in ((), ("--fresh",)):
            with started(*serve(0, *options), cwd=folder) as second:
                printed = second.communicate(timeout=30)[0]
                assert second.returncode == 1
                assert f"runs/small is in use by process {server.pid}" in printed and "Traceback" not in printed
        with started(*join(port, "one"), cwd=folder), started(*join(port, "two"), cwd=folder):
            read_until(server, "round 2/8")
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
    before = (folder / "runs/small/history.jsonl").read_bytes()
    with started(*serve(0), cwd=folder) as refused:
        printed = refused.communicate(timeout=30)[0]
        assert refused.returncode == 1
        assert "runs/small holds a run already: 2 rounds" in printed and "--out" in printed and "--fresh" in printed
    assert (folder / "runs/small/history.jsonl").read_bytes() == before
    with started(*serve(port, "--fresh"), cwd=folder) as fresh:
        read_until(fresh, "listening on")
        with started(*join(port, "one"), cwd=folder), started(*join(port, "two"), cwd=folder):
            assert fresh.wait(60) == 0
    assert (folder / "runs/small.1/history.jsonl").read_bytes() == before
    assert len(rounds_of(folder / "runs/small")) == ROUNDS
