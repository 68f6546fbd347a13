"""Chunk plans: which ranges of a segment are worked through at once, within a budget of memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BudgetTooSmall, BufferMismatch
from flcore_kernels.totals import bytes_per_element

ALIGNMENT = 256
"""Chunks begin at multiples of this, so that no block of an exact sum or of a quantized part is cut."""


@dataclass(frozen=True)
class ChunkPlan:
    """Equal ranges of a segment, but for the last; `chunk_elements` is a multiple of 256."""

    elements: int
    chunk_elements: int
    chunk_bytes: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.elements, self.chunk_elements):
            yield start, min(start + self.chunk_elements, self.elements)

    def __len__(self) -> int:
        return -(-self.elements // self.chunk_elements)


def plan_chunks(
    elements: int, dtype: str, *, clients: int, budget_bytes: int, accumulate: str = "exact", result: str | None = None
) -> ChunkPlan:
    """Plan the chunks in which `clients` parts of one dtype are combined within `budget_bytes`.

    A chunk takes its range of every part, of the total, and of the result (of dtype `result`, or else of the parts').
    Raises `BudgetTooSmall`, which says how much is needed, where not even 256 elements fit.

    >>> plan = plan_chunks(1_000_000, "float32", clients=10, budget_bytes=16_000_000)
    >>> plan.chunk_elements, list(plan)[-1]
    (266496, (799488, 1000000))
    """
    if elements < 0 or clients < 1:
        raise BufferMismatch(f"expected 0 elements or more of 1 client or more, got {elements} of {clients}")
    per_element = clients * part_bytes(dtype) + bytes_per_element(accumulate) + part_bytes(result or dtype)
    fitting = int(budget_bytes // per_element) // ALIGNMENT * ALIGNMENT
    if fitting <= 0:
        needed = -int(-per_element * ALIGNMENT // 1)
        raise BudgetTooSmall(
            f"a budget of {budget_bytes:,} bytes does not hold a chunk of {ALIGNMENT} elements of {clients} {dtype} "
            f"parts with their {accumulate} total: that needs {needed:,} bytes",
            needed,
        )
    size = min(fitting, max(ALIGNMENT, -(-elements // ALIGNMENT) * ALIGNMENT))
    return ChunkPlan(elements, size, int(size * per_element))


def part_bytes(dtype: str) -> float:
    """Return the bytes of an element on the wire, its share of a scale included.

    >>> part_bytes("int8[256]")
    1.015625
    """
    row = lookup(dtype)
    return row.storage.itemsize + (4 / row.block if row.block else 0.0)
