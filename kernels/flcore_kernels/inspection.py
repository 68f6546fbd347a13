"""The result of `Backend.inspect`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inspection:
    """What `Backend.inspect` finds in a buffer.

    Attributes:
        first_bad: The index of the first element that is not finite; -1 if there is none.
        magnitude: The largest magnitude of the finite elements; 0.0 if there is none.
    """

    first_bad: int
    magnitude: float
