"""The arguments and results of a user's training code: `Task`, `Site`, `Update`."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from flcore.model.arrays import AnyArrays


@dataclass(frozen=True)
class Site:
    """The site at which a client runs.

    Args:
        name: The client's name.
        clients: All clients' names, in the order of the contract. Default: empty.
        seed: The job's seed. Default: 0.
        config: The content of the site's site.toml. Default: empty.
        state_directory: A directory in which the job's code keeps files between rounds and across restarts, such as
            this client's control variate. Default: None, there is none (`flcore client` without `--state`).

    Example:
        >>> Site("b", clients=("a", "b")).index
        1
    """

    name: str
    clients: tuple[str, ...] = ()
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    state_directory: Path | None = None

    @property
    def index(self) -> int:
        """The client's index among the contract's clients, from 0. Raises `ValueError` if its name is not listed."""
        if self.name not in self.clients:
            listed = ", ".join(self.clients[:8]) + (", ..." if len(self.clients) > 8 else "")
            raise ValueError(f"client {self.name!r} is not among the job's clients: {listed}")
        return self.clients.index(self.name)


@dataclass(frozen=True)
class Task:
    """A task that the server assigns to a client. It is passed to the job's code.

    Attributes:
        name: The task's name in the contract, such as "train".
        round: The round's number, from 1.
        rounds: The number of rounds of the job.
        seed: 0 to 2³² - 1, derived from the job's seed, the round and the client. If all random numbers are drawn from
            it, the same job gives the same model, bit for bit.
        hyperparameters: The hyperparameters of this task and round.
        site: The site at which the client runs.
    """

    name: str
    round: int
    rounds: int
    seed: int
    hyperparameters: Mapping[str, Any]
    site: Site


@dataclass(frozen=True)
class Update:
    """The result of a task, returned by the job's code.

    Args:
        arrays: Arrays of NumPy, PyTorch, JAX or CuPy, by name; may be nested, such as a state dict. Default: empty, for
            a task that returns metrics.
        weight: The weight of this update and its metrics in averages, usually its number of examples; finite and > 0.
        metrics: Numbers by name. Default: empty.

    Example:
        >>> Update(weight=120, metrics={"accuracy": 0.9}).arrays
        {}
    """

    arrays: AnyArrays = field(default_factory=dict)
    _: KW_ONLY
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)
