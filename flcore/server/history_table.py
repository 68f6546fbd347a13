"""A run's history, read as records or opened as an Arrow table. `open_history` alone imports pyarrow, when called."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from flcore.errors import HistoryError
from flcore.model.model_paths import PathLike
from flcore.regular_file import read_regular
from flcore.server.history import RoundRecord
from flcore.server.run_directory import HISTORY_FILE
from flcore.strict_json import parse_json
from flcore.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

ALTERED = "the file was altered; put back the one that the server wrote"
"""The end of the error about a file of a run."""

COUNTS = range(2**63)
"""What an integer of a record may be: a number of bytes or of retries, or a round."""

AMOUNTS = {"seconds": 1e15, "weight": 1e300, "capped_weights": 1e300}
"""The largest values that are measured by the server or bounded by the contract; the least one is 0. Metrics may be any
numbers: a workflow may publish what it likes."""


def open_history(run: PathLike) -> "pa.Table":
    """Open a run's history as an Arrow table with a row for each round.

    It may be called while the run goes on: the table has one row per finished round. An incomplete last line is left
    out. Columns are never null:

    - `round`: int64, from 1 on.
    - `sampled`: list of string, the sampled clients.
    - `updates`: map from client to struct of `weight` (float64), `metrics` (map from string to float64), `bytes`
      (int64, of its update on the wire) and `seconds` (float64, from the opening of the attempt to the commit).
    - `failed`: map from task to map from client to string, the reason.
    - `train`, `validate`: map from metric to float64, averaged over the clients by weight.
    - `bytes_sent`, `bytes_received`: int64.
    - `seconds`: map from phase to float64; the phase "round" is the whole round.
    - `odd_metrics`: map from client to map from metric to string, the reason why it was dropped.
    - `asked_again`: int64, the number of retries of tasks below the quorum.
    - `skipped`: string, the reason why the round was skipped; else empty.
    - `is_best`: bool, whether the round's model was the best one so far.
    - `capped_weights`: map from client to float64, the weight that `bounds.max_share` left of a larger one.
    - `rule_effects`: map from client to what the rule did to its update. A struct of `kind` ("excluded", "clipped" or
      "scaled"), `factor` (float64), `figure` (float64) and `measure` ("norm", "score" or "distance").
    - `checkpoint`: string, the file with the round's model that `server.checkpoint_every` keeps; else empty.
    - `stopped`: string, the reason why the run ended early with this round; else empty.

    Args:
        run: The directory of a run (`flcore run --out`, `flcore.run(out=...)`), which holds `history.jsonl`.

    Returns:
        A `pyarrow.Table`. `table.to_pandas()` makes a data frame of it, where pandas is installed.

    Raises:
        HistoryError: The directory holds no `history.jsonl`, or a line is not the record of a round in this version of
            flcore. The error names the line.
        OSError: The directory does not exist, or the file cannot be read.

    Example:
        >>> history = flcore.open_history("runs/digits")  # doctest: +SKIP
        >>> [dict(each).get("accuracy") for each in history["validate"].to_pylist()]  # doctest: +SKIP
        [0.61, 0.74, 0.82]
    """
    import pyarrow as pa

    path = Path(run) / HISTORY_FILE
    rows = [_dataclass_value(RoundRecord, record) for record in _checked_records(path)]
    schema = pa.schema(list(_arrow_type(RoundRecord)))
    return pa.Table.from_pylist(rows, schema)


def read_history(run: PathLike) -> list[RoundRecord]:
    """Return the records of a run's finished rounds, also while the run goes on. Raises as `open_history` does."""
    return [RoundRecord.from_fields(record) for record in _checked_records(Path(run) / HISTORY_FILE)]


def parse_history(content: bytes, source: str) -> list[RoundRecord]:
    """Return the records in the content of a history, whole lines. Raises `HistoryError`, which names `source`."""
    return [RoundRecord.from_fields(record) for record in _checked_lines(content, source)]


def _checked_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each round's keys and values, checked."""
    try:
        content = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        path.parent.stat()  # raises `OSError` if nothing is there
        raise HistoryError(
            f"expected the directory of a run, which holds {HISTORY_FILE}, got {path.parent}; give the one of --out"
        ) from None
    yield from _checked_lines(content, str(path))


def _checked_lines(content: bytes, source: str) -> Iterator[dict[str, Any]]:
    """Yield each line's keys and values, checked. A key that an earlier version did not write gets its default."""
    *lines, _ = content.split(b"\n")  # after the last newline: nothing, or a partial line
    for number, line in enumerate(lines, start=1):
        try:
            yield _check_record(line)
        except ValueError as error:
            raise HistoryError(
                f"expected a round in line {number} of {source}; {printable(str(error))}: {ALTERED}"
            ) from error


def _check_record(line: bytes) -> dict[str, Any]:
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected the keys and values of a round, got a {type(record).__name__}")
    complete = vars(RoundRecord(0)) | record
    if "round" not in record:
        raise ValueError("expected the key 'round', got none")
    _dataclass_value(RoundRecord, complete)
    if complete["round"] == 0:
        raise ValueError("round: expected a number from 1 on, got 0")
    return complete


def _annotations(dataclass_type: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, by name."""
    return {member.name: member.type for member in fields(dataclass_type)}


def _arrow_type(hint: Any) -> "pa.DataType":
    """Return the Arrow type of an annotation. Types follow from `RoundRecord`, so a new field becomes a new column."""
    import pyarrow as pa

    if is_dataclass(hint):
        return pa.struct(
            [pa.field(name, _arrow_type(each), nullable=False) for name, each in _annotations(hint).items()]
        )
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        return pa.map_(pa.string(), pa.field("value", _arrow_type(arguments[1]), nullable=False))
    if get_origin(hint) is tuple:
        return pa.list_(pa.field("item", _arrow_type(arguments[0]), nullable=False))
    return {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}[hint]


def _value(hint: Any, value: Any, name: str) -> Any:
    """Convert a JSON value for Arrow. Raises `ValueError` if it does not match the annotation."""
    if is_dataclass(hint) and isinstance(value, dict):
        return _dataclass_value(hint, value)
    if get_origin(hint) is dict and isinstance(value, dict):
        values = get_args(hint)[1]
        return [(_text(key, name), _value(values, each, f"{name}.{key}")) for key, each in value.items()]
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return [_value(get_args(hint)[0], each, name) for each in value]
    if hint is float and type(value) is int and abs(value) in COUNTS:
        value = float(value)
    if hint is float and type(value) is float:
        largest = AMOUNTS.get(name.partition(".")[0])
        if largest is not None and not 0 <= value <= largest:
            raise ValueError(f"{name}: expected a number from 0 to {largest:g}, got {value!r}")
        return value
    if hint is str and type(value) is str:
        return _text(value, name)
    if type(value) is hint and (hint is not int or value in COUNTS):
        return value
    expected = "int from 0 to 2^63" if hint is int else getattr(hint, "__name__", hint)
    raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _text(value: str, name: str) -> str:
    """Return a text, or raise `ValueError` if it has a lone surrogate: JSON can write one, and no file takes it."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: expected text, got a lone surrogate in {value[:100]!r}") from error
    return value


def _dataclass_value(hint: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    hints = _annotations(hint)
    if value.keys() != hints.keys():
        unknown, missing = value.keys() - hints.keys(), hints.keys() - value.keys()
        raise ValueError(f"unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    return {name: _value(each, value[name], name) for name, each in hints.items()}
