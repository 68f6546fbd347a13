"""Text files that people write: UTF-8, with or without the byte order mark that Windows' editors and Excel put first.

Other encodings are refused by name: a guess that is wrong would change names silently.
"""

_OTHER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def decode_text(data: bytes | bytearray) -> str:
    """Return the text of a file, without a byte order mark; or raise `ValueError` that says which encoding it is in.

    >>> decode_text(b"\\xef\\xbb\\xbfname")
    'name'
    >>> decode_text("name".encode("utf-16"))
    Traceback (most recent call last):
    ValueError: expected UTF-8, got UTF-16, by its byte order mark: save the file as UTF-8
    """
    for mark, encoding in _OTHER_MARKS:
        if data.startswith(mark):
            raise ValueError(f"expected UTF-8, got {encoding}, by its byte order mark: save the file as UTF-8")
    if b"\0" in data:
        raise ValueError(
            f"expected UTF-8, got a zero at byte {data.index(0)}, as UTF-16 and binary files have: "
            "save the file as UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8, got 0x{data[error.start]:02x} at byte {error.start}: save the file as UTF-8"
        ) from error


def printable(text: str, limit: int) -> str:
    """Return text that came from elsewhere as part of one line: no control characters, and at most `limit` characters.

    >>> printable("no data\\n\\x1b[2J", 100)
    'no data\\\\n\\\\x1b[2J'
    >>> printable("0123456789", 4)
    '0123...'
    """
    cut = text[:limit] + "..." if len(text) > limit else text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in cut)
