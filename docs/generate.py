"""Writes the reference pages: the keys of job.toml from the contract's model, the command line from its commands.

`python -m docs.generate` replaces the marked part of `docs/job.md` and `docs/cli.md`. `make docs` does it first, and a
test fails where a page is not what this writes.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from flcore.cli.main import command_line
from flcore.job.contract import Bounds, ClientContract, Contract, ServerContract, TaskContract, WireContract

DOCS = Path(__file__).parent
BEGIN = "<!-- begin: written by `python -m docs.generate` -->"
END = "<!-- end -->"
TABLES: dict[str, type[BaseModel]] = {
    "": Contract,
    "server": ServerContract,
    "client": ClientContract,
    "tasks.NAME": TaskContract,
    "wire": WireContract,
    "bounds": Bounds,
}
"""The tables of job.toml, in the order in which their keys stand on the page."""


def job_keys() -> str:
    """Return the tables of all keys of job.toml, a section for each of its tables."""
    return "\n".join(_keys_of(*row) for row in TABLES.items())


def _keys_of(prefix: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    lines = [f"### {f'`[{prefix}]`' if prefix else 'The job'}", ""]
    lines += ["| key | type | unit | default | effect |", "|---|---|---|---|---|"]
    for name, said in schema["properties"].items():
        if not prefix and name in ("server", "client", "tasks", "wire", "bounds"):
            continue  # a table, which has a section of its own
        key = f"{prefix}.{name}" if prefix else name
        default = "required" if name in schema.get("required", ()) else _value(said.get("default"))
        unit = "s" if name.endswith("_s") else ""
        lines.append(f"| `{key}` | {_type(said, schema)} | {unit} | {default} | {said['description']} |")
    return "\n".join([*lines, ""])


def _resolved(said: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in said:
        return said
    resolved: dict[str, Any] = schema["$defs"][said["$ref"].rpartition("/")[2]]
    return resolved


def _type(said: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the type of a key in words, from its JSON schema."""
    said = _resolved(said, schema)
    if "enum" in said or "const" in said:
        return ", ".join(f"`{value}`" for value in said.get("enum", [said.get("const")]))
    if "anyOf" in said:
        return " or ".join(_type(each, schema) for each in said["anyOf"] if each.get("type") != "null")
    if said["type"] == "array":
        inner = _resolved(said["items"], schema)
        return "list of tables" if inner["type"] == "object" else f"list of {inner['type']}s"
    return ("table" if said["type"] == "object" else str(said["type"])) + _bounds(said)


def _bounds(said: dict[str, Any]) -> str:
    below = said.get("exclusiveMaximum")
    shown = _between(said.get("minimum"), said.get("maximum"), said.get("exclusiveMinimum"))
    return shown if below is None else f"{shown}, < {_number(below)}"


def _between(least: float | None, most: float | None, above: float | None = None) -> str:
    signs = ((">", above), ("≥", least), ("≤", most))
    return ",".join(f" {sign} {_number(value)}" for sign, value in signs if value is not None)


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:g}".replace("e+0", "e").replace("e+", "e") if value >= 1e6 else f"{value:,}".removesuffix(".0")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{_number(value)}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def commands() -> str:
    """Return a section for each command: what it does, its arguments and its options."""
    app = command_line()
    before = app.registered_callback
    own = [] if before is None or before.callback is None else [_described("flcore", before.callback)]
    return "\n".join([*own, *_commands_of(app, "flcore")])


def _commands_of(group: typer.Typer, path: str) -> Iterator[str]:
    for command in group.registered_commands:
        if command.callback is not None:
            yield _described(f"{path} {command.name or command.callback.__name__}", command.callback)
    for each in group.registered_groups:
        if each.typer_instance is not None:
            yield from _commands_of(each.typer_instance, f"{path} {each.name}")


def _described(path: str, function: Callable[..., Any]) -> str:
    """Return the section of a command, from its function's signature, which typer reads too."""
    hints = get_type_hints(function, include_extras=True)
    rows, usage = [], [path]
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])
        is_required = parameter.default is inspect.Parameter.empty
        shown = info.metavar or name.upper()
        if isinstance(info, ArgumentInfo):
            usage.append(shown if is_required else f"[{shown}]")
        else:
            # In Annotated, typer's first positional argument is a declaration.
            declared = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
            flag = f"--{name.replace('_', '-')}"
            if is_required:
                usage.append(f"{flag} {shown}")
            shown = ", ".join(declared) or (f"{flag}, --no-{flag[2:]}" if kind is bool else flag)
        default = "required" if is_required else parameter.default
        rows.append((isinstance(info, OptionInfo), shown, _kind(kind, info), *_default_and_effect(default, info.help)))
    usage += ["[OPTIONS]"] if any(is_option for is_option, *_ in rows) else []
    lines = [f"## {path}", "", "```text", " ".join(usage), "```", "", _paragraphs(function.__doc__), ""]
    lines += ["| argument or option | type | default | effect |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for _, name, *cells in sorted(rows, key=lambda row: row[0])]
    return "\n".join([*lines, ""])


def _kind(kind: Any, info: Any) -> str:
    several = ""
    for inner in get_args(kind):
        if get_origin(inner) is list or inner is not type(None):
            several = ", repeatable" if get_origin(kind) is list or get_origin(inner) is list else ""
            kind = inner
            break
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    name = {bool: "flag", int: "integer", float: "number", str: "string", Path: "path"}[kind]
    if isinstance(info, OptionInfo) and info.metavar:
        name = info.metavar
    return name + _between(info.min, info.max) + several


def _default_and_effect(default: Any, help_text: str | None) -> tuple[str, str]:
    """Return the cells of a default and of the help, which has the default in brackets where it is no value."""
    before, _, after = (help_text or "").replace("\\[", "[").replace("|", "\\|").partition(" (default: ")
    told, _, rest = after.partition(")")
    value = getattr(default, "value", default)
    shown = value if value == "required" else "" if value is None or value is False else f"`{value}`"
    return told or shown, " ".join((before + rest).split())


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(each.split()) for each in (text or "").split("\n\n"))


def written(page: str, part: str) -> str:
    """Return the text of a page with its marked part replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{part}\n{END}{after}"


PAGES = {"job.md": job_keys, "cli.md": commands}


def main() -> None:
    """Write all pages anew."""
    for name, part in PAGES.items():
        page = DOCS / name
        page.write_text(written(page.read_text(encoding="utf-8"), part()), encoding="utf-8")


if __name__ == "__main__":
    main()
