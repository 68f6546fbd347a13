"""The contract: the content of job.toml. Immutable, strictly validated, and the same at the server and its clients.

Its fingerprint is the SHA-256 digest of its canonical JSON. A client that joins with another contract is refused, with
the `differences` in the error.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any, Literal

from flcore_layout import ALIASES
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator

from flcore.job.bundled_workflows import explain_misfit
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX
from flcore.rules.named import explain_invalid_rule, name_with_arguments
from flcore.text import NAME_PATTERN

Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Reference = Annotated[str, StringConstraints(pattern=r"^[^:]+\.py(:[A-Za-z_]\w*)?$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`file.py`, `file.py:name` (relative to the job's directory) or `package.module:name`."""
Hyperparameters = dict[str, JsonValue]


class _ContractTable(BaseModel):
    # The fields' descriptions are the text of docs/job.md (`python -m docs.generate`).
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ScheduleStep(_ContractTable):
    """Hyperparameters that hold from a round on."""

    from_round: int = Field(ge=1, description="The first round in which these hyperparameters hold, counted from 1.")
    hyperparameters: Hyperparameters = Field(description="The hyperparameters that replace earlier ones.")


class TaskContract(_ContractTable):
    """A task: the kind of its answers, and its hyperparameters."""

    returns: Literal["weights", "delta", "metrics"] = Field(
        description="What an answer contains: a whole model (`weights`), the difference from the model that was sent "
        "(`delta`), or no arrays (`metrics`)."
    )
    hyperparameters: Hyperparameters = Field(
        default={}, description="The task's hyperparameters. They replace those of `client.hyperparameters`."
    )
    schedule: tuple[ScheduleStep, ...] = Field(
        default=(),
        description="Changes over time: a list of `{ from_round = N, hyperparameters = {...} }`. From round N on, "
        "these hyperparameters replace earlier ones.",
    )


class ServerContract(_ContractTable):
    """The table `[server]`: the model, the workflow, the rule, and when a round closes and counts.

    An attempt at a task closes when each client has answered or failed, after `deadline_s`, or with `close_at` answers.
    A round counts if its training task has at least `quorum` updates. Otherwise `on_quorum_failure` decides.
    """

    model: str = Field(
        description="The first global model: a function of the seed that returns named arrays (`file.py:name`), or a "
        "checkpoint: `NAME.safetensors`, `NAME.safetensors.index.json`, or a directory that contains one. Published "
        "models have the checkpoint's metadata."
    )
    workflow: str = Field(
        default="fed_avg",
        description="The [workflow](workflows.md): `fed_avg`, `fed_nova`, `scaffold`, `cyclic`, "
        "`cross_site_evaluation`, `fed_eval`, `federated_statistics`, or a function of a `Controller` "
        "(`file.py:name`).",
    )
    rule: str = Field(
        default="mean",
        description="The aggregation [rule](rules.md), such as `mean`, `trimmed_mean(f=2)` or "
        "`nnm(f=2) + trimmed_mean(f=2)`, or a rule of your own (`file.py:name`). Tables are allowed, too: "
        '`{ name = "trimmed_mean", f = 2 }`, or a list of them.',
    )
    accumulate: Literal["exact", "float64", "float32"] = Field(
        default="exact",
        description="The [accumulator](glossary.md). `exact` gives the same bits for any order of arrival, any number "
        "of threads and either plan ([exact-sums.md](exact-sums.md)). `float64` and `float32` are faster.",
    )
    average_bytes: bool = Field(
        default=False,
        description="Average tensors of dtype uint8. Without it, they must not change, as they may be [packed "
        "codes](glossary.md).",
    )
    rounds: int = Field(ge=1, description="The number of rounds.")
    fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The share of the connected clients that is sampled in a round. At least the quorum is sampled.",
    )
    quorum: int = Field(
        default=1,
        ge=1,
        description="The smallest number of updates with which a training task of a round counts. A round starts when "
        "as many clients are connected.",
    )
    close_at: int | None = Field(
        default=None,
        ge=1,
        description="The number of answers of a task at which the server stops waiting for the other clients. At "
        "least the quorum.",
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        le=1e7,
        allow_inf_nan=False,
        description="The time after which an attempt at a task closes ([how a round ends](#how-a-round-ends)).",
    )
    on_quorum_failure: Literal["retry", "skip", "fail"] = Field(
        default="retry",
        description="What follows a training task below its quorum. `retry`: the missing clients are asked again. "
        "`skip`: the model stays as it is. `fail`: the job ends.",
    )
    quorum_retries: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="With `retry`: how many more attempts a training task of a round may take. With `retry` and "
        "`skip`: for how many more deadlines the server waits for the quorum to connect.",
    )
    stall_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=1e7,
        allow_inf_nan=False,
        description="The time without progress after which a transfer has stalled. The client has then failed in this "
        "attempt ([stalls](memory.md#stalls-and-slow-clients)).",
    )
    best: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*:(max|min)$",
        description="The metric that selects the best model, and its direction, such as `accuracy:max`.",
    )

    target: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*:[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$",
        description="The value of the metric of `server.best` at which the run ends early, such as `accuracy:0.95`. "
        "With `max`, this value or a larger one; with `min`, this value or a smaller one.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="The run ends early after this number of rounds in a row in which the metric of `server.best` was "
        "reported, and was no better than the best one so far.",
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Keep the model of every so many rounds in a file of its own, such as `round-00010.safetensors`. "
        "The history names it.",
    )

    @field_validator("rule", mode="before")
    @classmethod
    def _accept_table(cls, rule: Any) -> Any:
        return name_with_arguments(rule) if isinstance(rule, dict | list) else rule

    @field_validator("rule")
    @classmethod
    def _require_rule(cls, rule: str) -> str:
        if ":" not in rule and (error := explain_invalid_rule(rule, "'file.py:name'")):
            raise ValueError(error)
        return rule

    @model_validator(mode="after")
    def _require_quorum_at_close(self) -> "ServerContract":
        if self.close_at is not None and self.close_at < self.quorum:
            raise ValueError(f"close_at = {self.close_at} would close a round before its quorum of {self.quorum}")
        return self

    @model_validator(mode="after")
    def _require_metric_to_stop(self) -> "ServerContract":
        for key, value in (("target", self.target), ("patience", self.patience)):
            if value is not None and self.best is None:
                raise ValueError(f"{key} = {value!r} needs `best`, which says which metric counts, and its direction")
        if self.target is not None and self.best is not None:
            target, best = (text.partition(":")[0] for text in (self.target, self.best))
            if target != best:
                raise ValueError(f"target = {self.target!r} is for another metric than best = {self.best!r}")
        return self


class ClientContract(_ContractTable):
    """The table `[client]`: the code that executes the tasks, and hyperparameters of all tasks."""

    executor: Reference = Field(
        description="The code of the tasks: a module (`file.py`), or a class that is created once with its `Site` "
        "(`file.py:name`)."
    )
    hyperparameters: Hyperparameters = Field(default={}, description="Hyperparameters of all tasks.")


class WireContract(_ContractTable):
    """The table `[wire]`: which tensors travel, and in which dtypes.

    `download` and `upload` compress wider floats. A client adds the rounding error of an update to its next one (error
    feedback).
    """

    download: Literal["float16", "bfloat16"] | None = Field(
        default=None, description="The dtype in which wider floats travel to the clients. Default: as they are."
    )
    upload: Literal["float16", "bfloat16", "int8[32]", "int8[64]", "int8[128]", "int8[256]"] | None = Field(
        default=None,
        description="The dtype in which wider floats travel to the server. `int8[N]` has one float32 scale for each N "
        "elements and needs tasks that return `delta`. Default: as they are.",
    )
    tensors: tuple[str, ...] = Field(
        default=("*",),
        description="Patterns of tensor names (`*` and `?`), such as "
        '`["adapter.*"]`. The job leaves out all tensors that match none.',
    )

    @field_validator("download", "upload", mode="before")
    @classmethod
    def _expand_alias(cls, dtype: object) -> object:
        return ALIASES.get(dtype, dtype) if isinstance(dtype, str) else dtype


class Bounds(_ContractTable):
    """The table `[bounds]`: limits of an update. An update beyond them is refused."""

    max_weight: float = Field(default=1e9, gt=0, allow_inf_nan=False, description="The largest weight of an update.")
    max_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The largest share of one client in the sum of a round's weights. A larger weight is capped when "
        "the round is aggregated, and the history says so (`capped_weights`). At least 1 / quorum. A value below "
        "1 needs the plan `batch`.",
    )
    max_abs: float = Field(default=1e30, gt=0, allow_inf_nan=False, description="The largest magnitude of an element.")
    max_metrics: int = Field(default=256, ge=0, description="The largest number of metrics of an update.")


class Contract(_ContractTable):
    """The whole of job.toml."""

    name: Name = Field(description="The job's name. Results are written to `runs/NAME/` unless `--out` is given.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The seed. All random choices follow from it, the round and the client."
    )
    clients: Annotated[int, Field(ge=1, le=10_000)] | tuple[Name, ...] = Field(
        description="The names of the clients that may join. Or a number: then `flcore run` starts as many clients, "
        "and a client of any name may join a server."
    )
    same_code: bool = Field(
        default=False,
        description="Refuse clients whose code differs from the server's. The Python files and extension modules that "
        "the job can import are compared, except those in hidden directories and virtual environments.",
    )
    baselines: Reference | None = Field(
        default=None,
        description="A function of the `Job` that returns `flcore.Baselines`, for the table and the plot of a run.",
    )
    server: ServerContract = Field(description="What runs on the server.")
    client: ClientContract = Field(description="What runs on the clients.")
    tasks: dict[TaskName, TaskContract] = Field(description="The tasks, by name.")
    bounds: Bounds = Field(default=Bounds(), description="Limits of an update. An update beyond them is refused.")
    wire: WireContract = Field(default=WireContract(), description="What travels, and in which dtypes.")

    @model_validator(mode="after")
    def _check_consistency(self) -> "Contract":
        names = self.client_names
        if not names or len(set(names)) != len(names):
            raise ValueError("clients: expected at least one name, and each once")
        if self.server.best is not None and all(task.returns != "metrics" for task in self.tasks.values()):
            raise ValueError(f"server.best = {self.server.best!r} needs a task that returns metrics, as validate does")
        if (self.wire.upload or "").startswith("int8"):
            for name, task in self.tasks.items():
                if task.returns == "weights":
                    raise ValueError(
                        f"wire.upload = {self.wire.upload!r} is for differences; tasks.{name} returns weights"
                    )
        for file in self.code_files:
            if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
                raise ValueError(f"expected code in the job's directory, got {file!r}: move the file there")
        if self.bounds.max_share * self.server.quorum < 1:
            raise ValueError(
                f"bounds.max_share = {self.bounds.max_share:g} cannot hold with server.quorum = {self.server.quorum} "
                f"updates: expected at least 1 / quorum"
            )
        if self.server.quorum > len(names):
            raise ValueError(f"server.quorum = {self.server.quorum} is more than the {len(names)} clients")
        return self

    @model_validator(mode="after")
    def _require_tasks_of_workflow(self) -> "Contract":
        returns = {name: task.returns for name, task in self.tasks.items()}
        if misfit := explain_misfit(self.server.workflow, self.server.rounds, returns):
            raise ValueError(misfit)
        return self

    @property
    def client_names(self) -> tuple[str, ...]:
        """The clients of a run on one machine: the listed names, or client-1, client-2 and so on."""
        if isinstance(self.clients, tuple):
            return self.clients
        width = len(str(self.clients))
        return tuple(f"client-{number:0{width}d}" for number in range(1, self.clients + 1))

    def may_join(self, client: str) -> bool:
        """Whether a client of this name may join."""
        if isinstance(self.clients, tuple):
            return client in self.clients
        return re.fullmatch(NAME_PATTERN, client) is not None

    def hyperparameters(self, task: str, round_number: int) -> dict[str, Any]:
        """Merge the hyperparameters of a task in a round: later ones replace earlier ones.

        Args:
            task: The task's name.
            round_number: The round's number, from 1.

        Returns:
            The client's hyperparameters, then the task's, then those of each step of its schedule up to this round.
        """
        contract = self.tasks[task]
        merged = {**self.client.hyperparameters, **contract.hyperparameters}
        for step in sorted(contract.schedule, key=lambda step: step.from_round):
            if step.from_round <= round_number:
                merged |= step.hyperparameters
        return merged

    @property
    def code_files(self) -> list[str]:
        """The Python files that the contract names, relative to the job's directory."""
        server = self.server
        references = (server.model, server.workflow, server.rule, self.client.executor, self.baselines or "")
        sources = {reference.partition(":")[0] for reference in references}
        return sorted(source for source in sources if source.endswith(".py"))

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that `server.model` names; None if it names a function."""
        source = self.server.model
        is_file = source.endswith((MODEL_SUFFIX, INDEX_SUFFIX)) or not (":" in source or source.endswith(".py"))
        return source if is_file else None

    def to_json(self) -> str:
        """Return the canonical JSON: all keys, also those with default values, sorted, without white space."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """The SHA-256 digest of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def differences(
    server: JsonValue, client: JsonValue, one: str = "the server has", other: str = "the client has"
) -> list[str]:
    """Compare two contracts.

    Args:
        server: The server's contract, as parsed JSON.
        client: The client's contract, as parsed JSON; it may be of another version, with other keys.
        one: The words before a value of the first. Default: "the server has".
        other: The words before a value of the second. Default: "the client has".

    Returns:
        One line for each key whose values differ.
    """
    ours, theirs = dict(_leaves(server)), dict(_leaves(client))
    absent = "nothing"
    return [
        f"{key}: {one} {_truncate(ours.get(key, absent))}, {other} {_truncate(theirs.get(key, absent))}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _truncate(value: str) -> str:
    return value if len(value) <= 120 else value[:117] + "..."


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the JSON of each value that is not an object."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value)
