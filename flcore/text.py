"""Text from files and from other processes, and moments as text.

Files are UTF-8, with or without a byte order mark, as Excel and editors on Windows write it. Other encodings are
refused by name, not guessed: a wrong guess would silently change names.
"""

import math
import re
import time
from collections.abc import Iterable
from itertools import islice

MAX_COMPARED = 1_000
"""The most names that are compared with a misspelt one."""

MAX_NAME = 100
"""The most characters of a name that are compared."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Names of jobs and clients. They become file names, so they neither begin with a dot nor contain a slash."""

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")

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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about a name that does not exist: the nearest known one, or nothing.

    >>> did_you_mean("acuracy", ["loss", "accuracy"]), did_you_mean("x", ["loss", "accuracy"])
    ("; did you mean 'accuracy'?", '')
    """
    nearest = nearest_name(name, known)
    return "" if nearest is None else f"; did you mean {printable(nearest)!r}?"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one is similar to; None if none is."""
    from difflib import get_close_matches  # most commands need none

    short = (each for each in islice(known, MAX_COMPARED) if len(each) <= MAX_NAME)  # the time grows with the product
    return next(iter(get_close_matches(name[:MAX_NAME], short, n=1)), None)


_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/'\"()<>:,;|\n]*[^\s/'\"()<>:,;|]/)*(?=[^\s/])")


def without_folders(text: str) -> str:
    """Return a text in which each absolute path is shortened to its last part.

    For errors that leave the machine: its paths are nobody else's business. A folder's name may contain spaces.

    >>> without_folders("/srv/my jobs/a/job.toml: /srv/my jobs/a/odd.py cannot be loaded (/usr/lib/x/__init__.py)")
    'job.toml: odd.py cannot be loaded (__init__.py)'
    >>> without_folders("3/4 of https://example.org/a/b and tools/odd.py")
    '3/4 of https://example.org/a/b and tools/odd.py'
    """
    return _FOLDERS.sub("", text)


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1. Thousands are grouped.

    >>> counted(1, "round"), counted(0, "site"), counted(1200, "file")
    ('1 round', '0 sites', '1,200 files')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bytes_text(nbytes: float) -> str:
    """Return a number of bytes, in powers of 1000.

    >>> bytes_text(936_384), bytes_text(4_000_000_000), bytes_text(12)
    ('936 kB', '4.00 GB', '12 B')
    """
    unit, scaled = byte_unit(nbytes), float(nbytes)
    scaled /= 1000 ** BYTE_UNITS.index(unit)
    return f"{scaled:.0f} B" if unit == "B" else f"{scaled:.{max(0, 2 - int(math.log10(max(scaled, 1))))}f} {unit}"


def byte_unit(nbytes: float) -> str:
    """Return the largest unit that is not larger than a number of bytes."""
    power = 0 if nbytes < 1 else min(len(BYTE_UNITS) - 1, int(math.log10(nbytes) / 3 + 1e-9))
    return BYTE_UNITS[power]


def utc_time(seconds: float | None = None) -> str:
    """Return a moment in UTC, to the second, as ISO 8601.

    Args:
        seconds: Seconds since the epoch. Default: None, now.

    Example:
        >>> utc_time(0)
        '1970-01-01T00:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
