"""What a user's training code receives and returns."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from flcore.model.arrays import AnyArrays


@dataclass(frozen=True)
class Site:
    """Where a client runs: its name, all clients' names as the contract lists them, the job's seed, its site.toml."""

    name: str
    clients: tuple[str, ...] = ()
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """This client's place among the contract's clients, or `ValueError` for a name that is not listed."""
        if self.name not in self.clients:
            listed = ", ".join(self.clients[:8]) + (", ..." if len(self.clients) > 8 else "")
            raise ValueError(f"client {self.name!r} is not among the job's clients: {listed}")
        return self.clients.index(self.name)


@dataclass(frozen=True)
class Task:
    """What the server asks for: `name`, round (from 1) of `rounds`, hyperparameters of this task and round.

    `seed` (0 to 2³² - 1) is a function of the job's seed, the round and the client: draw everything random from it, and
    the same job gives the same model, bit for bit.
    """

    name: str
    round: int
    rounds: int
    seed: int
    hyperparameters: Mapping[str, Any]
    site: Site


@dataclass(frozen=True)
class Update:
    """What comes back: arrays by name (none where the task returns metrics), a weight and metrics.

    The arrays may be NumPy's, PyTorch's, JAX's or CuPy's, and nested: a state dict will do.

    `weight` is this update's share, usually its number of examples: finite and > 0. Metrics are averaged by it.

    >>> Update(weight=120, metrics={"accuracy": 0.9}).arrays
    {}
    """

    arrays: AnyArrays = field(default_factory=dict)
    _: KW_ONLY
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)
