"""Totals: running weighted sums, their state, and how they are saved.

`float32` and `float64` totals hold one number per element; their bits depend on the order of the terms. An `exact`
total holds two int64 digits per element and an int16 level per block of 64 (see `cpu.digits`), 16 1/32 bytes per
element; its bits do not depend on the order or the grouping of the terms.
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
"""The kinds of a total: exact integers, or one float per element."""

BLOCK = 64
"""Elements of an exact total that share a level."""

EMPTY = -32768
"""The level of a block without a term other than zero."""

MAX_TERMS = 65_535
"""Terms (one per operand) that an exact total takes: a digit is at most 2^47, and 65,535 · 2^47 < 2^63."""

_MAGIC = b"flcore total 1\n\0"

Zeros = Callable[[int, Any], Any]
"""Makes an array of zeros from a number of elements and a dtype."""


def bytes_per_element(accumulate: str) -> float:
    """Return the bytes of memory that a total takes per element.

    Args:
        accumulate: A name in `ACCUMULATORS`.

    Raises:
        BufferMismatch: No accumulator has this name.

    Example:
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
    """A running weighted sum of operands. `Backend.total` makes one.

    Attributes:
        elements: Elements of the sum.
        accumulate: `exact`, `float64` or `float32`.
        values: For floats, one number per element. For `exact`, int64 digits: per block, 64 upper and 64 lower ones.
        levels: For `exact`, an int16 per block; else empty. Both arrays are on the backend's device.
        terms: How many operands were added.
        weight: The exact sum of their weights, in units of 2^-1074.
        scale: A float total sums elements times weights / 2^scale. None as long as no weight is above 0.
        is_spoiled: Whether an error has left the values half changed.
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
        """Return an empty total whose arrays `zeros` makes."""
        total = cls.unwritten(elements, accumulate, zeros)
        total.levels.fill(EMPTY)
        return total

    @classmethod
    def unwritten(cls, elements: int, accumulate: str, zeros: Zeros = np.zeros) -> "Total":
        """Return a total to be filled: its levels are 0, not `EMPTY`.

        NumPy's zeros take physical memory only when they are written to.
        """
        _require_accumulator(accumulate)
        if elements < 0:
            raise BufferMismatch(f"a total has 0 elements or more, not {elements}")
        if accumulate != "exact":
            return cls(elements, accumulate, zeros(elements, np.dtype(accumulate)), zeros(0, np.dtype(np.int16)))
        blocks = -(-elements // BLOCK)
        digits = zeros(2 * BLOCK * blocks, np.dtype(np.int64))
        return cls(elements, accumulate, digits, zeros(blocks, np.dtype(np.int16)))

    def clear(self) -> None:
        """Empty the total, and keep its memory: the page faults of fresh memory can cost more than a fold."""
        if self.accumulate == "exact":
            self.levels.fill(EMPTY)  # a fold overwrites the digits of an empty block
        else:
            self.values.fill(0)
        self.terms, self.weight, self.scale, self.is_spoiled = 0, 0, None, False

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return int(self.values.nbytes + self.levels.nbytes)

    def require_usable(self, kind: type = np.ndarray) -> None:
        """Raise `SpoiledTotal` after an error, or `BufferMismatch` if its arrays are not of type `kind`."""
        if not isinstance(self.values, kind):
            raise BufferMismatch(
                "this total is in another backend's memory; save it with that backend and restore it with this one"
            )
        if self.is_spoiled:
            raise SpoiledTotal("an earlier error left this total half changed; clear it or begin with a new one")

    def admit(self, terms: int, weight: int) -> None:
        """Count terms and their sum of weights, or raise `TooManyTerms`."""
        if self.accumulate == "exact" and self.terms + terms > MAX_TERMS:
            raise TooManyTerms(
                f"an exact total takes {MAX_TERMS} terms at most; it has {self.terms}, and {terms} more were given"
            )
        self.terms += terms
        self.weight += weight


def save(total: Total, file: BinaryIO, chunks: Iterable[npt.NDArray[np.uint8]] | None = None) -> None:
    """Write a total's state: a magic line, the length of a JSON header, the header, the arrays, a BLAKE2b digest.

    `chunks` are the bytes of its arrays, in order, if the total is on a device.
    """
    total.require_usable(np.ndarray if chunks is None else object)
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
    for part in chain(begin, chunks or _little_endian(total)):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def restore(
    file: BinaryIO,
    zeros: Zeros = np.zeros,
    places: Callable[[Total], Iterable[npt.NDArray[np.uint8]]] | None = None,
) -> Total:
    """Read a total that `save` wrote, or raise `BadState`.

    `zeros` makes the total's arrays. `places`, if they are on a device, yields host memory to read their bytes into,
    one chunk after the other.
    """
    digest = hashlib.blake2b(digest_size=16)
    if _read(file, len(_MAGIC), digest) != _MAGIC:
        raise BadState("the file is not a saved total of this version: it begins with other bytes")
    (length,) = struct.unpack("<I", _read(file, 4, digest))
    if length > 4096:
        raise BadState(f"the header of a saved total is at most 4,096 bytes long, not {length}")
    total = _from_header(_read(file, length, digest), zeros)
    for place in (places or _bytes_of)(total):
        target = memoryview(place)  # type: ignore[arg-type]
        if file.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise BadState("the saved total is incomplete: the file ends early")
        digest.update(target)
    if places is None and sys.byteorder == "big":
        for array in (total.values, total.levels):
            array.byteswap(inplace=True)
    if file.read(16) != digest.digest():
        raise BadState("the digest of the saved total does not match: the file is damaged")
    return total


def _bytes_of(total: Total) -> Iterable[npt.NDArray[np.uint8]]:
    return total.values.view(np.uint8), total.levels.view(np.uint8)


def _little_endian(total: Total) -> Iterator[npt.NDArray[np.uint8]]:
    for array in (total.values, total.levels):
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _read(file: BinaryIO, count: int, digest: "hashlib.blake2b") -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise BadState("the saved total is incomplete: the file ends early")
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
        raise BadState(f"the header of the saved total is invalid: {error}") from None
    return total
