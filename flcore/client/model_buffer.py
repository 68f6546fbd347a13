"""A client's model, as far as it was downloaded. A later assignment of the same model resumes the download."""

from flcore_transport import Inbox, TaskAssignment

from flcore.errors import TaskFailed
from flcore.model.compression import Decompressor
from flcore.model.model import Model
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat


class ModelBuffer:
    """One buffer for all downloads of a client, and the inbox of the payload that it holds.

    Args:
        wire_dtype: The contract's dtype for downloads. None: the model's own dtypes.
    """

    def __init__(self, wire_dtype: str | None) -> None:
        self._wire_dtype = wire_dtype
        self._model: Model | None = None
        self._inbox: Inbox | None = None
        self._payload_id = ""

    def begin(self, assignment: TaskAssignment, spec: ModelSpec) -> tuple[Model, Inbox]:
        """Begin the download of an assignment's model, or resume it.

        The inbox of a payload with the same id stays, with the pieces that it has received: under another assignment,
        in another session, and at a server that was restarted. Another payload overwrites the buffer. An update
        that refers to the buffer is found changed if it is sent again (`AnswerOutbox`).

        Args:
            assignment: The assignment.
            spec: The model's tensors.

        Returns:
            The model, complete if the inbox is; and the inbox.

        Raises:
            TaskFailed: The payload of the assignment has another layout than the model.
        """
        wire_format = WireFormat.compressed(spec, self._wire_dtype)
        if assignment.payload != wire_format.layout:
            raise TaskFailed("the payload of the assignment does not have the layout of the welcome's tensors")
        if self._model is None or self._model.spec != spec:
            self._model, self._inbox = Model(spec), None
        # An empty id names no payload.
        if self._inbox is None or not assignment.payload_id or assignment.payload_id != self._payload_id:
            self._inbox = Inbox(assignment.payload, Decompressor(wire_format, self._model))
            self._payload_id = assignment.payload_id
        return self._model, self._inbox
