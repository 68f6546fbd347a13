"""Memory of models that are gone is used again, and never while anybody can still see it."""

from collections.abc import Callable

import numpy as np
import pytest
from flcore_transport import Buffer, PieceRange

from flcore import Model, ModelSpec
from flcore.model.model_pool import ModelPool

SPEC = ModelSpec.of({"w": np.zeros(300, np.float32), "n": np.zeros(3, np.int64), "v": np.zeros(7, np.float32)})


def addresses(model: Model) -> list[int]:
    return [segment.ctypes.data for segment in model.segments]


def test_a_model_has_the_memory_of_one_that_is_gone() -> None:
    models = ModelPool()
    first = models(SPEC)
    taken = addresses(first)
    second = models(SPEC)
    assert not set(taken) & set(addresses(second))
    del first
    assert addresses(models(SPEC)) == taken


HOLDS: list[Callable[[Model], Buffer]] = [
    lambda model: model.arrays()["w"][5:9].reshape(2, 2).data,
    lambda model: model.read(PieceRange(0, 0, "float32", 3, 5))[0],
    lambda model: model.chunk(0, 2, 4).data,
    lambda model: model.segments[0].view(np.uint8)[:32].reshape(4, 8).data,
]


@pytest.mark.parametrize("hold", HOLDS)
def test_whoever_holds_an_array_or_a_piece_of_a_model_keeps_its_memory(hold: Callable[[Model], Buffer]) -> None:
    models = ModelPool()
    model = models(SPEC)
    model.segments[0][:] = 7
    held, taken = memoryview(hold(model)), addresses(model)[0]
    seen = held.tobytes()
    del model
    other = models(SPEC)
    assert addresses(other)[0] != taken
    other.segments[0][:] = 1
    assert held.tobytes() == seen
    del held
    assert addresses(models(SPEC))[0] == taken


def test_models_of_other_sizes_have_memory_of_their_own() -> None:
    models = ModelPool()
    models(SPEC)
    assert [segment.size for segment in models(ModelSpec.of({"w": np.zeros(3, np.int8)})).segments] == [256]
