"""Tables in HTML, by which notebooks show objects. All text is escaped: names and metrics come from clients."""

from collections.abc import Sequence
from html import escape

from flcore.text import printable

MAX_TEXT = 200
"""The most characters of a cell."""

MAX_ROWS = 50
"""The most rows of a table."""


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], left_out: int = 0) -> str:
    """Return a table.

    Args:
        caption: The line above the table.
        head: The names of the columns.
        rows: The cells as text, row by row.
        left_out: The number of rows that are not shown. Default: 0.

    >>> html_table("<b>", ["name"], [["x"]]).partition("<thead>")[0]
    '<table><caption>&lt;b&gt;</caption>'
    """
    body = [*rows, [f"{left_out:,} more"]] if left_out else rows
    return (
        f"<table><caption>{_text(caption)}</caption><thead>{_row(head, 'th')}</thead>"
        f"<tbody>{''.join(_row(row, 'td') for row in body)}</tbody></table>"
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(text: str) -> str:
    return escape(printable(text, MAX_TEXT))
