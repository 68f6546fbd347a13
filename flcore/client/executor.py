"""The executor: a job's own code, one function per task name.

An executor is a module or a class. The functions named like the contract's tasks are its tasks; each takes a model
(read-only arrays by name) and a `Task`, and returns an `Update`. A class is made once, with the client's `Site`.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from flcore.client.task import Site, Task, Update
from flcore.errors import JobError, SpecError, TaskFailed
from flcore.job.job import Job
from flcore.model.arrays import flattened, metadata_of
from flcore.model.model import Arrays

TaskFunction = Callable[[Arrays, Task], Update]


class Executor:
    """The task functions of a job at one site. Only the contract's task names are ever looked up."""

    def __init__(self, job: Job, site: Site) -> None:
        code = job.reference("client.executor", job.contract.client.executor)
        self.site = site
        self._functions = _functions(job, _made(code, site) if inspect.isclass(code) else code)

    def run(self, model: Arrays, task: Task) -> Update:
        """Run a task's function; whatever it raises becomes `TaskFailed`."""
        if task.name not in self._functions:
            raise TaskFailed(f"the contract has no task {task.name!r}")
        try:
            update = self._functions[task.name](model, task)
        except (Exception, SystemExit) as error:
            raise TaskFailed(f"task {task.name!r} raised {type(error).__name__}: {error}") from error
        _check(update, task.name)
        return update


def require_tasks(job: Job) -> None:
    """Raise `JobError` unless a job's executor has a function for each task. Makes no executor, reads no data."""
    _functions(job, job.reference("client.executor", job.contract.client.executor))


def _made(make: Callable[[Site], Any], site: Site) -> Any:
    try:
        return make(site)
    except Exception as error:
        raise JobError(f"client.executor: client {site.name!r}: {type(error).__name__}: {error}") from error


def _functions(job: Job, code: Any) -> dict[str, TaskFunction]:
    functions: dict[str, TaskFunction] = {}
    for task in job.contract.tasks:
        function = getattr(code, task, None)
        if not callable(function):
            where = f"client.executor: {job.contract.client.executor}"
            raise JobError(f"{where} has no function {task!r}, which tasks.{task} needs")
        functions[task] = function
    return functions


def _check(update: Any, task: str) -> None:
    """Raise `TaskFailed` for what cannot even be sent. Whether an update is acceptable is the server's to say."""
    if not isinstance(update, Update):
        raise TaskFailed(f"task {task!r} returned {type(update).__name__}, expected flcore.Update")
    weight: Any = update.weight
    parts: tuple[Any, Any] = update.arrays, update.metrics
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TaskFailed(f"task {task!r}: the weight is a number, not {weight!r}")
    if not all(isinstance(part, Mapping) for part in parts):
        raise TaskFailed(f"task {task!r}: arrays and metrics are mappings from names")
    for name, value in dict[Any, Any](update.metrics).items():
        if not isinstance(name, str) or not isinstance(value, numbers.Real):
            raise TaskFailed(f"task {task!r}: metric {name!r} is {value!r}, expected a number")
    for name, array in flattened(update.arrays).items():
        if not isinstance(name, str):
            raise TaskFailed(f"task {task!r}: a tensor's name is a string, not {name!r}")
        try:
            metadata_of(array, name)  # not the values, which are copied from a device when they are sent
        except SpecError as error:
            raise TaskFailed(f"task {task!r}: {error}") from None
