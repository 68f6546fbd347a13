"""`flcore abort` and `flcore delete`: the end of a job, and of its files at the server."""

import json

from flcore.cli.federation_options import (
    InsecureOption,
    JobIdArgument,
    JsonOption,
    KitOption,
    ProfileOption,
    ServerOption,
    open_federation,
)


def abort(
    id: JobIdArgument,  # noqa: A002 - its name
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """End a job that waits or runs. Its files stay at the server. A lead aborts its own jobs, an admin all of them."""
    with open_federation(profile, kit, server, insecure) as federation:
        federation.job(id).abort()
    _print(id, "aborted", as_json)


def delete(
    id: JobIdArgument,  # noqa: A002 - its name
    as_json: JsonOption = False,
    profile: ProfileOption = None,
    kit: KitOption = None,
    server: ServerOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Remove a job that is over from the server, with its models, history and logs. Nothing brings it back."""
    with open_federation(profile, kit, server, insecure) as federation:
        federation.job(id).delete()
    _print(id, "deleted", as_json)


def _print(id: str, done: str, as_json: bool) -> None:  # noqa: A002 - its name
    print(json.dumps({"id": id, done: True}) if as_json else f"{id}: {done}")
