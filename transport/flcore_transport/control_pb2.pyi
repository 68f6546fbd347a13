from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Segment(_message.Message):
    __slots__ = ("dtype", "elements")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    elements: int
    def __init__(self, dtype: _Optional[str] = ..., elements: _Optional[int] = ...) -> None: ...

class PayloadPart(_message.Message):
    __slots__ = ("name", "segments")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, name: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping[str, object]]]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[PayloadPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[PayloadPart, _Mapping[str, object]]]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("protocol", "client", "instance", "content")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client: str
    instance: str
    content: bytes
    def __init__(self, protocol: _Optional[int] = ..., client: _Optional[str] = ..., instance: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("session_secret", "content")
    SESSION_SECRET_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    session_secret: str
    content: bytes
    def __init__(self, session_secret: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class TaskAssignment(_message.Message):
    __slots__ = ("assignment_id", "content", "payload", "payload_id", "token")
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    assignment_id: int
    content: bytes
    payload: Layout
    payload_id: str
    token: bytes
    def __init__(self, assignment_id: _Optional[int] = ..., content: _Optional[bytes] = ..., payload: _Optional[_Union[Layout, _Mapping[str, object]]] = ..., payload_id: _Optional[str] = ..., token: _Optional[bytes] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("assignment_id",)
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    assignment_id: int
    def __init__(self, assignment_id: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "failed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    failed: bool
    def __init__(self, reason: _Optional[str] = ..., failed: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent",)
    SENT_FIELD_NUMBER: _ClassVar[int]
    sent: int
    def __init__(self, sent: _Optional[int] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("welcome", "task_assignment", "goodbye", "withdrawal", "heartbeat")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    task_assignment: TaskAssignment
    goodbye: Goodbye
    withdrawal: Withdrawal
    heartbeat: Heartbeat
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping[str, object]]] = ..., task_assignment: _Optional[_Union[TaskAssignment, _Mapping[str, object]]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping[str, object]]] = ..., withdrawal: _Optional[_Union[Withdrawal, _Mapping[str, object]]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping[str, object]]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("session_secret", "assignment_id", "first_piece", "token")
    SESSION_SECRET_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_PIECE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_secret: str
    assignment_id: int
    first_piece: int
    token: bytes
    def __init__(self, session_secret: _Optional[str] = ..., assignment_id: _Optional[int] = ..., first_piece: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("session_secret", "assignment_id", "content", "layout", "token")
    SESSION_SECRET_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_secret: str
    assignment_id: int
    content: bytes
    layout: Layout
    token: bytes
    def __init__(self, session_secret: _Optional[str] = ..., assignment_id: _Optional[int] = ..., content: _Optional[bytes] = ..., layout: _Optional[_Union[Layout, _Mapping[str, object]]] = ..., token: _Optional[bytes] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("received", "allowed")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    received: int
    allowed: int
    def __init__(self, received: _Optional[int] = ..., allowed: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("assignment_id",)
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    assignment_id: int
    def __init__(self, assignment_id: _Optional[int] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("credit", "receipt")
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    credit: Credit
    receipt: Receipt
    def __init__(self, credit: _Optional[_Union[Credit, _Mapping[str, object]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping[str, object]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("session_secret", "assignment_id", "message", "token")
    SESSION_SECRET_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_secret: str
    assignment_id: int
    message: str
    token: bytes
    def __init__(self, session_secret: _Optional[str] = ..., assignment_id: _Optional[int] = ..., message: _Optional[str] = ..., token: _Optional[bytes] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("protocol", "content", "body")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    content: bytes
    body: bytes
    def __init__(self, protocol: _Optional[int] = ..., content: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("content", "body")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    body: bytes
    def __init__(self, content: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
