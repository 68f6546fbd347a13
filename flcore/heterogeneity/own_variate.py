"""A client's own control variate, in files of the site's state directory.

`scaffold-ROUND.safetensors` has the variate with which the client ended that round. Whether the server counts a round
is known only when the server says so, so the file of the round that it has counted last stays until a later one counts.
A task that is executed again therefore starts with the variate of its first execution.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flcore.errors import JobError, SpecError
from flcore.heterogeneity.gradients import Values
from flcore.model.checkpoint import load, save

PREFIX, SUFFIX = "scaffold-", ".safetensors"


def read_variate(directory: Path, counted: int, like: Mapping[str, Values]) -> dict[str, Values]:
    """Return the client's variate of the round that the server has counted last.

    Args:
        directory: The site's state directory.
        counted: The number of that round; 0 if the server has counted none, whose variate is zero.
        like: The global control variates.

    Raises:
        JobError: There is no file of that round, or it is not of this model.
    """
    if counted == 0:
        return {name: np.zeros_like(array) for name, array in like.items()}
    path = _path(directory, counted)
    try:
        variate = load(path)
    except FileNotFoundError:
        raise JobError(
            f"SCAFFOLD: expected this client's control variate of round {counted}, which the server has counted, in "
            f"{path}; there is none. Restore the state directory; without it, this client cannot go on in this run"
        ) from None
    except SpecError as error:
        raise JobError(f"SCAFFOLD: {error}; restore the state directory") from error
    if _shapes(variate) != _shapes(like):
        raise JobError(f"SCAFFOLD: {path} is of another model; give another state directory")
    return variate


def write_variate(directory: Path, round_number: int, counted: int, variate: Mapping[str, Values]) -> None:
    """Write the client's variate of a round by an atomic replace, and remove those of rounds that cannot count."""
    path = _path(directory, round_number)
    save(variate, path)
    kept = {path, _path(directory, counted)}
    for other in directory.glob(f"{PREFIX}*{SUFFIX}"):
        if other not in kept:
            other.unlink()


def _path(directory: Path, round_number: int) -> Path:
    return directory / f"{PREFIX}{round_number:05d}{SUFFIX}"


def _shapes(arrays: Mapping[str, Values]) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}
