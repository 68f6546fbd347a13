"""Labels of any kind as codes, the counts of a partition, and the checks that all partitioners share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import PartitionError, SpecError
from flcore.model.arrays import as_array

Indices = npt.NDArray[np.int64]
Partition = list[Indices]
"""For each client, the indices of its examples, ascending. Each index is in exactly one of them."""

MAX_DRAWS = 500
"""The most draws of a random partition until each client has its minimum."""


def label_codes(labels: Any) -> tuple[npt.NDArray[Any], Indices]:
    """Return the distinct labels, sorted, and the position in them of each example's label.

    Args:
        labels: One label per example: numbers, strings or booleans; a list, or an array of any library.

    Raises:
        PartitionError: The labels have several dimensions, cannot be compared, or one is NaN; or there are none.
    """
    try:
        array = np.asarray(labels) if isinstance(labels, list | tuple) else as_array(labels, "labels")
    except (SpecError, ValueError) as error:
        raise PartitionError(f"labels: expected a list or an array with one label per example: {error}") from error
    if array.ndim != 1:
        raise PartitionError(
            f"labels: expected one label per example, got an array of shape {array.shape}; give one column of it"
        )
    if not array.size:
        raise PartitionError("labels: expected at least one example, got none")
    if array.dtype.kind == "f" and (missing := int(np.isnan(array).sum())):
        raise PartitionError(f"labels: expected a label for each example, got NaN for {missing} of {array.size}")
    try:
        values, codes = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise PartitionError(f"labels: expected labels of one kind, such as integers or strings: {error}") from error
    return values, codes.astype(np.int64)


def label_counts(labels: Any, partition: Sequence[npt.ArrayLike]) -> tuple[npt.NDArray[Any], Indices]:
    """Return how many examples of each label each client has.

    Args:
        labels: One label per example.
        partition: For each client, the indices of its examples.

    Returns:
        The distinct labels, sorted, and an array with a row per client and a column per label.

    Raises:
        PartitionError: The labels are invalid.

    Example:
        >>> label_counts(["a", "b", "b", "b"], [np.array([0, 1]), np.array([2, 3])])[1].tolist()
        [[1, 1], [0, 2]]
    """
    values, codes = label_codes(labels)
    rows = [np.bincount(codes[np.asarray(indices, np.int64)], minlength=len(values)) for indices in partition]
    return values, np.array(rows, np.int64).reshape(len(partition), len(values))


def require_sizes(examples: int, clients: int, min_size: int) -> None:
    """Raise `PartitionError` unless each client can have its minimum."""
    if clients < 1:
        raise PartitionError(f"clients: expected a number >= 1, got {clients}")
    if min_size < 0:
        raise PartitionError(f"min_size: expected a number >= 0, got {min_size}")
    if examples < clients * max(1, min_size):
        raise PartitionError(
            f"{examples} examples are too few for {clients} clients with at least {max(1, min_size)} each: expected "
            f"{clients * max(1, min_size)}; take fewer clients or a smaller minimum"
        )


def require_alpha(alpha: float) -> None:
    """Raise `PartitionError` unless a Dirichlet distribution has this concentration."""
    if not (np.isfinite(alpha) and alpha > 0):
        raise PartitionError(f"alpha: expected a finite number > 0, got {alpha}")


def deal(codes: Indices, sizes: Indices, rng: np.random.Generator) -> Partition:
    """Deal the examples of each label: `sizes[label, client]` of them, drawn at random, to each client."""
    parts: list[list[Indices]] = [[] for _ in range(sizes.shape[1])]
    by_label = np.argsort(codes, kind="stable")
    for row, examples in zip(sizes, np.split(by_label, sizes.sum(axis=1).cumsum()[:-1]), strict=True):
        for part, indices in zip(parts, np.split(rng.permutation(examples), row.cumsum()[:-1]), strict=True):
            part.append(indices)
    return [np.sort(np.concatenate(part)) for part in parts]
