"""The ends of errors about files and functions that a job names and does not have: the nearest one, or what to do."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from flcore.text import did_you_mean, nearest_name, printable

MAX_BESIDE = 1_000
"""The most entries of a directory that are compared with a name."""


def file_advice(path: Path) -> str:
    """Return the end of an error about a file that does not exist.

    >>> (tmp_path / "train.py").touch()
    >>> file_advice(tmp_path / "trian.py"), file_advice(tmp_path / "start.safetensors")
    ("; did you mean 'train.py'?", '; correct the name, or put the file there')
    """
    beside: list[Path] = []
    with suppress(OSError):
        beside = list(islice(path.parent.iterdir(), MAX_BESIDE))
    alike = {each.stem: each.name for each in beside if each.suffix == path.suffix}  # an equal ending is no likeness
    nearest = nearest_name(path.stem, alike)
    if nearest is None:
        return "; correct the name, or put the file there"
    return f"; did you mean {printable(alike[nearest])!r}?"


def function_advice(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about a function that does not exist, given the names of the module or the object.

    >>> function_advice("trian", ["train", "_train"]), function_advice("play", ["train"])
    ("; did you mean 'train'?", '; write it there, or correct the name')
    """
    public = (each for each in known if not each.startswith("_"))
    return did_you_mean(name, public) or "; write it there, or correct the name"
