"""Totals: running weighted sums, their state, and how they are saved.

`float32` and `float64` totals hold one number per element, and depend on the order of what was added. An `exact` total
holds two int64 digits per element and a level per block of 64 (see `cpu.digits`), 16 1/32 bytes per element; nothing
that is added to it, in whatever order, gives other bits.
"""

import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from flcore_kernels.errors import BadState, BufferMismatch, OutOfDeviceMemory, SpoiledTotal, TooManyTerms

ACCUMULATORS = ("exact", "float64", "float32")
"""What a total can be: exact integers, or one float per element."""

BLOCK = 64
"""Elements of an exact total that share a level."""

EMPTY = -32768
"""The level of a block without a term other than zero."""

MAX_TERMS = 65_535
"""Terms (one per operand) that an exact total takes: a digit is at most 2^47, and 65,535 · 2^47 < 2^63."""

_MAGIC = b"flcore total 1\n\0"

Zeros = Callable[[int, Any], Any]
"""Makes an array of so many zeros of a dtype."""


def bytes_per_element(accumulate: str) -> float:
    """Return how much memory a total takes per element.

    >>> bytes_per_element("exact")
    16.03125
    """
    _require_accumulator(accumulate)
    return {"float32": 4.0, "float64": 8.0, "exact": 16 + 2 / BLOCK}[accumulate]


def _require_accumulator(accumulate: str) -> None:
    if accumulate not in ACCUMULATORS:
        raise BufferMismatch(f"accumulate is one of {', '.join(ACCUMULATORS)}, not {accumulate!r}")


@dataclass
class Total:
    """The weighted sum of some parts, `elements` long.

    `values`: float32 or float64 per element, or for `exact` the int64 digits, 64 upper and 64 lower ones a block;
    `levels`: int16 per block; both are where the backend works that made it. `terms` counts parts, `weight` is the
    exact sum of their weights in units of 2^-1074, and a float total's weights are divided by 2^`scale`.
    """

    elements: int
    accumulate: str
    values: Any = field(repr=False)
    levels: Any = field(repr=False)
    terms: int = 0
    weight: int = 0
    scale: int | None = None
    is_spoiled: bool = False

    @classmethod
    def zeros(cls, elements: int, accumulate: str, zeros: Zeros = np.zeros) -> "Total":
        """Return an empty total; `zeros` makes its arrays."""
        total = cls.unwritten(elements, accumulate, zeros)
        total.levels.fill(EMPTY)
        return total

    @classmethod
    def unwritten(cls, elements: int, accumulate: str, zeros: Zeros = np.zeros) -> "Total":
        """Return a total whose arrays, if they are NumPy's, take memory only where they are written to."""
        _require_accumulator(accumulate)
        if elements < 0:
            raise BufferMismatch(f"a total has 0 elements or more, not {elements}")
        if accumulate != "exact":
            return cls(elements, accumulate, zeros(elements, np.dtype(accumulate)), zeros(0, np.dtype(np.int16)))
        blocks = -(-elements // BLOCK)
        digits = zeros(2 * BLOCK * blocks, np.dtype(np.int64))
        return cls(elements, accumulate, digits, zeros(blocks, np.dtype(np.int16)))

    def clear(self) -> None:
        """Make it empty again, in the memory that it has: fresh pages can cost more than a fold."""
        if self.accumulate == "exact":
            self.levels.fill(EMPTY)  # digits of an empty block are not read
        else:
            self.values.fill(0)
        self.terms, self.weight, self.scale, self.is_spoiled = 0, 0, None, False

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return int(self.values.nbytes + self.levels.nbytes)

    def require_usable(self, kind: type = np.ndarray) -> None:
        """Raise `SpoiledTotal` if an error left it half changed, `BufferMismatch` if its arrays are not of a kind."""
        if not isinstance(self.values, kind):
            raise BufferMismatch(
                "another backend made this total, and has it elsewhere: save it there, restore it here"
            )
        if self.is_spoiled:
            raise SpoiledTotal("an earlier error left this total half changed; begin with a new one")

    def admit(self, terms: int, weight: int) -> None:
        """Count terms in, or raise `TooManyTerms`."""
        if self.accumulate == "exact" and self.terms + terms > MAX_TERMS:
            raise TooManyTerms(
                f"an exact total takes {MAX_TERMS} terms; it has {self.terms}, and {terms} more were to be added"
            )
        self.terms += terms
        self.weight += weight


def save(total: Total, file: BinaryIO, pieces: Iterable[npt.NDArray[np.uint8]] | None = None) -> None:
    """Write a total's state: a magic line, the length of a JSON header, the header, the arrays, a BLAKE2b digest.

    `pieces` are the bytes of its arrays, in order, of a total that is not in the processor's memory.
    """
    total.require_usable(np.ndarray if pieces is None else object)
    header = json.dumps(
        {
            "elements": total.elements,
            "accumulate": total.accumulate,
            "terms": total.terms,
            "weight": hex(total.weight),
            "scale": total.scale,
        },
        sort_keys=True,
    ).encode()
    digest = hashlib.blake2b(digest_size=16)
    begin: list[Any] = [_MAGIC, struct.pack("<I", len(header)), header]
    for part in chain(begin, pieces or _little(total)):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def restore(
    file: BinaryIO,
    zeros: Zeros = np.zeros,
    places: Callable[[Total], Iterable[npt.NDArray[np.uint8]]] | None = None,
) -> Total:
    """Read what `save` wrote, or raise `BadState`.

    `zeros` makes the total's arrays, and `places` yields where to read their bytes to, one piece after the other.
    """
    digest = hashlib.blake2b(digest_size=16)
    if _read(file, len(_MAGIC), digest) != _MAGIC:
        raise BadState("this is not a saved total of this version")
    (length,) = struct.unpack("<I", _read(file, 4, digest))
    if length > 4096:
        raise BadState(f"the header of a saved total is at most 4,096 bytes long, not {length}")
    total = _from_header(_read(file, length, digest), zeros)
    for place in (places or _bytes_of)(total):
        target = memoryview(place)  # type: ignore[arg-type]
        if file.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise BadState("the file ends early")
        digest.update(target)
    if places is None and sys.byteorder == "big":
        for array in (total.values, total.levels):
            array.byteswap(inplace=True)
    if file.read(16) != digest.digest():
        raise BadState("the digest does not match: the file was changed, or not written to its end")
    return total


def _bytes_of(total: Total) -> Iterable[npt.NDArray[np.uint8]]:
    return total.values.view(np.uint8), total.levels.view(np.uint8)


def _little(total: Total) -> Iterator[npt.NDArray[np.uint8]]:
    for array in (total.values, total.levels):
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _read(file: BinaryIO, count: int, digest: "hashlib.blake2b") -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise BadState("the file ends early")
    digest.update(data)
    return data


def _from_header(header: bytes, zeros: Zeros) -> Total:
    try:
        fields = json.loads(header)
        total = Total.unwritten(int(fields["elements"]), fields["accumulate"], zeros)
        total.terms, total.weight, total.scale = int(fields["terms"]), int(fields["weight"], 16), fields["scale"]
        if not (total.scale is None or type(total.scale) is int):
            raise ValueError(f"a scale is a whole number, not {total.scale!r}")
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError, BufferMismatch, OutOfDeviceMemory) as error:
        raise BadState(f"the header of a saved total does not read: {error}") from None
    return total
