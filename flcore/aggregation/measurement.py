"""The figures of a round that rules ask for before anything is combined: one pass over all contributions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flcore_kernels import Overflow, SquaredDistances, storage_dtype
from flcore_layout import SegmentRange

from flcore.aggregation.contributions import Contribution
from flcore.aggregation.passthrough import Values, zero_where
from flcore.aggregation.prefetch import prefetch
from flcore.aggregation.range_checks import RangeChecks
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.reference_model import ReferenceModel
from flcore.aggregation.rule_calls import call_coefficients, call_measure
from flcore.aggregation.rule_plan import needs
from flcore.errors import AggregationError
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Chain, Geometry
from flcore.rules.points import Matrix


class Measurement:
    """Reads all contributions to a model of `spec` for the figures of a rule."""

    def __init__(self, spec: ModelSpec, checks: RangeChecks, reference_model: ReferenceModel | None) -> None:
        self._spec, self._checks, self._reference_model = spec, checks, reference_model

    def coefficients(
        self, rule: Geometry, contributions: Sequence[Contribution], ranges: Sequence[SegmentRange]
    ) -> tuple[list[float], float]:
        """Return the coefficients of a `Geometry`, and that of zeros."""
        weights, figures = [contribution.weight for contribution in contributions], None
        for inputs in _read(contributions, ranges):
            columns = self._checks.checked_columns(inputs, inputs.coefficients)[0]
            figures = call_measure(rule, self._spec.segments[inputs.range_.segment], inputs.range_, columns, figures)
        return call_coefficients(rule, figures, weights)

    def squared_distances(
        self, rule: Chain, contributions: Sequence[Contribution], ranges: Sequence[SegmentRange]
    ) -> Matrix:
        """Return the squared distances of contributions and base, the last one, over the floats of the model.

        NaN where no stage needs them.

        Raises:
            AggregationError: A stage needs the base, and there is none; or distances are not finite.
            UpdateError: A contribution is not finite.
        """
        for stage in rule.stages:
            if stage.needs_base and self._reference_model is None:
                raise AggregationError(
                    f"rule {rule.name!r}: {stage.name} needs the model that clients began with: give base=, and "
                    "updates that are differences to it"
                )
        needed, count = needs(rule), len(contributions)
        if needed == "nothing":
            return np.full((count + 1, count + 1), np.nan)
        distances = SquaredDistances(count, pairs=needed == "distances")
        floats = [range_ for range_ in ranges if self._spec.segments[range_.segment].dtype not in INTEGERS]
        for inputs in _read(contributions, floats):
            self._add(distances, inputs, rule)
        squared = distances.matrix()
        if self._reference_model is None:
            squared[-1, :-1] = squared[:-1, -1] = np.nan  # zero is no base of whole models
        return squared

    def base(self, range_: SegmentRange) -> Values | None:
        """Return the base of whole models in storage form, with zeros for passthrough elements.

        None if there is no base, or if updates are differences, whose base is zeros.
        """
        if self._reference_model is None or self._reference_model.updates_are_deltas:
            return None
        return self.reference_values(self._reference_model, range_)

    def reference_values(self, reference: ReferenceModel, range_: SegmentRange) -> Values:
        """Return the reference model in storage form, with zeros for passthrough elements."""
        if not reference.has_passthrough(range_):
            return reference.storage_values(range_)
        values = zero_where(reference.values(range_), reference.passthrough_mask(range_))
        return values.view(storage_dtype(self._spec.segments[range_.segment].dtype))

    def _add(self, distances: SquaredDistances, inputs: RangeInputs, rule: Chain) -> None:
        """Add a range. It is tried without a check, as the kernel detects elements that are not finite."""
        dtype, base = self._spec.segments[inputs.range_.segment].dtype, self.base(inputs.range_)
        if self._reference_model is None or not self._reference_model.has_passthrough(inputs.range_):
            try:
                distances.add(_stored(dtype, inputs.columns(self._spec)), dtype, base)
            except Overflow:
                pass
            else:
                return
        columns = self._checks.checked_columns(inputs, inputs.coefficients)[0]
        try:
            distances.add(_stored(dtype, columns), dtype, base)
        except Overflow as error:
            raise AggregationError(f"rule {rule.name!r}: {error}") from error


def _read(contributions: Sequence[Contribution], ranges: Sequence[SegmentRange]) -> Any:
    """Yield the inputs of each range, with coefficients of 1: these bound elements as those of a mean do."""

    def read(range_: SegmentRange) -> list[Any]:
        return [contribution.read_range(range_) for contribution in contributions]

    for range_, arrays in prefetch(read, ranges):
        yield RangeInputs(range_, contributions, arrays, [1.0] * len(contributions))


def _stored(dtype: str, columns: Sequence[Values]) -> list[Values]:
    storage = storage_dtype(dtype)
    return [column.view(DTYPES[dtype]).view(storage) for column in columns]
