"""Committed updates, read by range before they are combined: in an `Aggregator`, and in a workflow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Aggregator, Arrays, JobError, ModelSpec, SpecError, StagingError
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.model.wire_format import WireFormat
from flcore.server.history_table import read_history
from tests.flcore.conftest import Stage, adding


def update(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((700, 1000)).astype(np.float32),
        "n": rng.integers(-9, 9, 5),
        "b": rng.standard_normal(7).astype(np.float32),
    }


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_any_range_of_any_tensor_is_read(is_on_disk: bool, tmp_path: Path) -> None:
    storage = Storage("batch", Staging(0, tmp_path / "staging") if is_on_disk else Staging())
    aggregator = Aggregator(ModelSpec.of(update(0)), storage=storage)
    for name in ("north", "east"):
        with aggregator.update(client=name, weight=len(name)) as staged:
            staged.write_all(update(len(name)))
    east, north = aggregator.contributions()
    assert [(each.client, each.weight) for each in (east, north)] == [("east", 4.0), ("north", 5.0)]
    for each in (east, north):
        wanted = update(len(each.client))
        for name, array in wanted.items():
            assert np.array_equal(each.read(name), array.reshape(-1))
        for first, stop in ((0, 0), (1, 2), (255, 257), (524_287, 524_289), (600_001, 700_000)):
            assert np.array_equal(each.read("w", first, stop), wanted["w"].reshape(-1)[first:stop])
    for arguments, words in ((("x",), "has no tensor 'x'"), (("b", 3, 8), "tensor 'b' has 7 elements: .* got 3 to 8")):
        with pytest.raises(SpecError, match=words):
            east.read(*arguments)
    aggregator.finish()
    with pytest.raises(StagingError, match="client 'east'"):
        east.read("b")
    assert aggregator.contributions() == ()


def test_codes_are_decoded() -> None:
    spec = ModelSpec.of({"w": np.zeros(1000, np.float32)})
    wire_format = WireFormat.compressed(spec, "int8[256]")
    aggregator = Aggregator(spec, wire_format=wire_format)
    values = np.linspace(-1, 1, 1000, dtype=np.float32)
    encoded = np.zeros(1024, np.float32)
    encoded[:1000] = values
    from flcore_kernels import Quantized, backend

    body = Quantized(np.empty(1024, np.int8), np.empty(4, np.float32))
    backend("cpu").encode(encoded, body, "int8[256]")
    with aggregator.update(client="a", weight=1.0) as staged:
        staged.allocate(may_wait=False).result()
        staged.acquire_next().result()
        staged.append(wire_format.pieces[0], body.scales.tobytes() + body.codes.tobytes())
    (found,) = aggregator.contributions()
    assert np.allclose(found.read("w", 300, 900), values[300:900], atol=0.01)


def test_the_plan_streaming_keeps_none() -> None:
    arrays: Arrays = {"w": np.ones(3, np.float32)}
    with pytest.raises(JobError, match="the plan streaming keeps no updates: choose the plan batch"):
        Aggregator(ModelSpec.of(arrays), plan="streaming").contributions()


@pytest.mark.parametrize("stage", ["in-process"], indirect=True)
def test_a_workflow_reads_them_before_it_combines_them(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(
        "def flow(control):\n"
        "    for number in control.remaining_rounds():\n"
        "        updates = control.train(control.last_model, control.sample())\n"
        "        found = {each.client: float(each.read('w', 0, 1)[0]) for each in updates.contributions()}\n"
        "        control.state[f'seen {number}'] = found\n"
        "        control.publish(updates.aggregate(), found)\n"
        "        try:\n"
        "            updates.contributions()\n"
        "        except Exception as error:\n"
        "            assert 'its updates were aggregated before' in str(error)\n"
        "        else:\n"
        "            raise AssertionError\n"
    )
    stage.open(workflow="flow.py:flow", rounds=2, clients=2, quorum=2, wait_for=2, out=tmp_path / "out", best=None)
    for number, name in enumerate(("client-1", "client-2"), 1):
        stage.client(name, adding(float(number), weight=1.0))
    stage.result()
    assert len(read_history(tmp_path / "out")) == 2
