"""NVFLARE's references to tensors on disk, in files that NVFLARE's own code has written: `make test-adapters`."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore

pytest.importorskip("nvflare", reason="NVFLARE is not installed (make test-adapters)")
if find_spec("torch") is None:
    pytest.skip("PyTorch is not installed (make test-adapters)", allow_module_level=True)

import safetensors.torch
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict, _LazyRef
from nvflare.app_opt.pt.tensor_downloader import DiskTensorConsumer

from flcore.adapters import nvflare_tensors
from flcore.adapters.nvflare import FlcoreAggregator
from flcore.adapters.nvflare_on_disk import RANGE_ELEMENTS

RULES = ["mean", "unweighted_mean", "median", "trimmed_mean(f=1)"]
Tensors = dict[str, Any]


def offloaded(tensors: Tensors, directory: Path) -> dict[str, _LazyRef]:
    """What the server gets of a result: files of one tensor each, under keys of NVFLARE's own, and references."""
    directory.mkdir()
    names = {f"T{number}": name for number, name in enumerate(tensors)}
    consumer = DiskTensorConsumer(str(directory))
    files = consumer.consume_items(
        [safetensors.torch.save({key: tensors[name].contiguous()}) for key, name in names.items()], None
    )
    consumer.release()
    on_disk = LazyTensorDict(files, str(directory))
    return {name: on_disk.make_lazy_ref(key) for key, name in names.items()}


def model(seed: int) -> Tensors:
    made = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(1500, 1500, generator=made),  # more than a range
        "h": torch.randn(300, generator=made).to(torch.bfloat16),
        "d": torch.randn(7, generator=made, dtype=torch.float64),
        "n": torch.tensor(10 * seed),
        "flag": torch.tensor([True, seed % 2 == 0]),
        "none": torch.zeros(0, 3),
        "codes": torch.arange(9, dtype=torch.uint8),
        "v": torch.randn(900, generator=made),
    }


def result(params: Any, client: str, weight: int = 1) -> FLModel:
    meta = {"NUM_STEPS_CURRENT_ROUND": weight, "client_name": client}
    return FLModel(params=params, params_type=ParamsType.FULL, meta=meta)


def forbid_whole_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise AssertionError("a whole tensor was read")

    monkeypatch.setattr(_LazyRef, "materialize", refuse)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_files_are_read_in_ranges_and_give_what_tensors_in_memory_give(
    rule: str, accumulate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_whole_tensors(monkeypatch)
    assert model(1)["w"].numel() > RANGE_ELEMENTS
    aggregator = FlcoreAggregator(rule=rule, accumulate=accumulate)
    for turn, count in enumerate((4, 3)):
        given = [(model(seed), seed) for seed in range(1, count + 1)]
        expected = flcore.aggregate(given, rule=rule, accumulate=accumulate)
        for tensors, weight in given:
            there = tmp_path / f"{turn}-{weight}"
            aggregator.accept_model(result(offloaded(tensors, there), f"site-{weight}", weight))
            assert there.exists() == (rule not in ("mean", "unweighted_mean")), "a sum folds a result and frees it"
        found = aggregator.aggregate_model().params
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            if accumulate == "exact":
                assert torch.equal(found[name], tensor), name
            else:
                assert torch.allclose(found[name], tensor, rtol=1e-2, atol=1e-2), name
        assert not list(tmp_path.iterdir()), "the files go with the last reference"


def test_small_tensors_may_come_beside_references_and_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_whole_tensors(monkeypatch)
    aggregator, given = FlcoreAggregator(rule="median"), [(model(seed), seed) for seed in (1, 2, 3)]
    for tensors, weight in given:
        references = offloaded({name: tensors[name] for name in list(tensors)[weight:]}, tmp_path / str(weight))
        aggregator.accept_model(result(references | dict(list(tensors.items())[:weight]), f"site-{weight}", weight))
    expected, found = flcore.aggregate(given, rule="median"), aggregator.aggregate_model().params
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_references_of_other_releases_are_materialized(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvflare_tensors, "KNOWN_RELEASES", ("2.7",))
    nvflare_tensors._is_known_release.cache_clear()
    materialized: list[str] = []
    original = _LazyRef.materialize

    def note(self: Any) -> Any:
        materialized.append(self.key)
        return original(self)

    monkeypatch.setattr(_LazyRef, "materialize", note)
    try:
        aggregator, given = FlcoreAggregator(rule=rule), [(model(seed), seed) for seed in (1, 2, 3)]
        for tensors, weight in given:
            aggregator.accept_model(result(offloaded(tensors, tmp_path / str(weight)), f"site-{weight}", weight))
        found = aggregator.aggregate_model().params
    finally:
        nvflare_tensors._is_known_release.cache_clear()
    expected = flcore.aggregate(given, rule=rule)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert set(materialized) == {f"T{number}" for number in range(len(expected))}


def test_this_release_is_known() -> None:
    assert nvflare_tensors._is_known_release()


def header(entries: Any, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "it cannot be read back: .*No such file": Path.unlink,
    "truncated one": lambda file: file.write_bytes(file.read_bytes()[:5]),
    "is not supported": lambda file: file.write_bytes(
        header({"T0": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}})
    ),
    "expected a tensor 'T0'": lambda file: file.write_bytes(
        header({"T1": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    ),
    "within the 8 bytes after the header": lambda file: file.write_bytes(
        header({"T0": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    ),
    r"expected float32 of shape \(1500, 1500\), got float32 of shape \(2,\)": lambda file: file.write_bytes(
        header({"T0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    ),
    "expected a regular file": replace_by_directory,
}


@pytest.mark.parametrize("words", DAMAGES)
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_file_that_is_not_as_its_reference_says_costs_its_client_alone(words: str, rule: str, tmp_path: Path) -> None:
    given = [(model(seed), seed) for seed in (1, 2, 3)]
    aggregator = FlcoreAggregator(rule=rule)
    for tensors, weight in given:
        aggregator.accept_model(result(offloaded(tensors, tmp_path / str(weight)), f"site-{weight}", weight))
        bad = offloaded(model(9), tmp_path / f"bad-{weight}")
        DAMAGES[words](Path(bad["w"].file_path))
        with pytest.raises(flcore.UpdateError, match=f"client 'bad', tensor 'w': .*{words}"):
            aggregator.accept_model(result(bad, "bad", 5))
    found, expected = aggregator.aggregate_model().params, flcore.aggregate(given, rule=rule)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_files_that_are_lost_while_a_rule_holds_them_cost_their_clients_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator, kept = FlcoreAggregator(rule="median"), []
    for seed in range(1, 7):
        references = offloaded(model(seed), tmp_path / str(seed))
        aggregator.accept_model(result(references, f"site-{seed}", seed))
        if seed in (1, 4):
            Path(references["v"].file_path).unlink()
        elif seed == 5:
            Path(references["w"].file_path).write_bytes(b"short")
        else:
            kept.append((model(seed), seed))
    found, expected = aggregator.aggregate_model().params, flcore.aggregate(kept, rule="median")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for words in ("'site-1', tensor 'v': it cannot", "'site-4', tensor 'v': it cannot", "'site-5', tensor 'w': it"):
        assert f"refused: client {words}" in caplog.text


def test_many_invalid_results_take_one_more_pass_and_not_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    original = nvflare_tensors.FileTensor.read_into

    def count(self: Any, first: int, values: Any) -> None:
        nonlocal reads
        reads += 1
        original(self, first, values)

    monkeypatch.setattr(nvflare_tensors.FileTensor, "read_into", count)
    aggregator = FlcoreAggregator(rule="median")
    for number in range(16):
        tensor = torch.full((4,), float("nan") if 1 <= number <= 8 else 1.0)
        aggregator.accept_model(result(offloaded({"w": tensor}, tmp_path / str(number)), f"site-{number}"))
    assert aggregator.aggregate_model().params["w"].tolist() == [1.0] * 4
    assert reads <= 1 + 3 * 16, "the first result's check, an attempt, a check of all, and another attempt"


def test_packed_bytes_must_be_those_of_the_first_result_on_disk_too(tmp_path: Path) -> None:
    other = model(2) | {"codes": torch.arange(9, dtype=torch.uint8).flip(0)}
    for rule in ("mean", "median"):
        aggregator = FlcoreAggregator(rule=rule)
        for number, tensors in enumerate((model(1), other, model(3))):
            references = offloaded(tensors, tmp_path / f"{rule}-{number}")
            with pytest.raises(flcore.OutOfBounds, match="'codes'") if (rule, number) == ("mean", 1) else nullcontext():
                aggregator.accept_model(result(references, f"site-{number}"))
        found = aggregator.aggregate_model().params
        expected = flcore.aggregate([(model(1), 1), (model(3), 1)], rule=rule)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    aggregator = FlcoreAggregator(rule="median", average_bytes=True)
    for number, tensors in enumerate((model(1), other, model(3))):
        aggregator.accept_model(result(offloaded(tensors, tmp_path / f"average-{number}"), f"site-{number}"))
    assert aggregator.aggregate_model().params["codes"].tolist() == list(range(9))


PEAK = """
import sys, pathlib
from tests.flcore.adapters.test_nvflare_on_disk import peak_of_a_round
print(peak_of_a_round(sys.argv[1], pathlib.Path(sys.argv[2])))
"""
CLIENTS, MIB = 12, 24


def sparse(there: Path, *, is_valid: bool) -> dict[str, _LazyRef]:
    """Return a reference to `MIB` MiB of zeros, which were never in memory; the last one may be a NaN instead."""
    there.mkdir()
    file, size = there / "chunk_0.safetensors", MIB << 20
    file.write_bytes(header({"T0": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}, b""))
    os.truncate(file, file.stat().st_size + size)
    if not is_valid:
        with file.open("r+b") as end:
            end.seek(-4, os.SEEK_END)
            end.write(np.float32(np.nan).tobytes())
    return {"w": LazyTensorDict({"T0": (str(file), "T0")}, str(there)).make_lazy_ref("T0")}


def peak_of_a_round(rule: str, there: Path) -> int:
    """Return by how many bytes the process has grown in a round over `CLIENTS` models of `MIB` MiB in one tensor."""
    aggregator = FlcoreAggregator(rule=rule, accumulate="float32")
    for client in range(3):  # compiled kernels and PyTorch's start are not the round's
        aggregator.accept_model(result(offloaded({"w": torch.ones(9)}, there / f"warm-{client}"), f"site-{client}"))
    aggregator.aggregate_model()
    aggregator = FlcoreAggregator(rule=rule, accumulate="float32")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for client in range(CLIENTS):
        with suppress(flcore.NonFinite):  # that of a rule that is no sum is found at the end, in a check of all
            references = sparse(there / str(client), is_valid=client != 5)
            aggregator.accept_model(result(references, f"site-{client}"))
    assert aggregator.aggregate_model().params["w"].numel() == MIB << 18
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_the_memory_of_a_round_on_disk_does_not_grow_with_its_clients(rule: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, rule, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    # The result and three ranges of 8 MiB; a total, or for each held result two buffers and two copies of 2 MiB.
    expected = MIB + 3 * 8 + (MIB if rule == "mean" else 4 * 2 * CLIENTS)
    assert int(done.stdout) < (expected + 48) << 20 < CLIENTS * MIB << 20
