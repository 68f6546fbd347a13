"""Generated from control.proto by `make proto`. Do not edit."""

from google.protobuf import descriptor_pool, message_factory

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
    b'\n\x1eflcore_transport/control.proto\x12\x13flcore.transport.v1";\n\x07Segment'
    b'\x12\x14\n\x05dtype\x18\x01 \x01(\tR\x05dtype\x12\x1a\n\x08elements\x18\x02 \x01(\x04R\x08elements"[\n\x0bPayloadPar'
    b't\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x128\n\x08segments\x18\x02 \x03(\x0b2\x1c.flcore.transport.v1.Se'
    b'gmentR\x08segments"@\n\x06Layout\x126\n\x05parts\x18\x01 \x03(\x0b2 .flcore.transport.v1.P'
    b'ayloadPartR\x05parts"p\n\x04Join\x12\x1a\n\x08protocol\x18\x01 \x01(\rR\x08protocol\x12\x16\n\x06client\x18'
    b'\x02 \x01(\tR\x06client\x12\x1a\n\x08instance\x18\x03 \x01(\tR\x08instance\x12\x18\n\x07content\x18\x04 \x01(\x0cR\x07cont'
    b'ent"J\n\x07Welcome\x12%\n\x0esession_secret\x18\x01 \x01(\tR\rsessionSecret\x12\x18\n\x07content'
    b'\x18\x02 \x01(\x0cR\x07content"\xbb\x01\n\x0eTaskAssignment\x12#\n\rassignment_id\x18\x01 \x01(\x04R\x0cassig'
    b'nmentId\x12\x18\n\x07content\x18\x02 \x01(\x0cR\x07content\x125\n\x07payload\x18\x03 \x01(\x0b2\x1b.flcore.tran'
    b'sport.v1.LayoutR\x07payload\x12\x1d\n\npayload_id\x18\x04 \x01(\tR\tpayloadId\x12\x14\n\x05token'
    b'\x18\x05 \x01(\x0cR\x05token"1\n\nWithdrawal\x12#\n\rassignment_id\x18\x01 \x01(\x04R\x0cassignmentId'
    b'"9\n\x07Goodbye\x12\x16\n\x06reason\x18\x01 \x01(\tR\x06reason\x12\x16\n\x06failed\x18\x02 \x01(\x08R\x06failed"\x1f\n\tH'
    b'eartbeat\x12\x12\n\x04sent\x18\x01 \x01(\x04R\x04sent"\xde\x02\n\nFromServer\x128\n\x07welcome\x18\x01 \x01(\x0b2\x1c.f'
    b'lcore.transport.v1.WelcomeH\x00R\x07welcome\x12N\n\x0ftask_assignment\x18\x02 \x01(\x0b2#'
    b'.flcore.transport.v1.TaskAssignmentH\x00R\x0etaskAssignment\x128\n\x07goodbye'
    b'\x18\x03 \x01(\x0b2\x1c.flcore.transport.v1.GoodbyeH\x00R\x07goodbye\x12A\n\nwithdrawal\x18\x04 '
    b'\x01(\x0b2\x1f.flcore.transport.v1.WithdrawalH\x00R\nwithdrawal\x12>\n\theartbeat\x18'
    b'\x05 \x01(\x0b2\x1e.flcore.transport.v1.HeartbeatH\x00R\theartbeatB\t\n\x07message"\x94\x01'
    b'\n\x0fDownloadRequest\x12%\n\x0esession_secret\x18\x01 \x01(\tR\rsessionSecret\x12#\n\rassi'
    b'gnment_id\x18\x02 \x01(\x04R\x0cassignmentId\x12\x1f\n\x0bfirst_piece\x18\x03 \x01(\x04R\nfirstPiece\x12\x14'
    b'\n\x05token\x18\x04 \x01(\x0cR\x05token"\xc0\x01\n\rUploadRequest\x12%\n\x0esession_secret\x18\x01 \x01(\tR\r'
    b'sessionSecret\x12#\n\rassignment_id\x18\x02 \x01(\x04R\x0cassignmentId\x12\x18\n\x07content\x18\x03 '
    b'\x01(\x0cR\x07content\x123\n\x06layout\x18\x04 \x01(\x0b2\x1b.flcore.transport.v1.LayoutR\x06layou'
    b't\x12\x14\n\x05token\x18\x05 \x01(\x0cR\x05token">\n\x06Credit\x12\x1a\n\x08received\x18\x01 \x01(\x04R\x08received\x12\x18\n'
    b'\x07allowed\x18\x02 \x01(\x04R\x07allowed".\n\x07Receipt\x12#\n\rassignment_id\x18\x01 \x01(\x04R\x0cassig'
    b'nmentId"\x89\x01\n\x0bUploadReply\x125\n\x06credit\x18\x01 \x01(\x0b2\x1b.flcore.transport.v1.Cr'
    b'editH\x00R\x06credit\x128\n\x07receipt\x18\x02 \x01(\x0b2\x1c.flcore.transport.v1.ReceiptH\x00R'
    b'\x07receiptB\t\n\x07message"\x85\x01\n\x07Failure\x12%\n\x0esession_secret\x18\x01 \x01(\tR\rsession'
    b'Secret\x12#\n\rassignment_id\x18\x02 \x01(\x04R\x0cassignmentId\x12\x18\n\x07message\x18\x03 \x01(\tR\x07me'
    b'ssage\x12\x14\n\x05token\x18\x04 \x01(\x0cR\x05token"O\n\x03Ask\x12\x1a\n\x08protocol\x18\x01 \x01(\rR\x08protocol\x12\x18'
    b'\n\x07content\x18\x02 \x01(\x0cR\x07content\x12\x12\n\x04body\x18\x03 \x01(\x0cR\x04body"5\n\x05Reply\x12\x18\n\x07content'
    b'\x18\x01 \x01(\x0cR\x07content\x12\x12\n\x04body\x18\x02 \x01(\x0cR\x04body"7\n\x07Refusal\x12\x12\n\x04kind\x18\x01 \x01(\tR\x04ki'
    b'nd\x12\x18\n\x07message\x18\x02 \x01(\tR\x07messageb\x06proto3'
)

Segment = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Segment"])
PayloadPart = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["PayloadPart"])
Layout = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Layout"])
Join = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Join"])
Welcome = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Welcome"])
TaskAssignment = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["TaskAssignment"])
Withdrawal = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Withdrawal"])
Goodbye = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Goodbye"])
Heartbeat = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Heartbeat"])
FromServer = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["FromServer"])
DownloadRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DownloadRequest"])
UploadRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["UploadRequest"])
Credit = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Credit"])
Receipt = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Receipt"])
UploadReply = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["UploadReply"])
Failure = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Failure"])
Ask = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Ask"])
Reply = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Reply"])
Refusal = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Refusal"])
