"""flcore: a high-performance aggregation core for federated learning.

Run a job with `flcore.run` on this machine, or with `flcore server` and `flcore client` on several. Aggregate models
directly with `flcore.aggregate` and `flcore.Aggregator`. The code of a job receives a `flcore.Task` and returns a
`flcore.Update`.

A name is imported when it is first used, so that a command that needs little starts soon.
"""

import importlib
from typing import TYPE_CHECKING

import flcore.posix  # noqa: F401 - first, for a clear error on other systems
from flcore.errors import (
    AggregationError,
    BudgetError,
    ContractMismatch,
    CorruptUpdate,
    DiskError,
    FlcoreError,
    HistoryError,
    JobError,
    JobFailed,
    ModelGone,
    NoModel,
    NonFinite,
    NotInvited,
    OutOfBounds,
    QuorumError,
    RecordError,
    RunDiffers,
    RunExists,
    SpecError,
    StagingError,
    StepOverflow,
    TaskFailed,
    TensorMismatch,
    Untimely,
    UpdateError,
    WeightError,
    WorkflowDiverged,
)
from flcore.progress import progress  # not later: its module has the same name

if TYPE_CHECKING:
    from flcore.aggregation.aggregate import aggregate
    from flcore.aggregation.aggregator import Aggregator
    from flcore.aggregation.budget import Budget
    from flcore.aggregation.client_update import ClientUpdate
    from flcore.aggregation.update_tables import open_update
    from flcore.client.task import Site, Task, Update
    from flcore.job.job import Job
    from flcore.lead.connection import FederationConnection, connect
    from flcore.lead.submitted_job import SubmittedJob
    from flcore.model.checkpoint import load, open_model, save
    from flcore.model.model import Arrays, Model
    from flcore.model.model_writer import ModelWriter
    from flcore.model.spec import ModelSpec, TensorSpec
    from flcore.model.stored_model import StoredModel
    from flcore.rules.centre import centered_clip, geometric_median
    from flcore.rules.chains import chain
    from flcore.rules.clipping import arc, clip_norm, clipped_mean
    from flcore.rules.effect import RuleEffect
    from flcore.rules.kinds import Chain, Columns, Geometry, ServerStep, Stage, Sum
    from flcore.rules.mixing import bucketing, nnm
    from flcore.rules.named import OPTIMIZERS, RULES, STAGES
    from flcore.rules.order import meamed, median, trimmed_mean
    from flcore.rules.points import Mixture, Points
    from flcore.rules.selection import bulyan, krum, mda, multi_krum
    from flcore.rules.server_optimizers import fed_adagrad, fed_adam, fed_avg_m, fed_yogi, server_lr
    from flcore.server.controller import Controller
    from flcore.server.history import Participation, RoundRecord
    from flcore.server.history_table import open_history
    from flcore.server.round_list import History
    from flcore.server.serve import Outcome
    from flcore.server.updates import Updates
    from flcore.simulation.baselines import Baselines
    from flcore.simulation.run import run
    from flcore.version import __version__

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "STAGES",
    "AggregationError",
    "Aggregator",
    "Arrays",
    "Baselines",
    "Budget",
    "BudgetError",
    "Chain",
    "ClientUpdate",
    "Columns",
    "ContractMismatch",
    "Controller",
    "CorruptUpdate",
    "DiskError",
    "FederationConnection",
    "FlcoreError",
    "Geometry",
    "History",
    "HistoryError",
    "Job",
    "JobError",
    "JobFailed",
    "Mixture",
    "Model",
    "ModelGone",
    "ModelSpec",
    "ModelWriter",
    "NoModel",
    "NonFinite",
    "NotInvited",
    "OutOfBounds",
    "Outcome",
    "Participation",
    "Points",
    "QuorumError",
    "RecordError",
    "RoundRecord",
    "RuleEffect",
    "RunDiffers",
    "RunExists",
    "ServerStep",
    "Site",
    "SpecError",
    "Stage",
    "StagingError",
    "StepOverflow",
    "StoredModel",
    "SubmittedJob",
    "Sum",
    "Task",
    "TaskFailed",
    "TensorMismatch",
    "TensorSpec",
    "Untimely",
    "Update",
    "UpdateError",
    "Updates",
    "WeightError",
    "WorkflowDiverged",
    "__version__",
    "aggregate",
    "arc",
    "bucketing",
    "bulyan",
    "centered_clip",
    "chain",
    "clip_norm",
    "clipped_mean",
    "connect",
    "fed_adagrad",
    "fed_adam",
    "fed_avg_m",
    "fed_yogi",
    "geometric_median",
    "krum",
    "load",
    "mda",
    "meamed",
    "median",
    "multi_krum",
    "nnm",
    "open_history",
    "open_model",
    "open_update",
    "progress",
    "run",
    "save",
    "server_lr",
    "trimmed_mean",
]

_NAMES_BY_MODULE = {
    "flcore.aggregation.aggregate": ("aggregate",),
    "flcore.aggregation.aggregator": ("Aggregator",),
    "flcore.aggregation.budget": ("Budget",),
    "flcore.rules.chains": ("chain",),
    "flcore.rules.centre": (
        "centered_clip",
        "geometric_median",
    ),
    "flcore.aggregation.client_update": ("ClientUpdate",),
    "flcore.rules.clipping": (
        "arc",
        "clip_norm",
        "clipped_mean",
    ),
    "flcore.rules.mixing": (
        "bucketing",
        "nnm",
    ),
    "flcore.rules.points": (
        "Mixture",
        "Points",
    ),
    "flcore.rules.effect": ("RuleEffect",),
    "flcore.rules.selection": (
        "bulyan",
        "krum",
        "mda",
        "multi_krum",
    ),
    "flcore.rules.order": ("meamed", "median", "trimmed_mean"),
    "flcore.rules.kinds": ("Chain", "Columns", "Geometry", "ServerStep", "Stage", "Sum"),
    "flcore.rules.named": ("OPTIMIZERS", "RULES", "STAGES"),
    "flcore.rules.server_optimizers": ("fed_adagrad", "fed_adam", "fed_avg_m", "fed_yogi", "server_lr"),
    "flcore.aggregation.update_tables": ("open_update",),
    "flcore.client.task": ("Site", "Task", "Update"),
    "flcore.job.job": ("Job",),
    "flcore.lead.connection": ("FederationConnection", "connect"),
    "flcore.lead.submitted_job": ("SubmittedJob",),
    "flcore.model.checkpoint": ("load", "open_model", "save"),
    "flcore.model.model": ("Arrays", "Model"),
    "flcore.model.model_writer": ("ModelWriter",),
    "flcore.model.spec": ("ModelSpec", "TensorSpec"),
    "flcore.model.stored_model": ("StoredModel",),
    "flcore.server.controller": ("Controller",),
    "flcore.server.history": ("Participation", "RoundRecord"),
    "flcore.server.history_table": ("open_history",),
    "flcore.server.round_list": ("History",),
    "flcore.server.serve": ("Outcome",),
    "flcore.server.updates": ("Updates",),
    "flcore.simulation.baselines": ("Baselines",),
    "flcore.simulation.run": ("run",),
    "flcore.version": ("__version__",),
}
"""The names that are imported on first use: those of the imports above."""

_MODULES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

if not TYPE_CHECKING:  # else a type checker would take any name for one of the package

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
