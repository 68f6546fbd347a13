"""MLflow's own client finds in its database what the history says. See `make test-adapters`."""

from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient

from flcore.server.events import HistoryRestored, RoundFinished, RunEnded, RunStarted
from flcore.server.history import RoundRecord
from flcore.tracking import Trackers, tracking_settings
from flcore.tracking.run_values import round_values
from tests.flcore.metrics.observed import observed_run, small_contract
from tests.flcore.status.played_job import PlayedJob
from tests.flcore.tracking.tracked import ROUNDS, tracked_run

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # of MLflow's own use of SQLAlchemy


def trackers(directory: Path) -> Trackers:
    return Trackers.of(tracking_settings({"tracking": {"mlflow": "mlruns", "timeout_s": 300}}, directory))


def client(directory: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlruns/mlflow.db'}")


def test_a_run_has_its_values_its_contract_and_its_best_model(tmp_path: Path) -> None:
    history, _ = tracked_run(tmp_path, trackers(tmp_path).observe_run)
    found = client(tmp_path)
    experiment = found.get_experiment_by_name("tracked")
    assert experiment is not None
    [run] = found.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name.startswith("tracked-")
    assert run.data.params["server.rounds"] == str(ROUNDS) and run.data.params["server.best"] == "distance:min"
    assert run.data.tags["flcore.end"] == "done" and len(run.data.tags["flcore.contract_fingerprint"]) == 64
    for name in {name for record in history for name in round_values(record)}:
        steps = {each.step: each.value for each in found.get_metric_history(run.info.run_id, name)}
        expected = {record.round: round_values(record)[name] for record in history if name in round_values(record)}
        assert steps == pytest.approx(expected), name
    [artifact] = found.list_artifacts(run.info.run_id, "best-model")
    downloaded = found.download_artifacts(run.info.run_id, artifact.path, str(tmp_path))
    assert Path(downloaded).read_bytes() == (tmp_path / "run/best.safetensors").read_bytes()


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    started = RunStarted("0123456789abcdef", "played", "f", "c", "1")
    first, second = RoundRecord(1, validate={"loss": 0.5}), RoundRecord(2, validate={"loss": 0.25})
    board = PlayedJob().board
    with trackers(tmp_path).observe_run(observed_run(board, directory=tmp_path)) as observe:
        for event in (started, RoundFinished(first), RunEnded("stopped", failed=True, end="stopped")):
            observe(event)
    with trackers(tmp_path).observe_run(observed_run(board, directory=tmp_path)) as observe:
        for again in (started, HistoryRestored((first,)), RoundFinished(second), RunEnded("done", failed=False)):
            observe(again)
    found = client(tmp_path)
    experiment = found.get_experiment_by_name(small_contract().name)
    assert experiment is not None
    [run] = found.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = found.get_metric_history(run.info.run_id, "validate/loss")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (2, 0.25)]
