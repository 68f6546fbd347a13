"""What trackers get of a run: the contract as flat parameters, and a round's values by name."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from flcore.job.contract import Contract
from flcore.server.history import RoundRecord

MAX_VALUES = 5_000
"""The most values of a round."""

MAX_SITE_METRICS = 50
"""The most metrics of a site in a round. Clients give their names."""

MAX_PARAMETERS = 1_000
MAX_NAME_CHARACTERS = 64
MAX_PARAMETER_CHARACTERS = 500

Parameter = str | int | float | bool


def flat_parameters(contract: Contract) -> dict[str, Parameter]:
    """Return the keys of a contract with their values, as `job.toml` would have them: `server.rounds` and so on.

    Lists are texts, and keys without a value are left out.
    """
    return dict(islice(_flatten(contract.model_dump(mode="json")), MAX_PARAMETERS))


def round_values(record: RoundRecord) -> dict[str, float]:
    """Return the values of a round, by name.

    The names are `train/METRIC` and `validate/METRIC`, averaged by weight; `site/CLIENT/METRIC`, `site_weight/CLIENT`,
    `site_seconds/CLIENT` and `site_bytes/CLIENT`; `seconds/PHASE`, `bytes/sent`, `bytes/received`, `clients/sampled`,
    `clients/updates` and `clients/failed`. Characters of clients' names that no tracker takes are replaced by `_`.
    """
    return dict(islice(_values(record), MAX_VALUES))


def _values(record: RoundRecord) -> Iterator[tuple[str, float]]:
    for group, metrics in (("train", record.train), ("validate", record.validate)):
        for name, value in metrics.items():
            yield f"{group}/{_part(name)}", value
    for phase, seconds in record.seconds.items():
        yield f"seconds/{_part(phase)}", seconds
    yield "bytes/sent", record.bytes_sent
    yield "bytes/received", record.bytes_received
    yield "clients/sampled", len(record.sampled)
    yield "clients/updates", len(record.updates)
    yield "clients/failed", len(record.failed_clients)
    for client, part in record.updates.items():
        site = _part(client)
        yield f"site_weight/{site}", part.weight
        yield f"site_seconds/{site}", part.seconds
        yield f"site_bytes/{site}", part.bytes
        for name, value in islice(part.metrics.items(), MAX_SITE_METRICS):
            yield f"site/{site}/{_part(name)}", value


def _part(name: str) -> str:
    """Return one part of a name with the characters that all trackers take.

    >>> _part("accuracy"), _part("a/b<script>"), _part("..")
    ('accuracy', 'a_b_script_', '_')
    """
    taken = re.sub(r"[^A-Za-z0-9_.\- ]", "_", name[:MAX_NAME_CHARACTERS]).strip(" .")
    return taken or "_"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    for key, value in table.items():
        name = f"{prefix}{_part(key)}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, bool | int | float):
            yield name, value
        elif value is not None:
            text = value if isinstance(value, str) else str(value)
            yield name, text[:MAX_PARAMETER_CHARACTERS]
