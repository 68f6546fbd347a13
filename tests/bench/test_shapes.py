"""The models of the round benchmarks: as large as the published ones, and no memory for their first values."""

import math
from functools import partial

import numpy as np
import pytest
from flcore_bench.federation import SYNTHETIC_JOB, FederationSpec
from flcore_bench.internals import WireFormat
from flcore_bench.shapes import SHAPES, spec_named
from flcore_bench.synthetic_payload import PATTERN_BYTES, SyntheticPayload
from flcore_transport.piece_format import PieceRanges

import flcore

SMALL = {"flat": 8_000, "flat_bfloat16": 8_000, "many": 1_000_000, "gpt2_large": 64, "llama_3b": 64}


@pytest.mark.parametrize(("shape", "parameters"), [("gpt2_large", 774_030_080), ("llama_3b", 3_212_749_824)])
def test_published_models_have_their_parameters(shape: str, parameters: int) -> None:
    assert sum(math.prod(extents) for _, _, extents in SHAPES[shape](1)) == parameters
    assert spec_named(shape, 1).parameters == parameters


def test_flat_and_many_have_the_size_that_is_asked_for() -> None:
    assert spec_named("flat", 64_000_000).nbytes == 64_000_000
    assert spec_named("flat_bfloat16", 64_000_000).parameters == 32_000_000
    many = spec_named("many", 512_000_000)
    assert len(many.tensors) == 10_000 and many.parameters * 4 == 512_000_000


@pytest.mark.parametrize("shape", SHAPES)
def test_a_job_makes_each_shape_in_place(shape: str) -> None:
    run = FederationSpec(shape, SMALL[shape])
    job = flcore.Job.load(SYNTHETIC_JOB, **run.overrides)
    arrays = job.load_reference("server.model", job.contract.server.model)(job.contract.seed)
    assert all(array.base is not None and not any(array.strides) for array in arrays.values())
    model = job.initial_model()
    assert model.spec == run.spec


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tiled_model_is_one_that_a_server_accepts(shape: str) -> None:
    spec = spec_named(shape, SMALL[shape])
    source = SyntheticPayload(WireFormat.uncompressed(spec), number=3)
    aggregator = flcore.Aggregator(spec)
    with aggregator.update(client="client", weight=1.0) as staged:
        for piece in PieceRanges(source.layout):
            staged.append(piece, b"".join(source.read(piece)))
    result = aggregator.finish().arrays()
    assert all(0 < np.abs(array.astype(np.float32)).max() < 1 for array in result.values() if array.size > 10)


def test_a_tiled_model_costs_no_copy_and_differs_between_clients() -> None:
    spec = spec_named("flat", 4 * PATTERN_BYTES)
    payload_of = partial(SyntheticPayload, WireFormat.uncompressed(spec))
    first, *_, last = PieceRanges(payload_of(0).layout)
    (*_, one), (*_, other) = payload_of(0).read(first), payload_of(1).read(first)
    assert isinstance(one, memoryview) and isinstance(other, memoryview)
    assert one.nbytes == other.nbytes == first.count * 4 and bytes(one) != bytes(other)
    assert sum(memoryview(view).nbytes for view in payload_of(2_000).read(last)) == last.count * 4
