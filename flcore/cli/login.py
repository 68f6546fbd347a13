"""`flcore login`: which kit and which server the commands of a lead use."""

import json
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import Unreachable

from flcore.cli.federation_options import JsonOption, ServerOption, say
from flcore.lead.connection import connect
from flcore.lead.profile import DEFAULT_PROFILE, Profile, profiles_path, write_profile


def login(
    kit: Annotated[Path, typer.Argument(help="Directory of the lead's unpacked kit.")],
    profile: Annotated[str, typer.Option(metavar="NAME", help="Name of the profile.")] = DEFAULT_PROFILE,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remember a kit and its server in a profile, which the commands of a lead use.

    The server is asked whether it admits the kit, and nothing is written if it does not. While it cannot be reached,
    the profile is written unchecked, with a note.
    """
    path = profiles_path()
    with connect(kit=kit, server=server) as federation:
        problem = ""
        try:
            federation.jobs(limit=1)
        except Unreachable as error:
            problem = str(error)
        write_profile(path, profile, Profile(kit=str(kit.resolve()), server=federation.address))
        if as_json:
            report = {"profile": profile, "path": str(path), "kit": str(kit.resolve()), "server": federation.address}
            print(json.dumps({**report, "lead": federation.caller, "answers": not problem}))
        else:
            print(f"profile {profile}: {federation.caller}, server {federation.address} ({path})")
    if problem:
        say(f"flcore: {problem}; the profile is written, unchecked: try `flcore list` when the server runs")
