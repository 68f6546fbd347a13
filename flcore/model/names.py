"""What a model's files are called, and what a path means to which something is to be written."""

import os
from pathlib import Path

from flcore.errors import SpecError

SINGLE = ".safetensors"
INDEX = ".safetensors.index.json"

PathLike = str | os.PathLike[str]


def place_of(path: PathLike) -> tuple[Path, str]:
    """Return the directory of a model that is to be written to `path`, and its name there, without suffix.

    A name that ends in `.safetensors` means a file. All others, and directories that are there, mean a directory, in
    which the model is `model.safetensors`. Raises `SpecError` for a name that can be neither.

    >>> place_of("runs/best.safetensors"), place_of("Qwen2.5-merged")
    ((PosixPath('runs'), 'best'), (PosixPath('Qwen2.5-merged'), 'model'))
    """
    directory = Path(path)
    if _means_file(path):
        return directory.parent, directory.name.removesuffix(SINGLE)
    if not os.fspath(path) or directory.name == SINGLE or directory.name.endswith(INDEX):
        raise SpecError(f"expected NAME{SINGLE} or a directory to write a model to, got {os.fspath(path)!r}")
    return directory, "model"


def directory_of(path: PathLike) -> Path:
    """Return the directory that `path` means, by the same rule; raise `SpecError` if it means a file."""
    if _means_file(path):
        raise SpecError(f"expected a directory, for several files, got {os.fspath(path)!r}: leave {SINGLE} out")
    if Path(path).exists() and not Path(path).is_dir():
        raise SpecError(f"expected a directory, got the file {os.fspath(path)!r}: choose another place")
    return Path(path)


def _means_file(path: PathLike) -> bool:
    """Whether a path means a file. A slash at its end means a directory, which `Path` would not keep."""
    name = os.path.basename(path)  # noqa: PTH119 - see above
    return name.endswith(SINGLE) and name != SINGLE and not Path(path).is_dir()
