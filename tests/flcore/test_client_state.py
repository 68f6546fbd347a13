"""`flcore client --state` with real processes: killed after its training, and started again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from flcore import Job, load
from flcore.client.state_directory import StateDirectory
from tests.flcore.network import network_to
from tests.flcore.processes import free_port, read_until, started, write_small_job

TRAIN = """
def train(model, task):
    with open(f"trained-{task.site.name}", "a") as file:
        file.write(f"{task.round}\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with `small`, a job of three rounds whose clients note each training in a file."""
    write_small_job(tmp_path)
    contract, code = tmp_path / "small/job.toml", tmp_path / "small/small.py"
    contract.write_text(contract.read_text().replace("rounds = 100000", "rounds = 3"))
    code.write_text(code.read_text().replace("\ndef train(model, task):\n", TRAIN))
    return tmp_path


def join(port: int, name: str, *options: str) -> tuple[str, ...]:
    address = f"localhost:{port}"
    return ("-m", "flcore", "client", "small", "--server", address, "--insecure", "--name", name, *options)


@pytest.mark.long
def test_a_client_killed_before_its_upload_sends_it_when_it_is_back(folder: Path) -> None:
    """The network is cut while the first client trains, and the client killed when its answer is on disk."""
    port, answer = free_port(), folder / "state/answer-train/answer.json"
    code = folder / "small/small.py"
    first_is_slow = "    import time; time.sleep(2 * (task.round == 1))\n    return flcore"
    code.write_text(code.read_text().replace("    return flcore", first_is_slow))
    with (
        network_to(port) as network,
        started("-m", "flcore", "server", "small", "--insecure", "--port", str(port), cwd=folder) as server,
    ):
        read_until(server, "listening on")
        with started(*join(port, "two"), cwd=folder) as two:
            with started(*join(network.port, "one", "--state", "state"), cwd=folder) as one:
                while not (folder / "trained-one").exists():
                    time.sleep(0.01)
                network.cut()
                while not answer.exists():
                    time.sleep(0.01)
                with started(*join(network.port, "one", "--state", "state"), cwd=folder) as other:
                    printed = other.communicate(timeout=60)[0]
                    assert other.returncode == 1 and "Traceback" not in printed
                    assert f"flcore: state is in use by process {one.pid}" in printed
                os.kill(one.pid, signal.SIGKILL)
            network.mend()
            with started(*join(network.port, "one", "--state", "state"), cwd=folder) as one:
                printed = one.communicate(timeout=90)[0]
                assert one.returncode == 0, printed
                assert "one: state has the answer to this assignment: it is sent without training" in printed
            assert server.wait(60) == two.wait(20) == 0
    assert (folder / "trained-one").read_text().split() == ["1", "2", "3"]
    records = [json.loads(line) for line in (folder / "runs/small/history.jsonl").read_text().splitlines()]
    assert [sorted(record["updates"]) for record in records] == [["one", "two"]] * 3
    assert load(folder / "runs/small/model.safetensors")["w"][0] == 3
    assert not answer.exists(), "the job is done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_client_that_is_ended_says_so_in_one_line(folder: Path, number: int, code: int) -> None:
    with started(*join(1, "one"), cwd=folder) as client:
        read_until(client, "trying again")
        client.send_signal(number)
        printed = client.communicate(timeout=60)[0]
    assert client.returncode == code
    lines = [line.partition(" [20")[0] for line in printed.splitlines()]
    assert lines == ["one: has left; the server goes on without this client"]


def test_the_state_of_another_client_is_refused_in_one_line(folder: Path) -> None:
    StateDirectory(folder / "state", client="one", contract=Job.load(str(folder / "small")).contract).close()
    with started(*join(1, "two", "--state", "state"), cwd=folder) as client:
        printed = client.communicate(timeout=60)[0]
        assert client.returncode == 1
    [line] = printed.splitlines()
    assert line.startswith("flcore: state holds the state of another client or job: client 'one', expected 'two'")
