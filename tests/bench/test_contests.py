"""Contests with peers: against NumPy, which is always there, and with those that are not installed."""

import json
import sys
from pathlib import Path

import pytest
from flcore_bench import PEERS, CheckoutRequired, Limit, MeasurementFailed, Row, peers
from flcore_bench import run as bench_run
from flcore_bench.plot import bars, plot
from flcore_bench.workload import Sizes
from flcore_bench_peers import contest, plain_numpy
from flcore_bench_peers.contest import Contender, Models

TINY = Sizes("small", 2, 2, 1 << 14, 20, (), (), 0)
LIMIT = Limit("loop", [0.5], 0.5)


@pytest.mark.parametrize("shape", ["flat", "many"])
def test_flcore_is_measured_beside_a_peer_in_one_process(shape: str) -> None:
    rows = contest.contest_rows(plain_numpy, "numpy 2", shape, TINY)
    ours = {row.what.partition(", 10 x")[0]: row for row in rows if row.against}
    assert list(ours) == list(contest.FLCORE)
    assert all(row.what.endswith("beside numpy 2") for row in rows)
    assert all(ratio > 0 for row in ours.values() for ratio in row.against.values())
    assert len(ours["flcore float32"].goals) == (1 if shape == "flat" else 0)
    assert all((row.limit is not None) == (shape == "flat") for row in rows)


def test_a_peer_that_is_not_installed_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "flcore_bench_peers.pytorch", raising=False)
    monkeypatch.setattr(sys, "argv", ["-c", "pytorch", "small", "2"])
    contest.main()
    assert json.loads(capsys.readouterr().out) == {"absent": True}


def test_a_peer_that_computes_something_else_is_no_baseline() -> None:
    class Wrong:
        @staticmethod
        def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:
            right = plain_numpy.contenders(models, weights[::-1], threads)[0]
            return [right]

    with pytest.raises(RuntimeError, match="averages to"):
        contest.contest_rows(Wrong, "nobody", "flat", TINY)


def test_absent_peers_are_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def contest_of(name: str, python: Path, scale: str, threads: int) -> list[Row] | None:
        asked.append((name, python))
        return [Row("flcore", [1.0], 4, LIMIT, series="flcore")] if name == "numpy" else None

    monkeypatch.setattr(peers, "contest", contest_of)
    monkeypatch.chdir(tmp_path)
    report = bench_run("peers", "full", pythons={"torch": Path("/elsewhere/python")})
    assert report.absent == [name for name in PEERS if name != "numpy"] and not report.is_full
    assert "absent" in capsys.readouterr().out
    assert dict(asked) == {name: Path(sys.executable) for name in PEERS} | {"torch": Path("/elsewhere/python")}


def test_the_environment_that_make_made_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / ".peers/torch/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.chdir(tmp_path)
    assert peers.default_python("torch").resolve() == python
    assert peers.default_python("flower") == Path(sys.executable)


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeasurementFailed, match="cannot be run"):
        peers.contest("torch", tmp_path / "python", "small", 2)


@pytest.mark.parametrize("what", ["peers", "round-peers"])
def test_an_installed_wheel_says_that_peers_need_a_checkout(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(CheckoutRequired, match=r"source checkout.*make bench-peers"):
        bench_run(what, "small")


def test_bars_pool_what_was_measured_in_several_processes(tmp_path: Path) -> None:
    rows = [Row("a", [seconds], 10**9, LIMIT, series="flcore") for seconds in (1.0, 2.0, 4.0)]
    rows += [Row("b", [10.0], 10**9, LIMIT, series="PyTorch"), Row("c", [1.0], 10**9, LIMIT)]
    assert bars(rows) == [("flcore", 0.5, 2.0), ("PyTorch", 0.1, 2.0)]
    pytest.importorskip("matplotlib")
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
