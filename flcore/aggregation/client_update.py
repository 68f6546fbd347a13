"""One client's committed update, as a workflow or a program of your own reads it before updates are combined."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import ALIGNMENT

from flcore.aggregation.admission_limits import tensor_values
from flcore.aggregation.staged_update import StagedUpdate
from flcore.errors import SpecError
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat


class ClientUpdate:
    """An update that is read by range, from memory or from the disk. It is gone when the updates are combined.

    Attributes:
        client: The client's name.
        weight: The weight that it has announced.
        spec: The tensors of the model.
    """

    def __init__(self, update: StagedUpdate, wire_format: WireFormat) -> None:
        self.client, self.weight, self.spec = update.client, update.announced_weight, wire_format.spec
        self._update, self._wire_format = update, wire_format

    def __repr__(self) -> str:
        return f"<ClientUpdate of {self.client}, weight {self.weight:g}>"

    def read(self, name: str, first: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return elements of a tensor, in C order.

        Args:
            name: The tensor's name.
            first: The first element. Default: 0.
            stop: One past the last element. Default: None, the tensor's end.

        Returns:
            A new flat array of the tensor's dtype; what came quantized is decoded.

        Raises:
            SpecError: There is no such tensor, or the range is not in it.
            StagingError: The update cannot be read back, or was combined and freed.
        """
        spec: ModelSpec = self.spec
        if name not in self._wire_format.tensor_spans:
            raise SpecError(f"the model has no tensor {name!r}")
        index, span = self._wire_format.tensor_spans[name]
        stop = span.tensor.size if stop is None else stop
        if not 0 <= first <= stop <= span.tensor.size:
            raise SpecError(
                f"tensor {name!r} has {span.tensor.size} elements: expected a range of them, got {first} to {stop}"
            )
        values, position = np.empty(stop - first, DTYPES[span.tensor.dtype]), span.start + first
        while position < span.start + stop:
            piece = self._wire_format.piece_at(index, position)
            end = min(span.start + stop, piece.first + piece.count)
            begin = position - (position - piece.first) % ALIGNMENT  # blocks of codes begin there
            range_ = replace(piece, first=begin, count=end - begin)
            found = tensor_values(spec, range_, self._update.read_range(range_))
            values[position - span.start - first : end - span.start - first] = found[position - begin :]
            position = end
        return values
