"""The code of a job: the files of its directory, loaded for one `Job` and seen by nobody else.

Each `JobCode` loads files into packages of its own, `flcore_job_1` and so on. Import statements in these files look in
the job first, and only then among what is installed: their `__builtins__` have an `__import__` that does so. So jobs
of one process may both have a `helper.py`, a job that is loaded again does what its files say now, and no library finds
a job's file in place of a module of its own. `sys.path` is not touched.
"""

import builtins
import hashlib
import importlib
import importlib.util
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from flcore.errors import JobError

OWN_PACKAGES = {"flcore", "flcore_kernels", "flcore_transport"}
"""What a job shares with us is never loaded a second time, even where a job stands in our own sources."""
ENVIRONMENT_MARKERS = ("pyvenv.cfg", "conda-meta")
"""A directory with one of these is an environment with packages, not code of the job."""

_numbers = itertools.count(1)
_code_by_package: "dict[str, JobCode]" = {}
"""Who loads the modules of a package."""


class JobCode:
    """The modules of a job's directory, loaded when they are first asked for, and from then on the same."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()  # links are not followed: a link to a file elsewhere is a file here
        self._packages: dict[Path, str] = {}
        self._directories: dict[str, Path] = {}
        self._files: dict[str, Path] = {}
        self._module_exists: dict[tuple[Path, str], bool] = {}
        self._lock = threading.RLock()  # `unload` may be called by a garbage collection in the middle of `_package`

    def load(self, reference: str, key: str) -> Any:
        """Return what `file.py`, `file.py:name` or `package.module:name` refers to.

        `key` is its place in job.toml, for errors. Raises `JobError` for what is not there or cannot be imported.
        """
        source, _, name = reference.partition(":")
        path = self._directory / source
        if source.endswith(".py") and not path.is_file():
            raise JobError(f"{key}: there is no file {path}")
        what = str(path) if source.endswith(".py") else f"module {source!r}"
        try:
            module = self._file_module(path) if source.endswith(".py") else self._module(source)
        except (ImportError, SyntaxError) as error:
            message = re.sub(r"\bflcore_job_\d+\.", "", str(error))
            raise JobError(f"{key}: {what} cannot be loaded: {message}") from error
        if not name:
            return module
        if not hasattr(module, name):
            raise JobError(f"{key}: {source} has no {name!r}")
        return getattr(module, name)

    def unload(self) -> None:
        """Take the modules out of `sys.modules`, so that they end with the last one who holds something of them."""
        with self._lock:
            packages = set(self._packages.values())
            for name in packages:
                _code_by_package.pop(name, None)
            for name in list(sys.modules):
                if name.partition(".")[0] in packages:
                    sys.modules.pop(name, None)

    def find(self, name: str, directory: str) -> ModuleSpec | None:
        """Return how a module of ours is loaded, or None if the directory has no such module."""
        if name in self._files:
            path = str(self._files[name])
            return importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, path))
        if not name.rpartition(".")[2].isidentifier():
            return None
        loaders = [(ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, [".py"])]
        found = FileFinder(directory, *loaders).find_spec(name)  # a new one: old ones do not see new files at once
        is_plain_directory = found is not None and found.loader is None
        return None if is_plain_directory and _is_environment(Path(directory, name.rpartition(".")[2])) else found

    def make_import(self, package: str) -> Callable[..., Any]:
        """Return the `__import__` of the files of a package: in the job first, beside the file before elsewhere."""
        directory = self._directories[package]

        def import_(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - as Python calls them
            locals: Mapping[str, Any] | None = None,  # noqa: A002
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> Any:
            top = name.partition(".")[0]
            root = None if level else self._package_of(top, directory)
            if root is None:
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            importlib.import_module(f"{root}.{name}")
            if fromlist:
                return builtins.__import__(f"{root}.{name}", globals, locals, fromlist)
            return sys.modules[f"{root}.{top}"]

        return import_

    def _file_module(self, path: Path) -> ModuleType:
        """Load a file by its path, which may have a name that no import statement could say."""
        package = self._package(path.parent)
        name = f"{package}.{path.stem}"
        found = self.find(name, str(path.parent))
        if found is None or found.origin != str(path):
            name = f"{package}.{path.name.replace('.', ' ')}"
            self._files[name] = path
        return importlib.import_module(name)

    def _module(self, name: str) -> ModuleType:
        root = self._package_of(name.partition(".")[0], self._directory)
        return importlib.import_module(name if root is None else f"{root}.{name}")

    def _package_of(self, top: str, directory: Path) -> str | None:
        """Return the package that has a module: that of a directory, or the job's; None if it is not the job's."""
        for place in dict.fromkeys((directory, self._directory)):
            if (place, top) not in self._module_exists:
                self._module_exists[place, top] = self._has_module(place, top)
            if self._module_exists[place, top]:
                return self._package(place)
        return None

    def _has_module(self, directory: Path, top: str) -> bool:
        if top in OWN_PACKAGES:
            return False
        found = self.find(f"flcore_job.{top}", str(directory))
        # A directory counts if there is code in it: one of data, called like a library, takes nobody's place.
        return found is not None and (found.loader is not None or any(code_files(directory / top)))

    def _package(self, directory: Path) -> str:
        """Return the name of a directory's package, which is there from now on."""
        with self._lock:
            name = self._packages.get(directory) or f"flcore_job_{next(_numbers)}"
            if name not in _code_by_package:
                _install_finder()
                spec = ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = [str(directory)]
                self._packages[directory], self._directories[name], _code_by_package[name] = name, directory, self
                sys.modules[name] = importlib.util.module_from_spec(spec)
        return name


class _SourceLoader(SourceFileLoader):
    """Loads a job's file from its source, never from compiled code, which may be that of a file edited since."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        # An import statement calls the `__import__` of its globals' builtins, in functions too.
        package = module.__name__.partition(".")[0]
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _code_by_package[package].make_import(package)}
        super().exec_module(module)


class _Finder:
    """Finds the modules of jobs for Python's import system."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG004
        owner = _code_by_package.get(name.partition(".")[0])
        return None if owner is None or not path else owner.find(name, path[0])


def _install_finder() -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def code_files(directory: Path) -> Iterator[Path]:
    """Yield the files under a directory that import statements can reach.

    These are sources and extension modules in directories whose names are identifiers: neither hidden directories nor
    environments.
    """
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(directory, followlinks=True):
        folders[:] = sorted(
            name for name in folders if name.isidentifier() and _is_unvisited(Path(place, name), visited)
        )
        if place == str(directory):
            folders[:] = [name for name in folders if name not in OWN_PACKAGES]
        for file in files:
            stem, _, suffix = file.partition(".")
            if stem.isidentifier() and f".{suffix}" in (".py", *EXTENSION_SUFFIXES) and Path(place, file).is_file():
                yield Path(place, file)


def _is_unvisited(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a directory is no environment, and is not seen yet: links may lead in a circle."""
    status = folder.stat()
    is_new = (status.st_dev, status.st_ino) not in visited
    visited.add((status.st_dev, status.st_ino))
    return is_new and not _is_environment(folder)


def _is_environment(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ENVIRONMENT_MARKERS)


def code_digest(directory: Path, named: Iterable[str] = ()) -> str:
    """Return the SHA-256 of the code of a job's directory: paths and bytes, in the order of the paths.

    Covers what can be imported: `code_files` of the directory, and of those of the files that a contract has `named`.
    """
    files = set(code_files(directory))
    for path in (directory / name for name in named):
        if path.is_file():
            files |= {path, *code_files(path.parent)}
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(directory).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
