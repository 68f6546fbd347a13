"""The settings of one site: its site.toml. They are not part of the contract; each site has its own."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flcore.errors import JobError, SpecError
from flcore.model.open_file import OpenFile
from flcore.text import decode_text

RENAMED_PLANS = {"at-close": "batch"}
"""Earlier names of plans. They are refused, in site.toml and after `--plan`, with the present name."""


MOST_CONNECTIONS = 16_000
"""The most connections that a server may be told to take: fewer than the certificates whose facts it keeps."""


class ServerSite(BaseModel):
    """The table `[server]` of a server's site.toml.

    Attributes:
        budget: The memory for payloads, such as "512MiB". None: the command line's default.
        connections: The most connections at a time. None: the command line's default.
        plan: When updates are folded. None: "batch".
        durability: When a client gets its receipt. None: "disk".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    budget: str | None = None
    connections: int | None = Field(None, ge=16, le=MOST_CONNECTIONS)
    plan: Literal["batch", "streaming"] | None = None
    durability: Literal["disk", "memory"] | None = None


def read_site(path: Path | None, directory: Path) -> dict[str, Any]:
    """Return the content of a site.toml.

    Args:
        path: The file. None: site.toml in the job's directory, if there is one.
        directory: The job's directory.

    Returns:
        The content; an empty dict if the job has no site.toml.

    Raises:
        JobError: The file cannot be read, is no regular file, or is no TOML.
    """
    file = path or directory / "site.toml"
    if path is None and not file.exists():
        return {}
    try:
        opened = OpenFile(file)  # refuses a named pipe, whose reader would wait for its writer
        content = bytearray(opened.size)
        opened.read_at([memoryview(content)], 0)
        return tomllib.loads(decode_text(bytes(content)))
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise JobError(f"{file}: cannot be read: {error}") from error


def server_site(content: dict[str, Any]) -> ServerSite:
    """Return the table `[server]` of a site.toml, or raise `JobError` with the key that is wrong."""
    try:
        return ServerSite.model_validate(content.get("server", {}))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["server", *(str(part) for part in problem["loc"])])
        fault = f"there is no such key; expected one of {', '.join(ServerSite.model_fields)}"
        if problem["type"] != "extra_forbidden":
            renamed = RENAMED_PLANS.get(str(problem["input"])) if key == "server.plan" else None
            fault = f"{problem['msg']}, got {problem['input']!r}" + (f"; it is called {renamed} now" if renamed else "")
        raise JobError(f"site.toml: {key}: {fault}") from error
