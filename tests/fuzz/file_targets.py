"""Files that a disk has damaged or somebody else has written: models, updates, histories, logs, lists and settings."""

import hashlib
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from flcore_kernels import backend

from flcore import Model, open_history, open_model, open_update, save
from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import DESCRIPTION, Staging
from flcore.errors import FlcoreError, HistoryError
from flcore.identity.deny_list import HEADER, read_deny_list
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.job.site import read_site, server_site
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.rules.named import resolve_rule
from flcore.server.audit_chain import DIGEST_KEY, NO_DIGEST, TORN, describe_torn, seal, verify_lines
from flcore.server.history import Participation, RoundRecord
from flcore.server.run_directory import HISTORY_FILE
from tests.fuzz.mutations import HOSTILE_VALUES, Mutation, Raw, mutate_bytes, mutate_json, mutate_protobuf
from tests.fuzz.piece_targets import ARRAYS, SPEC
from tests.fuzz.target import require, strict_json


class DiskRefused(FlcoreError):
    """The system refused an operation on a file, which the reader's documentation allows."""


def rarely_valid(draw: random.Random, data: bytes, mutate: Mutation, other: bytes) -> bytes:
    """Return a mutation, or in one of thirty cases the valid input."""
    return data if draw.random() < 1 / 30 else mutate(draw, data, other)


class Headers:
    """A safetensors file with a mutated header, or mutated elsewhere."""

    name, share, cases = "safetensors", 40, 2

    def __init__(self, directory: Path) -> None:
        self._path = directory / "model.safetensors"
        save(ARRAYS, self._path, {"format": "pt"})
        written = self._path.read_bytes()
        length = int.from_bytes(written[:8], "little")
        self._header, self._data = written[8 : 8 + length].rstrip(), written[8 + length :]

    def make(self, draw: random.Random, case: int) -> bytes:
        header = rarely_valid(draw, self._header, mutate_json, self._header)
        if draw.random() < 0.3:  # numbers that fit together with others
            numbers = re.findall(rb"\d+", header)
            if numbers:
                new = draw.choice([*numbers, b"0", b"9" * 18, b"4294967296", b"1e3", b"300.0"])
                header = header.replace(draw.choice(numbers), new, 1)
        whole = len(header).to_bytes(8, "little") + header + self._data
        return mutate_bytes(draw, whole, whole) if case and draw.random() < 0.5 else whole

    def feed(self, case: int, data: bytes) -> None:
        self._path.write_bytes(data)
        with open_model(self._path) as model:
            length = int.from_bytes(data[:8], "little")
            entries = strict_json(data[8 : 8 + length].decode())
            entries.pop("__metadata__", None)
            require(list(entries) == [tensor.name for tensor in model.spec.tensors], "other tensors than the header's")
            covered = 0
            for name, entry in entries.items():
                begin, stop = entry["data_offsets"]
                values = model.tensor(name)
                require(list(values.shape) == entry["shape"], "another shape than the header's")
                require(values.tobytes() == data[8 + length + begin : 8 + length + stop], "other bytes than the file's")
                covered += stop - begin
            require(covered == len(data) - 8 - length, "bytes that belong to no tensor")


class Indexes:
    """The index of a model in several files."""

    name, share, cases = "indexes", 15, 1

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "sharded"
        self._directory.mkdir()
        save(ARRAYS, self._directory, shard_bytes=64)
        self._index = self._directory / "model.safetensors.index.json"
        self._valid = self._index.read_bytes()

    def make(self, draw: random.Random, case: int) -> bytes:
        data = rarely_valid(draw, self._valid, mutate_json, self._valid)
        if draw.random() < 0.2:
            name = draw.choice((b"../model.safetensors", b"/etc/passwd", b".", b"", b"x" * 300, b"\\u0000", b"sub/x"))
            data = data.replace(b"model-00001-of-00003.safetensors", name, 1)
        return data

    def feed(self, case: int, data: bytes) -> None:
        self._index.write_bytes(data)
        try:
            with open_model(self._directory) as model:
                names = [tensor.name for tensor in model.spec.tensors]
                require(list(strict_json(data)["weight_map"]) == names, "other tensors than the index's")
                require(all(np.array_equal(model.tensor(name), ARRAYS[name]) for name in names), "other values")
        except OSError as error:
            raise DiskRefused(str(error)) from error


class Updates:
    """The files of a staged update: its description, and the Arrow stream of each segment."""

    name, share = "staged updates", 25

    def __init__(self, directory: Path) -> None:
        self._valid: list[tuple[Path, str, bytes]] = []
        for number, dtype in enumerate((None, "bfloat16", "int8[64]")):
            form, staging = WireFormat.compressed(SPEC, dtype), Staging(0, directory / f"staging-{number}")
            combiner = Combiner(SPEC, AggregationSettings(resolve_rule("mean"), "exact", backend()))
            staged = StagedUpdate(form, combiner, staging, "hospital", 2.5)
            staged.allocate(may_wait=False).result(0)
            source = Compressor(form, Model.of(ARRAYS))
            for piece in form.pieces:
                staged.append(piece, b"".join(source.read(piece)))
            staged.seal()
            kept = directory / f"update-{number}"
            (directory / f"staging-{number}/1").rename(kept)
            self._valid += [(kept, file.name, file.read_bytes()) for file in sorted(kept.iterdir())]
        self.cases = len(self._valid)

    def make(self, draw: random.Random, case: int) -> bytes:
        _, name, data = self._valid[case]
        other = draw.choice(self._valid)[2]
        return rarely_valid(draw, data, mutate_json if name == DESCRIPTION else mutate_bytes, other)

    def feed(self, case: int, data: bytes) -> None:
        directory, name, valid = self._valid[case]
        (directory / name).write_bytes(data)
        try:
            update = open_update(directory)
            tables = [update[tensor] for tensor in update]
        finally:
            (directory / name).write_bytes(valid)
        for table in tables:
            table.validate(full=True)
        if name == DESCRIPTION:
            described = strict_json(data)
            require(update.client == described["client"] and update.weight == described["weight"], "other values")
            require(isinstance(described["client"], str), "a client whose name is no text")
            require(0 <= update.weight < float("inf"), "a weight that no update has")


class Histories:
    """The history of a run."""

    name, share, cases = "histories", 20, 1

    def __init__(self, directory: Path) -> None:
        self._run = directory / "run"
        self._run.mkdir()
        updates = {"one": Participation(2.5, {"loss": 0.5}, 4096, 0.25)}
        failed = {"train": {"two": "late"}}
        first = RoundRecord(1, ("one", "two"), updates, failed, {"loss": 0.5}, seconds={"round": 1.5})
        second = RoundRecord(2, checkpoint="round-00002.safetensors")
        self._valid = [record.to_json().encode() for record in (first, second)]

    def make(self, draw: random.Random, case: int) -> bytes:
        lines = [rarely_valid(draw, line, mutate_json, self._valid[0]) for line in self._valid]
        return b"\n".join(lines) + draw.choice((b"\n", b"\n", b"", b'\n{"round": 3'))

    def feed(self, case: int, data: bytes) -> None:
        (self._run / HISTORY_FILE).write_bytes(data)
        table = open_history(self._run)
        table.validate(full=True)
        rounds = [strict_json(line)["round"] for line in data.split(b"\n")[:-1]]
        require(rounds == table["round"].to_pylist(), "other rounds than the file's")


class AuditLogs:
    """An audit log, whose lines are sealed again after a mutation, as a forger would."""

    name, share, cases = "audit logs", 40, 2

    def __init__(self, _: Path) -> None:
        self._fields: list[tuple[str, dict[str, Any]]] = [
            ("start", {"run": "20260131T120000-0", "job": "hospital", "version": "0.1.0"}),
            ("join", {"client": "a", "connected": 1}),
            (TORN, {}),
            ("receipt", {"client": "a", "round": 1, "weight": 2.5, "content_sha256": "e" * 64}),
            ("end", {"failed": False, "reason": ""}),
        ]

    def make(self, draw: random.Random, case: int) -> bytes:
        lines, previous, torn = [], NO_DIGEST, b'{"previous":'
        for sequence, (event, fields) in enumerate(self._fields, 1):
            if event == TORN:
                length, digest = describe_torn(torn)
                fields = {"torn_bytes": length, "torn_sha256": digest}
                lines.append(torn + b"\n")
            line, previous = seal(previous, sequence, "2026-01-31T12:00:00.000Z", event, fields)
            if draw.random() < 0.2 and case:
                line, previous = self._forged(draw, line)
            lines.append(line)
        data = b"".join(lines)
        return mutate_bytes(draw, data, data) if draw.random() < 0.3 or not case else data

    @staticmethod
    def _forged(draw: random.Random, line: bytes) -> tuple[bytes, str]:
        body = line.partition(DIGEST_KEY)[0]
        value = draw.choice([each for each in HOSTILE_VALUES if isinstance(each, Raw)])
        added = f',"{draw.choice(("a", "torn_bytes", "sequence"))}":{value}'.encode("ascii", "backslashreplace")
        body = body + added if draw.random() < 0.5 else mutate_bytes(draw, body, line)
        digest = hashlib.sha256(body + b"}").hexdigest()
        return body + DIGEST_KEY + digest.encode() + b'"}\n', digest

    def feed(self, case: int, data: bytes) -> None:
        result = verify_lines(io.BytesIO(data))
        require(result.torn_bytes <= len(data), "a torn tail that is longer than the log")
        if result.fault is not None:
            raise HistoryError(result.fault.expected)
        stated = re.findall(rb'(?m)^(\{"previous":"([0-9a-f]{64})".*),"sha256":"([0-9a-f]{64})"\}$', data)
        previous = NO_DIGEST
        for body, before, digest in stated[: result.entries]:
            require(before.decode() == previous, "an entry does not continue the chain")
            previous = digest.decode()
            require(hashlib.sha256(body + b"}").hexdigest() == previous, "a digest is not that of its line")
        require(previous == result.head or result.torn_tails > 0, "another head")


class DenyLists:
    """A deny list."""

    name, share, cases = "deny lists", 30, 1

    def __init__(self, directory: Path) -> None:
        self._path = directory / "revoked.txt"
        self._valid = (HEADER + "".join(f"{number:064x}  # client {number}\n" for number in range(5))).encode()

    def make(self, draw: random.Random, case: int) -> bytes:
        return rarely_valid(draw, self._valid, draw.choice((mutate_bytes, mutate_protobuf)), self._valid)

    def feed(self, case: int, data: bytes) -> None:
        self._path.write_bytes(data)
        denied = read_deny_list(self._path)
        text = data.decode("utf-8-sig").lower().replace(":", "")
        lines = {line.partition("#")[0].strip() for line in text.split("\n")} - {""}
        require(denied == lines, "other fingerprints than the lines'")


TOML = """name = "small"
seed = 3
clients = ["one", "two"]

[server]
model = "small.py:initial_model"
rounds = 10
deadline_s = 30.5

[client]
executor = "small.py"
hyperparameters = { lr = 0.1, layers = [1, [2]] }

[tasks.train]
returns = "delta"

[[tasks.train.schedule]]
from_round = 3
hyperparameters = { lr = 0.01 }

[wire]
upload = "int8[64]"

[bounds]
max_weight = 1e6
"""

SITE_TOML = """[server]
budget = "512MiB"
plan = "streaming"

[client]
data = "/data/north"
"""


def mutate_toml(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Change a line of a TOML text, or its bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, data, other)
    lines = data.decode().splitlines()
    index = draw.randrange(len(lines))
    value = str(draw.choice([*HOSTILE_VALUES, Raw("1979-05-27"), Raw("inf"), Raw("nan"), Raw("0xff"), Raw('"""a'), -1]))
    key = lines[index].partition("=")[0].strip() or "a"
    match draw.randrange(6):
        case 0:
            del lines[index]
        case 1:
            lines.insert(draw.randrange(len(lines)), lines[index])
        case 2:
            lines[index] = f"{key} = {value}"
        case 3:
            lines.insert(index, ".".join(["a"] * draw.choice((3, 300, 1_500))) + " = 1")
        case 4:
            lines[index] = f"{key} = " + "{a=" * (depth := draw.choice((3, 200, 2_000))) + "1" + "}" * depth
        case _:
            lines[index] = "[" + ".".join(["a"] * draw.choice((1, 300, 1_500))) + "]"
    return "\n".join(lines).encode("utf-8", "surrogateescape")


class Sites:
    """A site.toml."""

    name, share, cases = "site.toml", 8, 1

    def __init__(self, directory: Path) -> None:
        self._path = directory / "site.toml"

    def make(self, draw: random.Random, case: int) -> bytes:
        return rarely_valid(draw, SITE_TOML.encode(), mutate_toml, TOML.encode())

    def feed(self, case: int, data: bytes) -> None:
        self._path.write_bytes(data)
        server_site(read_site(self._path, self._path.parent))


class JobFiles:
    """A job.toml."""

    name, share, cases = "job.toml", 6, 1

    def __init__(self, directory: Path) -> None:
        self._path = directory / "mutated/job.toml"
        self._path.parent.mkdir()

    def make(self, draw: random.Random, case: int) -> bytes:
        return rarely_valid(draw, TOML.encode(), mutate_toml, SITE_TOML.encode())

    def feed(self, case: int, data: bytes) -> None:
        self._path.write_bytes(data)
        contract = Job.load(self._path.parent).contract
        text = contract.to_json()
        require(Contract.model_validate_json(text).to_json() == text, "the canonical form is not stable")
        json.loads(text, parse_constant=lambda name: require(False, f"{name} in a contract"))
