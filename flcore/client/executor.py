"""The executor: a job's own code, one function per task name.

An executor is a module or a class. The functions named like the contract's tasks are its tasks; each takes a model
(read-only arrays by name) and a `Task`, and returns an `Update`. A class is made once, with the client's `Site`.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flcore.client.task import Site, Task, Update
from flcore.errors import JobError, TaskFailed
from flcore.job.job import Job
from flcore.model.model import Arrays

TaskFunction = Callable[[Arrays, Task], Update]


class Executor:
    """The task functions of a job at one site. Only the contract's task names are ever looked up."""

    def __init__(self, job: Job, site: Site) -> None:
        reference = job.contract.client.executor
        code = job.reference("client.executor", reference)
        if inspect.isclass(code):
            code = code(site)
        self.site = site
        self._functions: dict[str, TaskFunction] = {}
        for task in job.contract.tasks:
            function = getattr(code, task, None)
            if not callable(function):
                raise JobError(f"client.executor: {reference} has no function {task!r}, which tasks.{task} needs")
            self._functions[task] = function

    def run(self, model: Arrays, task: Task) -> Update:
        """Run a task's function; whatever it raises becomes `TaskFailed`."""
        if task.name not in self._functions:
            raise TaskFailed(f"the contract has no task {task.name!r}")
        try:
            update = self._functions[task.name](model, task)
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything; the server is told
            raise TaskFailed(f"task {task.name!r} raised {type(error).__name__}: {error}") from error
        _check(update, task.name)
        return update


def _check(update: Any, task: str) -> None:
    """Raise `TaskFailed` for what cannot even be sent. Whether an update is acceptable is the server's to say."""
    if not isinstance(update, Update):
        raise TaskFailed(f"task {task!r} returned {type(update).__name__}, expected flcore.Update")
    if isinstance(update.weight, bool) or not isinstance(update.weight, numbers.Real):
        raise TaskFailed(f"task {task!r}: the weight is a number, not {update.weight!r}")
    if not isinstance(update.arrays, Mapping) or not isinstance(update.metrics, Mapping):
        raise TaskFailed(f"task {task!r}: arrays and metrics are mappings from names")
    for name, value in update.metrics.items():
        if not isinstance(name, str) or not isinstance(value, numbers.Real | np.number):
            raise TaskFailed(f"task {task!r}: metric {name!r} is {value!r}, expected a number")
    for name, array in update.arrays.items():
        if not isinstance(array, np.ndarray | np.generic):
            raise TaskFailed(f"task {task!r}: tensor {name!r} is {type(array).__name__}, expected a NumPy array")
