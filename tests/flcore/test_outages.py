"""Everyday events with real processes: a network that is away, a process that stands still, a second server."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from flcore import load
from tests.flcore.command import said
from tests.flcore.network import network_to
from tests.flcore.processes import client_of, free_port, read_until, server_of, started, taking_part, write_slow_job

ROUNDS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with `small`, a job of eight rounds that each take a third of a second."""
    write_slow_job(tmp_path, ROUNDS)
    return tmp_path


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A directory with `small`, a job of one round."""
    write_slow_job(tmp_path, 1)
    return tmp_path


def rounds_of(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_network_that_is_away_for_longer_than_the_grace_costs_no_job(folder: Path) -> None:
    port = free_port()
    with network_to(port) as network, started(*server_of(port), cwd=folder) as server:
        read_until(server, "listening on")
        with (
            started(*client_of(network.port, "one"), cwd=folder) as one,
            started(*client_of(network.port, "two"), cwd=folder) as two,
        ):
            read_until(server, "round 2/8")
            network.cut()
            printed = read_until(server, "retry 1 of 10")  # both have failed in this round: the grace is over
            assert "its connection was lost" in printed
            time.sleep(1)
            network.mend()
            assert server.wait(60) == 0
            assert one.wait(60) == two.wait(60) == 0
    records = rounds_of(folder / "runs/small")
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    assert all(len(record["updates"]) == 2 for record in records)  # type: ignore[arg-type]
    assert load(folder / "runs/small/model.safetensors")["w"][0] == ROUNDS, "an update was lost or counted twice"


@pytest.mark.long
def test_a_server_suspended_for_longer_than_its_deadline_fails_no_client(folder: Path) -> None:
    contract = folder / "small/job.toml"
    contract.write_text(contract.read_text().replace("quorum = 2", "quorum = 2\nstall_timeout_s = 4\ndeadline_s = 5"))
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        read_until(server, "listening on")
        with started(*client_of(port, "one"), cwd=folder) as one, started(*client_of(port, "two"), cwd=folder) as two:
            read_until(server, "round 2/8")
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(7)
            os.kill(server.pid, signal.SIGCONT)
            printed = server.communicate(timeout=60)[0]
            assert server.returncode == 0
            assert "failed in train" not in printed, "time that the server lost was counted as a client's"
            assert one.wait(60) == two.wait(60) == 0
    assert [record["failed"] for record in rounds_of(folder / "runs/small")] == [{}] * ROUNDS
    assert load(folder / "runs/small/model.safetensors")["w"][0] == ROUNDS


@pytest.mark.long
def test_a_directory_of_a_run_is_refused_to_a_second_server_and_kept_for_a_fresh_one(short: Path) -> None:
    port = free_port()
    second = ("server", "small", "--insecure", "--port", "0")
    with started(*server_of(port), cwd=short) as server:
        read_until(server, "listening on")
        for options in ((), ("--fresh",)):
            printed = said(*second, *options, cwd=short, code=1)
            assert f"runs/small is in use by process {server.pid}" in printed and printed.count("\n") == 1
        with taking_part(short, port, "one", "two"):
            assert server.wait(60) == 0
    before = (short / "runs/small/history.jsonl").read_bytes()
    printed = said(*second, cwd=short, code=1)
    assert "runs/small holds a run already: 1 round," in printed and "--out" in printed and "--fresh" in printed
    assert (short / "runs/small/history.jsonl").read_bytes() == before
    with started(*server_of(port, "--fresh"), cwd=short) as fresh:
        read_until(fresh, "listening on")
        with taking_part(short, port, "one", "two"):
            assert fresh.wait(60) == 0
    assert (short / "runs/small.1/history.jsonl").read_bytes() == before
    assert len(rounds_of(short / "runs/small")) == 1


@pytest.mark.long
def test_a_killed_server_goes_on_by_the_same_command_and_its_clients_stay_up(folder: Path) -> None:
    """As `docs/durability.md` prints it."""
    port = free_port()
    with started(*server_of(port), cwd=folder) as server:
        read_until(server, "listening on")
        with started(*client_of(port, "one"), cwd=folder) as one, started(*client_of(port, "two"), cwd=folder) as two:
            read_until(server, "round 2/8")
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
            run = json.loads((folder / "runs/small/run.json").read_text())["id"]
            with started(*server_of(port), cwd=folder) as again:
                printed = again.communicate(timeout=60)[0]
                assert again.returncode == 0
                assert re.search(rf"going on with run {run}: [2-7] of its 8 rounds are over", printed)
            assert one.wait(60) == two.wait(60) == 0
    assert [record["round"] for record in rounds_of(folder / "runs/small")] == [*range(1, ROUNDS + 1)]
    assert load(folder / "runs/small/model.safetensors")["w"][0] == ROUNDS
    started_runs = [json.loads(line) for line in (folder / "runs/small/audit.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in started_runs if entry["event"] in ("start", "continued", "end")] == [
        "start",
        "start",
        "continued",
        "end",
    ]
