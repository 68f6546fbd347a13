"""Arrays of every kind: what is read without a copy, what comes back, nested names, ties, booleans."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

import flcore
from flcore.model import array_libraries
from flcore.model.arrays import as_array, flatten, unflatten

Array = npt.NDArray[Any]


class OnlyDLPack:
    """An array that knows nothing but DLPack, on a device of that number."""

    def __init__(self, values: Array, device: int = 1) -> None:
        self.values, self.device = values, device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


class Elsewhere:
    """An array of a library with a device of its own."""

    def __init__(self, values: Array, device: str) -> None:
        self.values, self.device = values.copy(), device


def test_names_of_nested_arrays_are_their_paths() -> None:
    values = {"encoder": {"layer": {"weight": 1}, "bias": 2}, "scale": 3, "none": {}}
    flat = flatten(values)
    assert flat == {"encoder.layer.weight": 1, "encoder.bias": 2, "scale": 3}
    assert unflatten(flat, values) == values
    plain = {"a.b": 1}
    assert flatten(plain) is plain


def test_what_hides_values_contains_itself_or_can_only_be_copied_is_refused() -> None:
    masked = np.ma.masked_array([1.0, 100.0], mask=[False, True])
    with pytest.raises(flcore.SpecError, match="tensor 'w': a masked array hides values"):
        flcore.aggregate([({"w": masked}, 1)])
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(flcore.SpecError, match="nested 64 deep at most"):
        flcore.aggregate([(loop, 1)])
    with pytest.raises(flcore.TensorMismatch, match="tensor 'w': out: expected an array in memory"):
        flcore.aggregate([({"w": np.array(5.0)}, 1)], out={"w": np.float64(0)})
    model = flcore.Model.of({"a": {"b": np.ones(2)}})
    assert model.arrays(like={"a": {"b": np.zeros(1)}})["a"]["b"].tolist() == [1.0, 1.0]
    with pytest.raises(flcore.SpecError, match=r"like: .* 'a\.b' is in one of them only"):
        model.arrays(like={"b": np.zeros(1)})


def test_names_that_are_taken_or_no_strings_are_refused() -> None:
    with pytest.raises(flcore.SpecError, match=r"tensor 'a\.b' appears twice"):
        flatten({"a": {"b": 1}, "a.b": 2})
    one = np.ones(2)
    with pytest.raises(flcore.SpecError, match=r"update 0: a tensor's name is a string, not 0 \(in 'a'\)"):
        flcore.aggregate([({"a": {0: one}}, 1)])
    with pytest.raises(flcore.SpecError, match="update 0: a tensor's name is a string, not 0"):
        flcore.aggregate([({0: one}, 1)])  # type: ignore[dict-item]


@pytest.mark.parametrize("form", [list, iter])
def test_nested_models_come_back_nested(form: Any) -> None:
    def model(value: float) -> dict[str, Any]:
        return {"head": np.full(2, value), "body": {"w": np.full((2, 2), value, np.float32), "n": {"k": np.int64(4)}}}

    found = flcore.aggregate(form([(model(1.0), 1), (model(4.0), 2)]), base=None)
    assert list(found) == ["head", "body"] and found["head"].tolist() == [3.0, 3.0]
    assert found["body"]["w"].tolist() == [[3.0] * 2] * 2 and found["body"]["n"]["k"] == 4
    flat = flcore.aggregate(form([(flatten(model(1.0)), 1), (model(4.0), 2)]), base=model(10.0))
    assert list(flat) == ["head", "body.w", "body.n.k"] and flat["body.w"].tolist() == [[13.0] * 2] * 2
    with pytest.raises(flcore.TensorMismatch, match=r"client 'update 1', tensor 'body\.n\.k': it is missing"):
        flcore.aggregate(form([(model(1.0), 1), ({"head": np.ones(2), "body": {"w": model(1)["body"]["w"]}}, 1)]))


@pytest.mark.parametrize("form", [list, iter])
def test_tensors_that_are_one_array_in_every_update_are_one_in_the_result(form: Any) -> None:
    def model(value: float, *, is_tied: bool = True) -> dict[str, Array]:
        weights = np.full((3, 2), value)
        return {"in": weights, "out": weights if is_tied else weights + 1, "flat": weights.reshape(-1), "e": np.ones(0)}

    tied = flcore.aggregate(form([(model(1.0), 1), (model(4.0), 2)]))
    assert tied["in"] is tied["out"] and tied["in"] is not tied["flat"] and tied["in"][0, 0] == 3.0
    chained = flcore.aggregate(
        form([({"a": (a := np.ones(2)), "b": a, "c": a}, 1), ({"a": a, "b": (b := a + 1), "c": b}, 1)])
    )
    assert chained["b"] is chained["c"] and chained["a"] is not chained["b"]
    zeros = {"a": (zero := np.zeros(2)), "b": zero}
    bases = flcore.aggregate(form([(zeros, 1)]), base={"a": np.ones(2), "b": np.full(2, 2.0)})
    assert bases["a"].tolist() == [1.0, 1.0] and bases["b"].tolist() == [2.0, 2.0]
    untied = flcore.aggregate(form([(model(1.0), 1), (model(4.0, is_tied=False), 2)]))
    assert untied["in"][0, 0] == 3.0 and untied["out"][0, 0] == 11 / 3


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_booleans_are_true_where_more_than_half_of_the_weight_says_so(form: Any, accumulate: str) -> None:
    masks = [[True, True, False, True], [True, False, False, True], [False, False, True, True]]
    given = [({"m": np.array(mask)}, weight) for mask, weight in zip(masks, (1, 1, 2), strict=True)]
    found = flcore.aggregate(form(given), accumulate=accumulate)["m"]
    assert found.dtype == np.bool_ and found.tolist() == [False, False, False, True]  # half is not more than half
    assert flcore.aggregate(form(given[:2]))["m"].tolist() == [True, False, False, True]
    with pytest.raises(flcore.OutOfBounds, match="'update 0', tensor 'm': element 0 is True: with the base, True"):
        flcore.aggregate(form(given), base={"m": np.ones(4, bool)})


def test_what_is_no_boolean_is_refused_by_name() -> None:
    seven = np.array([0, 1, 7, 1], np.uint8).view(np.bool_)
    with pytest.raises(flcore.OutOfBounds, match="client 'update 1', tensor 'm': element 2"):
        flcore.aggregate([({"m": np.zeros(4, bool)}, 1), ({"m": seven}, 1)])
    aggregator = flcore.Aggregator(flcore.ModelSpec.of({"m": seven}))
    words = "tensor 'm': element 2 has magnitude 7, more than the 1 allowed"
    with pytest.raises(flcore.OutOfBounds, match=words), aggregator.update(client="a", weight=1) as update:
        update.write("m", seven)


def test_booleans_go_through_the_aggregator_and_files(tmp_path: Any) -> None:
    model = {"m": np.array([[True, False], [True, True]]), "w": np.ones(3, np.float32)}
    aggregator = flcore.Aggregator(flcore.ModelSpec.of(model))
    for client in "ab":
        with aggregator.update(client=client, weight=1) as update:
            for name, values in model.items():
                update.write(name, values)
    flcore.save(aggregator.finish(), tmp_path / "m.safetensors")
    assert np.array_equal(load_file(tmp_path / "m.safetensors")["m"], model["m"])
    save_file(model, tmp_path / "theirs.safetensors")
    assert np.array_equal(flcore.load(tmp_path / "theirs.safetensors")["m"], model["m"])


def test_what_has_dlpack_in_memory_is_read_without_a_copy() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(as_array(OnlyDLPack(values), "w"), values)
    found = flcore.aggregate([({"w": OnlyDLPack(values)}, 1), ({"w": values}, 1)])
    assert type(found["w"]) is np.ndarray and np.array_equal(found["w"], values)
    with pytest.raises(flcore.SpecError, match=r"update 0: tensor 'w': expected .* got OnlyDLPack .* on its device"):
        flcore.aggregate([({"w": OnlyDLPack(values, device=2)}, 1)])


def test_arrays_of_a_library_in_the_table_come_back_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = array_libraries.ArrayLibrary(
        lambda each: each.values, lambda each: partial(Elsewhere, device=each.device), lambda each: each
    )
    monkeypatch.setitem(array_libraries.ARRAY_LIBRARIES, __name__.partition(".")[0], kind)
    given = [({"w": Elsewhere(np.full(3, value), f"device {value}")}, 1) for value in (1.0, 3.0)]
    for form in (list, iter):
        found = flcore.aggregate(form(given))["w"]
        assert type(found) is Elsewhere and found.device == "device 1.0" and found.values.tolist() == [2.0] * 3
    aggregator = flcore.Aggregator(flcore.ModelSpec.of(given[0][0]))
    with aggregator.update(client="a", weight=1) as update:
        update.write("w", given[0][0]["w"])
    model = aggregator.finish()
    assert type(model.arrays(like={"w": given[1][0]["w"]})["w"]) is Elsewhere
    assert type(model.arrays()["w"]) is np.ndarray


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (make test-adapters)")
class TestTorch:
    @pytest.mark.parametrize("form", [list, iter])
    def test_state_dicts_come_back_as_state_dicts(self, form: Any) -> None:
        import torch

        def network(seed: int) -> Any:
            torch.manual_seed(seed)
            net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4))
            net.append(torch.nn.Linear(4, 3, bias=False))
            net[3].weight = net[0].weight
            net(torch.randn(5, 4))
            return net

        states = [network(seed).state_dict() for seed in (1, 2, 3)]
        found = flcore.aggregate(form([(state, weight) for weight, state in enumerate(states, 1)]))
        assert all(type(tensor) is torch.Tensor for tensor in found.values())
        assert found["0.weight"] is found["3.weight"] and found["1.num_batches_tracked"] == 1
        expected = sum(weight * state["2.bias"].double() for weight, state in enumerate(states, 1)) / 6
        assert torch.equal(found["2.bias"], expected.float())
        network(4).load_state_dict(found)

    def test_bfloat16_scalars_strides_and_gradients_are_read_where_they_are(self) -> None:
        import torch

        half = torch.arange(6).reshape(2, 3).to(torch.bfloat16)
        read = as_array(half, "h")
        assert read.dtype == ml_dtypes.bfloat16 and read.__array_interface__["data"][0] == half.data_ptr()
        given = {"h": half.T, "s": torch.tensor(2.0, dtype=torch.bfloat16), "p": torch.nn.Parameter(torch.ones(2))}
        found = flcore.aggregate([(given, 1), (given, 2)])
        assert torch.equal(found["h"], half.T) and found["s"].dtype is torch.bfloat16 and found["s"].shape == ()
        assert torch.equal(found["p"], torch.ones(2)) and not found["p"].requires_grad
        assert flcore.aggregate([({"b": torch.tensor([True])}, 1)])["b"].dtype is torch.bool

    def test_what_is_done_with_arrays_on_a_device_is_done_with_any(self) -> None:
        import torch

        kind, half = array_libraries.ARRAY_LIBRARIES["torch"], torch.arange(6).reshape(2, 3).to(torch.bfloat16)
        flat = array_libraries._contiguous_torch(half.T.requires_grad_())
        assert flat.is_contiguous() and not flat.requires_grad and torch.equal(flat, half.T)
        assert array_libraries._contiguous_torch(half).data_ptr() == half.data_ptr(), (
            "a contiguous tensor is not copied"
        )
        assert kind.empty_like is not None
        room = kind.empty_like(half)
        assert (room.shape, room.dtype, room.device, room.requires_grad) == (half.shape, half.dtype, half.device, False)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda torch: torch.ones(3, device="meta"), "no data"),
            (lambda torch: torch.eye(3).to_sparse(), "Sparse"),
            (lambda torch: torch.ones(3, dtype=torch.complex64), "dtype complex64 is not supported"),
        ],
    )
    def test_what_has_no_plain_values_is_refused_by_name(self, make: Any, words: str) -> None:
        import torch

        with pytest.raises(flcore.SpecError, match=f"update 0: tensor 'w': .*{words}"):
            flcore.aggregate([({"w": make(torch)}, 1)])

    def test_out_may_be_tensors_in_memory(self) -> None:
        import torch

        out = {"w": torch.zeros(3)}
        assert flcore.aggregate([({"w": torch.ones(3)}, 1)], out=out)["w"] is out["w"]
        assert torch.equal(out["w"], torch.ones(3))


@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed (make test-adapters)")
class TestJax:
    @pytest.mark.parametrize("form", [list, iter])
    def test_parameter_trees_come_back_as_such(self, form: Any) -> None:
        import jax
        import jax.numpy as jnp

        def tree(value: float) -> dict[str, Any]:
            return {"dense": {"kernel": jnp.full((2, 2), value, jnp.bfloat16), "bias": jnp.full(2, value)}}

        found = flcore.aggregate(form([(tree(1.0), 1), (tree(4.0), 2)]))
        assert jax.tree.structure(found) == jax.tree.structure(tree(0.0))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
        assert found["dense"]["kernel"].dtype == jnp.bfloat16 and found["dense"]["bias"].tolist() == [3.0, 3.0]
        bias = tree(1.0)["dense"]["bias"]
        assert as_array(bias, "b").__array_interface__["data"][0] == bias.unsafe_buffer_pointer()

    def test_what_cannot_be_written_to_is_no_place_for_a_result(self) -> None:
        import jax.numpy as jnp

        with pytest.raises(flcore.TensorMismatch, match=r"tensor 'w': out: .* got one that is read-only"):
            flcore.aggregate([({"w": jnp.ones(3)}, 1)], out={"w": jnp.ones(3)})
