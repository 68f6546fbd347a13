"""Server optimizers: what follows a rule, and moves the global model along the mean change of a round.

With the model x that clients began with, the rule's result gives the mean change D: result - x, or for differences the
result itself. An optimizer computes the next model from x, D and its state, in the pass that finishes the sum. The
state has one float32 per parameter and slot (float64 for float64 models), and begins with zeros. Integers have no step:
they are what the rule gives.
"""

import math
from collections.abc import Callable
from typing import Any

from flcore_kernels import Adagrad, Adam, Momentum, Optimizer, OptimizerRange, ServerLr, Yogi

from flcore.errors import JobError
from flcore.rules.arguments import require_bool, require_number
from flcore.rules.kinds import ServerStep


def server_lr(lr: float) -> ServerStep:
    """A learning rate of the server: x' = x + lr * D (Reddi et al., 2021, arXiv:2003.00295, Algorithm 1).

    State: none. lr = 1 is the rule alone.
    """
    optimizer = _made("server_lr", lambda: ServerLr(require_number("server_lr", "lr", lr, above=0.0)))
    return ServerStep(_name("server_lr", lr=lr), lambda _: optimizer, 0)


def fed_avg_m(lr: float = 1.0, *, momentum: float = 0.9, nesterov: bool = False) -> ServerStep:
    """Server momentum (Hsu et al., 2019, arXiv:1909.06335).

    m' = momentum * m + D, x' = x + lr * m'. With nesterov, x' = x + lr * (D + momentum * m'): the outer step of DiLoCo
    (Douillard et al., 2023, arXiv:2311.08105). Both are PyTorch's SGD with the gradient -D and dampening 0.

    State: m.
    """
    rate = require_number("fed_avg_m", "lr", lr, above=0.0)
    beta = _require_decay("fed_avg_m", "momentum", momentum)
    require_bool("fed_avg_m", "nesterov", nesterov)
    optimizer = _made("fed_avg_m", lambda: Momentum(rate, beta, nesterov))
    return ServerStep(_name("fed_avg_m", lr=rate, momentum=beta, nesterov=nesterov), lambda _: optimizer, 1)


def fed_adagrad(lr: float, *, beta1: float = 0.0, tau: float = 1e-3) -> ServerStep:
    """FedAdagrad (Reddi et al., 2021, arXiv:2003.00295, Algorithm 2).

    m' = beta1 * m + (1 - beta1) * D, v' = v + D^2, x' = x + lr * m' / (sqrt(v') + tau). v starts at tau^2, as in the
    paper; PyTorch's Adagrad starts at 0.

    State: m and v.
    """
    rate, floor = _require_rate("fed_adagrad", lr, tau)
    decay = _require_decay("fed_adagrad", "beta1", beta1)
    optimizer = _made("fed_adagrad", lambda: Adagrad(rate, decay, floor))
    name = _name("fed_adagrad", lr=rate, beta1=decay, tau=floor)
    return ServerStep(name, lambda _: optimizer, 2, floor**2)


def fed_yogi(lr: float, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerStep:
    """FedYogi (Reddi et al., 2021, arXiv:2003.00295, Algorithm 2).

    As `fed_adam`, with v' = v - (1 - beta2) * D^2 * sign(v - D^2).

    State: m and v.
    """
    rate, floor = _require_rate("fed_yogi", lr, tau)
    decays = _require_decay("fed_yogi", "beta1", beta1), _require_decay("fed_yogi", "beta2", beta2)
    optimizer = _made("fed_yogi", lambda: Yogi(rate, *decays, floor))
    name = _name("fed_yogi", lr=rate, beta1=decays[0], beta2=decays[1], tau=floor)
    return ServerStep(name, lambda _: optimizer, 2, floor**2)


def fed_adam(
    lr: float, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, bias_correction: bool = False
) -> ServerStep:
    """FedAdam (Reddi et al., 2021, arXiv:2003.00295, Algorithm 2).

    m' = beta1 * m + (1 - beta1) * D, v' = beta2 * v + (1 - beta2) * D^2, x' = x + lr * m' / (sqrt(v') + tau). v starts
    at tau^2, and m and v are not corrected for their start. With bias_correction, both are as in PyTorch's Adam: v
    starts at 0, m' counts as m' / (1 - beta1^t) and v' as v' / (1 - beta2^t) in step t.

    State: m and v.
    """
    rate, floor = _require_rate("fed_adam", lr, tau)
    first, second = _require_decay("fed_adam", "beta1", beta1), _require_decay("fed_adam", "beta2", beta2)
    require_bool("fed_adam", "bias_correction", bias_correction)

    def optimizer(number: int) -> Optimizer:
        if not bias_correction:
            return Adam(rate, first, second, floor)
        root = math.sqrt(1 - second**number)
        return Adam(rate * root / (1 - first**number), first, second, floor * root)

    _made("fed_adam", lambda: optimizer(1))
    name = _name("fed_adam", lr=rate, beta1=first, beta2=second, tau=floor, bias_correction=bias_correction)
    return ServerStep(name, optimizer, 2, 0.0 if bias_correction else floor**2)


DEFAULTS = {"momentum": 0.9, "nesterov": False, "beta2": 0.99, "tau": 1e-3, "bias_correction": False}
"""Arguments that a name leaves out."""


def _name(rule: str, **arguments: Any) -> str:
    given = [
        f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
        for key, value in arguments.items()
        if DEFAULTS.get(key, 0.0 if rule == "fed_adagrad" else 0.9) != value or key == "lr"
    ]
    return f"{rule}({', '.join(given)})"


def _require_rate(rule: str, lr: Any, tau: Any) -> tuple[float, float]:
    return require_number(rule, "lr", lr, above=0.0), require_number(rule, "tau", tau, above=0.0)


def _require_decay(rule: str, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:
        raise JobError(f"{rule}: {name} is a number of at least 0 and below 1, got {value!r}")
    return float(value)


def _made(rule: str, make: Callable[[], Optimizer]) -> Optimizer:
    """Return an optimizer, or raise `JobError` for numbers that its kernel does not take."""
    try:
        return make()
    except OptimizerRange as error:
        raise JobError(f"{rule}: {error}") from error
