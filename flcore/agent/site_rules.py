"""The keys of a site.toml by which a site's owner decides which jobs its agent runs, and how."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flcore.aggregation.budget import parse_size
from flcore.errors import JobError

MIN_MEMORY_BYTES = 512 << 20
"""The least memory of a job's process: Python, NumPy and gRPC with their threads reserve about 200 MiB."""

SIZE_FORMS = 'a number and a unit, such as "8GiB" or "8192MiB" (powers of 1024), or "8GB" (powers of 1000)'

TYPING_ERROR = 0.75
"""A key of the site's own that is at least so similar to a key of the agent is taken for a typing error."""


@dataclass(frozen=True)
class Hours:
    """A part of the day, in local time. It may include midnight.

    >>> night = Hours.parse("20:00-06:00")
    >>> night.include(time(5, 59)), night.include(time(6, 0))
    (True, False)
    """

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """Parse `HH:MM-HH:MM`, or raise `ValueError`."""
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if match is None:
            raise ValueError('expected two times of the day, such as "20:00-06:00"')
        begin, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        if begin == end:
            raise ValueError("expected two different times; leave the key out to run jobs at any time")
        return cls(begin, end)

    def include(self, moment: time) -> bool:
        """Whether a time of the day is in this part of it."""
        if self.begin < self.end:
            return self.begin <= moment < self.end
        return moment >= self.begin or moment < self.end

    def seconds_left(self, moment: time) -> float:
        """Return the seconds from a time of the day until the end."""
        passed = (_seconds(self.end) - _seconds(moment)) % 86_400
        return passed or 86_400.0


def _seconds(moment: time) -> float:
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6


class _SiteTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LimitsTable(_SiteTable):
    """The table `[limits]`: which jobs may run, when, and what they may use."""

    names: Annotated[list[str], Field(min_length=1)] | None = None
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    max_jobs: Annotated[int, Field(ge=1, le=1_000)] = 8
    hours: str | None = None
    memory: str | None = None
    gpus: Annotated[str, Field(pattern=r"^[A-Za-z0-9,/_-]*$")] | None = None

    @field_validator("hours")
    @classmethod
    def _require_hours(cls, hours: str | None) -> str | None:
        if hours is not None:
            Hours.parse(hours)
        return hours

    @field_validator("memory", mode="before")
    @classmethod
    def _require_memory(cls, memory: object) -> object:
        nbytes = parse_size(memory) if isinstance(memory, str) else None
        if memory is None or (nbytes is not None and nbytes >= MIN_MEMORY_BYTES):
            return memory
        expected = "at least 512MiB, which Python and its libraries need" if nbytes is not None else SIZE_FORMS
        raise ValueError(f'expected {expected}, got {memory!r}; write memory = "{_nearest_memory(str(memory))}"')

    @property
    def window(self) -> Hours | None:
        """The hours in which jobs may run; None: all."""
        return None if self.hours is None else Hours.parse(self.hours)

    @property
    def memory_bytes(self) -> int | None:
        """The memory of a job's process in bytes; None: not limited."""
        return None if self.memory is None else parse_size(self.memory)


class SiteRules(_SiteTable):
    """The agent's keys of a site.toml.

    Attributes:
        jobs: "local": jobs whose directory lies at the site; "signed": packs with the signature of one of `signers`.
        job_directories: Directories of jobs, or of several jobs each; names of bundled jobs. For `jobs = "local"`.
        same_code: Whether the code of a local directory must be the submitted one. For `jobs = "local"`.
        signers: Files with public keys. For `jobs = "signed"`.
        limits: Which of these jobs may run, when, and what they may use.
        python: The Python of the jobs' processes. None: the agent's own.
        share_logs: What the server gets of a job's output: "errors" (type and message of exceptions), "all" or "none".
    """

    jobs: Literal["local", "signed"] = "local"
    job_directories: list[str] = []
    same_code: bool = True
    signers: list[str] = []
    limits: LimitsTable = LimitsTable()
    python: str | None = None
    share_logs: Literal["errors", "all", "none"] = "errors"


def parse_site_rules(content: Mapping[str, Any], where: str) -> SiteRules:
    """Return the agent's keys of a site.toml's content.

    Other keys belong to the jobs' code. One that is similar to a key of the agent is refused: a misspelt `limits` would
    not limit anything.

    Args:
        content: The content of the site.toml.
        where: The file's name, for errors.

    Raises:
        JobError: A value is wrong, or a key is misspelt. The error names the key.
    """
    own = {key: value for key, value in content.items() if key in SiteRules.model_fields}
    for key in content.keys() - own.keys() - {"identity", "server"}:
        meant = difflib.get_close_matches(key.lower(), SiteRules.model_fields, n=1, cutoff=TYPING_ERROR)
        if meant:
            raise JobError(
                f"{where}: {key}: there is no such key; did you mean {meant[0]}? If it is your own code's, rename it, "
                "or move it into a table of your own"
            )
    try:
        rules = SiteRules.model_validate(own)
    except ValidationError as error:
        raise JobError(f"{where}: {_explain(error)}") from error
    if rules.jobs == "signed" and not rules.signers:
        raise JobError(f'{where}: signers: expected the files of public keys, as jobs = "signed" needs them, got none')
    return rules


def job_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the jobs' code gets of a site.toml's content: all but the keys of flcore."""
    return {key: value for key, value in content.items() if key not in SiteRules.model_fields and key != "identity"}


def site_path(site_file: Path | None, entry: str) -> Path:
    """Return a path of a site.toml, which is relative to the file's directory."""
    return (Path() if site_file is None else site_file.parent) / Path(entry).expanduser()


def _nearest_memory(written: str) -> str:
    """Return the valid size that is nearest to what was written: with the unit in its right case, or the least.

    >>> _nearest_memory("16 gb"), _nearest_memory("8"), _nearest_memory("8MB"), _nearest_memory("much")
    ('16GB', '8GiB', '512MiB', '512MiB')
    """
    match = re.fullmatch(r"(\d{1,9})\s*([kmgt]?)(i?)b?", written.strip(), re.IGNORECASE)
    if match is None:
        return "512MiB"
    size = f"{match[1]}{match[2].upper()}{match[3].lower()}B" if match[2] else f"{match[1]}GiB"
    return size if (parse_size(size) or 0) >= MIN_MEMORY_BYTES else "512MiB"


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return f"{key}: there is no such key; expected one of {', '.join(LimitsTable.model_fields)}"
    message = str(problem["msg"].removeprefix("Value error, "))
    return f"{key}: {message}" if ", got " in message else f"{key}: {message}, got {problem['input']!r}"
