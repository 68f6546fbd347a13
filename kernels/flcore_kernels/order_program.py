"""How rows are sorted: a list of steps, each of which works on whole rows of a tile.

A tile has one row of keys per client, and its columns are sorted alike: a step compares rows element by element, so a
vector of columns takes as long as one. Up to 16 rows are sorted in registers, by a sorting network. More rows are
sorted in blocks of 16, and a second network, for the blocks, says which pairs are merged and split: the lower 16 rows
of both go to the first block, and the upper 16 to the second one. A sorting network stays one if its comparators are
replaced so (Knuth, The Art of Computer Programming 3, exercise 5.3.4-38).

The steps are data of one compiled kernel, so another number of clients compiles nothing.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 16
"""Rows that are sorted in registers: as many as leave half of AVX-512's 32 registers for intermediate values."""

MERGE, SPLIT, MIDDLE = 0, 1, 17
"""Kinds of steps. From 2 to `BLOCK_ROWS`, a kind is the number of rows to sort.

- `MERGE`: sorts 16 rows that ascend and then descend, or the other way round.
- `SPLIT`: moves the smaller elements of two sorted blocks into the first one, and the larger ones into the second.
- `MIDDLE`: like `SPLIT`, but leaves only the largest of the first block, in its last row, and the smallest of the
  second one, in its first row.
"""


PROGRAMS_KEPT = 16
"""How many numbers of clients have their steps kept. Those of 65,535 clients take some 12 MB."""


class Program(NamedTuple):
    """The steps that sort the rows of a tile.

    Attributes:
        rows: The rows of a tile: one per client, and padding.
        first: The row of the first client. Rows before it are padding that sorts first, and rows after the last client
            are padding that sorts last.
        steps: One row (kind, row, other row) per step.
    """

    rows: int
    first: int
    steps: npt.NDArray[np.int64]


@lru_cache(PROGRAMS_KEPT)
def sort_program(clients: int) -> Program:
    """Return the steps that sort all rows. Client k of the sorted ones is in row k."""
    if clients <= BLOCK_ROWS:
        return _program(clients, 0, [(clients, 0, 0)] if clients > 1 else [])
    blocks = -(-clients // BLOCK_ROWS)
    return _program(blocks * BLOCK_ROWS, 0, _block_steps(blocks))


@lru_cache(PROGRAMS_KEPT)
def median_program(clients: int) -> tuple[Program, int, int]:
    """Return steps after which the two middle elements are in their rows, and these rows. Odd: the same row twice.

    Padding on both sides moves the middle to the border of two blocks. Steps that it does not depend on are left out.
    """
    if clients <= BLOCK_ROWS:
        return sort_program(clients), (clients - 1) // 2, clients // 2
    blocks = -(-clients // BLOCK_ROWS)
    rows, low = blocks * BLOCK_ROWS, (clients - 1) // 2
    border = blocks // 2 * BLOCK_ROWS
    first = border - 1 - low if blocks % 2 == 0 else 0
    low, high = first + low, first + clients // 2
    steps = _needed(_block_steps(blocks), {low, high})
    last = max(number for number, (kind, *_) in enumerate(steps) if kind == SPLIT)
    if low == border - 1 and high <= border and steps[last] == (SPLIT, border - BLOCK_ROWS, border):
        # Around the border of the last two blocks, a maximum and a minimum take the place of sorting both.
        steps = [*steps[:last], (MIDDLE, border - BLOCK_ROWS, border)]
    return _program(rows, first, steps), low, high


@lru_cache(PROGRAMS_KEPT)
def comparators(rows: int) -> tuple[tuple[int, int], ...]:
    """Return a sorting network for any number of rows: Batcher's merge exchange (Knuth 3, algorithm 5.2.2M).

    >>> comparators(3)
    ((0, 2), (0, 1), (1, 2))
    """
    found: list[tuple[int, int]] = []
    top = 1 << max(0, (rows - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            found += [(i, i + d) for i in range(rows - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(found)


def _block_steps(blocks: int) -> list[tuple[int, int, int]]:
    steps = [(BLOCK_ROWS, block * BLOCK_ROWS, 0) for block in range(blocks)]
    for one, other in comparators(blocks):
        first, second = one * BLOCK_ROWS, other * BLOCK_ROWS
        steps += [(SPLIT, first, second), (MERGE, first, 0), (MERGE, second, 0)]
    return steps


def _needed(steps: list[tuple[int, int, int]], rows: set[int]) -> list[tuple[int, int, int]]:
    """Return the steps on which some rows depend."""
    blocks, kept = {row // BLOCK_ROWS for row in rows}, []
    for kind, row, other in reversed(steps):
        touched = {row // BLOCK_ROWS, other // BLOCK_ROWS} if kind == SPLIT else {row // BLOCK_ROWS}
        if touched & blocks:
            blocks |= touched
            kept.append((kind, row, other))
    return kept[::-1]


def _program(rows: int, first: int, steps: list[Any]) -> Program:
    return Program(rows, first, np.array(steps, np.int64).reshape(-1, 3))
