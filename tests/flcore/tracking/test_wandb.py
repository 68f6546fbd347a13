"""The files of Weights & Biases, offline, read with its own messages. See `make test-adapters`."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb")

import wandb
from wandb.proto import wandb_internal_pb2

from flcore.tracking import Trackers, tracking_settings
from flcore.tracking.run_values import round_values
from tests.flcore.tracking.tracked import ROUNDS, tracked_run

BLOCK_BYTES, HEADER, FULL, LAST = 32 << 10, struct.Struct("<IHB"), 1, 4


def records_of(file: Path) -> list[Any]:
    """Return the records of a run's file: after a header of 7 bytes, a log of LevelDB, in blocks of 32 KiB."""
    content, records, record, at = file.read_bytes(), [], b"", 7
    assert content.startswith(b":W&B")
    while at < len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER.size:
            at += left
            continue
        _, length, part = HEADER.unpack_from(content, at)
        at += HEADER.size
        record += content[at : at + length]
        at += length
        if part in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def test_a_run_has_its_values_its_contract_and_its_best_model(tmp_path: Path) -> None:
    table = {"wandb": {"project": "hospitals", "directory": "offline"}}
    trackers = Trackers.of(tracking_settings({"tracking": {**table, "timeout_s": 300}}, tmp_path))
    history, _ = tracked_run(tmp_path, trackers.observe_run)
    wandb.teardown()  # a finished run may still be in the memory of the package's process: wait until that has ended
    [file] = (tmp_path / "offline/wandb").glob("offline-run-*/run-*.wandb")
    records = records_of(file)
    [run] = [record.run for record in records if record.HasField("run")][:1]
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert run.project == "hospitals" and run.display_name.startswith("tracked-")
    assert config["server.rounds"] == ROUNDS and len(config["contract_fingerprint"]) == 64

    rows = {}
    for record in records:
        if record.HasField("history"):
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
    assert rows.keys() == {record.round for record in history}
    for record in history:
        assert rows[record.round] == pytest.approx(round_values(record))

    best = tmp_path / "run/best.safetensors"
    entries = [entry for record in records for entry in record.artifact.manifest.contents]
    entries += [entry for record in records for entry in record.request.log_artifact.artifact.manifest.contents]
    assert [(Path(entry.path).name, entry.size) for entry in entries] == [("best.safetensors", best.stat().st_size)]
    assert Path(entries[0].local_path) == best, "the model is not copied"
