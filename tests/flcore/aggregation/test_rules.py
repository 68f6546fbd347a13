"""Rules of one's own, of each kind, in every entry point: a median and Krum in plain NumPy, added as users add them."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flcore_transport.piece_format import piece_elements

import flcore
from flcore import Aggregator, Columns, Geometry, JobError, ModelSpec, aggregate
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.job.rules import load_rule
from tests.flcore.command import said
from tests.flcore.conftest import Stage, adding

RULES = '''
import numpy as np

from flcore import Columns, Geometry


def wide(columns):
    return np.stack([np.asarray(column, np.float64) for column in columns])


def median():
    """The coordinate-wise median (Yin et al., 2018)."""
    return Columns("median", lambda columns, weights: np.median(wide(columns), axis=0))


def scalar_products(columns):
    return wide(columns) @ wide(columns).T


def chosen(products, weights):
    """Krum (Blanchard et al., 2017) with f = 1: the update that is nearest to its n - f - 2 neighbours."""
    norms = np.diag(products)
    distances = np.sort(norms[:, None] + norms - 2 * products, axis=1)
    best = np.argmin(distances[:, 1 : max(2, len(weights) - 2)].sum(axis=1))
    return [float(number == best) for number in range(len(weights))]


krum = Geometry("krum", scalar_products, chosen)
'''

Arrays = dict[str, npt.NDArray[Any]]
SIZE = piece_elements("float32") + 700
CLIENTS = 9


@pytest.fixture
def rules(tmp_path: Path) -> Callable[[str], flcore.Columns | flcore.Geometry]:
    (tmp_path / "rules.py").write_text(RULES)
    return lambda name: load_rule(f"rules.py:{name}", tmp_path, "rule")  # type: ignore[return-value]


def updates() -> list[tuple[Arrays, float]]:
    rng = np.random.default_rng(9)
    found = [
        (
            {
                "w": rng.standard_normal(SIZE).astype(np.float32),
                "h": rng.standard_normal((3, 70)).astype(ml_dtypes.bfloat16),
                "n": rng.integers(-100, 100, 5),
            },
            float(number + 1),
        )
        for number in range(CLIENTS)
    ]
    found[2][0]["w"] += 1000  # a client that is far away
    return found


def expected(rule: str) -> Arrays:
    given = updates()
    if rule == "median":
        columns = {name: np.stack([arrays[name].astype(np.float64) for arrays, _ in given]) for name in given[0][0]}
        medians = {name: np.median(values, axis=0) for name, values in columns.items()}
        return {name: (np.rint(v) if name == "n" else v).astype(given[0][0][name].dtype) for name, v in medians.items()}
    models = [np.concatenate([each.astype(np.float64).reshape(-1) for each in arrays.values()]) for arrays, _ in given]
    scores = []
    for one in models:
        distances = sorted(float(((one - other) ** 2).sum()) for other in models)
        scores.append(sum(distances[1 : len(models) - 2]))
    return given[int(np.argmin(scores))][0]


def assert_same(found: Any, wanted: Arrays) -> None:
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(np.asarray(found[name], np.float64), values.astype(np.float64)), name


@pytest.mark.parametrize("name", ["median", "krum"])
def test_aggregate_and_the_adapters_follow_it(name: str, rules: Any) -> None:
    rule, wanted = rules(name), expected(name)
    assert_same(aggregate(updates(), rule=rule), wanted)
    assert_same(aggregate(iter(updates()), rule=rule), wanted)
    out = {key: np.empty_like(values) for key, values in wanted.items()}
    assert aggregate(updates(), rule=rule, out=out)["w"] is out["w"]
    assert_same(out, wanted)
    running = IncrementalAggregator(rule=rule, group=1)
    for number, (arrays, weight) in enumerate(updates()):
        running.add(arrays, weight, f"{number}")
    assert_same(running.finish(), wanted)


@pytest.mark.parametrize("name", ["median", "krum"])
@pytest.mark.parametrize("memory_updates", [0, 3, 100])
@pytest.mark.parametrize("read_chunks", [1, 2, 16])
def test_an_aggregator_at_close_follows_it_with_more_updates_on_disk_than_chunks_fit(
    name: str, memory_updates: int, read_chunks: int, rules: Any
) -> None:
    spec = ModelSpec.of(updates()[0][0])
    storage = Storage("batch", Staging(memory_updates * spec.nbytes), read_chunks=read_chunks)
    aggregator = Aggregator(spec, rule=rules(name), storage=storage)
    for number, (arrays, weight) in enumerate(updates()):
        with aggregator.update(client=f"{number}", weight=weight) as update:
            update.write_all(arrays)
    assert_same(aggregator.finish().arrays(), expected(name))


def test_a_base_is_added_to_what_it_returns(rules: Any) -> None:
    base = {name: np.ones_like(values) for name, values in updates()[0][0].items()}
    found = aggregate(updates(), rule=rules("median"), base=base)
    exact = np.median(np.stack([arrays["w"].astype(np.float64) for arrays, _ in updates()]), axis=0) + 1
    assert np.array_equal(found["w"], exact.astype(np.float32))


def test_it_needs_the_plan_at_close(rules: Any) -> None:
    with pytest.raises(JobError, match="rule 'median' needs all updates at once: choose the plan batch"):
        Aggregator(ModelSpec.of(updates()[0][0]), rule=rules("median"), plan="streaming")


@pytest.mark.parametrize("name", ["median", "krum"])
def test_files_follow_it_named_on_the_command_line(name: str, rules: Any, tmp_path: Path) -> None:
    names = [f"{number}.safetensors" for number in range(CLIENTS)]
    for path, (arrays, _) in zip(names, updates(), strict=True):
        flcore.save(arrays, tmp_path / path)
    said("aggregate", *names, "--rule", f"rules.py:{name}", "--out", "out.safetensors", cwd=tmp_path)
    assert_same(flcore.load(tmp_path / "out.safetensors"), expected(name))
    paths = [tmp_path / path for path in names]
    stored = aggregate_checkpoints(paths, tmp_path / "again.safetensors", rule=rules(name))
    assert_same(stored.arrays(), expected(name))


@pytest.mark.parametrize("name", ["median", "krum"])
def test_a_job_follows_it(name: str, stage: Stage) -> None:
    (stage.directory / "rules.py").write_text(RULES)
    stage.open(rule=f"rules.py:{name}", clients=5, quorum=5, wait_for=5, out=stage.directory / "out")
    for number, value in enumerate((1.0, 2.0, 3.0, 3.5, 90.0)):
        stage.client(f"client-{number + 1}", adding(value, weight=1.0))
    outcome = stage.result()
    (found,) = {float(value) for array in outcome.model.arrays().values() for value in array.reshape(-1)}
    assert found == (3.0 if name == "median" else 2.0 if found == 2.0 else 3.0)


def test_what_it_is_given_does_not_depend_on_where_ranges_begin_and_constants_are_left_out() -> None:
    seen: list[int] = []

    def combine(columns: Any, weights: Any) -> Any:
        assert all(np.isfinite(np.asarray(column, np.float64)).all() for column in columns)
        assert [column.dtype for column in columns] == [columns[0].dtype] * len(columns)
        seen.append(columns[0].size)
        return sum(np.asarray(column, np.float64) for column in columns) / len(columns)

    mask = np.array([0.0, -np.inf, 0.0], np.float32)
    given = [({"mask": mask, "w": np.full(SIZE, value, np.float32)}, 1.0) for value in (1.0, 3.0)]
    found = aggregate(given, rule=Columns("mean of columns", combine))
    assert found["mask"].tobytes() == mask.tobytes() and set(found["w"].tolist()) == {2.0}
    assert sum(seen) == 3 + SIZE and len(seen) > 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Columns("odd", lambda columns, _: columns[0][:-1]), "rule 'odd': expected an array of 3 elements, got one of"),
        (Columns("odd", lambda columns, _: np.full(columns[0].size, 1e39)), "result, 1e.39, does not fit into float32"),
        (Columns("odd", lambda *_: np.array("text")), "rule 'odd': combine raised ValueError: could not convert"),
        (Columns("odd", lambda columns, _: 1j * columns[0]), "rule 'odd': combine raised TypeError: expected real"),
        (
            Columns("odd", lambda columns, _: np.negative(columns[0], out=columns[0])),
            "rule 'odd': combine raised ValueError: .*read-only",
        ),
        (
            Geometry("odd", lambda _: np.zeros(1), lambda *_: [1.0]),
            "rule 'odd': expected 2 coefficients >= 0",
        ),
        (Geometry("odd", lambda _: np.zeros(1), lambda *_: [1.0, -1.0]), "rule 'odd': expected 2 coefficients >= 0"),
        (Geometry("odd", lambda _: np.zeros(1), lambda *_: [np.nan, 1]), "rule 'odd': expected 2 coefficients >= 0"),
        (Geometry("odd", lambda _: np.zeros(1), lambda *_: [0.6, 0.6]), "rule 'odd': expected 2 coefficients >= 0"),
        (Geometry("odd", lambda _: np.full(1, np.inf), lambda *_: [0, 1]), "rule 'odd': its figures are not finite"),
        (Geometry("odd", lambda _: np.array("a"), lambda *_: [0, 1]), "rule 'odd': measure raised ValueError"),
    ],
)
def test_what_a_rule_returns_wrongly_is_told_by_its_name(rule: Any, words: str) -> None:
    with pytest.raises(flcore.AggregationError, match=words):
        aggregate([({"w": np.ones(3, np.float32)}, 1.0)] * 2, rule=rule)


def test_a_rule_sees_elements_of_tensors_and_no_gaps_between_them() -> None:
    given = [
        ({"a": np.full(20, value), "b": np.full((), value), "c": np.full(300, value)}, 1.0) for value in (2.0, 4.0)
    ]
    found = aggregate(given, rule=Columns("ratio", lambda columns, _: columns[1] / columns[0]))
    assert set(np.concatenate([np.ravel(values) for values in found.values()]).tolist()) == {2.0}
    sizes = Geometry(
        "sizes", lambda columns: np.array([column.size for column in columns]), lambda n, _: [n[0] / 642, 0]
    )
    assert aggregate(given, rule=sizes)["a"].tolist() == [1.0] * 20


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize("read_chunks", [1, 16])
def test_a_clipped_mean_is_shorter_than_its_updates(accumulate: str, read_chunks: int) -> None:
    def norms(columns: Any) -> Any:
        return np.array([np.square(column, dtype=np.float64).sum() for column in columns])

    def clipped(squares: Any, weights: Any) -> Any:
        return np.array(weights) / sum(weights) * np.minimum(1, 5 / np.sqrt(squares))

    given = [({"w": np.array([3.0, 4.0], np.float32)}, 1.0), ({"w": np.array([30.0, -40.0], np.float32)}, 3.0)]
    rule, wanted = Geometry("clip", norms, clipped), [(3.0 + 3 * 3.0) / 4, (4.0 - 3 * 4.0) / 4]
    assert np.allclose(aggregate(given, rule=rule, accumulate=accumulate)["w"], wanted, rtol=1e-6)
    storage = Storage("batch", Staging(0), read_chunks=read_chunks)
    aggregator = Aggregator(ModelSpec.of(given[0][0]), rule=rule, accumulate=accumulate, storage=storage)
    for number, (arrays, weight) in enumerate(given):
        with aggregator.update(client=f"{number}", weight=weight) as update:
            update.write_all(arrays)
    assert np.allclose(aggregator.finish().arrays()["w"], wanted, rtol=1e-6)


def test_a_coefficient_that_no_sum_takes_costs_the_sender_of_the_weight_its_place() -> None:
    rule, spec = flcore.Sum("fourth power", lambda weight: weight**4), ModelSpec.of({"w": np.zeros(3)})
    for plan in ("batch", "streaming"):
        aggregator = Aggregator(spec, rule=rule, plan=plan)
        with aggregator.update(client="a", weight=1.0) as update:
            update.write("w", np.ones(3))
        with pytest.raises(flcore.WeightError, match="client 'b'"):
            aggregator.stage("b", 2.0**20)
        assert aggregator.finish().arrays()["w"].tolist() == [1.0] * 3
    running = IncrementalAggregator(rule=rule)
    running.add({"w": np.ones(3)}, 1.0, "a")
    for bad in (2.0**20, 2.0**-20):
        with pytest.raises(flcore.WeightError, match="client 'b'"):
            running.add({"w": np.ones(3)}, bad, "b")
    assert running.finish()["w"].tolist() == [1.0] * 3


def test_the_adapters_take_one_update_of_a_client_where_a_rule_needs_all(rules: Any) -> None:
    running = IncrementalAggregator(rule=rules("median"))
    for client, value in (("a", 1.0), ("b", 2.0), ("c", 90.0)):
        running.add({"w": np.full(3, value)}, 1.0, client)
    with pytest.raises(flcore.UpdateError, match="client 'a': it has an update in this round already"):
        running.add({"w": np.zeros(3)}, 1.0, "a")
    assert running.finish()["w"].tolist() == [2.0] * 3


def test_what_is_no_rule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("text = 'median'\n\ndef five():\n    return 5\n")
    for name in ("text", "five"):
        with pytest.raises(
            JobError, match=r"--rule: expected a rule \(Sum, Columns, Geometry or Chain\), got (str|int) from"
        ):
            load_rule(f"mine.py:{name}", tmp_path, "--rule")
    (tmp_path / "theirs.py").write_text("def combine(columns, weights):\n    return columns[0]\n")
    with pytest.raises(JobError, match="--rule: expected a rule, or a function that makes one: combine"):
        load_rule("theirs.py:combine", tmp_path, "--rule")
    for name in ("krmm", "mine.py"):
        with pytest.raises(JobError, match=r"or file\.py:name"):
            load_rule(name, tmp_path, "--rule")
    with pytest.raises(JobError, match=r"expected a name or a rule \(flcore.Sum, .* or Chain\), got function"):
        aggregate([({"w": np.ones(3)}, 1.0)], rule=updates)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="--rule: there is no file"):
        load_rule("other.py:median", tmp_path, "--rule")


def test_a_name_in_the_table_is_a_rule_everywhere(monkeypatch: pytest.MonkeyPatch, rules: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(flcore.RULES, "median", lambda: rules("median"))
    assert_same(aggregate(updates(), rule="median"), expected("median"))
    for name, (arrays, _) in zip("abc", itertools.islice(updates(), 3), strict=True):
        flcore.save(arrays, tmp_path / f"{name}.safetensors")
    said("aggregate", "a.safetensors", "b.safetensors", "--rule", "median", "--out", "o.safetensors", cwd=tmp_path)
