"""Profiles: the federations of a lead, each with its kit and its server. `flcore login` writes them.

They are tables of one TOML file in the user's configuration directory:

    [default]
    kit = "/home/alice/kits/alice"
    server = "fl.example.org:8470"
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from flcore.errors import ProfileError
from flcore.identity.files import PRIVATE, locked, replace_file
from flcore.text import NAME_PATTERN, decode_text, printable

DEFAULT_PROFILE = "default"
MAX_PROFILES_BYTES = 1 << 20
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
"""A key of TOML that needs no quotes."""


class Profile(BaseModel):
    """How a lead reaches one federation.

    Attributes:
        kit: The directory of the unpacked kit, absolute.
        server: The server's address, HOST:PORT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kit: str
    server: str


def profiles_path() -> Path:
    """Return the path of the user's profiles: `flcore/profiles.toml` in `$XDG_CONFIG_HOME`, or else in `~/.config`."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification has relative paths ignored.
    directory = Path(configured) if Path(configured).is_absolute() else Path.home() / ".config"
    return directory / "flcore" / "profiles.toml"


def read_profiles(path: Path) -> dict[str, Profile]:
    """Return all profiles by name; none if there is no file. Raises `ProfileError` if the file is malformed."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PROFILES_BYTES + 1)
    except FileNotFoundError:
        return {}
    try:
        if len(content) > MAX_PROFILES_BYTES:
            raise ValueError(f"expected at most {MAX_PROFILES_BYTES} bytes, got more")
        return TypeAdapter(dict[str, Profile]).validate_python(tomllib.loads(decode_text(content)))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise _malformed(path, f"{place}: expected kit and server in each profile: {problem['msg']}") from (error)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"expected TOML: {error}") from error


def find_profile(path: Path, name: str | None) -> Profile:
    """Return a profile.

    Args:
        path: The file of profiles.
        name: The profile's name. None: `default`.

    Raises:
        ProfileError: There is no such profile, or the file is malformed.
    """
    profiles, wanted = read_profiles(path), name or DEFAULT_PROFILE
    if wanted in profiles:
        return profiles[wanted]
    known = f"; the profiles are {', '.join(map(printable, sorted(profiles)))}" if profiles else ""
    option = "" if wanted == DEFAULT_PROFILE else f" --profile {printable(wanted, 80)}"
    raise ProfileError(
        f"expected a profile {printable(wanted, 80)!r} in {path}, got none{known}; write it: flcore login KIT{option} "
        f"(or give --kit)"
    )


def write_profile(path: Path, name: str, profile: Profile) -> None:
    """Add a profile, or replace the one of this name. The file is replaced atomically; only its owner can read it.

    Args:
        path: The file of profiles. Its directory is made if there is none.
        name: The profile's name.
        profile: The profile.

    Raises:
        ProfileError: The name is invalid, or the present file is malformed; it is left as it is then.
        OSError: The file cannot be written.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ProfileError(
            f"the name of a profile: expected 1 to 64 letters, digits, dots, underscores and hyphens of ASCII, the "
            f"first one a letter or a digit, got {printable(name, 100)!r}; choose another name"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):  # two logins at once: both profiles are kept
        replace_file(path, _encode(read_profiles(path) | {name: profile}), mode=PRIVATE)


def _encode(profiles: Mapping[str, Profile]) -> bytes:
    tables = [_encode_table(name, profile) for name, profile in sorted(profiles.items())]
    try:
        return "\n".join(tables).encode()
    except UnicodeEncodeError as error:
        raise ProfileError(
            f"the kit's path: expected UTF-8, got {printable(str(error.object), 200)!r}; move the kit"
        ) from error


def _encode_table(name: str, profile: Profile) -> str:
    key = name if BARE_KEY.fullmatch(name) else _quoted(name)
    return f"[{key}]\nkit = {_quoted(profile.kit)}\nserver = {_quoted(profile.server)}\n"


def _quoted(text: str) -> str:
    """Return a TOML string. JSON escapes the same way, but for one control character that TOML does not allow."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _malformed(path: Path, problem: str) -> ProfileError:
    return ProfileError(f"{path}: {problem}; correct it, or remove it and log in again (flcore login KIT)")
