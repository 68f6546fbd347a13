"""The law of admission: what has been admitted never makes a round fail, and what is refused costs only its sender.

Clients draw hostile values: ends of dtypes, their halves, denormal numbers, NaN, sentinels, weights at the borders of
what is taken. Updates that an aggregator admits without knowing others are combined by every entry point.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flcore import Aggregator, Model, ModelSpec, Sum, UpdateError, aggregate, save
from flcore.aggregation.admission_limits import MAX_MEASURED, MAX_TERM, WEIGHT_RANGES
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.rules.kinds import min_updates
from flcore.rules.named import resolve_rule
from tests.kernels.needed import MEDIANS
from tests.reference import DTYPES, FLOATS, INTEGERS, bits_of

SIZE = 3
ENDS = {"float64": (1.7976931348623157e308, 5e-324), "float32": (3.4028234663852886e38, 1.4e-45)}
ENDS |= {"float16": (65504.0, 6e-8), "bfloat16": (3.3895313892515355e38, 9.2e-41)}
"""The largest value of each dtype and its smallest above zero."""
SUMS = ["mean", "unweighted_mean"]
CHAINS = ["geometric_median", "bucketing(size=2) + mean", "nnm(f=1) + mean", "mda(f=1)"]
"""Rules that read distances or random numbers."""

Arrays = dict[str, npt.NDArray[Any]]
Update = tuple[Arrays, float]


class Round(NamedTuple):
    """A model of one tensor, what clients know of it, and what they send; `base` and `reference` are None or arrays."""

    dtype: str
    accumulate: str
    rule: str
    base: Arrays | None
    reference: Arrays | None
    average_bytes: bool
    updates: list[Update]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.of(self.updates[0][0])

    def aggregator(self, plan: str, storage: Storage | None = None) -> Aggregator:
        base, reference = (None if each is None else Model.of(each) for each in (self.base, self.reference))
        settings = {"rule": self.rule, "accumulate": self.accumulate, "average_bytes": self.average_bytes}
        return Aggregator(self.spec, base=base, reference=reference, plan=plan, storage=storage, **settings)  # type: ignore[arg-type]


def values_of(dtype: str) -> list[Any]:
    """Values at which something may go wrong."""
    if dtype == "bool":
        return [False, True]
    if dtype in INTEGERS:
        info = np.iinfo(DTYPES[dtype])
        odd = [2**53 - 1, 2**53, 2**53 + 1, -(2**53), -(2**53) - 1]
        ends = [info.min, info.min + 1, info.max // 2 + 1, info.max - 1, info.max]
        return sorted({0, 1, *ends, *(value for value in odd if info.min <= value <= info.max)})
    kind = FLOATS[dtype]
    largest, tiny = ENDS[dtype]
    found = [0.0, -0.0, 1.0, tiny, largest, -largest, largest / 2, np.nextafter(kind.type(largest), kind.type(0)), 1e4]
    return [*found, largest / 65536, -1e-3, 2.0**96, 2.0**111, np.nan, np.inf, -np.inf]


def border(dtype: str, accumulate: str, weight: float) -> Any:
    """Return about the largest element that is taken with a weight: with all clients there, sums are at their end."""
    with np.errstate(all="ignore"):
        value = DTYPES[dtype].type(MAX_TERM[accumulate] / max(1.0, weight))
    return value if np.isfinite(value) else ENDS[dtype][0]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    dtype = draw(st.sampled_from([*FLOATS, *FLOATS, *INTEGERS]))
    accumulate = draw(st.sampled_from(list(WEIGHT_RANGES)))
    low, high = WEIGHT_RANGES["exact" if dtype in INTEGERS else accumulate]
    weights = st.sampled_from([low, high, 1.0, 3.0, 1e6, 0.1, 1e-300, 1e300, 0.0])
    hot = draw(st.sampled_from(values_of(dtype)))  # many clients have it, so that it adds up

    def tensor(weight: float) -> Arrays:
        pool = [hot, hot, hot, 0, *values_of(dtype)]
        pool += [border(dtype, accumulate, weight)] * 3 if dtype in FLOATS else []
        elements = [draw(st.sampled_from(pool)) for _ in range(SIZE)]
        with np.errstate(all="ignore"):
            return {"w": np.array([DTYPES[dtype].type(value) for value in elements], DTYPES[dtype])}

    kind, known, updates = draw(st.sampled_from(["alone", "base", "reference"])), tensor(1.0), []
    for _ in range(draw(st.integers(1, 6))):
        weight = draw(weights)
        arrays = tensor(weight)
        if kind == "reference" and draw(st.booleans()):  # many clients leave alone what is not averaged
            mask = [draw(st.booleans()) for _ in range(SIZE)]
            arrays["w"] = np.where(mask, known["w"], arrays["w"])
        updates.append((arrays, weight))
    average_bytes = kind == "alone" or draw(st.booleans())
    rule = draw(st.sampled_from([*SUMS, "median", *CHAINS] if dtype in MEDIANS else [*SUMS, *CHAINS]))
    if (
        rule in CHAINS and dtype == "float64"
    ):  # the model that was sent is the server's, and is one that can be measured
        known["w"] = np.clip(known["w"], -MAX_MEASURED, MAX_MEASURED)
    rule = f"clip_norm(max_norm=1.0) + {rule}" if kind != "alone" and rule in CHAINS and draw(st.booleans()) else rule
    base, reference = known if kind == "base" else None, known if kind == "reference" else None
    return Round(dtype, accumulate, rule, base, reference, average_bytes, updates)


def is_sum(given: Round) -> bool:
    """Whether the plan streaming takes the rule."""
    return isinstance(resolve_rule(given.rule), Sum)


@contextmanager
def refusing(client: str) -> Iterator[None]:
    """An update may be refused, and names its own client then."""
    try:
        yield
    except UpdateError as error:
        if error.client != client:
            raise


def admitted(given: Round) -> list[int]:
    """Return which updates an aggregator takes that knows of no others."""
    found = []
    for number, (arrays, weight) in enumerate(given.updates):
        with refusing("alone"), given.aggregator("batch").update(client="alone", weight=weight) as update:
            update.write_all(arrays)
            found.append(number)
    return found


def staged(given: Round, plan: str, storage: Storage | None = None) -> bytes:
    """Have every client send what it has, and return the bits of the result."""
    aggregator = given.aggregator(plan, storage)
    for number, (arrays, weight) in enumerate(given.updates):
        with refusing(f"{number}"), aggregator.update(client=f"{number}", weight=weight) as update:
            update.write_all(arrays)
    return bits_of(aggregator.finish())


def added(given: Round, group: int | None, *, double_buffer: bool) -> bytes:
    """Have every client add what it has to a running combination, and return the bits of the result."""
    running = IncrementalAggregator(
        rule=given.rule,
        accumulate=given.accumulate,
        group=group,
        spec=given.spec,
        double_buffer=double_buffer,
        average_bytes=given.average_bytes,
    )
    if given.reference is not None:
        running.begin_round(given.reference)
    for number, (arrays, weight) in enumerate(given.updates):
        with refusing(f"{number}"):
            running.add(arrays, weight, f"{number}")
    return bits_of(Model.of(running.finish()))


def results(given: Round, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the bits of every entry point's result for a round of admitted updates, by its name."""
    spec, nbytes = given.spec, given.spec.nbytes
    yield "at close", staged(given, "batch")
    yield "at close, on disk in groups", staged(given, "batch", Storage("batch", Staging(nbytes), read_chunks=2))
    if is_sum(given):
        yield "streaming", staged(given, "streaming")
        yield "streaming from disk", staged(given, "streaming", Storage("streaming", Staging(0), read_chunks=1))
    if given.base is None and not given.rule.startswith("clip_norm"):
        for group in (1, 2, None):
            for double_buffer in (False, True):
                yield f"running {group} {double_buffer}", added(given, group, double_buffer=double_buffer)
    if given.reference is None:
        options = {"accumulate": given.accumulate, "rule": given.rule, "base": given.base, "average_bytes": True}
        yield "a list", bits_of(Model.of(aggregate(given.updates, **options)))  # type: ignore[arg-type]
        yield "an iterator", bits_of(Model.of(aggregate(iter(given.updates), budget_bytes=1, **options)))  # type: ignore[arg-type]
    if given.reference is None and given.base is None:
        paths = [folder / f"{number}.safetensors" for number in range(len(given.updates))]
        for path, (arrays, _) in zip(paths, given.updates, strict=True):
            save(arrays, path)
        settings: dict[str, Any] = {"rule": given.rule, "accumulate": given.accumulate, "average_bytes": True}
        weights = [weight for _, weight in given.updates]
        yield "files", bits_of(aggregate_checkpoints(paths, folder / "out.safetensors", weights=weights, **settings))
    assert spec == given.spec


@given(drawn=rounds())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_admitted_never_makes_a_round_fail_and_what_is_refused_costs_only_its_sender(
    tmp_path: Path, drawn: Round
) -> None:
    numbers = admitted(drawn)
    sound = drawn._replace(updates=[drawn.updates[number] for number in numbers])
    is_enough = len(numbers) >= min_updates(resolve_rule(drawn.rule))
    if not is_enough or not any(weight > 0 for _, weight in sound.updates):
        return  # weights that are all zero have no mean
    found = dict(results(sound, tmp_path))
    expected = found["at close"]
    is_chain = drawn.rule.endswith(tuple(CHAINS))  # where all is alike, names decide, or digests
    for name, bits in found.items():
        if is_chain:
            assert len(bits) == len(expected), name
        elif drawn.accumulate == "exact" or drawn.dtype in INTEGERS:
            assert bits == expected, name
    # With the others there, nothing changes: names sort as numbers do, so even float sums are in the same order.
    assert staged(drawn, "batch") == expected
    if drawn.accumulate == "exact" or drawn.dtype in INTEGERS:
        assert not is_sum(drawn) or staged(drawn, "streaming") == expected
        if drawn.base is None and not is_chain:  # it takes what a chain can combine, up to the end of the dtype
            assert added(drawn, 1, double_buffer=True) == expected
            assert added(drawn, 2, double_buffer=False) == expected
