"""What a model's files are called, and what a path means to which something is to be written."""

import os
from pathlib import Path

from flcore.errors import SpecError

MODEL_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

PathLike = str | os.PathLike[str]


def split_model_path(path: PathLike) -> tuple[Path, str]:
    """Return the directory of a model that is to be written to `path`, and its name there, without suffix.

    A name that ends in `.safetensors` means a file. All others, and directories that are there, mean a directory, in
    which the model is `model.safetensors`. Raises `SpecError` for a name that can be neither.

    >>> split_model_path("runs/best.safetensors"), split_model_path("Qwen2.5-merged")
    ((PosixPath('runs'), 'best'), (PosixPath('Qwen2.5-merged'), 'model'))
    """
    directory = Path(path)
    if _is_file_path(path):
        return directory.parent, directory.name.removesuffix(MODEL_SUFFIX)
    if not os.fspath(path) or directory.name == MODEL_SUFFIX or directory.name.endswith(INDEX_SUFFIX):
        raise SpecError(f"expected NAME{MODEL_SUFFIX} or a directory to write a model to, got {os.fspath(path)!r}")
    return directory, "model"


def require_directory(path: PathLike) -> Path:
    """Return the directory that `path` means, by the same rule; raise `SpecError` if it means a file."""
    if _is_file_path(path):
        raise SpecError(f"expected a directory, for several files, got {os.fspath(path)!r}: leave {MODEL_SUFFIX} out")
    if Path(path).exists() and not Path(path).is_dir():
        raise SpecError(f"expected a directory, got the file {os.fspath(path)!r}: choose another place")
    return Path(path)


def _is_file_path(path: PathLike) -> bool:
    """Whether a path means a file. A slash at its end means a directory, which `Path` would not keep."""
    name = os.path.basename(path)  # noqa: PTH119 - see above
    return name.endswith(MODEL_SUFFIX) and name != MODEL_SUFFIX and not Path(path).is_dir()
