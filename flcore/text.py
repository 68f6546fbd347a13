"""Text from files and from other processes.

Files are UTF-8, with or without a byte order mark, as Excel and editors on Windows write it. Other encodings are
refused by name, not guessed: a wrong guess would silently change names.
"""

_OTHER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def decode_text(data: bytes | bytearray) -> str:
    """Decode the content of a file, without a byte order mark.

    Raises `ValueError`, which names the encoding if it is known.

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
    """Return at most `limit` characters of a text on one line, with control characters escaped.

    For texts of clients and users in logs and errors: they must not start a new line of a log or control a terminal.

    >>> printable("no such file\\n\\x1b[2J"), printable("a" * 9, 4)
    ('no such file\\\\n\\\\x1b[2J', 'a...')
    """
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
