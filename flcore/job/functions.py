"""A job's code as functions of a running program, such as a notebook, instead of files.

On this machine the functions run as they are. A pack, and worker processes, get a file with their source instead: it
may use its own functions, what it imports inside them, built-in names and `flcore`, and nothing else of the program.
"""

import ast
import builtins
import inspect
import symtable
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from flcore.errors import JobError, PackError
from flcore.job.code import CodeDigest
from flcore.text import printable

FUNCTIONS_FILE = "functions.py"
"""The file of the functions' source, by which the contract names them."""

INITIAL_MODEL = "initial_model"

PRELUDE = "from __future__ import annotations\n\nimport flcore"
"""The begin of the file. Annotations are not evaluated, so they may use any name."""
KNOWN_NAMES = {*dir(builtins), "flcore", "__name__", "__file__"}
"""Names that every function of the file may use."""

Definition = Callable[..., Any]
"""A function or a class."""


@dataclass(frozen=True)
class JobFunctions:
    """The functions of a job.

    Attributes:
        model: Returns the first global model.
        tasks: The function of each task, by the task's name.
        uses: Functions and classes that these use, and modules that the file imports for all of them.
    """

    model: Definition
    tasks: Mapping[str, Definition]
    uses: tuple[Definition | ModuleType, ...] = ()

    def load(self, reference: str, key: str) -> Any:
        """Return the executor, or the function of the first model, as the contract names them.

        Raises:
            JobError: The reference is another one.
        """
        if reference == FUNCTIONS_FILE:
            return SimpleNamespace(**self.tasks)
        if reference == f"{FUNCTIONS_FILE}:{INITIAL_MODEL}":
            return self.model
        raise JobError(
            f"{key}: expected a bundled name, as a job of functions has no files, got {printable(reference, 100)}; "
            f"write a job's directory to use code of your own here (flcore new)"
        )

    @property
    def digest(self) -> str:
        """The digest of the functions' file, as `code_digest` computes it; of their bytecode if they have no source."""
        digest = CodeDigest()
        try:
            content = self._text().encode()
        except PackError:
            content = repr([_compiled(each) for each in self._definitions()]).encode("utf-8", "backslashreplace")
        digest.begin(FUNCTIONS_FILE, len(content))
        digest.update(content)
        return digest.hexdigest()

    def file(self) -> bytes:
        """Return the file with the functions' source.

        Raises:
            PackError: A function has no source, or its source uses names of the program that are not in the file. The
                error lists them, with what to do about each.
        """
        text = self._text()
        known = {*self._names(), *self._imports(), *KNOWN_NAMES}
        missing: dict[str, list[Definition]] = {}
        for each in self._definitions():
            for name in sorted(_names_used(_source(each)) - known):
                missing.setdefault(name, []).append(each)
        if missing:
            listed = "; ".join(f"{name} in {_shown(users)}: {_advice(name, users)}" for name, users in missing.items())
            raise PackError(
                f"expected functions that can stand in a file of their own, got names that they do not define or "
                f"import themselves: {listed}"
            )
        return text.encode()

    def _definitions(self) -> Iterator[Definition]:
        """Yield each function and class once."""
        used = (each for each in self.uses if not isinstance(each, ModuleType))
        yield from {id(each): each for each in (*used, self.model, *self.tasks.values())}.values()

    def _imports(self) -> dict[str, ModuleType]:
        """Return the modules of `uses` by the names that the functions have for them."""
        modules = [each for each in self.uses if isinstance(each, ModuleType)]
        imports: dict[str, ModuleType] = {}
        for each in self._definitions():
            for name in _names_used(_source(each)) if modules else ():
                value = _value(name, each)
                if value in modules and imports.setdefault(name, value) is not value:
                    raise PackError(f"expected each name to mean one module, got two for {name}; rename one of them")
        return imports

    def _names(self) -> dict[str, Definition]:
        """Return the names that the file defines. Raises `PackError` if a name would mean two things."""
        roles = [(INITIAL_MODEL, self.model), *self.tasks.items()]
        names: dict[str, Definition] = {}
        for name, each in [*((_name(each), each) for each in self._definitions()), *roles]:
            if names.setdefault(name, each) is not each:
                raise PackError(f"expected each name to mean one function, got two for {name}; rename one of them")
        return names

    def _text(self) -> str:
        imports = sorted(_import_statement(name, each) for name, each in self._imports().items())
        aliases = [f"{name} = {each.__name__}" for name, each in self._names().items() if name != each.__name__]
        parts = [
            "\n".join([PRELUDE, *imports]),
            *map(_source, self._definitions()),
            *(["\n".join(aliases)] if aliases else []),
        ]
        return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _name(definition: Definition) -> str:
    """Return the name of a function or class. Raises `PackError` for methods of an object and other callables."""
    if not inspect.isclass(definition) and not inspect.isfunction(inspect.unwrap(definition)):
        raise PackError(f"expected a function that is written with def, got {type(definition).__name__}; write one")
    return definition.__name__


def _source(definition: Definition) -> str:
    """Return the source of a function or class. Raises `PackError` if there is none that could stand in a file."""
    name = _name(definition)
    try:
        text = _class_source(definition) if inspect.isclass(definition) else inspect.getsource(definition)
    except (OSError, TypeError) as error:
        raise PackError(
            f"{name}: expected a function with source, got one without; write it with def: {error}"
        ) from error
    text = textwrap.dedent(text)
    if not text.lstrip().startswith(("def ", "class ", "@")):
        raise PackError(f"{name}: expected a function that is written with def, got one that is not; write it with def")
    _require_own_name(name, text)
    return text


def _require_own_name(name: str, text: str) -> None:
    """Raise `PackError` unless a source defines this name, at its top level."""
    try:
        defined = getattr(ast.parse(text).body[0], "name", "")
    except SyntaxError as error:
        raise PackError(
            f"{name}: expected source that can stand in a file of its own, got {error.msg}; define it at the top "
            f"level, and indent the lines of its texts as its code"
        ) from error
    if defined != name:
        raise PackError(
            f"{printable(name, 64)}: expected the name after def or class, {defined}, as its __name__, got another "
            f"one; leave __name__ as it is"
        )


def _compiled(definition: Definition) -> object:
    """Return what differs between two functions without source: bytecode, names and constants; of others, the type."""
    code = getattr(definition, "__code__", None)
    return _parts(code) if isinstance(code, CodeType) else type(definition).__qualname__


def _parts(value: object) -> object:
    """Return the code of a function, or a constant in it, as values whose text is the same in each process."""
    if isinstance(value, CodeType):
        names = value.co_names, value.co_varnames, value.co_freevars
        return value.co_code, names, [_parts(each) for each in value.co_consts]
    if isinstance(value, frozenset):
        return sorted(repr(_parts(each)) for each in value)
    return type(value).__name__, value


def _class_source(definition: type) -> str:
    """Return the source of a class, found by its methods: `inspect` finds none for the classes of a notebook."""
    for method in vars(definition).values():
        if inspect.isfunction(method) and method.__qualname__.startswith(definition.__qualname__):
            lines, _ = inspect.findsource(method)
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == definition.__name__:
                    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                    return "".join(lines[first - 1 : node.end_lineno])
    raise OSError("no method of the class has source")


def _names_used(source: str) -> set[str]:
    """Return the names that a source uses and neither defines nor imports in the same scope; not in annotations."""
    text = ast.unparse(_WithoutAnnotations().visit(ast.parse(source)))
    return set(_global_names(symtable.symtable(text, FUNCTIONS_FILE, "exec"), set()))


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _global_names(table: symtable.SymbolTable, defined: set[str]) -> Iterator[str]:
    is_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        # Not `is_global`, which takes a function that is called `top` for the module (in Python 3.11 and 3.12).
        is_here = symbol.is_assigned() or symbol.is_imported() if is_top else symbol.is_local() or symbol.is_free()
        if symbol.is_referenced() and not is_here and symbol.get_name() not in defined:
            yield symbol.get_name()
    if is_top:
        defined = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}
    for child in table.get_children():
        yield from _global_names(child, defined)


def _import_statement(name: str, module: ModuleType) -> str:
    return f"import {module.__name__}" + (f" as {name}" if name != module.__name__ else "")


def _shown(users: list[Definition]) -> str:
    return ", ".join(each.__name__ for each in users)


def _advice(name: str, users: list[Definition]) -> str:
    """Say what to do about a name that is missing in the file."""
    value = next((found for each in users if (found := _value(name, each)) is not None), None)
    match value:
        case None:
            return "it is not defined"
        case ModuleType():
            return f"write `{_import_statement(name, value)}` inside, or give it in uses=[{name}]"
        case _ if inspect.isclass(value) or inspect.isfunction(value):
            if value.__module__ == "__main__" or value.__module__ == users[0].__module__:
                return f"give it in uses=[{name}]"
            return f"write `from {value.__module__} import {value.__name__}` inside"
    return "set it inside, or give it in hyperparameters"


def _value(name: str, user: Definition) -> Any:
    """Return what a name means to a function or to the methods of a class; None if nothing."""
    functions = [each for each in vars(user).values() if inspect.isfunction(each)] if inspect.isclass(user) else [user]
    for function in map(inspect.unwrap, functions):
        enclosed = inspect.getclosurevars(function).nonlocals
        if name in enclosed or name in function.__globals__:
            return enclosed.get(name, function.__globals__.get(name))
    return None
