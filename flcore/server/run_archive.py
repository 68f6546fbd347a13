"""An earlier run moved aside for `--fresh`: to `NAME.1` beside its directory, or inside it. A kill loses no file of it.

Only the files of a run are moved, since the directory may be a mount point, the working directory, or have other files.
The target is written to a file first. A start that finds this file moves what is left before anything else.
"""

import re
from contextlib import suppress
from pathlib import Path

from flcore.errors import RecordError
from flcore.model.atomic_replace import sync_directory, sync_file

TARGET_FILE = ".moving"
"""Names the directory that an earlier run is being moved to, relative to the run's directory."""

RUN_FILE_PATTERN = re.compile(
    r"(run|status)\.json|state\.sqlite(-wal|-shm)?|\.updates|\.published|\.optimizer|\.clients|\.changes|audit\.jsonl|results\.json|"
    r"history\.(jsonl|png)|plot\.png|report\.html|(model|best|round-\d+)(-[\w-]+)?\.safetensors(\.index\.json)?"
)


def archive_run(directory: Path) -> None:
    """Move an earlier run's files to a directory beside this one, or inside it if none can be created there.

    Other files stay where they are.
    """
    path = directory.resolve()
    try:
        _begin_in(path, path.parent)
    except OSError:  # a mount point, or a directory above that is not ours
        if (path / TARGET_FILE).exists():  # some files were moved: the others have to follow
            raise
        _begin_in(path, path)


def finish_archive(directory: Path) -> None:
    """Move what an earlier process has left of the run that it was moving aside, if there is one.

    Raises:
        RecordError: The file that names the target was altered.
    """
    path = directory.resolve()
    file = path / TARGET_FILE
    if not file.exists():
        return
    name = file.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(rf"(\.\./)?{re.escape(path.name)}\.\d+", name):
        raise RecordError(
            f"{file}: expected the directory that an earlier run is moved to, such as {path.name}.1, got "
            f"{name[:80]!r}; move the run's files by hand, and remove {TARGET_FILE}"
        )
    archive = path / name
    archive.mkdir(exist_ok=True)
    _move(path, archive)
    file.unlink()


def _begin_in(path: Path, parent: Path) -> None:
    number = 1
    while (archive := parent / f"{path.name}.{number}").exists():
        number += 1
    archive.mkdir()
    partial, file = path / f"{TARGET_FILE}.partial", path / TARGET_FILE
    try:
        partial.write_text(f"{'' if parent == path else '../'}{archive.name}\n", encoding="utf-8")
        sync_file(partial)
        partial.replace(file)
        sync_directory(path)
        _move(path, archive)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
            archive.rmdir()  # if nothing was moved
            file.unlink(missing_ok=True)
        raise
    file.unlink()


def _move(path: Path, archive: Path) -> None:
    """Move the files of a run. The record comes last: until then the archive is no run that could go on."""
    for entry in sorted(path.iterdir()):
        if RUN_FILE_PATTERN.fullmatch(entry.name):
            entry.rename(archive / entry.name)
    sync_directory(archive)
    sync_directory(path)
