"""TensorBoard's own reader finds in its files what the history says. See `make test-adapters`."""

from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from flcore.tracking import Trackers, tracking_settings
from flcore.tracking.run_values import round_values
from tests.flcore.tracking.tracked import ROUNDS, tracked_run


def test_a_run_s_event_file_has_its_values_and_its_contract(tmp_path: Path) -> None:
    trackers = Trackers.of(tracking_settings({"tracking": {"tensorboard": "tb", "timeout_s": 300}}, tmp_path))
    history, _ = tracked_run(tmp_path, trackers.observe_run)
    [directory] = (tmp_path / "tb").iterdir()
    assert directory.name.startswith("tracked-")
    read = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    read.Reload()
    expected = {name for record in history for name in round_values(record)}
    assert set(read.Tags()["tensors"]) == expected | {"_hparams_/session_start_info"}
    for name in expected:
        found = {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in read.Tensors(name)}
        values = {record.round: round_values(record)[name] for record in history if name in round_values(record)}
        assert found == pytest.approx(values), name
    assert len(read.Tensors("site/north/loss")) == ROUNDS
    plugins = read.PluginTagToContent("hparams")
    parsed = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"])
    hyperparameters = parsed.session_start_info.hparams
    assert hyperparameters["server.rounds"].number_value == ROUNDS
    assert hyperparameters["server.best"].string_value == "distance:min"
    assert len(hyperparameters["contract_fingerprint"].string_value) == 64
