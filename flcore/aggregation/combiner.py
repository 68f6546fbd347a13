"""The engine: combines the contributions to one model, range by range, by any rule.

Whatever combines models drives this: `aggregate`, `Aggregator`, the adapters and `flcore aggregate` differ in where
contributions come from, and in when they are folded. It has no state of a round.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Total, storage_dtype
from flcore_layout import SegmentRange
from flcore_transport.piece_format import body_bytes

from flcore.aggregation.admission_limits import (
    AdmissionLimits,
    AggregationSettings,
    require_positive_weight,
    tensor_values,
)
from flcore.aggregation.buffers import BufferReader, attribute_errors
from flcore.aggregation.contributions import ArrayContribution, Contribution, segment_ranges, to_host
from flcore.aggregation.prefetch import prefetch
from flcore.aggregation.reference_model import (
    Mask,
    ReferenceModel,
    Values,
    has_no_constants,
    shared_constants,
    zero_where,
)
from flcore.aggregation.rule_calls import call_coefficients, call_combine, call_measure, round_to_dtype
from flcore.aggregation.rules import Columns, Sum
from flcore.errors import AggregationError, OutOfBounds, UpdateError
from flcore.model.chunks import ChunkSink
from flcore.model.compression import view_body
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Batch:
    """A range of some contributions: their parts, and what each enters a sum with (or a rule, as its weight).

    Of a whole segment in memory, a part may be the list of its tensors. `zero_coefficient` is what zeros enter the sum
    with.
    """

    piece: SegmentRange
    contributions: Sequence[Contribution]
    arrays: Sequence[Any]
    coefficients: Sequence[float]
    zero_coefficient: float = 0.0

    def with_zeros(self) -> tuple[Sequence[Any], Sequence[float]]:
        """Return parts and coefficients, those of zeros among them."""
        if not self.zero_coefficient:
            return self.arrays, self.coefficients
        zeros = memoryview(bytes(body_bytes(self.piece.dtype, self.piece.count)))
        return [*self.arrays, view_body(self.piece.dtype, self.piece.count, zeros)], [
            *self.coefficients,
            self.zero_coefficient,
        ]


class Combiner:
    """Combines contributions to a model of `spec` into results of `dtypes`, one per segment (default: the model's).

    `reference_model` is the model that updates are differences from, or that clients began with (see
    `AdmissionLimits`). A `Sum` may be folded into totals, group by group; any rule can be run over all contributions.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: AggregationSettings,
        reference_model: ReferenceModel | None = None,
        dtypes: Sequence[str] = (),
    ) -> None:
        self.spec, self.settings, self.reference_model = spec, settings, reference_model
        self.rule, self.device = settings.rule, settings.device
        self.limits = AdmissionLimits(spec, settings, reference_model, dtypes)

    @cached_property
    def buffer_reader(self) -> BufferReader:
        """Reads arrays for the device that combines."""
        return BufferReader(self.spec, self.device)

    def has_constants(self, piece: SegmentRange) -> bool:
        """Whether a range of the reference model has elements that are not averaged."""
        return self.reference_model is not None and self.reference_model.has_constants(piece)

    def coefficient(self, weight: float) -> float:
        """Return what an update of this weight enters a sum with; at most 1 where that depends on others."""
        return float(self.rule.coefficient(weight)) if isinstance(self.rule, Sum) else 1.0

    def coefficients(self, contributions: Sequence[Contribution]) -> list[float]:
        """Return what each contribution enters a sum with."""
        return [self.coefficient(each.weight) for each in contributions]

    def admit_weight(self, weight: Any, client: str) -> float:
        """Return a weight as a float, or raise `WeightError` unless it may be admitted, and its coefficient too."""
        accepted = self.limits.check_weight(weight, client)
        if isinstance(self.rule, Sum):
            self.limits.check_weight(self.coefficient(accepted), client)
        return accepted

    # Totals: a sum, group by group.

    def total(self, piece: SegmentRange) -> Total:
        """Return an empty total for a range."""
        return self.reset_total(self.device.total(piece.count, self.limits.accumulators[piece.segment]))

    def reset_total(self, total: Total) -> Total:
        """Return a total that holds nothing. Its weights count as they are, and not on the scale of the first."""
        if total.terms or total.is_spoiled:
            total.clear()
        total.scale = None if total.accumulate == "exact" else 0
        return total

    def fold(self, total: Total, batch: Batch) -> None:
        """Add a range of admitted contributions to its total."""
        if self.reference_model is not None and self.has_constants(batch.piece):
            mask = self.reference_model.constant_mask(batch.piece)
            batch = self._with_columns(batch, [zero_where(each, mask) for each in self._tensor_values(batch)])
        with self._attribute_errors(batch.piece, batch.contributions):
            self.device.fold(total, *batch.with_zeros(), batch.piece.dtype)

    def finish(self, total: Total, piece: SegmentRange, out: Any) -> None:
        """Write the combination of what was folded to `out`: an array, or a whole segment's tensors in a list."""
        with self._attribute_errors(piece):
            self.device.finish(total, out, self.limits.dtypes[piece.segment], base=self._base(piece, out))
        if self.reference_model is not None and self.has_constants(piece):
            self._restore_constants(
                piece, out, self.reference_model.values(piece), self.reference_model.constant_mask(piece)
            )

    def finish_into(self, sink: ChunkSink, total: Total, piece: SegmentRange) -> None:
        """Have a sink take the combination of what was folded."""
        out = sink.chunk(piece.segment, piece.first, piece.first + piece.count)
        self.finish(total, piece, out)
        sink.put(piece.segment, piece.first, out)

    # All contributions.

    def run(
        self, contributions: Sequence[Contribution], pieces: Sequence[SegmentRange], sink: ChunkSink, group: int = 0
    ) -> Iterator[SegmentRange]:
        """Combine contributions range by range, and yield each range that is in the sink.

        With a `group`, a sum reads at most so many contributions at once.
        """
        by, rest = self._rule_inputs(contributions, pieces)
        size = group if group and not isinstance(self.rule, Columns) else len(contributions)
        firsts, total = range(0, len(contributions), size), Total.zeros(0, "float32")

        def read(step: tuple[SegmentRange, int]) -> list[Any]:
            return [each.read_range(step[0]) for each in contributions[step[1] : step[1] + size]]

        for (piece, first), parts in prefetch(read, ((piece, first) for piece in pieces for first in firsts)):
            members = slice(first, first + size)
            batch = Batch(piece, contributions[members], parts, by[members], 0.0 if first else rest)
            if len(firsts) == 1:
                out = sink.chunk(piece.segment, piece.first, piece.first + piece.count)
                self.combine(batch, out)
                sink.put(piece.segment, piece.first, out)
            else:
                total = total if first else self.total(piece)
                self.fold(total, batch)
                if first != firsts[-1]:
                    continue
                self.finish_into(sink, total, piece)
            yield piece

    def combine(self, batch: Batch, out: Values) -> None:
        """Write the combination of a range of all contributions to `out`.

        Raises the `UpdateError` that admission would have raised, if a contribution causes the error.
        """
        failure: UpdateError | AggregationError | None = None
        if not isinstance(self.rule, Columns) and not self.has_constants(batch.piece):
            try:
                self.average(batch, out)
            except (UpdateError, AggregationError) as error:
                failure = error
            else:
                return
        columns, mask, fixed = self._admitted_columns(batch)
        if failure is not None and not mask.any():
            raise failure
        if isinstance(self.rule, Columns):
            segment = self.spec.segments[batch.piece.segment]
            self._write(batch.piece, call_combine(self.rule, segment, batch.piece, columns, batch.coefficients), out)
        else:
            self.average(self._with_columns(batch, columns), out)
        self._restore_constants(batch.piece, out, fixed, mask)

    def average(self, batch: Batch, out: Any, scale: int | None = None) -> None:
        """Write a weighted mean in one pass; of a whole segment, `out` and the parts may be the lists of its tensors.

        `scale` is that of `Backend.mean`. Raises an `UpdateError` or an `AggregationError` also for elements that are
        not averaged.
        """
        segment, dtype = batch.piece.segment, batch.piece.dtype
        accumulate, result = self.limits.accumulators[segment], self.limits.dtypes[segment]
        self._require_same_bytes(batch)
        with self._attribute_errors(batch.piece, batch.contributions):
            base = self._base(batch.piece, out)
            self.device.mean(*batch.with_zeros(), out, dtype, accumulate, result=result, base=base, scale=scale)

    def admit(self, contributions: Sequence[ArrayContribution], segments: Sequence[int] | None = None) -> None:
        """Raise `NonFinite` or `OutOfBounds`, naming client and tensor, unless arrays may be admitted. Reads them."""
        for whole in segment_ranges(self.spec, segments):
            tops = self.device.max_abs([each.buffers[whole.segment] for each in contributions], whole.dtype)
            needs_look = self.reference_model is not None and (
                self.reference_model.are_deltas or whole.dtype == "uint8" or self.has_constants(whole)
            )
            for each, by, top in zip(contributions, self.coefficients(contributions), tops, strict=True):
                if needs_look or not top <= self.limits.max_magnitude(whole.segment, by):
                    for piece, part in each.tensor_ranges(whole.segment):
                        self.limits.check(piece, part, by, each.client)

    def _require_same_bytes(self, batch: Batch) -> None:
        """Raise `OutOfBounds` where unsigned bytes differ: they may be packed codes, which have no mean."""
        piece, parts = batch.piece, batch.arrays
        if piece.dtype != "uint8" or self.settings.average_bytes or self.reference_model is not None:
            return
        segment, are_lists = self.spec.segments[piece.segment], isinstance(parts[0], list)
        for number, first in enumerate([span.start for span in segment.spans] if are_lists else [piece.first]):
            columns = [to_host(part[number] if are_lists else part) for part in parts]
            for each, column in zip(batch.contributions, columns, strict=True):
                if column.data != columns[0].data:
                    tensor, element = segment.locate(first + int(np.argmax(column != columns[0])))
                    raise OutOfBounds(
                        f"element {element} differs from that of {batch.contributions[0].client!r}: unsigned bytes are "
                        "not averaged, as they may be packed codes (if they are numbers: average_bytes=True, or on the "
                        "command line --average-bytes)",
                        client=each.client,
                        tensor=tensor.name,
                    )

    # What a rule is given.

    def _rule_inputs(
        self, contributions: Sequence[Contribution], pieces: Sequence[SegmentRange]
    ) -> tuple[Sequence[float], float]:
        """Return what contributions, and zeros, enter the sum or the rule with: after a pass over all if need be."""
        weights = [each.weight for each in contributions]
        if isinstance(self.rule, Columns):
            return weights, 0.0
        if isinstance(self.rule, Sum):
            by = self.coefficients(contributions)
            require_positive_weight(by)
            return by, 0.0
        statistics = None
        for piece, parts in prefetch(lambda piece: [each.read_range(piece) for each in contributions], pieces):
            columns = self._admitted_columns(Batch(piece, contributions, parts, weights))[0]
            statistics = call_measure(self.rule, self.spec.segments[piece.segment], piece, columns, statistics)
        return call_coefficients(self.rule, statistics, weights)

    def _admitted_columns(self, batch: Batch) -> tuple[list[Values], Mask, Values]:
        """Return a range's elements in the tensors' dtype, with zeros for constants; where these are, and which.

        Raises an `UpdateError` unless all may be admitted.
        """
        columns, piece = self._tensor_values(batch), batch.piece
        stored, tops = self._with_columns(batch, columns), [math.inf] * len(columns)
        if self.reference_model is not None:
            mask, fixed = self.reference_model.constant_mask(piece), self.reference_model.values(piece)
        else:
            self._require_same_bytes(stored)
            tops, fixed = self.device.max_abs(stored.arrays, stored.piece.dtype), columns[0]
            mask, odd = np.zeros(piece.count, np.bool_), -1
            if not all(has_no_constants(stored.piece.dtype, top) for top in tops):
                mask, odd = shared_constants(columns)
            if mask.any() and odd < 0:  # else the check below names the one that has what others have not
                columns = [zero_where(column, mask) for column in columns]
                stored = self._with_columns(batch, columns)
        by = self.coefficients(batch.contributions)
        for each, coefficient, part, top in zip(batch.contributions, by, stored.arrays, tops, strict=True):
            if not top <= self.limits.max_magnitude(piece.segment, coefficient):
                self.limits.check(stored.piece, part, coefficient, each.client)
        if self.reference_model is not None and mask.any():
            columns = [zero_where(column, mask) for column in columns]
        return columns, mask, fixed

    def _tensor_values(self, batch: Batch) -> list[Values]:
        """Return a batch's elements in the tensors' dtype."""
        return [tensor_values(self.spec, batch.piece, part) for part in batch.arrays]

    def _with_columns(self, batch: Batch, columns: Sequence[Values]) -> Batch:
        """Return a batch with other elements, given in the tensors' dtype."""
        own = self.spec.segments[batch.piece.segment].dtype
        parts = [column.view(storage_dtype(own)) for column in columns]
        return replace(batch, piece=replace(batch.piece, dtype=own), arrays=parts)

    # What becomes of a result.

    def _write(self, piece: SegmentRange, values: npt.NDArray[np.float64], out: Values) -> None:
        """Add the base to a range of results and round them once."""
        segment, dtype = self.spec.segments[piece.segment], self.limits.dtypes[piece.segment]
        base = self._base(piece, out)
        if base is not None:
            values = values + base.view(DTYPES[segment.dtype]).astype(np.float64)
        narrow, fits = round_to_dtype(values, dtype)
        if not fits.all():
            where = int(np.argmin(fits))
            tensor, element = segment.locate(piece.first + where)
            raise AggregationError(
                f"tensor {tensor.name!r}: element {element} of the result, {values[where]:g}, does not fit into {dtype}"
            )
        out[:] = narrow.view(out.dtype)

    def _base(self, piece: SegmentRange, out: Any) -> Any:
        """Return what differences are added to, in a list where `out` is one; else zero where it is no quantity."""
        if self.reference_model is None or not self.reference_model.are_deltas:
            return None
        if isinstance(out, list):
            return self.reference_model.tensors(piece.segment)
        if not self.has_constants(piece):
            return self.reference_model.storage_values(piece)
        values = zero_where(self.reference_model.values(piece), self.reference_model.constant_mask(piece))
        return values.view(storage_dtype(self.spec.segments[piece.segment].dtype))

    def _restore_constants(self, piece: SegmentRange, out: Values, fixed: Values, mask: Mask) -> None:
        """Put constants into a result, bit for bit where its dtype is theirs."""
        if mask.any():
            result = DTYPES[self.limits.dtypes[piece.segment]]
            with np.errstate(all="ignore"):
                out.view(result)[mask] = fixed[mask].astype(result)

    def _attribute_errors(
        self, piece: SegmentRange, contributions: Sequence[Contribution] = ()
    ) -> AbstractContextManager[None]:
        """Have what the kernels refuse name the client and the tensor."""
        return attribute_errors(self.spec.segments[piece.segment], contributions, piece.first)
