"""Text that others wrote.

Files are UTF-8, with or without the byte order mark that Windows' editors and Excel put first. Other encodings are
refused by name: a guess that is wrong would change names silently.
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


def printable(text: str, limit: int = 500) -> str:
    """Return at most `limit` characters of a text that others wrote, on one line, with control characters escaped.

    >>> printable("no such file\\n\\x1b[2J"), printable("a" * 9, 4)
    ('no such file\\\\n\\\\x1b[2J', 'a...')
    """
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
