"""The files of a job that go into its pack, and those that are left out, with the reason.

All code goes in that import statements can reach, as `Job.code_digest` counts it. Of the other files those that the
contract names, and small texts: neither secrets nor data may leave a machine by accident.
"""

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePosixPath

from flcore.errors import PackError, SpecError
from flcore.job.code import ENVIRONMENT_MARKERS, OWN_PACKAGES, code_files
from flcore.job.contract import Contract
from flcore.job.nearest import file_advice
from flcore.job.pack_manifest import JOB_FILE, SITE_FILE
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX
from flcore.model.shard_layout import read_index
from flcore.model.stored_model import resolve_checkpoint

TEXT_SUFFIXES = (".py", ".toml", ".json", ".txt", ".md", ".yaml")
MAX_TEXT_BYTES = 1 << 20

FOLDERS_LEFT_OUT = {
    "runs": "results of runs",
    "data": "data",
    "datasets": "data",
    "__pycache__": "a cache",
    "node_modules": "an environment",
}
"""Names of directories of which only code goes in, in any case of letters, and what they hold."""

MARKERS_LEFT_OUT = {
    **dict.fromkeys(ENVIRONMENT_MARKERS, "an environment"),
    "run.json": "results of a run",
    "federation.sqlite": "a federation",
    "ca.pem": "certificates",
    "authority": "certificates",
}
"""Entries by which a directory is known as one of which only code goes in."""


@dataclass(frozen=True)
class LeftOut:
    """A file or a directory (its name ends in a slash) that does not go into a pack."""

    name: str
    reason: str


@dataclass(frozen=True)
class JobFiles:
    """The files of a job's directory.

    Attributes:
        packed: The path or the content of each file that goes in, by its name in the pack. job.toml is not among them.
        left_out: The others, sorted by name; a directory stands for its files.
    """

    packed: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def find_job_files(contract: Contract, directory: Path) -> JobFiles:
    """Return the files of a job.

    Raises:
        PackError: The contract names a file that does not exist or that lies elsewhere, or the code has an extension
            module.
    """
    needed = {*_code(contract, directory), *_checkpoint_files(contract, directory)}
    names: dict[str, Path | bytes] = {path.relative_to(directory).as_posix(): path for path in needed}
    found = JobFiles(names)
    _add_texts(directory, "", found)
    found.packed.pop(JOB_FILE, None)
    found.left_out.sort(key=lambda entry: entry.name)
    return found


def require_files(contract: Contract, names: Collection[str]) -> None:
    """Raise `ValueError` where a contract names a file that is not among those of its pack."""
    for name in contract.code_files:
        if PurePosixPath(name).as_posix() not in names:
            raise ValueError(f"job.toml: expected the files that it names in the pack, got none called {name!r}")
    model = contract.checkpoint
    if model is not None:
        path = PurePosixPath(model)
        forms = (path, path / f"model{MODEL_SUFFIX}", path / f"model{INDEX_SUFFIX}")
        index = path.with_name(path.name.removesuffix(MODEL_SUFFIX) + INDEX_SUFFIX) if path.name else path
        if set(names).isdisjoint(form.as_posix() for form in (*forms, index)):
            raise ValueError(f"job.toml: server.model: expected a checkpoint in the pack, got none called {model!r}")


def _code(contract: Contract, directory: Path) -> set[Path]:
    files = set(code_files(directory))
    for name in contract.code_files:
        path = directory / name
        if not path.is_file():
            raise PackError(f"{directory / JOB_FILE}: it names {name}, and there is no file {path}{file_advice(path)}")
        files |= {path, *code_files(path.parent)}
    compiled = sorted(str(path) for path in files if path.name.endswith(tuple(EXTENSION_SUFFIXES)))
    if compiled:
        raise PackError(
            f"{compiled[0]}: expected sources, got an extension module, which fits one platform; install it at the "
            f"sites as a package, and take it out of the job's directory"
        )
    return files


def _checkpoint_files(contract: Contract, directory: Path) -> Iterator[Path]:
    if contract.checkpoint is None:
        return
    where = f"{directory / JOB_FILE}: server.model"
    relative = PurePosixPath(contract.checkpoint)
    if relative.is_absolute() or ".." in relative.parts:
        raise PackError(f"{where}: expected a checkpoint in the job's directory, got {relative}; copy it there")
    path = resolve_checkpoint(directory / relative)
    try:
        shards = set(read_index(path).values()) if path.name.endswith(INDEX_SUFFIX) else set()
    except (OSError, SpecError) as error:
        raise PackError(f"{where}: {error}") from error
    for file in (path, *(path.with_name(shard) for shard in sorted(shards))):
        if not file.is_file():
            raise PackError(f"{where}: there is no file {file}{file_advice(file)}")
        yield file


def _add_texts(directory: Path, prefix: str, found: JobFiles) -> None:
    """Add the texts of a directory and of those in it; note what is left out."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.is_dir():
            reason = _folder_reason(entry, is_root=not prefix)
            if reason is None:
                _add_texts(Path(entry.path), f"{name}/", found)
            else:
                found.left_out.append(LeftOut(f"{name}/", reason))
        elif name not in found.packed and name != JOB_FILE:
            reason = _file_reason(entry)
            if reason is None:
                found.packed[name] = Path(entry.path)
            else:
                found.left_out.append(LeftOut(name, reason))


def _folder_reason(entry: os.DirEntry[str], *, is_root: bool) -> str | None:
    """Say why the texts of a directory are left out; None if they are not."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink():
        return "a link to a directory"
    if is_root and entry.name in OWN_PACKAGES:
        return "flcore itself"
    kind = FOLDERS_LEFT_OUT.get(entry.name.lower())
    kinds = (kind for marker, kind in MARKERS_LEFT_OUT.items() if Path(entry.path, marker).exists())
    return kind or next(kinds, None)


def _file_reason(entry: os.DirEntry[str]) -> str | None:
    """Say why a file is left out; None if it is not."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.name.lower() == SITE_FILE:
        return "each site has its own"
    if not entry.name.isprintable():
        return "its name has characters that are no text"
    if not entry.name.endswith(TEXT_SUFFIXES):
        return f"not of the kinds {' '.join(TEXT_SUFFIXES)}"
    try:
        status = entry.stat()
    except OSError:
        return "a broken link"
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    if status.st_size > MAX_TEXT_BYTES:
        return f"over {MAX_TEXT_BYTES >> 20} MiB"
    return None
