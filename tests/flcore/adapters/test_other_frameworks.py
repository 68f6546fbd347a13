"""The recipe of docs/other-frameworks.md, as printed: by itself, and on APPFL's hook."""

import re
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore

PAGE = (Path(__file__).parents[3] / "docs/other-frameworks.md").read_text()


def printed() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if "appfl" not in block or find_spec("appfl"):
            exec(block, namespace)
    return namespace


def test_the_recipe_leaves_out_who_cannot_be_counted(caplog: pytest.LogCaptureFixture) -> None:
    states = [{"w": np.full((2, 3), value, np.float32), "n": np.array(4)} for value in (1.0, 4.0, np.nan)]
    bad: list[dict[Any, Any]] = [
        {"w": states[0]["w"]},
        {**states[0], "w": states[0]["w"].T},
        {**states[0], "w": [1.0]},
        {**states[0], 7: 1},
    ]
    results = [(f"site-{weight}", weight, state) for weight, state in enumerate([*states, *bad], 1)]
    results.append(("site-1", 5, states[1]))
    found = printed()["combine"](results, like=states[0])
    assert found["w"].tolist() == [[3.0] * 3] * 2 and found["n"] == 4
    assert "left out: client 'site-3', tensor 'w': element 0 is nan" in caplog.text
    assert "left out: client 'site-4', tensor 'n': it is missing" in caplog.text
    assert (
        "left out: client 'site-5', tensor 'w': expected float32 of shape (2, 3), got float32 of shape (3, 2)"
        in caplog.text
    )
    assert "left out: client 'site-6': tensor 'w': expected an array" in caplog.text
    assert "left out: client 'site-7': a tensor's name is a string, not 7" in caplog.text
    assert "left out: client 'site-1': it has an update in this aggregation already" in caplog.text
    nested = [{"body": state} for state in states[:2]]
    assert printed()["combine"]([("a", 1, nested[0]), ("b", 2, nested[1])], like=nested[0])["body"]["n"] == 4
    with pytest.raises(flcore.QuorumError):
        printed()["combine"]([], like=states[0])


@pytest.mark.skipif(find_spec("appfl") is None, reason="APPFL is not installed (make test-adapters)")
@pytest.mark.filterwarnings("ignore")
def test_appfls_hook_gives_the_mean_of_its_own_aggregator() -> None:
    import torch
    from appfl.algorithm.aggregator import FedAvgAggregator
    from omegaconf import DictConfig

    def network(seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    ours = printed()["FlcoreAggregator"](model=network(0))
    theirs = FedAvgAggregator(network(0), DictConfig({"client_weights_mode": "sample_size"}))
    for aggregator in (ours, theirs):
        for client in (1, 2, 3):
            aggregator.set_client_sample_size(f"Client{client}", 100 * client)
    for _ in range(2):
        models = {f"Client{client}": OrderedDict(network(client).state_dict()) for client in (1, 2, 3)}
        found, expected = ours.aggregate(models), theirs.aggregate(models)
        assert ours.get_parameters() is found and list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            if "weight" in name or "bias" in name:
                assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name
        network(0).load_state_dict(found)
