"""The answer of `Backend.inspect`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inspection:
    """The first element that is not finite (-1: none), and the largest magnitude of the finite ones (0.0: none)."""

    first_bad: int
    magnitude: float
