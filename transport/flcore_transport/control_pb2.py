"""Generated from control.proto by `make proto`. Do not edit."""

from google.protobuf import descriptor_pool, message_factory

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
    b'\n\x1eflcore_transport/control.proto\x12\x13flcore.transport.v1";\n\x07Segment'
    b'\x12\x14\n\x05dtype\x18\x01 \x01(\tR\x05dtype\x12\x1a\n\x08elements\x18\x02 \x01(\x04R\x08elements"T\n\x04Part\x12\x12\n\x04na'
    b'me\x18\x01 \x01(\tR\x04name\x128\n\x08segments\x18\x02 \x03(\x0b2\x1c.flcore.transport.v1.SegmentR\x08'
    b'segments"9\n\x06Layout\x12/\n\x05parts\x18\x01 \x03(\x0b2\x19.flcore.transport.v1.PartR\x05pa'
    b'rts"p\n\x04Join\x12\x1a\n\x08protocol\x18\x01 \x01(\rR\x08protocol\x12\x16\n\x06client\x18\x02 \x01(\tR\x06client\x12'
    b'\x1a\n\x08instance\x18\x03 \x01(\tR\x08instance\x12\x18\n\x07content\x18\x04 \x01(\x0cR\x07content"=\n\x07Welcome'
    b'\x12\x18\n\x07session\x18\x01 \x01(\tR\x07session\x12\x18\n\x07content\x18\x02 \x01(\x0cR\x07content"\x8f\x01\n\x05Order\x12\x16'
    b'\n\x06number\x18\x01 \x01(\x04R\x06number\x12\x18\n\x07content\x18\x02 \x01(\x0cR\x07content\x125\n\x07payload\x18\x03 \x01('
    b'\x0b2\x1b.flcore.transport.v1.LayoutR\x07payload\x12\x1d\n\npayload_id\x18\x04 \x01(\tR\tpay'
    b'loadId""\n\nWithdrawal\x12\x14\n\x05order\x18\x01 \x01(\x04R\x05order"9\n\x07Goodbye\x12\x16\n\x06reason\x18'
    b'\x01 \x01(\tR\x06reason\x12\x16\n\x06failed\x18\x02 \x01(\x08R\x06failed"\x82\x02\n\nFromServer\x128\n\x07welcome\x18'
    b'\x01 \x01(\x0b2\x1c.flcore.transport.v1.WelcomeH\x00R\x07welcome\x122\n\x05order\x18\x02 \x01(\x0b2\x1a.'
    b'flcore.transport.v1.OrderH\x00R\x05order\x128\n\x07goodbye\x18\x03 \x01(\x0b2\x1c.flcore.tra'
    b'nsport.v1.GoodbyeH\x00R\x07goodbye\x12A\n\nwithdrawal\x18\x04 \x01(\x0b2\x1f.flcore.transp'
    b'ort.v1.WithdrawalH\x00R\nwithdrawalB\t\n\x07message"X\n\x05Fetch\x12\x18\n\x07session\x18\x01'
    b' \x01(\tR\x07session\x12\x14\n\x05order\x18\x02 \x01(\x04R\x05order\x12\x1f\n\x0bfirst_piece\x18\x03 \x01(\x04R\nfirstP'
    b'iece"\x86\x01\n\x05Offer\x12\x18\n\x07session\x18\x01 \x01(\tR\x07session\x12\x14\n\x05order\x18\x02 \x01(\x04R\x05order\x12\x18'
    b'\n\x07content\x18\x03 \x01(\x0cR\x07content\x123\n\x06layout\x18\x04 \x01(\x0b2\x1b.flcore.transport.v1.L'
    b'ayoutR\x06layout"=\n\x05Grant\x12\x1a\n\x08received\x18\x01 \x01(\x04R\x08received\x12\x18\n\x07allowed\x18\x02 '
    b'\x01(\x04R\x07allowed"\x1f\n\x07Receipt\x12\x14\n\x05order\x18\x01 \x01(\x04R\x05order"\x86\x01\n\x0bUploadReply\x122\n'
    b'\x05grant\x18\x01 \x01(\x0b2\x1a.flcore.transport.v1.GrantH\x00R\x05grant\x128\n\x07receipt\x18\x02 \x01'
    b'(\x0b2\x1c.flcore.transport.v1.ReceiptH\x00R\x07receiptB\t\n\x07message"S\n\x07Failur'
    b'e\x12\x18\n\x07session\x18\x01 \x01(\tR\x07session\x12\x14\n\x05order\x18\x02 \x01(\x04R\x05order\x12\x18\n\x07message\x18\x03 \x01'
    b'(\tR\x07message"7\n\x07Refusal\x12\x12\n\x04kind\x18\x01 \x01(\tR\x04kind\x12\x18\n\x07message\x18\x02 \x01(\tR\x07mes'
    b'sageb\x06proto3'
)

Segment = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Segment"])
Part = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Part"])
Layout = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Layout"])
Join = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Join"])
Welcome = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Welcome"])
Order = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Order"])
Withdrawal = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Withdrawal"])
Goodbye = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Goodbye"])
FromServer = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["FromServer"])
Fetch = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Fetch"])
Offer = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Offer"])
Grant = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Grant"])
Receipt = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Receipt"])
UploadReply = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["UploadReply"])
Failure = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Failure"])
Refusal = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Refusal"])
