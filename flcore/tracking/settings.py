"""The table `[tracking]` of a server's site.toml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flcore.aggregation.budget import parse_size
from flcore.errors import JobError
from flcore.text import did_you_mean, printable

DEFAULT_MAX_MODEL = "1GiB"
DEFAULT_TIMEOUT_S = 30.0


class MlflowSettings(BaseModel):
    """The table `tracking.mlflow`.

    Attributes:
        uri: A directory, or the URI of a tracking server or a database.
        experiment: The name of the experiment. None: the contract's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    uri: str = Field(min_length=1)
    experiment: str | None = Field(default=None, min_length=1)


class WandbSettings(BaseModel):
    """The table `tracking.wandb`.

    Attributes:
        project: The name of the project.
        entity: The user or team that owns it. None: the account's default.
        mode: "offline": files only. "online": sent to the service of `WANDB_BASE_URL`, with the key in `WANDB_API_KEY`.
        directory: The directory in which the directory `wandb` is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    project: str = Field(min_length=1)
    entity: str | None = Field(default=None, min_length=1)
    mode: Literal["offline", "online"] = "offline"
    directory: str = "."


class TrackingSettings(BaseModel):
    """The table `tracking`.

    Attributes:
        tensorboard: The directory of event files. None: no TensorBoard.
        mlflow: A directory or a URI, or a table. None: no MLflow.
        wandb: None: no Weights & Biases.
        max_model: The largest best model that is kept as an artifact, such as "1GiB".
        timeout_s: How long the end of a run waits for the trackers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tensorboard: str | None = Field(default=None, min_length=1)
    mlflow: MlflowSettings | None = None
    wandb: WandbSettings | None = None
    max_model: str = DEFAULT_MAX_MODEL
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=3_600, allow_inf_nan=False)

    @field_validator("mlflow", mode="before")
    @classmethod
    def _from_uri(cls, given: Any) -> Any:
        return {"uri": given} if isinstance(given, str) else given

    @field_validator("max_model")
    @classmethod
    def _require_size(cls, given: str) -> str:
        if parse_size(given) is None:
            raise ValueError("expected a number and a unit, such as 512MiB")
        return given

    @property
    def max_model_bytes(self) -> int:
        """The largest best model that is kept as an artifact, in bytes."""
        return parse_size(self.max_model) or 0


TABLES: Mapping[str, type[BaseModel]] = {"mlflow": MlflowSettings, "wandb": WandbSettings}


def tracking_settings(content: dict[str, Any], directory: Path) -> TrackingSettings:
    """Return the table `[tracking]` of a site.toml.

    Args:
        content: The content of the site.toml.
        directory: Its directory: relative paths are relative to it.

    Returns:
        The settings; those without a tracker if the file has no such table.

    Raises:
        JobError: A key is not known, or a value is wrong. The error names the key.
    """
    try:
        settings = TrackingSettings.model_validate(content.get("tracking", {}))
    except ValidationError as error:
        raise JobError(f"site.toml: {_explain(error)}") from error
    changes: dict[str, Any] = {}
    if settings.tensorboard is not None:
        changes["tensorboard"] = str(directory.absolute() / settings.tensorboard)
    if settings.mlflow is not None and not is_uri(settings.mlflow.uri):
        changes["mlflow"] = settings.mlflow.model_copy(update={"uri": str(directory.absolute() / settings.mlflow.uri)})
    if settings.wandb is not None:
        place = str(directory.absolute() / settings.wandb.directory)
        changes["wandb"] = settings.wandb.model_copy(update={"directory": place})
    return settings.model_copy(update=changes)


def is_uri(text: str) -> bool:
    """Whether a text is a URI, and no directory.

    >>> is_uri("https://mlflow.example.org"), is_uri("sqlite:////srv/mlflow.db"), is_uri("databricks"), is_uri("mlruns")
    (True, True, True, False)
    """
    return ":" in text or text == "databricks"


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    key = printable(".".join(["tracking", *place]))
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']}, got {printable(repr(problem['input']), 100)}"
    table = TABLES.get(place[0], TrackingSettings) if len(place) > 1 else TrackingSettings
    known = table.model_fields
    return f"{key}: there is no such key, expected one of {', '.join(known)}{did_you_mean(place[-1], known)}"
