"""Where tensors lie in files: headers and indexes, to the letter, and what becomes of those that are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings

from flcore import ModelSpec, SpecError, TensorSpec, open_model, save
from flcore.model.open_file import OpenFile
from flcore.model.safetensors_header import MAX_HEADER_BYTES, plan_header, read_header
from flcore.model.shard_layout import plan_shards
from tests.flcore.model.test_spec import TENSORS

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    """Write a file with a header of one's own: JSON of it, or its bytes."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


@given(TENSORS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_planned_header_is_read_as_it_was_planned_by_us_and_by_safetensors(
    tmp_path: Path, tensors: tuple[TensorSpec, ...]
) -> None:
    header, head = plan_header(tensors, {"format": "pt"})
    assert len(head) % 8 == 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + bytes(header.file_bytes - len(head)))
    assert read_header(OpenFile(path)) == header
    loaded = safetensors.numpy.load_file(path)
    assert {name: array.shape for name, array in loaded.items()} == {t.name: t.shape for t in tensors}
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned_whatever_comes_before_it() -> None:
    spec = ModelSpec.of({"byte": np.zeros(3, np.int8), "half": np.zeros(5, np.float16), "double": np.zeros(2)})
    header = plan_shards(spec)[0].headers[0]
    assert [tensor.name for tensor in header.tensors] == ["byte", "half", "double"]
    assert [begin % size for begin, size in zip(header.first_bytes, (1, 2, 8), strict=True)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("sizes", "shard_bytes", "files"),
    [
        ([8, 8, 8], 24, [[0, 1, 2]]),
        ([8, 8, 8], 23, [[0, 1], [2]]),
        ([8, 80, 8], 16, [[0], [1], [2]]),
        ([80, 8, 8], 16, [[0], [1, 2]]),
        ([8, 0, 8, 0], 8, [[0, 1], [2, 3]]),
        ([8, 8], 1, [[0], [1]]),
    ],
)
def test_a_new_file_begins_where_the_next_tensor_would_be_too_much(
    sizes: list[int], shard_bytes: int, files: list[list[int]]
) -> None:
    spec = ModelSpec(tuple(TensorSpec(str(i), "int8", (size,)) for i, size in enumerate(sizes)))
    shards, heads = plan_shards(spec, shard_bytes)
    assert [[int(tensor.name) for tensor in header.tensors] for header in shards.headers] == files
    assert len(heads) == len(files) and shards.has_index == (len(files) > 1)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ([TensorSpec("__metadata__", "int8", ())], {}, "cannot be called '__metadata__'"),
        ([TensorSpec("\ud800", "int8", ())], {}, "cannot be called"),
        ([TensorSpec("w", "int8", ())], {"round": 3}, "expected metadata as an object of strings"),
    ],
)
def test_what_a_header_cannot_hold_is_refused(tensors: list[TensorSpec], metadata: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_header(tensors, metadata)


def test_a_header_that_is_too_long_for_safetensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcore.model.safetensors_header.MAX_HEADER_BYTES", 1000)
    spec = ModelSpec(tuple(TensorSpec(f"t{i}", "int8", (3,)) for i in range(30)))
    with pytest.raises(SpecError, match=r"30 tensors need a header of .* a smaller shard_bytes"):
        plan_shards(spec)
    assert len(plan_shards(spec, shard_bytes=30)[1]) == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "has 18 bytes, but its tensors end at 10"),
        ({"w": GOOD, "__metadata__": {"round": 3}}, "expected metadata as an object of strings"),
        ({"w": GOOD, "__metadata__": ["x"]}, "expected metadata as an object of strings"),
        ({"w": 3}, "tensor 'w': expected an object with dtype, shape and data_offsets, got 3"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "tensor 'w': expected an object"),
        ({"w": {**GOOD, "more": 1}}, "tensor 'w': expected an object"),
        ({"w": {**GOOD, "dtype": "F8_E4M3"}}, "tensor 'w': dtype 'F8_E4M3' is not supported"),
        ({"w": {**GOOD, "dtype": "f32"}}, "tensor 'w': dtype 'f32'"),
        ({"w": {**GOOD, "dtype": 32}}, "tensor 'w': dtype 32"),
        ({"w": {**GOOD, "dtype": ["F32"]}}, r"tensor 'w': dtype \['F32'\]"),
        ({"w": {**GOOD, "shape": 2}}, "tensor 'w': expected a shape as a list"),
        ({"w": {**GOOD, "shape": [-2]}}, "tensor 'w': expected a shape as a list"),
        ({"w": {**GOOD, "shape": [2.0]}}, "tensor 'w': expected a shape as a list"),
        ({"w": {**GOOD, "shape": [True, 2]}}, "tensor 'w': expected a shape as a list"),
        ({"w": {**GOOD, "shape": [2**49]}}, "tensor 'w': .*whole numbers, 0 to"),
        ({"w": {**GOOD, "shape": [1] * 65}}, "tensor 'w': .*at most 64"),
        ({"w": {**GOOD, "shape": [3]}}, r"tensor 'w': expected 12 bytes for float32 of shape \(3,\), .* of 8 bytes"),
        ({"w": {**GOOD, "data_offsets": [0, 12]}}, "tensor 'w': expected data_offsets"),
        ({"w": {**GOOD, "data_offsets": [8, 0]}}, "tensor 'w': expected data_offsets"),
        ({"w": {**GOOD, "data_offsets": [0]}}, "tensor 'w': expected data_offsets"),
        ({"w": {**GOOD, "data_offsets": [0, "8"]}}, "tensor 'w': expected data_offsets"),
        ({"w": {**GOOD, "data_offsets": None}}, "tensor 'w': expected data_offsets"),
        ({"w": {**GOOD, "shape": [1], "data_offsets": [4, 8]}}, "tensor 'w' leaves a hole before it"),
        ({"w": {**GOOD, "shape": [1], "data_offsets": [0, 4]}}, "has 77 bytes, but its tensors end at 73"),
        ({"v": GOOD, "w": {**GOOD, "shape": [1], "data_offsets": [4, 8]}}, "tensor 'w' overlaps"),
        ({"v": GOOD, "w": GOOD}, "tensor 'w' overlaps"),
        ({"": GOOD}, "tensor '': .*1 to 1024"),
        (b'{"\\ud800": 3}', "cannot be called"),
        (b'{"w": 1, "w": 2}', "'w' appears twice"),
        (b'{"w": {"dtype": "F32", "dtype": "F32"}}', "'dtype' appears twice"),
        (b" {}", "begins with '{'"),
        (b"[]", "begins with '{'"),
        (b"{}}", "expected JSON: "),
        (b"{" + b'"a":{' * 100_000, "expected JSON: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON: "),
        (b'{"\xff": 1}', "expected JSON: "),
    ],
)
def test_a_header_that_is_not_to_the_letter_is_refused(tmp_path: Path, header: object, message: str) -> None:
    path = file_of(tmp_path / "x.safetensors", header)
    with pytest.raises(SpecError, match=f"x\\.safetensors.*{message}"):
        open_model(path)


def test_a_file_without_tensors_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"x\.safetensors: a model has at least one tensor"):
        open_model(file_of(tmp_path / "x.safetensors", {}, b""))


@pytest.mark.parametrize(
    "content",
    [
        (1).to_bytes(8, "little") + b"{",
        (3).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(100),
        (2**64 - 1).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_length_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SpecError, match=r"x\.safetensors is no safetensors file, or a truncated one"):
        open_model(tmp_path / "x.safetensors")


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save({"w": np.ones((3, 5), np.float32), "b": np.ones(7)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(SpecError, match=r"x\.safetensors"):
            open_model(tmp_path / "x.safetensors")


INDEX = "model.safetensors.index.json"


def change(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda index: {**index, "weight_map": {**index["weight_map"], key: value}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index: [], "expected a JSON object, got list"),
        (lambda index: {}, "expected a weight_map"),
        (lambda index: {"weight_map": {}}, "expected a weight_map"),
        (lambda index: {"weight_map": ["w"]}, "expected a weight_map"),
        (change("a", 3), "tensor 'a': expected the name of a file"),
        (change("a", "../model.safetensors"), "tensor 'a': expected the name of a file"),
        (change("a", "/etc/passwd"), "tensor 'a': expected the name of a file"),
        (change("a", "sub\\file"), "tensor 'a': expected the name of a file"),
        (change("a", ".."), "tensor 'a': expected the name of a file"),
        (change("a", ""), "tensor 'a': expected the name of a file"),
        (change("a", "x\0y"), "tensor 'a': expected the name of a file"),
        (change("a", "\ud800"), "tensor 'a': expected the name of a file"),
        (change("a", "elsewhere.safetensors"), "names a file that does not exist: .*elsewhere"),
        (change("c", "one.safetensors"), "tensor 'c' is not in one.safetensors"),
        (change("b", "one.safetensors"), "tensor 'b' is in this file, but not|tensor 'b' is not in one"),
        (
            lambda index: {"weight_map": {"a": "one.safetensors"}},
            "tensor 'odd' is in this file, although .* does not say so",
        ),
    ],
)
def test_an_index_that_is_not_to_the_letter_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    safetensors.numpy.save_file({"a": np.ones(2), "odd": np.ones(3)}, tmp_path / "one.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(2)}, tmp_path / "two.safetensors")
    files = {"a": "one.safetensors", "odd": "one.safetensors", "b": "two.safetensors"}
    good = {"metadata": {"total_size": 1}, "weight_map": files, "more": 3}
    (tmp_path / INDEX).write_text(json.dumps(good))
    assert [tensor.name for tensor in open_model(tmp_path / INDEX).spec.tensors] == ["a", "odd", "b"]
    (tmp_path / INDEX).write_text(json.dumps(spoil(good)))
    with pytest.raises(SpecError, match=message):
        open_model(tmp_path)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    with pytest.raises(SpecError, match="'a' appears twice"):
        open_model(tmp_path)
