"""The pictures of the docs: tests make them, and `FLCORE_PICTURES=1` keeps them in docs/."""

import os
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
ARE_KEPT = bool(os.environ.get("FLCORE_PICTURES"))


def keep(picture: Path, name: str = "") -> None:
    """Copy a picture to docs/ if pictures are kept.

    Args:
        picture: The picture.
        name: Its name there. Default: its own.
    """
    if ARE_KEPT:
        shutil.copy(picture, DOCS / (name or picture.name))
