"""The executor: a job's own code, with one function for each task of the contract.

An executor is a module, or a class that is instantiated once with the client's `Site`. The function of a task has the
task's name. It takes a model (read-only arrays by name) and a `Task`, and returns an `Update`.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flcore.client.notices import NoticeLogger, Notify, traceback_notice
from flcore.client.task import Site, Task, Update
from flcore.errors import JobError, SpecError, TaskFailed
from flcore.job.job import Job
from flcore.job.messages import MAX_METRIC_NAME
from flcore.job.nearest import function_advice
from flcore.model.arrays import dtype_and_shape, flatten
from flcore.model.model import Arrays
from flcore.progress import ProgressSink, report_progress
from flcore.text import printable

TaskFunction = Callable[[Arrays, Task], Update]


class Executor:
    """The task functions of a job at one site.

    Functions are looked up once, by the contract's task names: a server cannot name any other attribute of the code.

    Args:
        job: The job.
        site: The client's site.
        notify: Receives notices for the owner of the code: tracebacks, and metrics that cannot be sent. They are not
            sent to the server. Default: None, they are logged.
        on_progress: Receives what the code tells with `flcore.progress`. Default: None, it is ignored.
    """

    _on_progress: ProgressSink | None = None

    def __init__(
        self, job: Job, site: Site, notify: Notify | None = None, *, on_progress: ProgressSink | None = None
    ) -> None:
        # This reference keeps the job alive: the modules of its code are removed with it.
        self.site, self._notify, self._job = site, notify or NoticeLogger(), job
        self._on_progress = on_progress
        code = job.load_reference("client.executor", job.contract.client.executor)
        self._functions = _functions(job, self._create(code) if inspect.isclass(code) else code)

    def run(self, model: Arrays, task: Task) -> Update:
        """Run a task's function.

        Args:
            model: The model: read-only arrays by name.
            task: The task.

        Returns:
            The function's update, with the metrics that are finite numbers. Others are dropped, with a notice.

        Raises:
            TaskFailed: The function raised an exception, or returned something else than an update. The error has the
                type and message of the exception, and goes to the server. The traceback is a notice.
        """
        if task.name not in self._functions:
            raise TaskFailed(f"the contract has no task {task.name!r}")
        try:
            with report_progress(self._on_progress, self.site.name, task.name, task.round, task.rounds):
                update = self._functions[task.name](model, task)
        except (Exception, SystemExit) as error:
            self._notify(*traceback_notice(error, f"{self.site.name}: round {task.round}, task {task.name!r} failed"))
            raise TaskFailed(f"task {task.name!r} raised {_summary(error)}") from error
        _check_update(update, task.name)
        return replace(update, metrics=self._finite_metrics(update.metrics, task))

    def _create(self, make: Callable[[Site], Any]) -> Any:
        try:
            return make(self.site)
        except Exception as error:
            self._notify(*traceback_notice(error, f"{self.site.name}: client.executor failed"))
            raise JobError(f"client.executor: client {self.site.name!r}: {_summary(error)}") from error

    def _finite_metrics(self, metrics: Mapping[Any, Any], task: Task) -> dict[str, float]:
        """Return the metrics that are finite numbers and have a valid name. Gives a notice of each other one."""
        finite: dict[str, float] = {}
        for name, value in metrics.items():
            number = _to_float(value)
            if not isinstance(name, str) or not 0 < len(name) <= MAX_METRIC_NAME:
                wrong = f"its name is a {type(name).__name__}, expected a str of 1 to {MAX_METRIC_NAME} characters"
            elif number is None:
                wrong = f"it is of type {type(value).__name__}, expected a real number"
            elif not math.isfinite(number):
                wrong = f"it is {number} ({type(value).__name__}), expected a finite number"
            else:
                finite[name] = number
                continue
            shown = printable(repr(name), MAX_METRIC_NAME)
            where = f"{self.site.name}: round {task.round}, task {task.name!r}"
            text = f"{where}: metric {shown} is left out of the answer: {wrong}"
            self._notify(f"{self.site.name} {task.name} {shown} {wrong}", text)
        return finite


def require_tasks(job: Job) -> None:
    """Raise `JobError` unless a job's executor has a function for each task. Creates no executor, reads no data."""
    _functions(job, job.load_reference("client.executor", job.contract.client.executor))


def _summary(error: BaseException) -> str:
    """Return type and message of an exception on one line. This is all that leaves the client."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a class of the client's code
        message = "its message cannot be shown"
    return printable(f"{type(error).__name__}: {message}")


def _to_float(value: Any) -> float | None:
    """Convert a real number or an array with one number and no dimensions to float. Returns None for all else."""
    try:
        if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
            value = value.item()
        return float(value) if isinstance(value, numbers.Real) else None
    except OverflowError:
        return math.inf
    except Exception:  # noqa: BLE001 - a class of the client's code, or of its library
        return None


def _functions(job: Job, code: Any) -> dict[str, TaskFunction]:
    functions: dict[str, TaskFunction] = {}
    for task in job.contract.tasks:
        function = getattr(code, task, None)
        if not callable(function):
            where = f"client.executor: {job.contract.client.executor}"
            advice = function_advice(task, (name for name in dir(code) if callable(getattr(code, name, None))))
            raise JobError(f"{where} has no function {task!r}, which tasks.{task} needs{advice}")
        functions[task] = function
    return functions


def _check_update(update: Any, task: str) -> None:
    """Raise `TaskFailed` for an update that cannot be sent. The server checks whether it is acceptable."""
    if not isinstance(update, Update):
        raise TaskFailed(f"task {task!r} returned {printable(type(update).__name__)}, expected flcore.Update")
    weight: Any = update.weight
    parts: tuple[Any, Any] = update.arrays, update.metrics
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        is_short = weight is None or isinstance(weight, bool | str)
        shown = printable(repr(weight), 40) if is_short else f"a value of type {printable(type(weight).__name__)}"
        raise TaskFailed(f"task {task!r}: the weight is a number, not {shown}")
    if not all(isinstance(part, Mapping) for part in parts):
        raise TaskFailed(f"task {task!r}: arrays and metrics are mappings from names")
    for name, array in flatten(update.arrays).items():
        if not isinstance(name, str):
            raise TaskFailed(f"task {task!r}: a tensor's name is a string, not {printable(repr(name), 40)}")
        try:
            dtype_and_shape(array, name)  # metadata alone: values on a device are copied once, while they are sent
        except SpecError as error:
            raise TaskFailed(f"task {task!r}: {error}") from None
