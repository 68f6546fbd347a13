"""Hooks of mkdocs: pages that are files elsewhere in the repository, and links between all of them."""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

logger = logging.getLogger("mkdocs.hooks.flcore")

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/RESULTS.md": "results.md",
}
"""Files of the repository that are pages of the site, by their paths."""

FENCED = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*\bhref=\"(?:https?:)?//")
"""What a browser would load from another host."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the included files as pages."""
    for source, page in INCLUDED.items():
        text = _linked((ROOT / source).read_text(encoding="utf-8"), source)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to included files into links to their pages."""
    name = page.file.src_uri
    return markdown if name in INCLUDED.values() else _linked(markdown, f"docs/{name}")


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Warn of a page that would load something from another host; with `--strict`, a warning ends the build."""
    for tag in LOADED.findall(output):
        if 'rel="canonical"' not in tag:
            logger.warning("%s loads something from another host: %s", page.file.src_uri, tag)
    return output


def _linked(markdown: str, source: str) -> str:
    """Return the text of a file of the repository with links as they are on the site, where all pages lie together.

    A link to a file that is no page, such as the license, becomes its text.
    """

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path not in INCLUDED and not path.startswith("docs/"):
            if not (ROOT / path).exists():
                logger.warning("%s links to %s, which does not exist", source, path)
            return text
        page = INCLUDED.get(path) or path.removeprefix("docs/")
        return f"{image}[{text}]({page}{anchor or ''})"

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)
