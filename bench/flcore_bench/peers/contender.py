"""What a peer's file offers: calls that average the same models as flcore does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Models = list[dict[str, Array]]


@dataclass(frozen=True)
class Contender:
    """One way to average.

    `first_tensor` takes the result of `work` to the array of its first tensor, so that it can be checked. `goals`: how
    many times as long it should take at least as flcore in float32, for one flat tensor and for many small ones.
    `series` is its name in the plot.
    """

    what: str
    series: str
    work: Callable[[], Any]
    first_tensor: Callable[[Any], Array]
    goals: dict[str, float] = field(default_factory=dict)
