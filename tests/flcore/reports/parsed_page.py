"""A page as `html.parser` reads it: whether it is well-formed, loads nothing, and which texts it shows."""

import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "link", "img", "input"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "h1", "h2", "p", "span"),
    *("dl", "dt", "dd", "div", "b", "ul", "li", "figure", "figcaption", "svg", "path", "circle", "text", "details"),
    *("summary", "table", "caption", "thead", "tbody", "tr", "th", "td"),
}
"""All tags of our pages. A text that is not escaped brings others."""

LOADING = re.compile(r"^(src|href|srcset|action|data|poster|xlink:href|on\w+)$")


class ParsedPage(HTMLParser):
    """Parses a page, and raises `AssertionError` where it is not well-formed, or may load something.

    Attributes:
        texts: The texts outside the style sheet, in order.
        tables: The rows of each table by its caption, each a list of the cells' texts.
        labels: The values of `aria-label`.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.labels: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self._caption = ""
        assert page.startswith("<!DOCTYPE html>")
        assert not re.search(r"url\(|@import|javascript:|\bhttps?://", page)
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in TAGS, tag
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)) and not [name for name in names if LOADING.match(name)], (tag, names)
        self.labels += [value for name, value in attrs if name == "aria-label"]
        if tag in ("th", "td", "tr"):
            scopes = [value for name, value in attrs if name == "scope"]
            assert bool(scopes) == (tag == "th")
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("th", "td"):
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open or not data.strip():
            return
        self.texts.append(data)
        if "caption" in self._open:
            assert data not in self.tables
            self._caption = data
            self.tables[data] = []
        elif "th" in self._open or "td" in self._open:
            self.tables[self._caption][-1][-1] += data

    @property
    def text(self) -> str:
        """All texts."""
        return "\n".join(self.texts)
