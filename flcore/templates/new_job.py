"""A new job from a template: the template's files, with the job's name in place of `JOBNAME`."""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from flcore.disk_errors import ADVICE
from flcore.errors import JobError
from flcore.text import NAME_PATTERN, did_you_mean, printable

PLACEHOLDER = "JOBNAME"
FILES = ("job.toml", "train.py", "README.md")
DIRECTORY_MODE = 0o755


@dataclass(frozen=True)
class Template:
    """A template.

    Attributes:
        folder: The folder of its files, beside this module.
        packages: The distributions that its code needs, by the name of the module that it imports.
    """

    folder: str
    packages: dict[str, str]


TEMPLATES = {
    "numpy": Template("numpy", {}),
    "sklearn": Template("sklearn", {"sklearn": "scikit-learn"}),
    "torch": Template("torch", {"torch": "torch"}),
    "transformers-lora": Template(
        "transformers_lora", {"torch": "torch", "transformers": "transformers", "peft": "peft"}
    ),
}
"""Every template, by its name."""


def write_job(directory: Path, template: str) -> Sequence[str]:
    """Write a new job. Its directory appears whole or not at all.

    Args:
        directory: The job's directory. Its last part is the job's name.
        template: A key of `TEMPLATES`.

    Returns:
        The names of its files.

    Raises:
        JobError: There is no such template, the directory exists, its name cannot be that of a job, or the files cannot
            be written.

    Example:
        >>> write_job(tmp_path / "myjob", "numpy")
        ('job.toml', 'train.py', 'README.md')
        >>> (tmp_path / "myjob/job.toml").read_text().splitlines()[1]
        'name = "myjob"'
    """
    if template not in TEMPLATES:
        raise JobError(
            f"expected a template ({', '.join(TEMPLATES)}), got {printable(template, 100)!r}"
            f"{did_you_mean(template, TEMPLATES)}"
        )
    target = directory.absolute()
    if re.fullmatch(NAME_PATTERN, target.name) is None:
        raise JobError(
            "expected a job's name: a letter or digit, then at most 63 letters, digits, dots, hyphens or underscores, "
            f"got {printable(target.name, 100)!r}; choose another one"
        )
    try:
        if target.exists() or target.is_symlink():
            raise JobError(
                f"{directory}: expected a path where there is nothing, got one that exists; choose another one"
            )
        _write(target, Path(__file__).parent / TEMPLATES[template].folder)
    except OSError as error:
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(target.parent)
        advice = ADVICE.get(error.errno or 0, "give a path in a directory of your own")
        raise JobError(
            f"{printable(str(directory))}: cannot be written: {printable(place)}: {error.strerror}; {advice}"
        ) from error
    return FILES


def _write(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))
    try:
        for name in FILES:
            text = (source / name).read_text(encoding="utf-8")
            (hidden / name).write_text(text.replace(PLACEHOLDER, target.name), encoding="utf-8")
        hidden.chmod(DIRECTORY_MODE)  # a temporary directory is its owner's alone
        hidden.rename(target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def missing_packages(template: str) -> list[str]:
    """Return the distributions that a template's code needs and that are not installed here."""
    needed = TEMPLATES[template].packages
    return [package for module, package in needed.items() if find_spec(module) is None]
