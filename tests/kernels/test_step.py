"""`step`: every optimizer and dtype against oracles in fractions and in NumPy, over several rounds."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import (
    Adagrad,
    Adam,
    BadState,
    BufferMismatch,
    Momentum,
    NotFinite,
    Optimizer,
    OptimizerRange,
    Overflow,
    ServerLr,
    SpoiledTotal,
    Total,
    UnknownDType,
    WeightRange,
    Yogi,
    backend,
    state_dtype,
    step,
    storage_dtype,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import at_odd_address, opened
from tests.reference import FLOATS, stored, ulp

Array = npt.NDArray[Any]
OPTIMIZERS: list[Optimizer] = [
    ServerLr(0.75),
    Momentum(0.7, 0.9),
    Momentum(0.7, 0.9, nesterov=True),
    Adagrad(0.1, 0.3, 1e-3),
    Yogi(0.01, 0.9, 0.99, 1e-3),
    Adam(0.01, 0.9, 0.99, 1e-3),
]
MEANS = ("float32", "float64")


def named(optimizer: Optimizer) -> str:
    return type(optimizer).__name__ + ("Nesterov" if getattr(optimizer, "nesterov", False) else "")


each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=named)


def next_of(
    mean: Any, base: Array, state: Sequence[Array], optimizer: Optimizer, dtype: str, **options: Any
) -> tuple[Array, list[Array]]:
    """Return the model and the state after a step, in new arrays."""
    out, new = np.empty_like(base), [np.empty_like(each) for each in state]
    step(mean, base, state, out, new, optimizer, dtype, **{"mean_of": "models", **options})
    return out, new


def model(rng: np.random.Generator, dtype: str, size: int) -> Array:
    return stored((rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size)).astype(FLOATS[dtype]))


def start_of(optimizer: Optimizer, dtype: str, size: int, v: float = 1e-6) -> list[Array]:
    return [np.full(size, (0.0, v)[slot], storage_dtype(state_dtype(dtype))) for slot in range(optimizer.slots)]


def root(value: Fraction) -> Fraction:
    """The square root of a fraction to 200 bits and more."""
    shift = 2 ** (400 + 2 * value.denominator.bit_length())
    return Fraction(isqrt(value.numerator * shift**2 // value.denominator), shift)


def half_ulp(value: Fraction, dtype: str) -> Fraction:
    """Half a unit of the last place, and a little."""
    return ulp(value, dtype) * Fraction(1001, 2000)


def exact_step(change: Fraction, m: Fraction, v: Fraction, optimizer: Optimizer) -> tuple[Fraction, Fraction, Fraction]:
    """The update of an element and its new state, from the equations of the papers."""
    lr = Fraction(optimizer.lr)
    if isinstance(optimizer, ServerLr):
        return lr * change, m, v
    if isinstance(optimizer, Momentum):
        beta = Fraction(optimizer.beta)
        m = beta * m + change
        return lr * (change + beta * m if optimizer.nesterov else m), m, v
    beta1 = Fraction(optimizer.beta1)
    m = beta1 * m + (1 - beta1) * change
    if isinstance(optimizer, Adagrad):
        v = v + change**2
    else:
        beta2 = Fraction(optimizer.beta2)
        sign = (v > change**2) - (v < change**2)
        grown = v - (1 - beta2) * change**2 * sign
        v = grown if isinstance(optimizer, Yogi) else beta2 * v + (1 - beta2) * change**2
    return lr * m / (root(v) + Fraction(optimizer.tau)), m, v


def gain_of(optimizer: Optimizer) -> Fraction:
    """By how much an error of the change can grow in the model."""
    return Fraction(optimizer.lr) / (Fraction(optimizer.tau) if isinstance(optimizer, Adagrad | Adam) else 1)


@each_optimizer
@pytest.mark.parametrize("mean_dtype", MEANS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_optimizer_agrees_with_the_oracle_over_rounds(optimizer: Optimizer, mean_dtype: str, dtype: str) -> None:
    rng, size = np.random.default_rng(1), 40
    base, state = model(rng, dtype, size), start_of(optimizer, dtype, size)
    # A result has some roundings of its terms, and one of its own. Fewer than 8 of them are in float32 arithmetic.
    unit = Fraction(1, 2**21) if mean_dtype == dtype == "float32" else Fraction(1, 2**49)
    for number in range(3):
        mean_of = ("models", "differences")[number % 2]
        moves = rng.standard_normal(size) * 0.1 ** rng.integers(0, 5, size)
        mean = (opened(base, dtype) * (mean_of == "models") + moves).astype(mean_dtype)
        out, new_state = next_of(mean, base, state, optimizer, dtype, mean_of=mean_of)
        for i in range(size):
            x, value = Fraction(float(opened(base, dtype)[i])), Fraction(float(mean[i]))
            m, v = ([Fraction(float(each[i])) for each in state] + [Fraction(0)] * 2)[:2]
            change = value - x if mean_of == "models" else value
            update, *new = exact_step(change, m, v, optimizer)
            terms, *new_terms = exact_step(abs(change), abs(m), v, optimizer)
            lost = (abs(x) + abs(value)) / 2**52  # by the subtraction in float64
            bound = half_ulp(x + update, dtype) + unit * terms + lost * gain_of(optimizer)
            assert abs(Fraction(float(opened(out, dtype)[i])) - (x + update)) <= bound, (number, i)
            for slot, found in enumerate(new_state):
                bound = half_ulp(new[slot], state_dtype(dtype)) + unit * new_terms[slot] + lost * (1 + abs(change))
                assert abs(Fraction(float(found[i])) - new[slot]) <= bound, (number, i, slot)
        base, state = out, new_state


def total_of(operands: Sequence[Array], weights: Sequence[float], dtype: str, accumulate: str) -> Total:
    total = backend("cpu").total(operands[0].size, accumulate)
    backend("cpu").fold(total, operands, weights, dtype)
    return total


@each_optimizer
@pytest.mark.parametrize("accumulate", ["float32", "float64", "exact"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_step_of_a_total_is_that_of_its_mean(optimizer: Optimizer, accumulate: str, dtype: str) -> None:
    rng, size = np.random.default_rng(2), 40_000
    base, state = model(rng, dtype, size), start_of(optimizer, dtype, size)
    operands = [model(rng, dtype, size) for _ in range(3)]
    # A float32 total divided by a power of two is its float32 mean.
    total = total_of(operands, [1.0, 2.0, 1.0] if accumulate == "float32" else [3.0, 2.0, 0.5], dtype, accumulate)
    mean = np.empty(size, "float32" if accumulate == "float32" else "float64")
    backend("cpu").finish(total, mean, mean.dtype.name)
    wanted, wanted_state = next_of(mean, base, state, optimizer, dtype)
    for threads in (1, 3):
        found, new_state = next_of(total, base, state, optimizer, dtype, threads=threads)
        assert found.tobytes() == wanted.tobytes()
        assert [each.tobytes() for each in new_state] == [each.tobytes() for each in wanted_state]


@each_optimizer
@pytest.mark.parametrize(
    ("mean_dtype", "dtype"), [("float32", "float32"), ("float64", "bfloat16"), ("float64", "float64")]
)
def test_neither_threads_nor_parts_nor_addresses_change_a_bit(
    optimizer: Optimizer, mean_dtype: str, dtype: str
) -> None:
    rng, size = np.random.default_rng(3), 150_001
    base, state = model(rng, dtype, size), start_of(optimizer, dtype, size)
    mean = rng.standard_normal(size).astype(mean_dtype)
    whole = [each.tobytes() for each in flat(next_of(mean, base, state, optimizer, dtype, threads=1))]
    assert [each.tobytes() for each in flat(next_of(mean, base, state, optimizer, dtype, threads=3))] == whole
    odd = [at_odd_address(each) for each in (mean, base, *state)]
    assert [each.tobytes() for each in flat(next_of(odd[0], odd[1], odd[2:], optimizer, dtype))] == whole
    edges = [0, 1, 7, 135, 263, 8_192, 90_000, size]
    parts = [
        flat(next_of(mean[a:b].copy(), base[a:b].copy(), [each[a:b].copy() for each in state], optimizer, dtype))
        for a, b in pairwise(edges)
    ]
    assert [b"".join(each.tobytes() for each in column) for column in zip(*parts, strict=True)] == whole


def flat(results: tuple[Array, list[Array]]) -> list[Array]:
    return [results[0], *results[1]]


@pytest.mark.parametrize("accumulate", ["float32", "exact"])
def test_buffers_lie_over_a_total_as_operands_do(accumulate: str) -> None:
    rng, sizes = np.random.default_rng(4), [1, 300, 0, 257, 70_000, 5]
    operand = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    elements = sum(-(-size // 256) * 256 for size in sizes)
    total = backend("cpu").total(elements, accumulate)
    backend("cpu").fold(total, [operand], [2.0], "float32")
    base, m, out, new = ([rng.standard_normal(size).astype(np.float32) for size in sizes] for _ in range(4))
    step(total, base, [m], out, [new], Momentum(0.5), "float32", mean_of="differences")
    for k, each in enumerate(operand):
        wanted, (wanted_m,) = next_of(
            each if accumulate == "float32" else each.astype(np.float64),
            *(base[k], [m[k]], Momentum(0.5), "float32"),
            mean_of="differences",
        )
        assert np.array_equal(out[k], wanted) and np.array_equal(new[k], wanted_m)


def test_an_exact_mean_beyond_the_usual_levels_is_divided_as_finish_does_it() -> None:
    values = np.repeat([1e300, -3e-300, 0.0, 1.5, 5e-324], 64)  # a block of each
    total = total_of([values, values], [3.0, 0.5], "float64", "exact")
    zeros, out = np.zeros(values.size), np.empty(values.size)
    step(total, zeros, [], out, [], ServerLr(1.0), "float64", mean_of="differences")
    assert np.array_equal(out, values)


@each_optimizer
@pytest.mark.parametrize("dtype", FLOATS)
def test_in_place_is_the_same_and_a_mean_that_is_the_base_changes_nothing(optimizer: Optimizer, dtype: str) -> None:
    rng, size = np.random.default_rng(5), 3_000
    base, state, mean = model(rng, dtype, size), start_of(optimizer, dtype, size), rng.standard_normal(size)
    wanted = flat(next_of(mean, base, state, optimizer, dtype))
    still, _ = next_of(opened(base, dtype), base, state, optimizer, dtype)
    assert still.tobytes() == base.tobytes()
    step(mean, base, state, base, state, optimizer, dtype, mean_of="models")
    assert [each.tobytes() for each in (base, *state)] == [each.tobytes() for each in wanted]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_result_that_does_not_fit_is_named(dtype: str) -> None:
    largest = 3e38 if dtype in ("float32", "bfloat16") else 6e4 if dtype == "float16" else 1.7e308
    base = stored(np.array([1.0] * 300 + [largest] * 3).astype(FLOATS[dtype]))
    mean = np.full(303, 1.0)
    mean[301] = largest
    with pytest.raises(Overflow, match=f"element 301 of the model does not fit into {dtype}") as raised:
        next_of(mean, base, [], ServerLr(1.0), dtype, mean_of="differences")
    assert (raised.value.element, raised.value.where) == (301, dtype)
    huge = 1e20 if dtype != "float64" else 1e200
    mean[301], mean[302] = huge, huge
    base[:] = 0
    with pytest.raises(Overflow, match=r"element 301 of new_state 1 does not fit into the optimizer's state"):
        next_of(mean, base, start_of(Adagrad(1e-20), dtype, 303), Adagrad(1e-20), dtype, mean_of="differences")
    with pytest.raises(Overflow, match=r"element 0 of new_state 0 does not"):
        end = np.full(303, np.finfo(storage_dtype(state_dtype(dtype))).max)
        next_of(
            end, base, [end.astype(storage_dtype(state_dtype(dtype)))], Momentum(1e-20), dtype, mean_of="differences"
        )


@pytest.mark.parametrize("mean_dtype", MEANS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_named(mean_dtype: str, dtype: str, bad: float) -> None:
    size, at = 500, 333
    for optimizer in OPTIMIZERS:
        for place in range(2 + optimizer.slots):
            values = [np.ones(size) for _ in range(2 + optimizer.slots)]
            values[place][at] = bad
            mean, base = values[0].astype(mean_dtype), stored(values[1].astype(FLOATS[dtype]))
            state = [each.astype(state_dtype(dtype)) for each in values[2:]]
            wanted, words = (
                (NotFinite, f"{('mean', 'base')[place]}: element 333 is {bad}")
                if place < 2
                else (BadState, f"state {place - 2}: element 333 is {bad}")
            )
            with pytest.raises(wanted, match=words):
                next_of(mean, base, state, optimizer, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_negative_second_moment_is_refused_and_a_zero_of_either_sign_is_not(dtype: str) -> None:
    base, mean = stored(np.ones(9, FLOATS[dtype])), np.full(9, 3.0)
    for optimizer in (o for o in OPTIMIZERS if o.slots == 2):
        state = start_of(optimizer, dtype, 9, v=-0.0)
        next_of(mean, base, state, optimizer, dtype)
        state[1][4] = -1e-3
        with pytest.raises(BadState, match=r"state 1: element 4 is -0.001.*, expected a finite number >= 0"):
            next_of(mean, base, state, optimizer, dtype)


def test_input_that_does_not_fit_is_refused() -> None:
    base, m, mean = np.ones(8, np.float32), np.zeros(8, np.float32), np.ones(8)

    def refused(words: str, **changed: Any) -> None:
        arguments: dict[str, Any] = {
            "mean": mean,
            "base": base,
            "state": [m],
            "out": base.copy(),
            "new_state": [m.copy()],
        }
        arguments |= {"optimizer": Momentum(1.0), "dtype": "float32", "mean_of": "models"} | changed
        with pytest.raises(BufferMismatch, match=words):
            step(**arguments)

    frozen = base.copy()
    frozen.flags.writeable = False
    refused("state: expected 1 operands", state=[])
    refused("new_state: expected 1 operands", new_state=[m.copy(), m.copy()])
    refused("state 0: expected a contiguous buffer of 8 float32, got contiguous float64", state=[np.zeros(8)])
    refused("new_state 0: expected a contiguous buffer of 8 float32", new_state=[np.zeros(7, np.float32)])
    refused("base: expected a contiguous buffer of 8 float32", base=np.ones(9, np.float32))
    refused("mean: expected a contiguous buffer of 8 float64, got contiguous int64", mean=np.ones(8, np.int64))
    refused("mean: expected a contiguous buffer of 8 float64, got strided", mean=np.ones(16)[::2])
    refused("out: expected a writable buffer", out=frozen)
    refused("expected a float dtype for a step of a server optimizer, got int64", dtype="int64")
    refused("mean_of is one of models, differences, not 'mean'", mean_of="mean")
    refused("beyond|within the total's 7 elements", mean=backend("cpu").total(7, "float64"))
    room = np.zeros(24, np.float32)
    for changed in (
        {"out": room[:8], "new_state": [room[:8]]},
        {"out": room[:8], "new_state": [room[7:15]]},
        {"base": room[:8], "out": room[1:9]},
        {"state": [room[:8]], "out": room[:8]},
        {"mean": room[:8], "out": room[:8]},
    ):
        refused("they share memory", **changed)
    with pytest.raises(UnknownDType):
        next_of(mean, base, [], ServerLr(1.0), "complex64")
    with pytest.raises(WeightRange, match="the sum of the weights is 0"):
        next_of(backend("cpu").total(8, "exact"), base, [], ServerLr(1.0), "float32")
    spoiled = total_of([mean], [1.0], "float64", "exact")
    spoiled.is_spoiled = True
    with pytest.raises(SpoiledTotal):
        next_of(spoiled, base, [], ServerLr(1.0), "float32")
    assert next_of(np.ones(0), np.ones(0, np.float32), [], ServerLr(1.0), "float32")[0].size == 0


def changed(optimizer: Any, **numbers: float) -> Any:
    return replace(optimizer, **numbers)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_numbers_of_an_optimizer_are_checked(bad: float) -> None:
    for optimizer in OPTIMIZERS:
        for name in vars(optimizer):
            if name != "nesterov":
                with pytest.raises(OptimizerRange, match=f"{type(optimizer).__name__}: expected .*{name}.*, got {bad}"):
                    changed(optimizer, **{name: bad})
    for numbers in ({"beta1": 1.0}, {"beta2": 1.0}, {"tau": 0.0}, {"tau": 1e-40}, {"lr": 1e40}):
        with pytest.raises(OptimizerRange):
            changed(Adam(0.1), **numbers)


@settings(max_examples=40, deadline=None)
@given(
    optimizer=st.sampled_from(OPTIMIZERS), size=st.integers(0, 700), seed=st.integers(0, 999), rounds=st.integers(1, 4)
)
def test_float64_agrees_with_numpy_to_the_bit(optimizer: Optimizer, size: int, seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    x, m, v = rng.standard_normal(size), np.zeros(size), np.full(size, 1e-6)
    base, state = x.copy(), start_of(optimizer, "float64", size)
    for _ in range(rounds):
        mean = rng.standard_normal(size)
        base, state = next_of(mean, base, state, optimizer, "float64")
        change, lr, beta, other, a, b, tau = mean - x, *optimizer.numbers
        if optimizer.formula == "scaled":
            x = x + lr * change
            continue
        if optimizer.formula == "momentum":
            m = beta * m + change
            x = x + lr * (a * change + b * m)
            continue
        m = beta * m + other * change
        v = v - b * change**2 * np.sign(v - change**2) if isinstance(optimizer, Yogi) else a * v + b * change**2
        x = x + lr * m / (np.sqrt(v) + tau)
    assert np.array_equal(base, x)
    for found, wanted in zip(state, (m, v), strict=False):
        assert np.array_equal(found, wanted)
