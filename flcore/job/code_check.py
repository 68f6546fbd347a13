"""The check of a job's code before it is sent: it compiles, and has what the contract names. Nothing is run."""

import ast
import difflib
import symtable
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.util import decode_source
from pathlib import Path

from flcore.errors import JobError
from flcore.job.code import find_code_files
from flcore.job.contract import Contract
from flcore.job.job import Job

DYNAMIC = {"globals", "locals", "vars", "setattr", "exec", "__getattr__"}
"""Names in a module that may give it further ones, which only running it would tell."""


@dataclass(frozen=True)
class _Module:
    """What is known of a source file without running it.

    Attributes:
        path: The file, relative to the job's directory.
        names: The names that its top level defines or imports.
        lines: The line of each function and class of the top level.
        methods: Of each class without bases and decorators, its names.
        is_complete: Whether the module has no other names.
    """

    path: str
    names: frozenset[str]
    lines: dict[str, int]
    methods: dict[str, frozenset[str]]
    is_complete: bool


def check_code(job: Job) -> None:
    """Compile the Python files of a job, and look for the functions that its contract names. Runs nothing.

    Modules that are not in the job's directory are not looked at: they may be installed at the sites only.

    Raises:
        JobError: A file is no Python of this version, or has no function that the contract names. It names file and
            line.
    """
    if job.functions is not None:  # of a running program, so they are compiled, and `JobFunctions.file` checks names
        return
    directory = job.directory.absolute()
    modules = dict[Path, _Module]()
    for path in sorted(find_code_files(directory, job.contract.code_files)):
        if path.suffix == ".py":
            modules[path] = _read(path, path.relative_to(directory).as_posix())
    for key, source, name, method in _references(job.contract):
        if (
            module := next((modules[path] for path in _places(directory, source) if path in modules), None)
        ) is not None:
            _require(module, key, name, method)


def _read(path: Path, shown: str) -> _Module:
    try:
        source = decode_source(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, shown)
            InspectLoader.source_to_code(tree, shown)  # as the loader of jobs does; the result is dropped
            table = symtable.symtable(source, shown, "exec")
    except SyntaxError as error:
        where = f"{shown}, line {error.lineno}" if error.lineno else shown
        raise JobError(
            f"{where}: expected Python {sys.version_info.major}.{sys.version_info.minor}, got a syntax error: "
            f"{error.msg}; correct the file"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise JobError(f"{shown}: expected Python, got a file that cannot be compiled: {error}") from error
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    classes = [node for node in found if isinstance(node, ast.ClassDef)]
    uses = {symbol.get_name() for each in _tables(table) for symbol in each.get_symbols()}
    has_star = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    return _Module(
        shown,
        frozenset(_defined(table)),
        {node.name: node.lineno for node in found},
        {each.name: _methods(each) for each in classes if not (each.bases or each.keywords or each.decorator_list)},
        is_complete=not (has_star or uses & DYNAMIC),
    )


def _defined(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names that a module's top level binds, and those that its functions bind as `global`."""
    for each in _tables(table):
        for symbol in each.get_symbols():
            is_global = each is table or symbol.is_declared_global()
            if is_global and (symbol.is_assigned() or symbol.is_imported()):
                yield symbol.get_name()


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _methods(node: ast.ClassDef) -> frozenset[str]:
    """Return the names that a class binds: those of its body, and attributes of `self`."""
    names = {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    names |= {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return frozenset(names)


def _references(contract: Contract) -> Iterator[tuple[str, str, str, str]]:
    """Yield what a contract names: the key, the source, the name in it, and the method of a class ("": none)."""
    server = contract.server
    named = {"server.workflow": server.workflow, "server.rule": server.rule, "baselines": contract.baselines or ""}
    if contract.checkpoint is None:
        named["server.model"] = server.model
    for key, reference in named.items():
        source, _, name = reference.partition(":")
        if name:
            yield key, source, name, ""
    source, _, name = contract.client.executor.partition(":")
    for task in contract.tasks:
        yield (f"tasks.{task}", source, name, task) if name else (f"tasks.{task}", source, task, "")


def _places(directory: Path, source: str) -> list[Path]:
    """Return where the file of a module may be."""
    if source.endswith(".py"):
        return [directory / source]
    stem = directory.joinpath(*source.split("."))
    return [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]


def _require(module: _Module, key: str, name: str, method: str) -> None:
    if not module.is_complete:
        return
    if name not in module.names:
        raise JobError(_explain(module, key, f"{name!r} at the top level of {module.path}", name))
    if method and method not in module.methods.get(name, {method}):
        where = f"{module.path}, line {module.lines[name]}"
        raise JobError(
            f"job.toml: {key}: expected a method {method!r} of the class {name} ({where}), got none; write it"
        )


def _explain(module: _Module, key: str, expected: str, name: str) -> str:
    nearest = difflib.get_close_matches(name, module.lines, 1)
    hint = f"; did you mean {nearest[0]!r} in line {module.lines[nearest[0]]}?" if nearest else "; write it there"
    return f"job.toml: {key}: expected {expected}, got no such function{hint}"
