"""The last receipt of each client."""

import pytest
from flcore_transport import Receipt, Refused

from flcore.server.receipts import AcknowledgedUpload, LastReceipts


def test_only_the_last_answer_of_a_client_with_its_own_key_has_a_receipt() -> None:
    receipts = LastReceipts({"c": (5, b"token", "earlier")})
    assert receipts.has("c", 5, b"token", "earlier")
    assert not receipts.has("a", 1, b"token", "key")
    receipts.record("a", 1, b"token", "key")
    assert receipts.has("a", 1, b"token", "key")
    assert (
        not receipts.has("a", 1, b"token", "another")
        and not receipts.has("a", 2, b"token", "key")
        and not receipts.has("b", 1, b"token", "key")
    )
    assert not receipts.has("a", 1, b"another", "key")
    receipts.record("a", 3, b"token", "later")
    assert receipts.has("a", 3, b"token", "later") and not receipts.has("a", 1, b"token", "key")
    receipts.record("a", 2, b"token", "late")
    assert receipts.has("a", 3, b"token", "later"), "a commit that was slow does not replace a later one"


def test_an_answer_that_is_in_takes_no_piece() -> None:
    upload = AcknowledgedUpload(7)
    assert upload.received == upload.expected and upload.begin().done() and upload.commit() == Receipt(7)
    with pytest.raises(Refused, match="is in already"):
        upload.accept(b"piece")
    upload.end()
