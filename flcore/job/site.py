"""What is particular to one site: its site.toml. No part of the contract, and nothing that others must match."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flcore.errors import JobError
from flcore.text import decode_text

RENAMED_VALUES = {"at-close": "batch"}
"""Values of site.toml that have another name now."""


class ServerSite(BaseModel):
    """The table `[server]` of a server's site.toml: how much memory payloads take, and when updates are folded."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    budget: str | None = None
    plan: Literal["batch", "streaming"] | None = None


def read_site(path: Path | None, directory: Path) -> dict[str, Any]:
    """Return the content of a site.toml, or of the one in the job's directory, if there is one; or raise `JobError`."""
    file = path or directory / "site.toml"
    if path is None and not file.is_file():
        return {}
    try:
        return tomllib.loads(decode_text(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise JobError(f"{file}: cannot be read: {error}") from error


def server_site(content: dict[str, Any]) -> ServerSite:
    """Return what a site.toml says about the server, or raise `JobError`."""
    try:
        return ServerSite.model_validate(content.get("server", {}))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(["server", *(str(part) for part in problem["loc"])])
        said = f"there is no such key; expected one of {', '.join(ServerSite.model_fields)}"
        if problem["type"] != "extra_forbidden":
            renamed = RENAMED_VALUES.get(str(problem["input"]))
            now = f"; it is called {renamed!r} now" if renamed else ""
            said = f"{problem['msg']}, got {problem['input']!r}{now}"
        raise JobError(f"site.toml: {place}: {said}") from error
