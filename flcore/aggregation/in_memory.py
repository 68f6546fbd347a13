"""Arrays in memory or on a device: combined at once, or added up group by group."""

from collections.abc import Sequence

from flcore_transport import PieceRange

from flcore.aggregation.combiner import Batch, Combiner
from flcore.aggregation.contributions import ArrayContribution, ArraySink, Buffers, are_on_host, ranges, wholes
from flcore.aggregation.limits import require_sum
from flcore.aggregation.rules import Sum
from flcore.errors import AggregationError, UpdateError


def combine_arrays(
    combiner: Combiner,
    contributions: Sequence[ArrayContribution],
    targets: Buffers,
    bases: Buffers | None = None,
    *,
    is_in_place: bool = False,
) -> None:
    """Write the combination of all contributions to a model's tensors, each segment in one pass where that is possible.

    A rule that is no sum, and constants, need ranges. So does a result in place of what is read: after an error, a
    segment could not be read again.
    """
    left = [
        piece.segment
        for piece in wholes(combiner.spec)
        if is_in_place or not _is_averaged(combiner, piece, contributions, targets, bases)
    ]
    if left:
        sink = ArraySink(combiner.spec, targets)
        for _ in combiner.run(contributions, ranges(combiner.spec, segments=left), sink):
            pass


def _is_averaged(
    combiner: Combiner,
    piece: PieceRange,
    contributions: Sequence[ArrayContribution],
    targets: Buffers,
    bases: Buffers | None,
) -> bool:
    """Combine a segment in one pass; return whether that was possible."""
    known = combiner.known
    has_sentinels = piece.dtype in ("int64", "uint64") and known is not None and known.has_constants(piece)
    if not isinstance(combiner.rule, Sum) or has_sentinels:  # a base beyond 2^53 would be rounded without a word
        return False
    parts, out = [each.buffers[piece.segment] for each in contributions], targets[piece.segment]
    by = [combiner.coefficient(each.weight) for each in contributions]
    require_sum(by)
    try:
        base = None if bases is None else bases[piece.segment]
        combiner.average(Batch(piece, contributions, parts, by), out, base)
    except (UpdateError, AggregationError):
        if not all(are_on_host(tensors) for tensors in (*parts, out)):
            raise
        return False
    return True


class Totals:
    """What admitted contributions add up to, for a `Sum`; its memory is taken at once and kept until it is let go.

    `bases` are the tensors of the model that differences are added to. Constants of the known model need ranges, as
    copies without them are made range by range; else whole `segments` (by default all) are added at once.
    """

    def __init__(self, combiner: Combiner, bases: Buffers | None = None, segments: Sequence[int] | None = None) -> None:
        known, pieces = combiner.known, wholes(combiner.spec, segments)
        self._combiner, self._bases, self.segments = combiner, bases, segments
        self._are_whole = known is None or not any(known.has_constants(piece) for piece in pieces)
        self._pieces = pieces if self._are_whole else ranges(combiner.spec, segments=segments)
        self._totals = [combiner.total(piece) for piece in self._pieces]
        self.coefficients: list[float] = []

    def fold(self, contributions: Sequence[ArrayContribution]) -> None:
        """Add a group, all of it."""
        by = [self._combiner.coefficient(each.weight) for each in contributions]
        for piece, total in zip(self._pieces, self._totals, strict=True):
            parts = [each.buffers[piece.segment] if self._are_whole else each.read(piece) for each in contributions]
            self._combiner.fold(total, Batch(piece, contributions, parts, by))
        self.coefficients += by

    def finish(self, targets: Buffers) -> None:
        """Write the combination of all that was added to a model's tensors."""
        require_sum(self.coefficients)
        sink = ArraySink(self._combiner.spec, targets)
        for piece, total in zip(self._pieces, self._totals, strict=True):
            if self._are_whole:
                base = None if self._bases is None else self._bases[piece.segment]
                self._combiner.finish(total, piece, targets[piece.segment], base)
            else:
                out = sink.chunk(piece.segment, piece.first, piece.first + piece.count)
                self._combiner.finish(total, piece, out)
                sink.put(piece.segment, piece.first, out)

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        for total in self._totals:
            self._combiner.emptied(total)
        self.coefficients = []
