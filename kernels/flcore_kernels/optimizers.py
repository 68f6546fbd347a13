"""Server optimizers: the numbers of a step, which moves a model along the mean change of a round.

The equations are those of Reddi et al., *Adaptive Federated Optimization*, 2021 (arXiv:2003.00295, Algorithm 2),
without correction of bias. `Momentum` is that of Hsu et al., 2019 (arXiv:1909.06335). Per element, with the old model x
and the mean change Δ of the round:

    ServerLr    x' = x + lr · Δ
    Momentum    m' = beta · m + Δ                       x' = x + lr · m'
      nesterov                                          x' = x + lr · (Δ + beta · m')
    Adagrad     m' = beta1 · m + (1 − beta1) · Δ        x' = x + lr · m' / (√v' + tau)
                v' = v + Δ²
    Yogi        v' = v − (1 − beta2) · Δ² · sign(v − Δ²)
    Adam        v' = beta2 · v + (1 − beta2) · Δ²

The state of an optimizer is its m and v. The paper begins with m = 0 and v = tau². PyTorch begins with v = 0, and its
Adam corrects the bias of m and v: in round t = 1, 2, ..., this is the step with lr · √(1 − beta2^t) / (1 − beta1^t) as
`lr` and tau · √(1 − beta2^t) as `tau`. PyTorch's SGD is `Momentum`, its Adagrad is `Adagrad` with beta1 = 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from flcore_kernels.errors import OptimizerRange

Numbers = tuple[float, float, float, float, float, float]
"""What a formula takes; `cpu.step` says what each number is."""

LEAST = 2.0**-100
"""The smallest learning rate and tau. These and products with them are far from the ends of float32's range."""


@dataclass(frozen=True)
class ServerLr:
    """A step with a server's learning rate. Without a state.

    Example:
        >>> ServerLr(lr=0.5)
        ServerLr(lr=0.5)
    """

    lr: float
    formula: ClassVar[str] = "scaled"
    slots: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _require_rate(self)

    @property
    def numbers(self) -> Numbers:
        """The numbers of the formula."""
        return self.lr, 0.0, 0.0, 0.0, 0.0, 0.0


@dataclass(frozen=True)
class Momentum:
    """Server momentum, with a state of one array: m. `nesterov` is DiLoCo's outer step (Douillard et al., 2023)."""

    lr: float
    beta: float = 0.9
    nesterov: bool = False
    formula: ClassVar[str] = "momentum"
    slots: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_rate(self)
        _require_decay(self, "beta", self.beta)

    @property
    def numbers(self) -> Numbers:
        """The numbers of the formula."""
        ahead, through = (1.0, self.beta) if self.nesterov else (0.0, 1.0)
        return self.lr, self.beta, 1.0, ahead, through, 0.0


@dataclass(frozen=True)
class Adagrad:
    """Adagrad, with a state of two arrays: m and v."""

    lr: float
    beta1: float = 0.0
    tau: float = 1e-3
    formula: ClassVar[str] = "adaptive"
    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _require_rate(self)
        _require_decay(self, "beta1", self.beta1)
        _require_tau(self, self.tau)

    @property
    def numbers(self) -> Numbers:
        """The numbers of the formula."""
        return self.lr, self.beta1, 1.0 - self.beta1, 1.0, 1.0, self.tau


@dataclass(frozen=True)
class Adam:
    """Adam, with a state of two arrays: m and v."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    formula: ClassVar[str] = "adaptive"
    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _require_rate(self)
        _require_decay(self, "beta1", self.beta1)
        _require_decay(self, "beta2", self.beta2)
        _require_tau(self, self.tau)

    @property
    def numbers(self) -> Numbers:
        """The numbers of the formula."""
        return self.lr, self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.tau


@dataclass(frozen=True)
class Yogi(Adam):
    """Yogi, with a state of two arrays: m and v."""

    formula: ClassVar[str] = "yogi"


Optimizer = ServerLr | Momentum | Adagrad | Adam
"""The numbers of a step. `formula` names its kernel, and `slots` is the number of arrays of its state."""


def _require_rate(optimizer: Optimizer) -> None:
    if not (optimizer.lr == 0 or LEAST <= optimizer.lr <= 1 / LEAST):
        raise OptimizerRange(
            f"{type(optimizer).__name__}: expected an lr of 0, or between 2^-100 and 2^100, got {optimizer.lr}"
        )


def _require_decay(optimizer: Optimizer, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise OptimizerRange(f"{type(optimizer).__name__}: expected 0 <= {name} < 1, got {value}")


def _require_tau(optimizer: Optimizer, tau: float) -> None:
    # Without it, an element that never changed would be 0 / 0.
    if not LEAST <= tau <= 1 / LEAST:
        raise OptimizerRange(f"{type(optimizer).__name__}: expected a tau between 2^-100 and 2^100, got {tau}")
