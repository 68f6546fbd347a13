"""The code that a contract names: files of the job's directory, or installed modules. Never code from the network."""

import hashlib
import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from flcore.errors import JobError

_LOADING = threading.RLock()


def load_reference(reference: str, directory: Path, key: str) -> Any:
    """Return what `file.py`, `file.py:name` or `package.module:name` refers to; `key` is its place in job.toml."""
    source, _, name = reference.partition(":")
    # Clients of one process load the same file at the same time; none may see it half executed.
    with _LOADING:
        module = _file_module(directory / source, key) if source.endswith(".py") else _installed_module(source, key)
    if not name:
        return module
    if not hasattr(module, name):
        raise JobError(f"{key}: {source} has no {name!r}")
    return getattr(module, name)


def code_digest(directory: Path) -> str:
    """Return the SHA-256 of the Python files in a job's directory: their paths and bytes, in the order of the paths."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(directory).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _file_module(path: Path, key: str) -> ModuleType:
    """Execute a file of the job once per process. Its directory is importable, so that it can import its neighbours."""
    if not path.is_file():
        raise JobError(f"{key}: there is no file {path}")
    path = path.resolve()
    name = f"flcore_job_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise JobError(f"{key}: {path} cannot be loaded as Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ImportError | SyntaxError):
            raise JobError(f"{key}: {path} cannot be loaded: {error}") from error
        raise
    return module


def _installed_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise JobError(f"{key}: module {name!r} cannot be imported: {error}") from error
