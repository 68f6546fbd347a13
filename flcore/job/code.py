"""The code of a job: the Python files of its directory, loaded in isolation from other jobs and from libraries.

Each `JobCode` loads files into packages of its own (`flcore_job_1` and so on). Import statements in these files find
the job's modules before installed ones, because the files' `__builtins__` have an `__import__` that looks there first.
So two jobs of one process may both have a `helper.py`, a job that is loaded again runs its edited files, and a library
never imports a job's file instead of its own module. `sys.path` is not changed.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any

from flcore.errors import JobError
from flcore.job.nearest import file_advice, function_advice

OWN_PACKAGES = {"flcore", "flcore_bench", "flcore_kernels", "flcore_layout", "flcore_transport"}
"""Packages that are always imported as installed, also by a job whose directory contains flcore's sources."""

ENVIRONMENT_MARKERS = ("pyvenv.cfg", "conda-meta")
"""A directory with one of these entries is an environment with installed packages, not code of the job."""

_numbers = itertools.count(1)
_code_by_package: "dict[str, JobCode]" = {}
"""The `JobCode` that loads the modules of each package."""


class JobCode:
    """The modules of a job's directory. Each module is loaded once, on first use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()  # not resolved: a linked file belongs to the directory of the link
        self._packages: dict[Path, str] = {}
        self._directories: dict[str, Path] = {}
        self._files: dict[str, Path] = {}
        self._module_exists: dict[tuple[Path, str], bool] = {}
        self._lock = threading.RLock()  # reentrant: a garbage collection inside `_package` may call `unload`

    def load(self, reference: str, key: str) -> Any:
        """Load a module or an object.

        Args:
            reference: `file.py`, `file.py:name` or `package.module:name`.
            key: The key of job.toml that holds the reference, for errors.

        Returns:
            The module, or the object of that name in it.

        Raises:
            JobError: The file, the module or the name does not exist, or the module raises an `ImportError` or
                `SyntaxError`. Other exceptions of the module are raised as they are.
        """
        source, _, name = reference.partition(":")
        path = self._directory / source
        if source.endswith(".py") and not path.is_file():
            raise JobError(f"{key}: there is no file {path}{file_advice(path)}")
        what = str(path) if source.endswith(".py") else f"module {source!r}"
        try:
            module = self._file_module(path) if source.endswith(".py") else self._module(source)
        except (ImportError, SyntaxError) as error:
            message = re.sub(r"\bflcore_job_\d+\.", "", str(error))  # users know `helper`, not `flcore_job_1.helper`
            raise JobError(f"{key}: {what} cannot be loaded: {message}") from error
        if not name:
            return module
        if not hasattr(module, name):
            raise JobError(f"{key}: {source} has no {name!r}{function_advice(name, vars(module))}")
        return getattr(module, name)

    def unload(self) -> None:
        """Remove the modules from `sys.modules`. They are freed when nobody refers to their objects any more."""
        with self._lock:
            packages = set(self._packages.values())
            for name in packages:
                _code_by_package.pop(name, None)
            for name in list(sys.modules):
                if name.partition(".")[0] in packages:
                    sys.modules.pop(name, None)

    def find(self, name: str, directory: str) -> ModuleSpec | None:
        """Return the import spec of a module in a directory; None if the directory has no such module."""
        if name in self._files:
            path = str(self._files[name])
            return importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, path))
        if not name.rpartition(".")[2].isidentifier():
            return None
        loaders = [(ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, [".py"])]
        found = FileFinder(directory, *loaders).find_spec(name)  # a cached finder misses new files
        is_plain_directory = found is not None and found.loader is None
        return None if is_plain_directory and _is_environment(Path(directory, name.rpartition(".")[2])) else found

    def make_import(self, package: str) -> Callable[..., Any]:
        """Return the `__import__` for the files of a package.

        It looks in the file's directory, then in the job's directory, then among installed modules.
        """
        directory = self._directories[package]

        def import_(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names of Python's `__import__`
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
        """Load a file by its path. Its name need not be an identifier, as in `my-train.py`."""
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
        """Return the package of the directory that has a module: `directory` or the job's; None if neither has it."""
        for candidate in dict.fromkeys((directory, self._directory)):
            if (candidate, top) not in self._module_exists:
                self._module_exists[candidate, top] = self._has_module(candidate, top)
            if self._module_exists[candidate, top]:
                return self._package(candidate)
        return None

    def _has_module(self, directory: Path, top: str) -> bool:
        if top in OWN_PACKAGES:
            return False
        found = self.find(f"flcore_job.{top}", str(directory))
        # Python takes any directory for a namespace package. A directory `datasets` without code must not hide the
        # installed library of that name.
        return found is not None and (found.loader is not None or any(code_files(directory / top)))

    def _package(self, directory: Path) -> str:
        """Return the name of a directory's package, and create it if needed."""
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
    """Loads a job's file from its source, never from `__pycache__`.

    Python compares times in seconds and sizes, so it would miss an edit within the second that keeps the size.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        # An import statement calls `__builtins__["__import__"]` of its module's globals, also inside functions.
        package = module.__name__.partition(".")[0]
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _code_by_package[package].make_import(package)}
        super().exec_module(module)


class _Finder:
    """The entry in `sys.meta_path` that finds the modules of all jobs."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG004
        owner = _code_by_package.get(name.partition(".")[0])
        return None if owner is None or not path else owner.find(name, path[0])


def _install_finder() -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def code_files(directory: Path) -> Iterator[Path]:
    """Yield the files under a directory that import statements can reach.

    These are sources and extension modules in directories whose names are identifiers. Hidden directories and
    environments are left out.
    """
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(directory, followlinks=True):
        # Assigning to the list in place tells os.walk where to descend.
        folders[:] = sorted(
            name for name in folders if name.isidentifier() and _is_unvisited(Path(parent, name), visited)
        )
        if parent == str(directory):
            folders[:] = [name for name in folders if name not in OWN_PACKAGES]
        for file in files:
            if _is_module_file(file) and Path(parent, file).is_file():
                yield Path(parent, file)


def _is_module_file(file: str) -> bool:
    """Whether an import statement can reach a file of this name: a source or an extension module."""
    stem, _, suffix = file.partition(".")
    return stem.isidentifier() and f".{suffix}" in (".py", *EXTENSION_SUFFIXES)


def _is_unvisited(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a directory is neither an environment nor visited before: links may form a cycle."""
    status = folder.stat()
    is_new = (status.st_dev, status.st_ino) not in visited
    visited.add((status.st_dev, status.st_ino))
    return is_new and not _is_environment(folder)


def _is_environment(folder: Path) -> bool:
    return any((folder / marker).exists() for marker in ENVIRONMENT_MARKERS)


def code_digest(directory: Path, named: Iterable[str] = ()) -> str:
    """Return the SHA-256 digest of the code of a job's directory.

    Args:
        directory: The job's directory.
        named: The files that the contract names, relative to the directory. They count even if no import statement can
            reach them, and so does the code beside them.

    Returns:
        The digest of the files' relative paths and contents, sorted by path.
    """
    digest = CodeDigest()
    for path in sorted(find_code_files(directory, named)):
        content = path.read_bytes()
        digest.begin(path.relative_to(directory).as_posix(), len(content))
        digest.update(content)
    return digest.hexdigest()


def find_code_files(directory: Path, named: Iterable[str] = ()) -> set[Path]:
    """Return the files of a job's code: those that imports can reach, and named ones with those beside them."""
    files = set(code_files(directory))
    for path in (directory / name for name in named):
        if path.is_file():
            files |= {path, *code_files(path.parent)}
    return files


def code_names(names: Collection[str], named: Iterable[str] = ()) -> set[str]:
    """Return those of a directory's files that `code_digest` counts, without the directory.

    Args:
        names: All files of the directory, relative to it, with slashes. None of them is in an environment.
        named: The files that the contract names.
    """
    paths = {PurePosixPath(name) for name in names}
    code = {path for path in paths if _is_reachable(path.parts)}
    for path in (PurePosixPath(name) for name in named):
        if path in paths:
            beside = (each for each in paths if each.is_relative_to(path.parent))
            code |= {path, *(each for each in beside if _is_reachable(each.relative_to(path.parent).parts))}
    return {path.as_posix() for path in code}


def _is_reachable(parts: Sequence[str]) -> bool:
    folders, file = parts[:-1], parts[-1]
    is_own = bool(folders) and folders[0] in OWN_PACKAGES
    return _is_module_file(file) and not is_own and all(folder.isidentifier() for folder in folders)


class CodeDigest:
    """The digest of code whose files come one by one, sorted by their paths (not by their names as text)."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, name: str, nbytes: int) -> None:
        """Begin a file, given by its relative path with slashes."""
        self._digest.update(f"{name}\0{nbytes}\0".encode())

    def update(self, content: bytes) -> None:
        """Add a part of the file's content."""
        self._digest.update(content)

    def hexdigest(self) -> str:
        """Return the digest, 64 hexadecimal digits."""
        return self._digest.hexdigest()
