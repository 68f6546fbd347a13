"""From a path to open files whose headers are checked: one file, an index, or a directory that holds either."""

from pathlib import Path

from flcore.errors import SpecError
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX, describe_directory
from flcore.model.open_file import OpenFile
from flcore.model.safetensors_header import Header, read_header
from flcore.model.shard_layout import ShardLayout, read_index
from flcore.model.spec import ModelSpec, TensorSpec

ATTEMPTS = 5
"""How often a model is looked for anew that is replaced while it is being opened."""


def open_shards(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    """Open a model's files (see `checkpoint.open_model`), and say what lies in them.

    Raises `SpecError` for files that are no model, and `OSError` for those that cannot be read.
    """
    for attempt in range(ATTEMPTS):
        found = resolve_checkpoint(path)
        try:
            return _open_index(found) if found.name.endswith(INDEX_SUFFIX) else _open_single(found)
        except FileNotFoundError as error:
            if attempt == ATTEMPTS - 1:
                raise _missing_file_error(error, path, found) from error
    raise AssertionError("the last attempt returns or raises")


def resolve_checkpoint(path: Path) -> Path:
    """Return the file to begin with: a safetensors file, or an index.

    A file goes before an index of the same name, as in Hugging Face's loaders; `NAME.safetensors` that is not there
    stands for its index.
    """
    single = path / f"model{MODEL_SUFFIX}" if path.is_dir() else path
    if single.name.endswith(MODEL_SUFFIX) and not single.is_file():
        index = single.with_name(single.name.removesuffix(MODEL_SUFFIX) + INDEX_SUFFIX)
        if index.is_file():
            return index
    return single


def _missing_file_error(error: FileNotFoundError, path: Path, found: Path) -> Exception:
    if str(error.filename) != str(found):
        return SpecError(f"{found} names a file that is not there: {error.filename}")
    if path.is_dir():
        return SpecError(
            f"the directory {path} holds neither model{MODEL_SUFFIX} nor model{INDEX_SUFFIX}; "
            f"{describe_directory(path)}"
        )
    return error


def _open_single(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    file = OpenFile(path)
    header = read_header(file)
    return ShardLayout(_spec(header.tensors, path), (header,), has_index=False), (file,)


def _open_index(path: Path) -> tuple[ShardLayout, tuple[OpenFile, ...]]:
    weight_map = read_index(path)
    names = list(dict.fromkeys(weight_map.values()))
    files = tuple(OpenFile(path.parent / name) for name in names)
    headers = tuple(map(read_header, files))
    tensors: dict[str, TensorSpec] = {}
    for name, file, header in zip(names, files, headers, strict=True):
        _require_index_agreement(weight_map, name, header, path, file.path)
        tensors |= {tensor.name: tensor for tensor in header.tensors}
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise SpecError(f"{path}: tensor {tensor!r} is not in {name}, where the index has it")
    return ShardLayout(_spec(tuple(tensors[name] for name in weight_map), path), headers, has_index=True), files


def _require_index_agreement(weight_map: dict[str, str], name: str, header: Header, index: Path, path: Path) -> None:
    for tensor in header.tensors:
        if weight_map.get(tensor.name) != name:
            raise SpecError(f"{path}: tensor {tensor.name!r} is in this file, but not according to {index}")


def _spec(tensors: tuple[TensorSpec, ...], path: Path) -> ModelSpec:
    try:
        return ModelSpec(tensors)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
