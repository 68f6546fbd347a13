"""Aggregation of NVFLARE results whose tensors are on disk: range by range, never a whole tensor of a known release."""

from collections.abc import Mapping
from typing import Any

from flcore_kernels import Total
from flcore_layout import SegmentRange

from flcore.adapters.nvflare_tensors import ResultOnDisk, open_tensors
from flcore.aggregation.admission_limits import MAX_UPDATES, AggregationSettings, require_positive_weight
from flcore.aggregation.budget import Budget
from flcore.aggregation.checkpoint_aggregation import range_elements
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import ArraySink, model_ranges
from flcore.aggregation.output_template import allocate
from flcore.aggregation.prefetch import prefetch
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.reference_model import ReferenceModel
from flcore.errors import (
    AggregationError,
    BudgetError,
    QuorumError,
    SpecError,
    TensorMismatch,
    UpdateError,
    WeightError,
)
from flcore.model.array_libraries import Converter
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Sum

WORKING_BUDGET = Budget(256 << 20)
"""The memory for ranges of all results that are combined at once, by a rule that is not a sum. It is enough for 4,093
results of float32."""

RANGE_ELEMENTS = 1 << 21
"""The elements of a range of one result: 8 MiB of float32. Of shorter ones, as are combined side by side, float32 sums
take twice as long."""


class DiskAggregator:
    """Takes results on disk, and combines them into arrays in memory.

    A sum folds a result as it arrives: it is read twice, in ranges, first to check it, because a result that is refused
    must leave no trace. Other rules keep the references until `finish`, and NVFLARE keeps the files; each result is
    read once for each pass of the rule, and once more to find those at fault if a result is refused then.

    Memory, for a model of P parameters, beside the result: three ranges of 2^21 elements; for a sum, a total of 4, 8 or
    16 · P bytes; for other rules, `WORKING_BUDGET`, whatever the number of results. A reference of an unknown release
    takes the largest tensor besides, once for each result that is held.

    Not thread-safe.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        self._settings, self._is_sum = settings, isinstance(settings.rule, Sum)
        self._combiner: Combiner | None = None
        self._is_model_fixed = False  # a round has had a result
        self._totals: dict[SegmentRange, Total] = {}
        self._coefficients: list[float] = []
        self._held: list[ResultOnDisk] = []
        self._rejected: list[UpdateError] = []
        self._converters: dict[str, Converter] = {}
        self._is_partially_folded = False

    def require_consistent(self) -> None:
        """Raise `AggregationError` if ranges of a result are folded and others are not."""
        if self._is_partially_folded:
            raise AggregationError(
                "a result on disk could be read when it was checked, but not when it was folded: this round has no "
                "result"
            )

    def add(self, params: Mapping[str, Any], weight: Any, client: str) -> None:
        """Take a result, or raise `UpdateError`: then nothing has changed, but for a file that is lost during a fold.

        The first result of a round is checked at once, as it decides what others must be.
        """
        self.require_consistent()
        tensors = open_tensors(params, client)
        try:
            spec = ModelSpec(tuple(tensor.spec for tensor in tensors.values()))
        except SpecError as error:
            raise TensorMismatch(str(error), client=client) from None
        combiner = self._combiner or Combiner(spec, self._settings)
        combiner.spec.require_match(spec, client=client)
        if not self._is_sum and any(held.client == client for held in self._held):
            raise UpdateError("it has an update in this round already", client=client)
        count = len(self._held) + len(self._coefficients)
        if count >= MAX_UPDATES:
            raise UpdateError(f"a round takes {MAX_UPDATES} updates, and has them", client=client)
        result = ResultOnDisk(client, combiner.admit_weight(weight, client), combiner.spec, tensors)
        if self._is_sum or not count:
            self._check(combiner, result)
        if self._combiner is None:
            combiner = self._combiner = Combiner(spec, self._settings, self._byte_reference(spec, result))
        if self._is_sum:
            self._fold(combiner, result)
        else:
            self._held.append(result)
        self._converters = self._converters or {name: tensor.converter for name, tensor in tensors.items()}

    def finish(self) -> dict[str, Any]:
        """Return the combination of the round's results, in the first one's libraries, and begin again.

        Raises:
            QuorumError: There is no result.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the result, or the rule needs more results.
            BudgetError: `WORKING_BUDGET` is too small for the number of results.
        """
        self.require_consistent()
        combiner = self._combiner
        if combiner is None or (not self._held and not self._coefficients):
            raise QuorumError("there is nothing to aggregate: no update was accepted")
        arrays = allocate(combiner.spec)
        sink = ArraySink(combiner.spec, combiner.buffer_reader.buffers(arrays, ""), RANGE_ELEMENTS)
        try:
            if self._is_sum:
                require_positive_weight(self._coefficients)
                for range_, total in self._totals.items():
                    combiner.finish_into(sink, total, range_)
            else:
                self._combine_held(combiner, sink)
        except (AggregationError, BudgetError, QuorumError, WeightError):
            self._reset()  # another attempt with these results would fail in the same way
            raise
        self._is_model_fixed, converters = True, self._converters
        self._reset()
        return {name: converters[name](values) for name, values in arrays.items()}

    def pop_rejected(self) -> list[UpdateError]:
        """Return the errors of results that `add` took and `finish` refused, since the last call."""
        taken, self._rejected = self._rejected, []
        return taken

    def clear(self) -> None:
        """Drop all results. The model's tensors stay known if a round has had a result."""
        self._rejected = []
        self._reset()

    def _reset(self) -> None:
        self._held, self._coefficients, self._converters, self._is_partially_folded = [], [], {}, False
        if not self._is_model_fixed:
            self._combiner, self._totals = None, {}
        elif self._combiner is not None:
            for total in self._totals.values():  # their memory is used again
                self._combiner.reset_total(total)

    def _check(self, combiner: Combiner, result: ResultOnDisk) -> None:
        """Read all of a result. Raises `UpdateError` unless its elements are within the limits."""
        coefficient = combiner.coefficient(result.weight)
        for range_, array in prefetch(result.read_range, model_ranges(combiner.spec, RANGE_ELEMENTS)):
            combiner.limits.check_range(range_, array, coefficient, result.client)
        result.free_buffers()  # a result that is held is read in shorter ranges from here on

    def _fold(self, combiner: Combiner, result: ResultOnDisk) -> None:
        coefficient = combiner.coefficient(result.weight)
        self._is_partially_folded = True  # until all ranges are folded; an exception leaves it set
        for range_, array in prefetch(result.read_range, model_ranges(combiner.spec, RANGE_ELEMENTS)):
            if range_ not in self._totals:
                self._totals[range_] = combiner.new_total(range_)
            combiner.fold(self._totals[range_], RangeInputs(range_, [result], [array], [coefficient]))
        self._coefficients.append(coefficient)
        self._is_partially_folded = False

    def _combine_held(self, combiner: Combiner, sink: ArraySink) -> None:
        """Combine the held results into a sink. Rejects those that are at fault."""
        while self._held:
            elements = range_elements(WORKING_BUDGET, combiner.spec, combiner.rule, len(self._held), "results")
            ranges = model_ranges(combiner.spec, elements)
            try:
                for _ in combiner.run(combiner.plan(self._held, ranges), ranges, sink):
                    pass
            except UpdateError as error:
                if not error.client:  # all weights are zero
                    raise
                self._reject_at_fault(combiner, error)
            else:
                return
        raise QuorumError("there is nothing to aggregate: no update could be counted")

    def _reject_at_fault(self, combiner: Combiner, found: UpdateError) -> None:
        """Reject the result that an error names, and all others at fault.

        One pass finds all of them. With one attempt for each, hostile clients could multiply the time of a round.
        """
        kept = []
        for result in self._held:
            error = found if result.client == found.client else None
            if error is None:
                try:
                    self._check(combiner, result)
                except UpdateError as fault:
                    error = fault
            if error is None:
                kept.append(result)
            else:
                self._rejected.append(error.with_traceback(None))  # its frames reference the buffers
        if len(kept) == len(self._held):
            raise found
        self._held = kept

    def _byte_reference(self, spec: ModelSpec, first: ResultOnDisk) -> ReferenceModel | None:
        """Return the unsigned bytes that all results must have, those of the first one; None if there are none."""
        if self._settings.average_bytes or not any(segment.dtype == "uint8" for segment in spec.segments):
            return None
        kept: list[list[Any]] = [
            [first.read_tensor(span.tensor) if segment.dtype == "uint8" else None for span in segment.spans]
            for segment in spec.segments
        ]
        return ReferenceModel(spec, kept, self._settings.device, updates_are_deltas=False)
