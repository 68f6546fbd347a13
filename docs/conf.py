"""The documentation site, by Sphinx: `make docs` writes it to site/. Nothing in it is loaded from another host.

The root of the sources is the repository. So README.md, ARCHITECTURE.md and others are pages without a copy, and links
between files are links between pages. `docs/index.md` lists all pages. The navigation is generated from its lists.
"""

import re
from pathlib import Path
from typing import Any

project = "flcore"
copyright = "The flcore authors, Apache-2.0"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "bench/RESULTS.md"]
exclude_patterns = [".*", "site", "runs"]

html_theme = "furo"
html_title = "flcore"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3  # `page.md#a-heading`; a link to one that does not exist is a warning
smartquotes = False  # `--option` in plain text stays as it is typed
default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*\bhref=\"(?:https?:)?//")
"""What a browser would load from another host."""


def add_navigation(_app: Any, page: str, source: list[str]) -> None:
    """Make the navigation of the lists of `docs/index.md`: each section's pages, under its heading."""
    if page == root_doc:
        for section in source[0].split("\n## ")[1:]:
            entries = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\.md\)", section, re.MULTILINE)
            lines = [f"{title} <{target}>" for title, target in entries]
            caption = section.partition("\n")[0]
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def finish(app: Any, error: Exception | None) -> None:
    """Lead the site's root to its first page; refuse pages that would load something from another host."""
    if error is None:
        site = Path(app.outdir)
        (site / "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">\n')
        for page in site.rglob("*.html"):
            if found := LOADED.search(page.read_text(encoding="utf-8")):
                raise ValueError(f"{page}: loads something from another host: {found[0]}")


def setup(app: Any) -> None:
    """Take part in the build."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", finish)
