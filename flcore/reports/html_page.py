"""The parts of a self-contained HTML page: its frame with inline CSS, tables, and text that is always escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from flcore.text import printable

MAX_TEXT_CHARACTERS = 300


@dataclass(frozen=True)
class Markup:
    """HTML that is written as it is. A `str` is text, and is escaped."""

    html: str


Cell = str | Markup


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it has numbers, which are aligned to the right."""

    heading: str
    is_number: bool = False


def text(value: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text as HTML: of bounded length, on one line, escaped."""
    return escape(printable(value, limit))


def html_of(cell: Cell) -> str:
    """Return a cell's content as HTML."""
    return cell.html if isinstance(cell, Markup) else text(cell)


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], style: str = "") -> str:
    """Return a table with a caption. The first cell of each row is its heading.

    Args:
        caption: What the table shows; text.
        columns: The columns.
        rows: The cells of each row.
        style: A CSS class. Default: none.
    """
    is_stacked = "wrap" in style.split()  # on a narrow screen each row is a block, and each cell has its heading
    body = f"<tbody>{_rows(columns, rows, is_stacked)}</tbody>"
    return _table(caption, columns, body, f"{style} stacked" if is_stacked else style)


def grouped_table(
    caption: str, columns: Sequence[Column], groups: Mapping[str, Iterable[Sequence[Cell]]], style: str = ""
) -> str:
    """Return a table like `table`, whose rows are in groups; each group begins with its title."""
    body = "".join(
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(columns)}">{text(title)}</th></tr>'
        f"{_rows(columns, rows)}</tbody>"
        for title, rows in groups.items()
    )
    return _table(caption, columns, body, style)


def _table(caption: str, columns: Sequence[Column], body: str, style: str) -> str:
    heads = "".join(f'<th scope="col"{_class(column)}>{text(column.heading)}</th>' for column in columns)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{style}"><caption>{text(caption)}</caption><thead><tr>{heads}</tr></thead>{body}</table></div>'
    )


def _rows(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], is_stacked: bool = False) -> str:
    first_class, *classes = [_class(column) for column in columns]
    if is_stacked:
        labels = [f' data-label="{text(column.heading)}"' for column in columns[1:]]
        classes = [kind + label for kind, label in zip(classes, labels, strict=True)]
    found = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{html_of(cell)}</td>" for cell, kind in zip(rest, classes, strict=True))
        found.append(f'<tr><th scope="row"{first_class}>{html_of(first)}</th>{cells}</tr>')
    return "".join(found)


def _class(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def section(title: str, *content: str) -> str:
    """Return a section with a heading. Without content there is none."""
    inner = "".join(content)
    return f"<section><h2>{text(title)}</h2>{inner}</section>" if inner else ""


def folded(summary: str, *content: str, is_open: bool = False) -> str:
    """Return content that the reader opens and closes."""
    return f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{''.join(content)}</details>"


def paragraph(content: str, style: str = "") -> str:
    """Return a paragraph of text."""
    return f'<p class="{style}">{text(content, 1_000)}</p>' if style else f"<p>{text(content, 1_000)}</p>"


def page(title: str, *content: str) -> str:
    """Return a page. It loads nothing, and has no script."""
    css = files("flcore.reports").joinpath("page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(each for each in content if each)
        + "\n</main>\n</body>\n</html>\n"
    )
