"""The engine: combines the contributions to one model, range by range, by any rule.

`aggregate`, `Aggregator`, the adapters and `flcore aggregate` all use it. They differ in where contributions come from
and when they are folded. A `Combiner` keeps nothing between rounds and has no lock.

Passes over the elements:

- `Sum`: one. The sum is tried without a check, as its kernels detect NaN and overflow. Only a range whose sum failed is
  read again, to find the contribution at fault or the elements to pass through.
- `Columns`: one, with checks, because NumPy code detects nothing.
- `Geometry`: one for the figures, with checks, and then a `Sum`'s.
- `Chain`: one for distances if a stage needs them, tried without a check, and then those of its rule, over the
  contributions that are left.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE, Total, mix, storage_dtype
from flcore_layout import SegmentRange

from flcore.aggregation.admission_limits import AdmissionLimits, AggregationSettings, require_positive_weight
from flcore.aggregation.buffers import BufferReader, attribute_errors
from flcore.aggregation.contributions import ArrayContribution, Contribution
from flcore.aggregation.measurement import Measurement
from flcore.aggregation.optimizer_state import OptimizerStep
from flcore.aggregation.passthrough import Mask, Values, zero_where
from flcore.aggregation.prefetch import prefetch
from flcore.aggregation.range_checks import RangeChecks
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.reference_model import ReferenceModel
from flcore.aggregation.rule_calls import call_combine, round_to_dtype
from flcore.aggregation.rule_plan import RulePlan, chain_plan
from flcore.errors import AggregationError, UpdateError
from flcore.model.chunks import ChunkSink
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Columns, Geometry, Sum, min_updates, streamed_sum
from flcore.rules.points import Matrix, Mixture

MAX_GROUP = 8
"""The largest number of contributions that are folded at once. The total is read and written once per group, so larger
groups move fewer bytes; beyond 8, the total is a small part of them."""


class Combiner:
    """Combines contributions to a model of `spec` into results of `dtypes`, one per segment (default: the model's).

    `reference_model` is the base or the model that clients began with (see `ReferenceModel`). A `Sum` may be folded
    into totals, group by group; any rule can be run over all contributions.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: AggregationSettings,
        reference_model: ReferenceModel | None = None,
        dtypes: Sequence[str] = (),
    ) -> None:
        self.spec, self.settings, self.reference_model = spec, settings, reference_model
        self.rule, self.sum, self.device = settings.rule, streamed_sum(settings.rule), settings.device
        self.limits = AdmissionLimits(spec, settings, reference_model, dtypes)
        self._checks = RangeChecks(spec, settings, self.limits, reference_model)
        self._measurement = Measurement(spec, self._checks, reference_model)

    @cached_property
    def buffer_reader(self) -> BufferReader:
        """The reader of named arrays for the device that combines."""
        return BufferReader(self.spec, self.device)

    def has_passthrough(self, range_: SegmentRange) -> bool:
        """Return whether a range of the reference model may have passthrough elements."""
        return self.reference_model is not None and self.reference_model.has_passthrough(range_)

    def coefficient(self, weight: float) -> float:
        """Return the coefficient of an update of this weight, for limits.

        It is 1 if the rule is not a `Sum`: there the coefficient follows from all updates, and is at most 1.
        """
        return 1.0 if self.sum is None else float(self.sum.coefficient(weight))

    def coefficients(self, contributions: Sequence[Contribution]) -> list[float]:
        """Return each contribution's coefficient."""
        return [self.coefficient(contribution.weight) for contribution in contributions]

    def admit_weight(self, weight: Any, client: str) -> float:
        """Return a weight as a float, or raise `WeightError` unless it and its coefficient are within the limits."""
        accepted = self.limits.check_weight(weight, client)
        if self.sum is not None:
            self.limits.check_weight(self.coefficient(accepted), client)
        return accepted

    def check_arrays(self, contributions: Sequence[ArrayContribution], segments: Sequence[int] | None = None) -> None:
        """Raise `NonFinite` or `OutOfBounds`, naming client and tensor, unless arrays are within the limits.

        Reads all of them. Adapters use it, because a fold that fails spoils its total.
        """
        self._checks.check_arrays(contributions, self.coefficients(contributions), segments)

    # Totals: a sum, group by group.

    def new_total(self, range_: SegmentRange) -> Total:
        """Return an empty total for a range."""
        return self.reset_total(self.device.total(range_.count, self.limits.accumulators[range_.segment]))

    def reset_total(self, total: Total) -> Total:
        """Empty a total and return it, in its own memory.

        The scale of a float total is fixed to 2^0. By default the first weight would set it, and the limits of later
        weights would depend on the first update.
        """
        if total.terms or total.is_spoiled:
            total.clear()
        total.scale = None if total.accumulate == "exact" else 0
        return total

    def fold(self, total: Total, inputs: RangeInputs) -> None:
        """Add a range of admitted contributions to its total."""
        if self.reference_model is not None and self.has_passthrough(inputs.range_):
            mask = self.reference_model.passthrough_mask(inputs.range_)
            columns = [zero_where(column, mask) for column in inputs.columns(self.spec)]
            inputs = inputs.with_columns(self.spec, columns)
        with self._attribute_errors(inputs.range_, inputs.contributions):
            self.device.fold(total, *inputs.with_rest(), inputs.range_.dtype)

    def finish(self, total: Total, range_: SegmentRange, out: Any, step: OptimizerStep | None = None) -> None:
        """Write the mean of the folded contributions to `out`: an array, or a list of a whole segment's tensors.

        With `step`, write the model that the optimizer makes of it; `out` is then an array.
        """
        if step is not None and self.has_step(range_):
            self._step(step, range_, total, out)
        else:
            with self._attribute_errors(range_):
                self.device.finish(total, out, self.limits.dtypes[range_.segment], base=self._base(range_, out))
        if self.reference_model is not None and self.has_passthrough(range_):
            self._restore_passthrough(
                range_, out, self.reference_model.values(range_), self.reference_model.passthrough_mask(range_)
            )

    def finish_into(
        self, sink: ChunkSink, total: Total, range_: SegmentRange, step: OptimizerStep | None = None
    ) -> None:
        """Write the mean of the folded contributions, or what the optimizer makes of it, to a sink."""
        out = sink.chunk(range_.segment, range_.first, range_.first + range_.count)
        self.finish(total, range_, out, step)
        sink.put(range_.segment, range_.first, out)

    # All contributions at once.

    def plan(
        self,
        contributions: Sequence[Contribution],
        ranges: Sequence[SegmentRange],
        tie_keys: Callable[[], Sequence[str]] | None = None,
    ) -> RulePlan:
        """Return what the rule decides for a round. `Geometry` and most chains read all contributions for it.

        Args:
            contributions: All contributions to the model.
            ranges: The ranges, which cover the model and begin at multiples of 256 elements.
            tie_keys: See `Points.tie_keys`. Default: None, the clients' names.

        Raises:
            AggregationError: The rule needs more contributions, or a base.
            WeightError: All weights are zero.
            UpdateError: A contribution is at fault.
        """
        rule, weights = self.rule, [contribution.weight for contribution in contributions]
        if len(weights) < min_updates(rule):
            raise AggregationError(f"rule {rule.name!r} needs at least {min_updates(rule)} updates, got {len(weights)}")
        if isinstance(rule, Columns):
            return RulePlan(contributions, weights, columns=rule, weights=weights)
        if self.sum is not None or isinstance(rule, Sum):
            coefficients = self.coefficients(contributions)
            require_positive_weight(coefficients)
            return RulePlan(contributions, coefficients)
        if isinstance(rule, Geometry):
            return RulePlan(contributions, *self._measurement.coefficients(rule, contributions, ranges))
        names = [contribution.client for contribution in contributions]
        squared = self._measurement.squared_distances(rule, contributions, ranges)
        return chain_plan(rule, contributions, squared, tie_keys or (lambda: names), self.settings.seed)

    def run(
        self,
        plan: RulePlan,
        ranges: Sequence[SegmentRange],
        sink: ChunkSink,
        group: int = 0,
        step: OptimizerStep | None = None,
    ) -> Iterator[SegmentRange]:
        """Combine contributions range by range, and yield each range that is in the sink.

        Args:
            plan: What the rule has decided.
            ranges: The ranges, which cover the model or some of its segments.
            sink: Takes the results.
            group: The number of contributions that are read at once, for a sum (0: all). It bounds memory where
                contributions are read from disk: while one group is folded, the next one is read.
            step: Makes the next model of the result. Default: None, the result is it.
        """
        contributions, is_sum = plan.contributions, plan.columns is None
        size = group if group and is_sum else max(1, len(contributions))
        # A sum of the rest alone has no contribution, and one step all the same.
        firsts, total = range(0, max(1, len(contributions)), size), Total.zeros(0, "float32")  # replaced before use

        def read(step: tuple[SegmentRange, int]) -> list[Any]:
            range_, first = step
            return [contribution.read_range(range_) for contribution in contributions[first : first + size]]

        steps = ((range_, first) for range_ in ranges for first in firsts)
        for (range_, first), arrays in prefetch(read, steps):
            members = slice(first, first + size)
            rest = 0.0 if first else plan.rest  # it is added once per range
            inputs = RangeInputs(range_, contributions[members], arrays, plan.coefficients[members], rest)
            if len(firsts) == 1:
                out = sink.chunk(range_.segment, range_.first, range_.first + range_.count)
                self.combine(plan, inputs, out, step)
                sink.put(range_.segment, range_.first, out)
            else:
                total = total if first else self.new_total(range_)
                self.fold(total, self._with_base(plan, inputs))
                if first != firsts[-1]:
                    continue
                self.finish_into(sink, total, range_, step)
            yield range_

    def combine(self, plan: RulePlan, inputs: RangeInputs, out: Values, step: OptimizerStep | None = None) -> None:
        """Write the combination of a range of all contributions to `out`.

        Raises:
            UpdateError: A contribution is at fault. The error is the one that admission would have raised.
            AggregationError: The result does not fit into its dtype, or the rule's code failed.
        """
        failure: UpdateError | AggregationError | None = None
        if plan.columns is None and not self.has_passthrough(inputs.range_):
            try:
                self._sum(self._with_base(plan, inputs), out, step)
            except (UpdateError, AggregationError) as error:
                failure = error
            else:
                return
        # The sum failed or was not tried. `out` may hold a part of it, and is written again from here on.
        columns, mask, passed = self._checks.checked_columns(inputs, self.coefficients(inputs.contributions))
        if failure is not None and not mask.any():
            raise failure  # no contribution is at fault, and none has elements to pass through
        if plan.columns is not None:
            segment = self.spec.segments[inputs.range_.segment]
            if plan.shares is not None:
                columns = self._mixed(plan.shares, plan.weights, inputs.range_, columns)
            values = call_combine(plan.columns, segment, inputs.range_, columns, plan.weights)
            self._write(inputs.range_, values, out, step)
        else:
            self._sum(self._with_base(plan, inputs.with_columns(self.spec, columns)), out, step)
        self._restore_passthrough(inputs.range_, out, passed, mask)

    def _sum(self, inputs: RangeInputs, out: Values, step: OptimizerStep | None) -> None:
        """Write a weighted mean in one pass, or what the optimizer makes of it."""
        if step is None or not self.has_step(inputs.range_):
            self.average(inputs, out)
            return
        total = self.new_total(inputs.range_)
        self._checks.require_same_bytes(inputs)
        with self._attribute_errors(inputs.range_, inputs.contributions):
            self.device.fold(total, *inputs.with_rest(), inputs.range_.dtype)
        self._step(step, inputs.range_, total, out)

    def _with_base(self, plan: RulePlan, inputs: RangeInputs) -> RangeInputs:
        """Return inputs whose rest is that of the base, where it is: of whole models, in the tensors' dtype."""
        if not inputs.rest or not plan.rests_on_base:
            return inputs
        base = self._measurement.base(inputs.range_)
        return (
            inputs
            if base is None
            else replace(inputs.with_columns(self.spec, inputs.columns(self.spec)), rest_values=base)
        )

    def _mixed(
        self, shares: Matrix, weights: Sequence[float], range_: SegmentRange, columns: Sequence[Values]
    ) -> list[Values]:
        """Return the points of a range that the stages of a chain have made of the columns.

        In float64 for float64 and integers, and in float32 for other floats.
        """
        dtype = self.spec.segments[range_.segment].dtype
        operands = [column.view(storage_dtype(dtype)) for column in columns]
        rests, base = Mixture(shares, weights).rests, self._measurement.base(range_)
        if base is not None and rests.any():
            operands, shares = [*operands, base], np.column_stack([shares, rests])
        is_single = STORAGE[dtype].is_float and dtype != "float64"
        points = [np.empty(range_.count, np.float32 if is_single else np.float64) for _ in shares]
        mix(operands, shares, points, dtype)
        return list(points)

    def average(self, inputs: RangeInputs, out: Any, scale: int | None = None) -> None:
        """Write a weighted mean in one pass. For a whole segment, `out` and the arrays may be lists of its tensors.

        `scale` is that of `Backend.mean`.

        Raises:
            UpdateError: An element is not finite or overflows. Passthrough elements raise it too.
            AggregationError: The result does not fit into its dtype.
        """
        segment, dtype = inputs.range_.segment, inputs.range_.dtype
        accumulate, result = self.limits.accumulators[segment], self.limits.dtypes[segment]
        self._checks.require_same_bytes(inputs)
        with self._attribute_errors(inputs.range_, inputs.contributions):
            base = self._base(inputs.range_, out)
            self.device.mean(*inputs.with_rest(), out, dtype, accumulate, result=result, base=base, scale=scale)

    # Results.

    def has_step(self, range_: SegmentRange) -> bool:
        """Return whether an optimizer makes the next model in a range: integers have no step."""
        return STORAGE[self.spec.segments[range_.segment].dtype].is_float

    def _step(self, step: OptimizerStep, range_: SegmentRange, mean: Total | Values, out: Values) -> None:
        """Write what an optimizer makes of a range of means, whether they are of models or of differences."""
        if self.reference_model is None:
            raise AggregationError(f"rule {self.rule.name!r}: an optimizer needs the model that clients began with")
        base = self._measurement.reference_values(self.reference_model, range_)
        step.write(range_, self.spec.segments[range_.segment], mean, base, out)

    def _write(
        self, range_: SegmentRange, values: npt.NDArray[np.float64], out: Values, step: OptimizerStep | None
    ) -> None:
        """Add the base to a range of results and round them once, or write what the optimizer makes of them."""
        if step is not None and self.has_step(range_):
            self._step(step, range_, np.ascontiguousarray(values), out)
            return
        segment, dtype = self.spec.segments[range_.segment], self.limits.dtypes[range_.segment]
        base = self._base(range_, out)
        if base is not None:
            values = values + base.view(DTYPES[segment.dtype]).astype(np.float64)
        narrow, fits = round_to_dtype(values, dtype)
        if not fits.all():
            where = int(np.argmin(fits))
            tensor, element = segment.locate(range_.first + where)
            raise AggregationError(
                f"tensor {tensor.name!r}: element {element} of the result, {values[where]:g}, does not fit into {dtype}"
            )
        out[:] = narrow.view(out.dtype)

    def _base(self, range_: SegmentRange, out: Any) -> Any:
        """Return the base in storage form, a list where `out` is one; None if updates are not differences.

        Passthrough elements of the base are zero in it, as kernels refuse them. `_restore_passthrough` puts them back.
        """
        if self.reference_model is None or not self.reference_model.updates_are_deltas:
            return None
        if isinstance(out, list):
            return self.reference_model.tensors(range_.segment)
        if not self.has_passthrough(range_):
            return self.reference_model.storage_values(range_)
        values = zero_where(self.reference_model.values(range_), self.reference_model.passthrough_mask(range_))
        return values.view(storage_dtype(self.spec.segments[range_.segment].dtype))

    def _restore_passthrough(self, range_: SegmentRange, out: Values, values: Values, mask: Mask) -> None:
        """Write passthrough elements into a result: bit for bit if its dtype is that of `values`, or else converted."""
        if mask.any():
            result = DTYPES[self.limits.dtypes[range_.segment]]
            with np.errstate(all="ignore"):
                out.view(result)[mask] = values[mask].astype(result)

    def _attribute_errors(
        self, range_: SegmentRange, contributions: Sequence[Contribution] = ()
    ) -> AbstractContextManager[None]:
        """Turn errors of kernels into errors that name the client and the tensor."""
        return attribute_errors(self.spec.segments[range_.segment], contributions, range_.first)
