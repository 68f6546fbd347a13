"""The law of exact sums, as checks that a kernel passes or fails; also run on kernels that are broken on purpose.

`python -m tests.kernels.law NAME` exits with 0 where the check passes and with `BROKEN` where the law is broken.
"""

import io
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from flcore_kernels import Backend, TooManyTerms, backend

from tests.kernels.cases import Array, again, finished, folded, opened, state_of
from tests.reference import BLOCK, exact_mean, exact_state

BROKEN = 17


def require_state(device: Backend, values: list[Array], weights: list[float], dtype: str = "float64") -> None:
    """Fold one by one, in both orders, and all at once, and compare all of the state with the oracle."""
    size = values[0].size
    expected = exact_state([operand.astype(np.float64) for operand in values], weights)
    for order in (list(range(len(values))), list(range(len(values)))[::-1]):
        total = device.total(size, "exact")
        for k in order:
            device.fold(total, [values[k]], [weights[k]], dtype)
        at_once = folded(device, [values[k] for k in order], [weights[k] for k in order], dtype, "exact", size)
        assert state_of(device, total) == state_of(device, at_once), "one by one is not as all at once"
        total = backend("cpu").restore(io.BytesIO(state_of(device, total)))
        assert [None if v == -32768 else v for v in total.levels.tolist()] == expected.levels, "a wrong level"
        digits = total.values.reshape(-1, 2, BLOCK)
        assert digits[:, 0].reshape(-1)[:size].tolist() == expected.upper, "a wrong upper digit"
        assert digits[:, 1].reshape(-1)[:size].tolist() == expected.lower, "a wrong lower digit"


def digits_stay_where_they_are(device: Backend) -> None:
    """Small terms whose lower digits add up to more than a unit of the upper, then one that raises the level."""
    rng = np.random.default_rng(1)
    small = [rng.uniform(0.25, 1.0, BLOCK) for _ in range(9)]
    require_state(device, [*small, np.full(BLOCK, 2.0**60)], [1.0] * 10)
    require_state(device, [np.full(BLOCK, -(2.0**60)), *small], [0.1] * 10)


def terms_are_rounded_products(device: Backend) -> None:
    """Weights and values of 53 bits, large in their bin, so that what a product's rounding cuts off would show."""
    rng = np.random.default_rng(2)
    values = [rng.uniform(-1, 1, BLOCK) * 2.0**40 for _ in range(7)]
    require_state(device, values, rng.uniform(0.5, 8, 7).tolist())


def levels_change_at_half_a_bin(device: Backend) -> None:
    """Terms on both sides of 2^(48 (B + 1) - 1), and of 2^(48 B)."""
    for edge in (-48, 0, 48):
        for exponent in (edge - 2, edge - 1, edge, edge + 1):
            for factor in (1.0, 1.0 + 2.0**-52, 1.5, 2.0 - 2.0**-52):
                require_state(device, [np.full(3, factor * 2.0**exponent), np.full(3, 0.7)], [1.0, 1.0])


def the_sum_of_weights_is_exact(device: Backend) -> None:
    """Weights whose sum has more bits than a float64, folded one by one: the result and the state show."""
    for weights in ([2.0**53, 1.0, 1.0, 1.0], [1.0, 2.0**-53, 2.0**-53, 2.0**-54], [0.1, 0.1, 0.1, 2.0**-60]):
        values = [np.full(3, 1.0)] * 4
        total = device.total(3, "exact")
        for operand, weight in zip(values, weights, strict=True):
            device.fold(total, [operand], [weight], "float64")
        assert finished(device, total, "float64").tolist() == exact_mean(values, weights, "float64").tolist()
        assert total.weight == sum(int(Fraction(weight) * 2**1074) for weight in weights)


def terms_are_counted(device: Backend) -> None:
    """No fold and no merge goes beyond 65,535 terms."""
    one, nothing = device.total(0, "exact"), np.empty(0)
    device.fold(one, [nothing], [1.0], "float64")
    for _ in range(15):
        device.merge(one, again(device, one))
    device.fold(one, [nothing] * 32_767, [1.0] * 32_767, "float64")
    other = device.total(0, "exact")
    device.fold(other, [nothing], [1.0], "float64")
    full = state_of(device, one)
    for is_merge in (False, True):
        try:
            if is_merge:
                device.merge(one, other)
            else:
                device.fold(one, [nothing], [1.0], "float64")
        except TooManyTerms:
            assert state_of(device, one) == full, "a refused term was counted"
        else:
            raise AssertionError("more than 65,535 terms were taken")


def results_are_rounded_once(device: Backend) -> None:
    """Just above the middle of two neighbours, by less than the wider dtype in between can hold."""
    middles = {"bfloat16": 1 + 2.0**-8, "float32": 1 + 2.0**-24}
    for dtype, middle in middles.items():
        for little in (2.0**-42, 2.0**-80, -(2.0**-42), -(2.0**-80)):
            values = [np.full(3, middle * 2.0**46), np.full(3, little * 2.0**46)]
            expected = exact_mean(values, [1.0, 1.0], dtype)
            total = folded(device, values, [1.0, 1.0], "float64", "exact", 3)
            assert opened(finished(device, total, dtype), dtype).tolist() == expected.tolist(), f"{dtype} rounded twice"


CHECKS: dict[str, Callable[[Backend], None]] = {
    check.__name__: check
    for check in (
        digits_stay_where_they_are,
        terms_are_rounded_products,
        levels_change_at_half_a_bin,
        the_sum_of_weights_is_exact,
        terms_are_counted,
        results_are_rounded_once,
    )
}

if __name__ == "__main__":
    try:
        CHECKS[sys.argv[1]](backend("cpu", threads=1))
    except AssertionError as broken:
        print(f"the law is broken: {broken}")
        sys.exit(BROKEN)
