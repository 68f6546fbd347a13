"""flcore: a high-performance aggregation core for federated learning.

Run a job with `flcore.run` on this machine, or with `flcore server` and `flcore client` on several. Aggregate models
directly with `flcore.aggregate` and `flcore.Aggregator`. The code of a job receives a `flcore.Task` and returns a
`flcore.Update`.
"""

import flcore.posix  # noqa: F401 - first, for a clear error on other systems
from flcore.aggregation.aggregate import aggregate
from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.budget import Budget
from flcore.aggregation.rules import RULES, Columns, Geometry, Sum
from flcore.aggregation.update_tables import open_update
from flcore.client.task import Site, Task, Update
from flcore.errors import (
    AggregationError,
    BudgetError,
    ContractMismatch,
    CorruptUpdate,
    FlcoreError,
    HistoryError,
    JobError,
    JobFailed,
    NonFinite,
    NotInvited,
    OutOfBounds,
    QuorumError,
    RunExists,
    SpecError,
    StagingError,
    TaskFailed,
    TensorMismatch,
    Untimely,
    UpdateError,
    WeightError,
)
from flcore.job.job import Job
from flcore.model.checkpoint import load, open_model, save
from flcore.model.model import Arrays, Model
from flcore.model.model_writer import ModelWriter
from flcore.model.spec import ModelSpec, TensorSpec
from flcore.model.stored_model import StoredModel
from flcore.server.controller import Controller, Updates
from flcore.server.history import Participation, RoundRecord
from flcore.server.history_table import open_history
from flcore.server.serve import Outcome
from flcore.simulation.baselines import Baselines
from flcore.simulation.run import run
from flcore.version import __version__

__all__ = [
    "RULES",
    "AggregationError",
    "Aggregator",
    "Arrays",
    "Baselines",
    "Budget",
    "BudgetError",
    "Columns",
    "ContractMismatch",
    "Controller",
    "CorruptUpdate",
    "FlcoreError",
    "Geometry",
    "HistoryError",
    "Job",
    "JobError",
    "JobFailed",
    "Model",
    "ModelSpec",
    "ModelWriter",
    "NonFinite",
    "NotInvited",
    "OutOfBounds",
    "Outcome",
    "Participation",
    "QuorumError",
    "RoundRecord",
    "RunExists",
    "Site",
    "SpecError",
    "StagingError",
    "StoredModel",
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
    "__version__",
    "aggregate",
    "load",
    "open_history",
    "open_model",
    "open_update",
    "run",
    "save",
]
