"""A staged update as Arrow tables: what they hold, when it can be opened, and what is no update."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from flcore_kernels import backend
from flcore_layout import DTYPES, SegmentRange
from flcore_transport.piece_format import arrow_message_bytes, arrow_metadata, arrow_schema_message, piece_elements

from flcore import Aggregator, CorruptUpdate, Model, ModelSpec, UpdateError, open_update
from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import DiskStore, Staging, chunk_offset
from flcore.aggregation.storage import Storage
from flcore.aggregation.update_tables import UpdateTables
from flcore.model.compression import Compressor
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.wire_format import WireFormat
from flcore.rules.named import resolve_rule
from tests.flcore.processes import write_small_job

SIZE = 2 * piece_elements("float32") + 1000
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "first": np.arange(7, dtype=np.float32) - 3,
    "w": np.arange(SIZE, dtype=np.float32) / 7,
    "b": np.arange(21).reshape(3, 7).astype(ml_dtypes.bfloat16),
    "none": np.zeros((4, 0), np.float16),
    "step": np.array(12, np.int64),
    "mask": np.array([True, False, True]),
}
SPEC = ModelSpec.of(ARRAYS)


def staged_update(form: WireFormat, staging: Staging, client: str = "a", weight: float = 1.0) -> StagedUpdate:
    settings = AggregationSettings(resolve_rule("mean"), "exact", backend())
    staged = StagedUpdate(form, Combiner(form.spec, settings), staging, client, weight)
    staged.allocate(may_wait=False).result(0)
    return staged


def fill(staged: StagedUpdate, form: WireFormat, arrays: dict[str, Any], pieces: slice = slice(None)) -> None:
    source = Compressor(form, Model.of(arrays))
    for index in range(len(form.pieces))[pieces]:
        staged.append(form.pieces[index], b"".join(source.read(form.pieces[index])))


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The directory of a committed update; `staged` is let go at the end of the test."""
    staging, form = Staging(0, tmp_path / "staging"), WireFormat.uncompressed(SPEC)
    staged = staged_update(form, staging, "hospital", 2.5)
    fill(staged, form, ARRAYS)
    staged.seal()
    copy = tmp_path / "kept"
    (tmp_path / "staging/1").rename(copy)
    return copy


def values(update: UpdateTables, name: str) -> Any:
    """The values of a tensor, as the documentation says."""
    table = update[name]
    metadata = table.schema.metadata
    dtype, shape = metadata[b"flcore.dtype"].decode(), json.loads(metadata[b"flcore.shape"])
    assert metadata[b"flcore.tensor"].decode() == name
    if table.column_names == ["value"]:
        return table["value"].to_numpy().view(NUMPY_DTYPES[dtype]).reshape(shape)
    scales = table["scale"].to_numpy()
    codes = table["codes"].combine_chunks().flatten().to_numpy().reshape(len(scales), -1)
    size = int(np.prod(shape))
    return (codes * scales[:, None]).reshape(-1)[:size].astype(NUMPY_DTYPES[dtype]).reshape(shape)


def test_tensors_come_back_by_name_with_the_clients_name_and_weight(committed: Path) -> None:
    update = open_update(str(committed))
    assert (update.client, update.weight, update.spec) == ("hospital", 2.5, SPEC)
    assert list(update) == list(ARRAYS) and len(update) == len(ARRAYS)
    assert repr(update) == "UpdateTables(client='hospital', weight=2.5, 6 tensors)"
    for name, array in ARRAYS.items():
        update[name].validate(full=True)
        found = values(update, name)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes()
    with pytest.raises(KeyError):
        update["other"]


def test_tables_are_views_of_the_mapped_files_and_outlive_them(committed: Path) -> None:
    before = pa.total_allocated_bytes()
    update = open_update(committed)
    table = update["w"]
    assert pa.total_allocated_bytes() == before
    assert table["value"].num_chunks == 3
    for path in committed.iterdir():
        path.unlink()
    assert np.array_equal(table["value"].to_numpy(), ARRAYS["w"])


def test_a_segments_table_has_all_tensors_of_its_dtype(committed: Path) -> None:
    update = open_update(committed)
    assert [table.schema.field(0).metadata[b"flcore.dtype"].decode() for table in update.segments] == [
        segment.dtype for segment in SPEC.segments
    ]
    assert [table.num_rows for table in update.segments] == [segment.elements for segment in SPEC.segments]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_wire_can_be_opened(dtype: str, tmp_path: Path) -> None:
    stored = "float32" if DTYPES[dtype].block else dtype
    arrays = {name: (np.arange(size) % 2).astype(NUMPY_DTYPES[stored]) for name, size in [("a", 300), ("b", 1000)]}
    form = WireFormat(ModelSpec.of(arrays), (dtype,))
    staged = staged_update(form, Staging(0, tmp_path / "staging"))
    fill(staged, form, arrays)
    staged.seal()
    update = open_update(tmp_path / "staging/1")
    for name, array in arrays.items():
        update[name].validate(full=True)
        np.testing.assert_allclose(values(update, name).astype(float), array.astype(float), atol=1e-6)
        assert update[name].schema.field(-1 + len(update[name].schema)).metadata == {b"flcore.dtype": dtype.encode()}


def test_an_update_can_be_opened_once_it_is_committed(tmp_path: Path) -> None:
    aggregator = Aggregator(SPEC, storage=Storage("batch", Staging(0, tmp_path / "staging")))
    with aggregator.update(client="a", weight=1.0) as staged:
        for number in range(2):
            with pytest.raises(UpdateError, match="only a part has come; open it once its client has answered"):
                open_update(tmp_path / "staging/1")
            if not number:
                staged.write_all(ARRAYS)
    assert np.array_equal(values(open_update(tmp_path / "staging/1"), "w"), ARRAYS["w"])
    aggregator.finish()
    with pytest.raises(FileNotFoundError):
        open_update(tmp_path / "staging/1")


@pytest.mark.parametrize("is_sealed_first", [True, False])
def test_an_update_that_is_spilled_can_be_opened_when_it_is_whole_on_disk(
    is_sealed_first: bool, tmp_path: Path
) -> None:
    form = WireFormat.uncompressed(SPEC)
    staged = staged_update(form, Staging(form.nbytes, tmp_path / "staging"))
    fill(staged, form, ARRAYS)
    steps = [staged.seal, staged.spill]
    for step in steps if is_sealed_first else steps[::-1]:
        assert not (tmp_path / "staging/1/update.json").exists()
        step()
    assert np.array_equal(values(open_update(tmp_path / "staging/1"), "w"), ARRAYS["w"])


def test_an_update_is_sealed_after_the_last_chunk_that_is_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, adopt = WireFormat.uncompressed(SPEC), DiskStore.append
    seen: list[bool] = []
    staged = staged_update(form, Staging(form.nbytes, tmp_path / "staging"))
    fill(staged, form, ARRAYS)

    def adopting(disk: DiskStore, piece: SegmentRange, body: Any) -> None:
        if not seen:
            staged.seal()  # it is committed while it goes to disk
        seen.append((tmp_path / "staging/1/update.json").exists())
        adopt(disk, piece, body)

    monkeypatch.setattr(DiskStore, "append", adopting)
    staged.spill()
    assert seen == [False] * len(form.pieces)
    assert open_update(tmp_path / "staging/1").spec == SPEC


def test_what_is_no_update_is_told(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match=r"which holds update.json, got .*runs/NAME/.staging/1"):
        open_update(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UpdateError, match="expected the directory of a staged update"):
        open_update(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_update(tmp_path / "none")


def test_a_missing_or_truncated_file_is_told(committed: Path) -> None:
    path = committed / "segment-0.arrows"
    size = path.stat().st_size
    os.truncate(path, size - 8)
    with pytest.raises(
        CorruptUpdate, match=rf"client 'hospital': expected {size} bytes, got {size - 8} in .*segment-0"
    ):
        open_update(committed)
    os.truncate(path, 0)
    with pytest.raises(CorruptUpdate, match="got 0 in"):
        open_update(committed)
    path.unlink()
    with pytest.raises(CorruptUpdate, match="got no such file"):
        open_update(committed)


@pytest.mark.parametrize(("bytes_", "found"), [(bytes(8), "zeros: it was never written"), (b"\1" * 8, "altered bytes")])
def test_a_chunk_that_is_missing_or_altered_names_its_tensor(committed: Path, bytes_: bytes, found: str) -> None:
    count = piece_elements("float32")
    offset = chunk_offset(SegmentRange(0, "float32", count, count))
    assert offset == len(arrow_schema_message("float32")) + arrow_message_bytes("float32", count)
    with (committed / "segment-0.arrows").open("r+b") as file:
        for begin in range(0, len(arrow_metadata("float32", count)), 8):
            file.seek(offset + begin)
            file.write(bytes_)
    with pytest.raises(CorruptUpdate, match=f"tensor 'w': expected a chunk at byte {offset} of .*, got {found}"):
        open_update(committed)


def test_another_schema_is_told(committed: Path) -> None:
    with (committed / "segment-0.arrows").open("r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)
    with pytest.raises(CorruptUpdate, match="expected the schema of float32"):
        open_update(committed)


@pytest.mark.parametrize(
    "changed",
    [
        {"tensors": []},
        {"tensors": [["w", "float32", [1.5]]]},
        {"tensors": [["w", "float32"]]},
        {"tensors": [["w", "float31", [1]]]},
        {"tensors": 1},
        {"segments": ["float32"]},
        {"segments": ["float64", "bfloat16", "float16", "int64", "bool"]},
        {"segments": ["float32", "bfloat16", "float16", "int8", "bool"]},
        {"weight": "heavy"},
        {"weight": 10**400},
        {"weight": "1.5"},
        {"weight": 2**53 + 1},
        {"client": "\ud800"},
        {"tensors": [["\ud800", "float32", [1]]], "segments": ["float32"]},
        {"weight": -1.0},
        {"weight": float("nan")},
        {"weight": True},
        {"client": 3},
    ],
)
def test_a_description_that_was_altered_is_told(committed: Path, changed: dict[str, Any]) -> None:
    path = committed / "update.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(CorruptUpdate, match=r"expected the description of an update in .*update.json"):
        open_update(committed)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', "[" * 100_000, "\xff"])
def test_a_description_that_is_none_is_told(committed: Path, content: str) -> None:
    (committed / "update.json").write_text(content)
    with pytest.raises(CorruptUpdate, match="expected the description of an update"):
        open_update(committed)


def test_a_description_of_another_version_is_told(committed: Path) -> None:
    path = committed / "update.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(UpdateError, match=r"expected format 1, got 2 in .*: another version of flcore"):
        open_update(committed)


def test_a_huge_model_in_the_description_costs_no_memory(committed: Path) -> None:
    path = committed / "update.json"
    changed = {"tensors": [["w", "float32", [2**48]]], "segments": ["float32"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(CorruptUpdate, match="truncated or altered"):
        open_update(committed)


JOB = """
import sys
import flcore
from flcore.aggregation import staging
from flcore.server import serve

made = []

class DiskStore(staging.DiskStore):
    def seal(self):
        super().seal()
        made.append(sorted(path.name for path in self._directory.iterdir()))

staging.DiskStore = DiskStore
serve.Staging = lambda _, directory: staging.Staging(0, directory)
flcore.run("small", workers=0, rounds=2, out="run")
assert made == [["segment-0.arrows", "update.json"]] * 6, made
assert "pyarrow" not in sys.modules
assert flcore.open_history("run").num_rows == 2
assert "pyarrow" in sys.modules
"""


def test_a_job_that_stages_updates_on_disk_loads_no_pyarrow(tmp_path: Path) -> None:
    write_small_job(tmp_path)
    subprocess.run([sys.executable, "-c", JOB], cwd=tmp_path, check=True)
