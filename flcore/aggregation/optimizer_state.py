"""The state of a server optimizer, and a step from one model and state to the next ones.

The state is a model of its own: the tensors m.NAME and v.NAME for each float tensor NAME, and `steps`, the number of
steps so far. Its segments have the places of the model's segments, one slot after the other. So a range of the model
is a range of each slot, and memory and files are bounded as a model's are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flcore_kernels
import numpy as np
import numpy.typing as npt
from flcore_kernels import BadState, NotFinite, Overflow, Total, state_dtype, storage_dtype
from flcore_layout import SegmentRange

from flcore.aggregation.passthrough import Values
from flcore.errors import JobError, StepOverflow
from flcore.model.chunks import ChunkSource, GlobalModel, ModelSink
from flcore.model.dtypes import INTEGERS
from flcore.model.spec import ModelSpec, SegmentSpec, TensorSpec
from flcore.rules.kinds import Rule, ServerStep, step_of

SLOTS = ("m", "v")
STEPS = "steps"


class StateLayout:
    """Where the state of a model of `spec` has the slots of each segment.

    Attributes:
        spec: The spec of the state.
    """

    def __init__(self, spec: ModelSpec, slots: int) -> None:
        tensors, ends = [TensorSpec(STEPS, "int64", ())], dict[str, int]()
        self._places: dict[tuple[int, int], tuple[str, int]] = {}
        for index, segment in enumerate(spec.segments):
            if segment.dtype in INTEGERS:
                continue
            dtype = state_dtype(segment.dtype)
            for slot in range(slots):
                self._places[index, slot] = dtype, ends.get(dtype, 0)
                ends[dtype] = ends.get(dtype, 0) + segment.elements
                tensors += [
                    TensorSpec(f"{SLOTS[slot]}.{span.tensor.name}", dtype, span.tensor.shape) for span in segment.spans
                ]
        self.spec = ModelSpec(tuple(tensors))
        self._segments = {segment.dtype: index for index, segment in enumerate(self.spec.segments)}

    def place(self, range_: SegmentRange, slot: int) -> tuple[int, int, int]:
        """Return where a slot of a range of the model is: the state's segment, the first element, one past the last."""
        dtype, start = self._places[range_.segment, slot]
        return self._segments[dtype], start + range_.first, start + range_.first + range_.count

    @property
    def steps(self) -> int:
        """The segment of the number of steps."""
        return self._segments["int64"]


class OptimizerStep:
    """One step of a server optimizer: takes means range by range, and writes the next model and the next state.

    Args:
        step: The optimizer.
        layout: The layout of its state.
        old: The state before the step; None before the first one.
        new: Takes the state after it.
        mean_of: What the means are of: "models" or "differences".

    Raises:
        JobError: The state is that of another model or optimizer.
    """

    def __init__(
        self, step: ServerStep, layout: StateLayout, old: ChunkSource | None, new: ModelSink, mean_of: str
    ) -> None:
        if old is not None and old.spec != layout.spec:
            raise JobError(f"{step.name}: the optimizer's state is that of another model or of another optimizer")
        self._step, self._layout, self._old, self._new, self._mean_of = step, layout, old, new, mean_of
        self._number = 1 if old is None else int(old.chunk(layout.steps, 0, 1)[0]) + 1
        self._optimizer = step.optimizer(self._number)

    def write(
        self, range_: SegmentRange, segment: SegmentSpec, mean: Total | Values, base: Values, out: Values
    ) -> None:
        """Write a range of the next model to `out`, and of the next state.

        Raises `StepOverflow` if an element of one of them does not fit into its dtype.
        """
        dtype = segment.dtype
        olds = [self._read(range_, slot, dtype) for slot in range(self._step.slots)]
        news = [np.empty(range_.count, state_dtype(dtype)) for _ in olds]
        try:
            flcore_kernels.step(mean, base, olds, out, news, self._optimizer, dtype, mean_of=self._mean_of)
        except (Overflow, NotFinite) as error:
            tensor, element = segment.locate(range_.first + error.element)
            where = f"tensor {tensor.name!r}: element {element} does not fit into {dtype} or its state"
            raise StepOverflow(f"{self._step.name} in step {self._number}: {where}") from error
        except BadState as error:
            raise StepOverflow(f"{self._step.name} in step {self._number}: {error}") from error
        for slot, values in enumerate(news):
            place, first, _ = self._layout.place(range_, slot)
            self._new.put(place, first, values)

    def commit(self) -> GlobalModel:
        """Return the state after the step."""
        last = self._layout.spec.segments[self._layout.steps]
        counted = np.zeros(last.elements, np.int64)
        counted[0] = self._number
        self._new.put(self._layout.steps, 0, counted)
        return self._new.commit()

    def _read(self, range_: SegmentRange, slot: int, dtype: str) -> npt.NDArray[Any]:
        if self._old is not None:
            return self._old.chunk(*self._layout.place(range_, slot))
        return np.full(range_.count, self._step.start if slot else 0.0, storage_dtype(state_dtype(dtype)))


class ServerOptimizer:
    """A server optimizer with its state, which makes one step for each result.

    Args:
        step: The optimizer.
        spec: The model.
        mean_of: What the means are of: "models" or "differences".
        create_model: Creates the model that a state is written into.
        state: The state so far. Default: None, no step was made.

    Attributes:
        state: The state after the last step.
    """

    def __init__(
        self,
        step: ServerStep,
        spec: ModelSpec,
        mean_of: str,
        create_model: Callable[[ModelSpec], ModelSink],
        state: GlobalModel | None = None,
    ) -> None:
        self._step, self._layout = step, StateLayout(spec, step.slots)
        self._mean_of, self._create, self.state = mean_of, create_model, state

    @contextmanager
    def begin(self) -> Iterator[OptimizerStep]:
        """Begin a step. The state changes at the end of the `with` block, and not after an exception."""
        with self._create(self._layout.spec) as new:
            step = OptimizerStep(self._step, self._layout, self.state, new, self._mean_of)
            yield step
            self.state = step.commit()


def state_bytes(spec: ModelSpec, step: ServerStep | None) -> int:
    """Return the bytes of the state of a server optimizer; 0 without one."""
    return 0 if step is None else StateLayout(spec, step.slots).spec.nbytes


def require_stateless(rule: Rule, where: str) -> None:
    """Raise `JobError` if a rule has a server optimizer, for an entry point that keeps no state."""
    if (step := step_of(rule)) is not None:
        raise JobError(
            f"{step.name} keeps a state between rounds: use it in a job or with flcore.Aggregator, and not {where}"
        )
