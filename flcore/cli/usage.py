"""Errors in the use of the command line, in one form: one line, as all other errors are."""

import re
from typing import Any, cast

import typer

from flcore.text import did_you_mean

ClickError = cast(
    "type[Exception]", next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
)
"""The base of what the parser raises. Typer exports its leaves alone, and new versions carry a Click of their own."""

QUOTED = re.compile(r"^(Invalid value for|Missing (?:argument|option|parameter)) ((?:'[^']*'(?: / )?)+)")
"""The parser quotes the names that it knows, and leaves those that a command gives as they are."""


QUOTED_NAME = r"'([^']*)'"


def usage_line(error: Any) -> str:
    """Return an error of the parser as one line, with the command whose help describes the right use.

    >>> usage_line(typer.BadParameter("expected HOST:PORT, got 'x'", param_hint="--server"))
    "flcore: invalid value for --server: expected HOST:PORT, got 'x'; see `flcore --help`"
    """
    message = QUOTED.sub(lambda found: f"{found[1]} {found[2].replace(chr(39), '')}", error.format_message())
    message = " ".join(message.split()).removesuffix(".")  # choices are on lines of their own
    message = _with_nearest(message)
    message = message.replace(": Value error, ", ": ", 1)  # Pydantic's words, by which new versions of Typer convert
    context = getattr(error, "ctx", None)
    command = "flcore" if context is None else context.command_path
    stop = "" if message.endswith("?") else ";"
    return f"flcore: {message[:1].lower()}{message[1:]}{stop} see `{command} --help`"


def _with_nearest(message: str) -> str:
    """Return an error with the one name that was meant, in the words of all other errors.

    >>> _with_nearest("No such option: --round (Possible options: --json, --out, --rounds)")
    "No such option: --round; did you mean '--rounds'?"
    >>> _with_nearest("invalid value for --what: 'metric' is not one of 'all', 'metrics'")
    "invalid value for --what: 'metric' is not one of 'all', 'metrics'; did you mean 'metrics'?"
    """
    message = re.sub(r"\. Did you mean ('.*')\?$", r"; did you mean \1?", message)
    if found := re.fullmatch(r"(No such option:? '?(-[^\s']+)'?) \(Possible options: (.+)\)", message):
        return f"{found[1]}{did_you_mean(found[2], found[3].split(', '))}"
    if found := re.search(r"'([^']*)' is not one of ('.*')$", message):
        return f"{message}{did_you_mean(found[1], re.findall(QUOTED_NAME, found[2]))}"
    return message


def is_help(error: Exception) -> bool:
    """Whether the parser has printed a group's help, because no command was given."""
    return type(error).__name__ == "NoArgsIsHelpError"
