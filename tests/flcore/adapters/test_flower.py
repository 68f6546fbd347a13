"""Flower's strategies with flcore's mean, on Flower's own messages: `make test-adapters`."""

import importlib.util
import re
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import flcore

flwr = pytest.importorskip("flwr", reason="Flower is not installed (make test-adapters)")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp import Grid, strategy  # noqa: E402

from flcore.adapters.flower import FedAvg, FlcoreMean, FlcoreStrategy, StreamingGrid  # noqa: E402
from flcore.adapters.flower.npy_format import RecordBuilder, array_views  # noqa: E402
from flcore.model.dtypes import DTYPES  # noqa: E402
from tests.flcore.adapters.each_kind import RULES  # noqa: E402

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(autouse=True)
def inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer releases make messages only in a run."""
    if importlib.util.find_spec("flwr.supercore.task_identity"):
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 7)


def message(content: RecordDict | None = None, node: int = 1, **keywords: Any) -> Message:
    return Message(content or RecordDict(), dst_node_id=node, message_type="train", **keywords)


def reply(arrays: Arrays | ArrayRecord, weight: Any = 1, node: int = 1, **metrics: Any) -> Message:
    record = arrays if isinstance(arrays, ArrayRecord) else ArrayRecord({k: Array(v) for k, v in arrays.items()})
    numbers = MetricRecord({"num-examples": weight, **metrics})
    answer = Message(RecordDict({"arrays": record, "metrics": numbers}), reply_to=message(node=node))
    answer.metadata.__dict__["_src_node_id"] = node
    return answer


def failed(node: int) -> Message:
    answer = Message(Error(0, "it broke"), reply_to=message(node=node))
    answer.metadata.__dict__["_src_node_id"] = node
    return answer


def models(count: int = 7) -> list[Arrays]:
    rng = np.random.default_rng(3)
    return [
        {"w": rng.standard_normal((30, 9)).astype(np.float32), "b": rng.standard_normal(4), "n": np.array(10 * (i + 1))}
        for i in range(count)
    ]


def replies_of(given: list[Arrays]) -> list[Message]:
    return [reply(arrays, weight, node=weight) for weight, arrays in enumerate(given, 1)]


def mean_of(chosen: Any, replies: Iterable[Message]) -> tuple[Any, Any]:
    """What a strategy makes of a round."""
    arrays, metrics = chosen.aggregate_train(1, replies)
    return arrays, metrics


def begun(chosen: Any, arrays: Arrays) -> Any:
    """A strategy that has sent this model."""
    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    list(chosen.configure_train(1, record, ConfigRecord(), Nodes(range(1, 9))))
    return chosen


class Nodes(Grid):  # type: ignore[misc]
    """A grid of some nodes, which answer `late` times that there is nothing yet."""

    def __init__(self, nodes: Iterable[int], late: int = 0) -> None:
        self.nodes, self.late, self.asked = list(nodes), late, list[list[str]]()
        self.sent: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        self.asked.append([str(run)])

    @property
    def run(self) -> Any:
        return 7

    def create_message(self, *arguments: Any, **keywords: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent |= {f"m{len(self.sent) + n}": each for n, each in enumerate(messages)}
        return list(self.sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked.append(list(message_ids))
        if len(self.asked) <= self.late:
            return []
        answers = []
        for each in self.asked[-1]:
            answers.append(reply({"w": np.full(3, float(each[1:]))}, 1, node=int(each[1:]) + 1))
            answers[-1].metadata.__dict__["_reply_to_message_id"] = each
        return answers

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("it would sleep for seconds")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_arrays_are_read_where_they_are_and_written_as_flower_reads_them(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(int(np.prod(shape))).reshape(shape).astype(DTYPES[dtype])
    array = Array(values)
    view = array_views(ArrayRecord({"a": array}), "x")["a"]
    assert np.array_equal(view, values) and view.dtype == values.dtype
    assert values.size == 0 or np.shares_memory(view, np.frombuffer(array.data, np.uint8))
    blank = RecordBuilder(flcore.ModelSpec.of({"a": values}))
    blank.arrays["a"][...] = values
    (made,) = blank.build().values()
    assert (made.dtype, made.shape, made.stype, made.data) == (array.dtype, array.shape, array.stype, array.data)


def test_arrays_in_fortrans_order_and_unusual_headers_are_read() -> None:
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(array_views(ArrayRecord({"a": Array(values)}), "x")["a"], values)


def npy(header: str) -> Any:
    """An array of two float32 with that header."""
    text = f"{header}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
    return Array("float32", (2,), "numpy.ndarray", data)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (Array("float32", (2,), "safetensors", b"1234"), "it is serialized as 'safetensors'"),
        (Array("float32", (2,), "numpy.ndarray", b""), "expected an array"),
        (Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY\x03\x00aaaa"), "version"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 3000 + "2}"),
            "its header is not one that NumPy writes",
        ),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"), "its header is not one that NumPy writes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 999999999999), }"), "announced as"),
        (npy("{'descr': '<q7', 'fortran_order': False, 'shape': (2,), }"), "expected an array"),
        (
            Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}"),
            "its header is not one that NumPy writes",
        ),
        (
            Array("float32", (2,), "numpy.ndarray", Array(np.ones(2)).data),
            r"announced as float32 .* its bytes are float64",
        ),
        (
            Array("float64", (1,), "numpy.ndarray", Array(np.ones(2)).data),
            r"announced as .* \(1,\), but its bytes are .* \(2,\)",
        ),
        (Array("float64", (2,), "numpy.ndarray", Array(np.ones(2)).data[:-1]), "expected an array"),
        (Array("float64", (2,), "numpy.ndarray", Array(np.ones(2)).data + b"12345678"), "expected an array"),
    ],
)
def test_what_is_no_array_is_refused_by_name(array: Any, words: str) -> None:
    with pytest.raises(flcore.TensorMismatch, match=f"client 'node 1', tensor 'a': .*{words}"):
        array_views(ArrayRecord({"a": array}), "node 1")


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_the_mean_is_flowers_to_rounding_and_integers_stay_integers(form: Any, accumulate: str) -> None:
    given = models()
    expected, theirs = mean_of(strategy.FedAvg(), replies_of(given))
    found, metrics = mean_of(begun(FedAvg(accumulate=accumulate), given[0]), form(replies_of(given)))
    assert list(found) == ["w", "b", "n"] and dict(metrics) == dict(theirs)
    for name in ("w", "b"):
        assert found[name].dtype == expected[name].dtype
        assert np.allclose(found[name].numpy(), expected[name].numpy(), rtol=1e-6, atol=1e-7)
    assert found["n"].numpy() == 50 and found["n"].dtype == "int64" and expected["n"].dtype == "float64"


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("kind", RULES)
def test_any_rule_gives_what_aggregate_gives(kind: str, form: Any) -> None:
    given, chosen = models(9), begun(FlcoreStrategy(rule=RULES[kind], group=2), models(1)[0])
    for count in (9, 6):
        updates = [(arrays, weight) for weight, arrays in enumerate(given[:count], 1)]
        expected = flcore.aggregate(updates, rule=RULES[kind])
        found, metrics = mean_of(chosen, form(replies_of(given[:count])))
        assert {name: found[name].numpy().tobytes() for name in found} == {k: v.tobytes() for k, v in expected.items()}
        assert dict(metrics) == {}


@pytest.mark.parametrize(
    ("theirs", "keywords", "rule"),
    [
        ("FedMedian", {}, "median(weighted=false)"),
        ("FedTrimmedAvg", {"beta": 0.3}, "trimmed_mean(f=2, weighted=false)"),
    ],
)
def test_robust_rules_are_those_of_flowers_strategies(theirs: str, keywords: Any, rule: str) -> None:
    given = [{name: arrays[name] for name in ("w", "b")} for arrays in models()]
    expected, _ = mean_of(getattr(strategy, theirs)(**keywords), replies_of(given))
    found, _ = mean_of(FlcoreStrategy(rule=rule), replies_of(given))
    for name in ("w", "b"):
        assert np.allclose(found[name].numpy(), expected[name].numpy(), rtol=1e-6, atol=1e-7)


def test_exact_means_are_those_of_aggregate_for_any_order_and_container() -> None:
    given = models(9)
    expected = flcore.aggregate([(arrays, weight) for weight, arrays in enumerate(given, 1)])
    for form, group in ((list, 4), (iter, 4), (iter, 1), (lambda each: iter(each[::-1]), 3)):
        found, _ = mean_of(FedAvg(group=group), form(replies_of(given)))
        assert {name: found[name].numpy().tobytes() for name in found} == {k: v.tobytes() for k, v in expected.items()}


def bad_replies(good: Arrays) -> dict[str, Message]:
    nan, infinite = good["w"].copy(), good["w"].copy()
    nan[3, 3], infinite[0, 1] = np.nan, -np.inf
    two = Message(RecordDict({"a": ArrayRecord(), "b": ArrayRecord(), "m": MetricRecord()}), reply_to=message())
    return {
        "tensor 'b': it is missing": reply({"w": good["w"], "n": good["n"]}),
        "tensor 'x': the model has no tensor of this name": reply({**good, "x": good["b"]}),
        r"tensor 'w': expected float32 of shape \(30, 9\), got float32 of shape \(9, 30\)": reply(
            {**good, "w": good["w"].reshape(9, 30)}
        ),
        r"tensor 'w': expected float32 .* got float64": reply({**good, "w": good["w"].astype(np.float64)}),
        "tensor 'w': element 30 is nan": reply({**good, "w": nan}),
        "tensor 'w': element 1 is -inf": reply({**good, "w": infinite}),
        "a weight is a finite number >= 0.* not -1": reply(good, -1),
        "a weight is a finite number >= 0.* not nan": reply(good, float("nan")),
        r"a weight is a finite number >= 0.* not \[1, 2\]": reply(good, [1, 2]),
        "its metrics lack the weight, 'num-examples'": Message(
            RecordDict({"a": ArrayRecord({k: Array(v) for k, v in good.items()}), "m": MetricRecord({"loss": 1.0})}),
            reply_to=message(),
        ),
        "expected one ArrayRecord and one MetricRecord, got 2 and 1": two,
    }


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("kind", RULES)
def test_a_reply_that_cannot_be_counted_costs_its_sender_its_place_and_nobody_else(
    kind: str, form: Any, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, rule = models(6), RULES[kind]
    expected, _ = mean_of(FlcoreStrategy(rule=rule), replies_of(given))
    for words, bad in bad_replies(given[0]).items():
        told: list[str] = []
        for module in ("strategy", "replies"):
            monkeypatch.setattr(
                f"flcore.adapters.flower.{module}.log", lambda _, text, *values, to=told: to.append(text % values)
            )
        bad.metadata.__dict__["_src_node_id"] = 13
        answers = [*replies_of(given)[:place], bad, *replies_of(given)[place:], failed(14)]
        found, _ = mean_of(begun(FlcoreStrategy(rule=rule), given[0]), form(answers))
        assert all(found[name].data == expected[name].data for name in expected), words
        assert any("it broke" in line for line in told)
        assert any(line.startswith("\t> Refused: client 'node 13'") and _fits(words, line) for line in told), told
        assert "aggregate_train: Received 6 results and 2 failures" in told


def _fits(words: str, line: str) -> bool:
    return re.search(words, line) is not None


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("kind", [kind for kind in RULES if kind != "columns with an argument"])  # it needs 5 replies
def test_a_round_in_which_nothing_counts_is_none(kind: str, form: Any) -> None:
    chosen = begun(FlcoreStrategy(rule=RULES[kind]), models(1)[0])
    assert chosen.aggregate_train(1, form([])) == (None, None)
    assert chosen.aggregate_train(1, form([failed(1), failed(2)])) == (None, None)
    with pytest.raises(flcore.QuorumError, match="no reply of round 5 counts; the first refusal: client 'node 2'"):
        chosen.aggregate_train(5, form([reply({"w": np.ones(2)}, node=2), failed(1)]))
    with pytest.raises(flcore.WeightError, match="the weights of all 2 updates are zero"):
        chosen.aggregate_train(1, form([reply(models(1)[0], 0), reply(models(1)[0], 0, node=2)]))


@pytest.mark.parametrize("form", [list, iter])
def test_a_rule_that_needs_more_replies_says_how_many_and_the_next_round_goes_on(form: Any) -> None:
    chosen = begun(FlcoreStrategy(rule="trimmed_mean(f=2)"), models(1)[0])
    given, nan = replies_of(models(5)), models(1)[0]
    nan["b"][0] = np.nan
    with pytest.raises(flcore.AggregationError, match=r"rule 'trimmed_mean\(f=2\)' needs at least 5 updates, got 4$"):
        chosen.aggregate_train(1, form(given[:4]))
    words = "needs at least 5 updates, got 4; the first refusal: client 'node 13', tensor 'b': element 0 is nan"
    with pytest.raises(flcore.AggregationError, match=words):
        chosen.aggregate_train(2, form([*replies_of(models(4)), reply(nan, 1, 13)]))
    assert mean_of(chosen, form(replies_of(models(5))))[0] is not None


def test_a_round_that_asks_too_few_nodes_for_its_rule_is_refused_before_they_train() -> None:
    arrays = ArrayRecord({"w": Array(np.zeros(2))})
    chosen = FlcoreStrategy(rule="trimmed_mean(f=2)", fraction_train=0.5)
    words = "needs at least 5 updates, and round 1 asks 4 nodes: set min_train_nodes and min_available_nodes to 5"
    with pytest.raises(flcore.AggregationError, match=words):
        chosen.configure_train(1, arrays, ConfigRecord(), Nodes(range(8)))
    assert len(list(chosen.configure_train(1, arrays, ConfigRecord(), Nodes(range(10))))) == 5
    none = FlcoreStrategy(rule="trimmed_mean(f=2)", fraction_train=0.0)
    assert list(none.configure_train(1, arrays, ConfigRecord(), Nodes(range(8)))) == []


def test_a_rule_that_is_no_sum_holds_bytes_and_no_replies() -> None:
    alive: list[weakref.ref[Any]] = []

    def stream() -> Iterator[Message]:
        for node in range(9):
            answer = reply({"w": np.full(1000, float(node), np.float32)}, 1, node)
            alive.append(weakref.ref(answer.content["arrays"]["w"]))
            assert sum(each() is not None for each in alive) <= 1
            yield answer
            del answer

    chosen = FlcoreStrategy(rule="median")
    assert mean_of(chosen, stream())[0]["w"].numpy().tolist() == [4.0] * 1000


def test_a_rule_on_a_class_is_that_of_the_strategy_it_is_mixed_into() -> None:
    results = []
    for bases, keywords in (((strategy.FedAdam,), {}), ((strategy.FedAdam, FlcoreStrategy), {"rule": "median"})):
        chosen = type("FedAdam", bases, keywords)()
        arrays = ArrayRecord({"w": Array(np.zeros(5, np.float32))})
        list(chosen.configure_train(1, arrays, ConfigRecord(), Nodes(range(3))))
        wild = 1e6 if "rule" in keywords else 1.0
        replies = [reply({"w": np.full(5, value, np.float32)}, 1, node) for node, value in enumerate((1.0, wild, 1.0))]
        results.append(chosen.aggregate_train(1, replies)[0]["w"].numpy())
    assert np.allclose(results[0], results[1], rtol=1e-5)


def test_the_former_name_and_that_of_flower_are_the_mean_by_default() -> None:
    assert FlcoreMean is FlcoreStrategy and FedAvg().rule == FlcoreMean().rule == "mean"
    assert FedAvg().__class__.__name__ == "FedAvg", "Flower logs the name of the class"


def test_bounds_hold_for_lists_and_streams() -> None:
    for rule, form in ((each, form) for each in ("mean", "median") for form in (list, iter)):
        found, _ = mean_of(
            FlcoreStrategy(rule=rule, max_abs=5), form([reply({"w": np.ones(3)}), reply({"w": np.full(3, 6.0)})])
        )
        assert found["w"].numpy().tolist() == [1.0] * 3


def test_metrics_that_few_replies_have_are_left_out() -> None:
    given = [reply({"w": np.ones(1)}, 1, node, loss=2.0) for node in range(3)]
    _, metrics = mean_of(FedAvg(), [reply({"w": np.ones(1)}, 1, 9, accuracy=0.5), *given])
    assert dict(metrics) == {"loss": 2.0}
    given = [reply({"w": np.ones(1)}, 1, node, loss=2.0) for node in range(3)]
    _, metrics = mean_of(FedAvg(), [reply({"w": np.ones(1)}, 1, 9, loss=[1.0, 2.0]), *given])
    assert dict(metrics) == {"loss": 2.0}


def test_arrays_are_freed_once_they_are_folded() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def stream() -> Iterator[Message]:
        nonlocal most
        for node in range(20):
            answer = reply({"w": np.full(1000, float(node), np.float32)}, 1, node)
            alive.append(weakref.ref(answer.content["arrays"]["w"]))
            most = max(most, sum(each() is not None for each in alive))
            yield answer
            del answer

    found, _ = mean_of(FedAvg(group=4), stream())
    assert found["w"].numpy().tolist() == [9.5] * 1000
    assert most <= 1, "what is held of a reply is its bytes, not the reply"
    answers = replies_of(models())
    mean_of(FedAvg(), answers)
    assert all(not answer.content.array_records and answer.content.metric_records for answer in answers)


def test_bases_that_would_override_our_mean_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"FlcoreStrategy must be the last base, .*: class Wrong\(FedAdam, FlcoreStrategy\)"
    ):
        type("Wrong", (FlcoreStrategy, strategy.FedAdam), {})
    with pytest.raises(flcore.JobError, match="accumulate 'fp32' does not exist"):
        type("Wrong", (strategy.FedAdam, FlcoreStrategy), {"accumulate": "fp32"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": "fp32"}, "accumulate 'fp32' does not exist"),
        ({"rule": "medain"}, "rule 'medain' does not exist; .* did you mean 'median'"),
        ({"rule": "trimmed_mean"}, "rule 'trimmed_mean': missing a required argument: 'f'"),
        ({"group": 0}, "group: expected a whole number of at least 1, got 0"),
        ({"max_abs": -1}, "max_abs: expected a number above 0, got -1"),
        ({"max_abs": float("nan")}, "max_abs: expected a number above 0, got nan"),
    ],
)
def test_settings_that_no_round_could_have_are_refused_at_once(settings: Any, words: str) -> None:
    with pytest.raises(flcore.JobError, match=words):
        FedAvg(**settings)


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAdagrad"])
def test_clients_that_answer_in_the_dtype_they_were_sent_go_on_after_the_first_round(name: str) -> None:
    ours = type(name, (getattr(strategy, name), FlcoreStrategy), {})
    results, received = [], np.zeros(0)
    for kind in (getattr(strategy, name), ours):
        chosen = kind()
        arrays = ArrayRecord({"w": Array(np.zeros(5, np.float32))})
        for number in (1, 2, 3):
            (sent, *_) = chosen.configure_train(number, arrays, ConfigRecord(), Nodes(range(2)))
            received = sent.content["arrays"]["w"].numpy()
            replies = [reply({"w": received + np.asarray(step, received.dtype)}, 1, step) for step in (1, 2)]
            arrays, _ = chosen.aggregate_train(number, replies)
        results.append(arrays["w"].numpy())
    assert np.allclose(results[0], results[1], rtol=1e-5)
    assert received.dtype == np.float32, "the model is sent in the dtype that it began with"


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAdagrad", "FedAvgM", "FedProx"])
def test_other_strategies_of_flower_work_with_our_mean(name: str) -> None:
    theirs: Any = getattr(strategy, name, None)
    if theirs is None:
        pytest.skip(f"this Flower has no {name}")
    ours = type(name, (theirs, FlcoreMean), {"accumulate": "float64"})
    keywords = {"proximal_mu": 0.1} if name == "FedProx" else {}
    keywords |= {"server_momentum": 0.9} if name == "FedAvgM" else {}
    results = []
    for kind in (theirs, ours):
        chosen = kind(**keywords)
        arrays = ArrayRecord({key: Array(values) for key, values in models(1)[0].items() if key != "n"})
        for number in (1, 2):
            list(chosen.configure_train(number, arrays, ConfigRecord(), Nodes(range(1, 9))))
            given = [{key: values for key, values in each.items() if key != "n"} for each in models()]
            arrays, _ = chosen.aggregate_train(number, replies_of(given))
        results.append(arrays)
    for key, array in results[0].items():
        assert np.allclose(array.numpy(), results[1][key].numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_of_other_shapes_begins_anew() -> None:
    chosen = begun(FedAvg(), models(1)[0])
    chosen.aggregate_train(1, replies_of(models()))
    begun(chosen, {"v": np.zeros(2)})
    assert mean_of(chosen, [reply({"v": np.ones(2)})])[0]["v"].numpy().tolist() == [1.0, 1.0]


def test_the_grid_asks_for_one_reply_at_a_time_and_hands_it_on() -> None:
    inner = Nodes(range(5), late=2)
    grid = StreamingGrid(inner)
    assert list(grid.get_node_ids()) == inner.nodes and grid.run == 7
    replies = grid.send_and_receive([message(node=node) for node in range(5)], timeout=30)
    assert len(inner.sent) == 5 and not inner.asked, "messages are sent at once, replies asked for when they are wanted"
    found, _ = mean_of(FedAvg(), replies)
    assert found["w"].numpy().tolist() == [2.0] * 3
    assert all(len(ids) == 1 for ids in inner.asked)
    together = Nodes(range(5))
    list(StreamingGrid(together, at_once=2).send_and_receive([message(node=node) for node in range(5)]))
    assert [len(ids) for ids in together.asked] == [2, 2, 1]


def test_a_second_run_of_one_strategy_may_have_other_dtypes_and_none_is_narrowed_away() -> None:
    chosen = begun(FedAvg(), {"w": np.ones(2, np.float32)})
    mean_of(chosen, [reply({"w": np.ones(2, np.float32)})])
    begun(chosen, {"w": np.full(2, 1e200)})
    assert mean_of(chosen, [reply({"w": np.full(2, 1e200)})])[0]["w"].numpy().tolist() == [1e200, 1e200]
    begun(chosen, {"w": np.ones(2, np.float32)})
    large = ArrayRecord({"w": Array(np.full(2, 1e200))})
    with pytest.raises(flcore.AggregationError, match="tensor 'w': the global model does not fit into float32"):
        chosen.configure_train(2, large, ConfigRecord(), Nodes(range(2)))


def test_a_node_with_huge_values_or_odd_weights_does_not_end_the_run() -> None:
    for form in (list, iter):
        answers = [
            reply({"w": np.full(2, value, np.float32)}, weight, node)
            for node, (value, weight) in enumerate([(1.0, 1), (3.4e38, 5), (1.0, 1e-290), (3.0, 1), (1.0, 9e299)])
        ]
        arrays, _ = mean_of(begun(FedAvg(accumulate="float32"), {"w": np.ones(2, np.float32)}), form(answers))
        assert arrays["w"].numpy().tolist() == [2.0, 2.0]


def test_the_grid_keeps_to_its_timeout_between_pulls() -> None:
    class Slow(Nodes):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            time.sleep(0.02)
            return super().pull_messages(message_ids)

    began = time.monotonic()
    slow = Slow(range(40), late=10**9)
    assert list(StreamingGrid(slow).send_and_receive([message(node=node) for node in range(40)], timeout=0.1)) == []
    assert time.monotonic() - began < 15


def test_the_grid_gives_up_after_its_timeout_and_lists_what_is_small() -> None:
    grid = StreamingGrid(Nodes(range(3), late=10**9))
    assert list(grid.send_and_receive([message()], timeout=0.2)) == []
    assert grid.send_and_receive([]) == []
    evaluation = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    assert len(StreamingGrid(Nodes([1])).send_and_receive([evaluation])) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_once: expected at least 1, got 0"):
        StreamingGrid(Nodes([1]), at_once=0)


def test_bfloat16_goes_through() -> None:
    given = [reply({"h": np.full(3, value, ml_dtypes.bfloat16)}, 1, node) for node, value in enumerate((1.0, 2.0))]
    found, _ = mean_of(FedAvg(), given)
    assert array_views(found, "x")["h"].tolist() == [1.5] * 3 and found["h"].dtype == "bfloat16"
