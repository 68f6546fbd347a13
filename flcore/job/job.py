"""A job: a contract and the directory with its code."""

import tomllib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flcore.errors import JobError, SpecError
from flcore.job.bundled_jobs import BUNDLED_JOBS, bundled_job_names
from flcore.job.changes import change_contract
from flcore.job.code import JobCode, code_digest
from flcore.job.contract import Contract
from flcore.job.functions import FUNCTIONS_FILE, INITIAL_MODEL, JobFunctions
from flcore.job.nearest import file_advice
from flcore.job.parsing import parse_contract
from flcore.job.rules import load_rule_with
from flcore.model.checkpoint import open_model
from flcore.model.chunks import ChunkSource
from flcore.model.model import NamedArrays
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel
from flcore.rules.kinds import Rule, min_updates
from flcore.text import decode_text, did_you_mean

if TYPE_CHECKING:
    from flcore.job.pack import Packed

PACK_SUFFIX = ".flpack"
MAX_BESIDE = 1_000
"""The most entries of a directory that are searched for a job with a similar name."""


@dataclass(frozen=True, repr=False)
class Job:
    """A contract, and the directory with the code that it names. Read by `Job.load`, or made of functions by `Job.of`.

    Attributes:
        contract: The content of job.toml, validated.
        directory: The directory of job.toml and the code. Of a job of functions: the working directory.
        functions: The functions of a job that has no files. None: the code is in the directory.

    Example:
        >>> job = Job.load("digits")
        >>> job.contract.name, job.contract.server.rule
        ('digits', 'mean')
    """

    contract: Contract
    directory: Path
    functions: JobFunctions | None = None

    @classmethod
    def of(
        cls,
        *,
        model: Callable[[int], Any],
        train: Callable[..., Any],
        validate: Callable[..., Any] | None = None,
        uses: Sequence[Callable[..., Any] | ModuleType] = (),
        name: str = "notebook",
        clients: int | Sequence[str] = 2,
        rounds: int = 10,
        seed: int = 0,
        returns: str = "weights",
        hyperparameters: Mapping[str, Any] | None = None,
        best: str | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> "Job":
        """Make a job of functions, without files.

        `flcore.run` calls the functions as they are, in threads of this process. Packs and worker processes get a file
        with their source: it may use what it imports inside itself, and what `uses` lists.

        Args:
            model: Returns the first global model, named arrays, for a seed.
            train: The task `train`: takes a model and a `Task`, and returns an `Update`.
            validate: The task `validate`, which returns an `Update` of metrics. Default: None, no such task.
            uses: Functions and classes that these use, whose source goes with theirs, and modules that are imported
                for all of them. Default: none.
            name: The job's name. Default: "notebook".
            clients: The number of clients, or their names. Default: 2.
            rounds: The number of rounds. Default: 10.
            seed: The seed. Default: 0.
            returns: What `train` returns: "weights" or "delta". Default: "weights".
            hyperparameters: The hyperparameters of all tasks. Default: none.
            best: The metric that selects the best model, such as "accuracy:max". Default: None.
            changes: Other keys of the contract, by dotted key, such as `{"server.quorum": 2}`. Default: none.

        Returns:
            The job.

        Raises:
            JobError: A value is invalid, or no key has this name. The error names the key.

        Example:
            >>> def zeros(seed):
            ...     return {"w": np.zeros(3)}
            >>> def add_one(model, task):
            ...     return flcore.Update({"w": model["w"] + 1}, weight=1)
            >>> job = Job.of(model=zeros, train=add_one, rounds=2)
            >>> flcore.run(job).model.arrays()["w"]
            array([2., 2., 2.])
        """
        tasks = {"train": train} if validate is None else {"train": train, "validate": validate}
        for key, function in {"model": model, **tasks}.items():
            if not callable(function):
                raise JobError(f"{key}: expected a function, got {type(function).__name__}")
        if isinstance(clients, str | bytes) or not isinstance(clients, int | Sequence):
            raise JobError(f"clients: expected a number of clients or a list of names, got {type(clients).__name__}")
        content = {
            "name": name,
            "seed": seed,
            "clients": clients if isinstance(clients, int) else list(clients),
            "server": {"model": f"{FUNCTIONS_FILE}:{INITIAL_MODEL}", "rounds": rounds, "best": best},
            "client": {"executor": FUNCTIONS_FILE, "hyperparameters": dict(hyperparameters or {})},
            "tasks": {task: {"returns": "metrics" if task == "validate" else returns} for task in tasks},
        }
        contract = parse_contract(content, "the job")
        job = cls(contract, Path.cwd(), JobFunctions(model, tasks, tuple(uses)))
        return job.with_changes(changes or {})

    @classmethod
    def load(cls, path: "str | Path | Job", **overrides: Any) -> "Job":
        """Read a job.

        Args:
            path: A directory with job.toml, a TOML file, the name of a bundled job, or a `Job`.
            **overrides: Values that replace keys of the contract: `seed`, `clients`, `rounds`. None keeps a key.

        Returns:
            The job.

        Raises:
            JobError: There is no job at the path, or its contract is invalid. The error names the file and the key.
        """
        if isinstance(path, Job):
            return path.with_overrides(**overrides)
        file = _find_job_file(Path(path))
        try:
            content = tomllib.loads(decode_text(file.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise JobError(f"{file}: expected TOML: {error}") from error
        return cls(parse_contract(content, str(file)), file.parent.resolve()).with_overrides(**overrides)

    def with_overrides(self, **overrides: Any) -> "Job":
        """Return the job with some keys of its contract replaced.

        Args:
            **overrides: Values by key: `seed`, `clients`, `rounds`. None keeps a key.

        Returns:
            A job with the same directory.

        Raises:
            JobError: The changed contract is invalid.
        """
        content = self.contract.model_dump(mode="json")
        given = {key: value for key, value in overrides.items() if value is not None}
        if "rounds" in given:
            content["server"]["rounds"] = given.pop("rounds")
        return replace(self, contract=parse_contract(content | given, "the changed job")) if overrides else self

    def with_changes(self, changes: Mapping[str, Any]) -> "Job":
        """Return the job with keys of its contract replaced.

        Args:
            changes: Values by dotted key, such as `{"server.rounds": 20}`. `flcore.job.changes.parse_change` reads
                them from a command line.

        Returns:
            A job with the same directory.

        Raises:
            JobError: There is no such key; the error names the nearest one. Or the changed contract is invalid.

        Example:
            >>> Job.load("digits").with_changes({"server.rounds": 20, "bounds.max_weight": 100}).contract.server.rounds
            20
        """
        return replace(self, contract=change_contract(self.contract, changes))

    def pack(self, out: "str | Path | None" = None, *, sign: "str | Path | None" = None) -> "Packed":
        """Write the job into one file, as `flcore job pack` does.

        Args:
            out: The file. Default: None, NAME.flpack of the job's name.
            sign: The directory of a lead's unpacked kit, whose key signs the pack. Default: None, no signature.

        Returns:
            The file with its digest, what went in, and what was left out.

        Raises:
            PackError: The job cannot be packed. Of a job of functions, the error lists the names that they use and
                that neither they nor the file define.
            OSError: The file cannot be written.
        """
        from flcore.identity.kit import load_signing_key  # imports cryptography, which `import flcore` must not
        from flcore.job.pack import pack_job

        signer = None if sign is None else load_signing_key(Path(sign))
        return pack_job(self, Path(out or f"{self.contract.name}{PACK_SUFFIX}"), signer)

    def __repr__(self) -> str:
        names = self.contract.client_names
        place = "functions of this program" if self.functions is not None else str(self.directory)
        tasks = ", ".join(self.contract.tasks)
        return (
            f"<Job {self.contract.name!r}: {self.contract.server.workflow}, {self.contract.server.rounds} rounds, "
            f"{len(names)} clients, tasks {tasks}; {place}>"
        )

    @cached_property
    def code_digest(self) -> str:
        """The SHA-256 digest of the files that can be imported from the job's directory."""
        if self.functions is not None:
            return self.functions.digest
        return code_digest(self.directory, self.contract.code_files)

    @cached_property
    def code(self) -> JobCode:
        """The job's code, loaded on first access. A job that is loaded again loads its code again."""
        code = JobCode(self.directory)
        weakref.finalize(self, code.unload).atexit = False
        return code

    def load_reference(self, key: str, reference: str) -> Any:
        """Load an object from the job's code.

        Args:
            key: The contract's key that holds the reference, for errors.
            reference: The object, as `file.py:name`.

        Returns:
            The object.

        Raises:
            JobError: The file or the name does not exist, or an import fails. Other exceptions of the code are raised
                as they are.
        """
        if self.functions is not None:
            return self.functions.load(reference, key)
        return self.code.load(reference, f"{self.directory / 'job.toml'}: {key}")

    def load_rule(self) -> Rule:
        """Return the rule that combines updates (`server.rule`).

        Raises `JobError` if it cannot be loaded, or needs more updates than the quorum.
        """
        rule = load_rule_with(
            self.contract.server.rule,
            lambda reference: self.load_reference("server.rule", reference),
            f"{self.directory / 'job.toml'}: server.rule",
        )
        quorum = self.contract.server.quorum
        needed = min_updates(rule)
        if quorum < needed:
            raise JobError(
                f"{self.directory / 'job.toml'}: server.quorum: rule {rule.name!r} needs at least {needed} "
                f"updates, got {quorum}: set the quorum to {needed} or more"
            )
        return rule

    def initial_model(self) -> ChunkSource:
        """Open the checkpoint of the first global model, or call the job's function with the seed.

        A checkpoint's values are read lazily, unless `wire.tensors` selects some of its tensors.

        Returns:
            The model, with the tensors that `wire.tensors` selects.

        Raises:
            JobError: The checkpoint or the function is missing or invalid, or a pattern of `wire.tensors` matches no
                tensor.
        """
        if self.contract.checkpoint is not None:
            return self._select_from(self._open_checkpoint())
        source = self.contract.server.model
        arrays = self.load_reference("server.model", source)(self.contract.seed)
        if not isinstance(arrays, Mapping):
            raise JobError(
                f"server.model: {source} returned {type(arrays).__name__}, expected a mapping from names to arrays"
            )
        selected = {name: arrays[name] for name in self._select_tensors(arrays)}
        try:
            return NamedArrays(ModelSpec.of(selected), selected)
        except SpecError as error:
            raise JobError(f"server.model: {source} returned no model: {error}") from error

    def initial_metadata(self) -> Mapping[str, str]:
        """Read the metadata in the header of the initial checkpoint, such as `{"format": "pt"}`.

        The models that a run publishes carry the same metadata: some loaders refuse files without it.

        Returns:
            The metadata; empty if a function makes the first global model.

        Raises:
            JobError: The checkpoint is missing or invalid.
        """
        if self.contract.checkpoint is None:
            return {}
        with self._open_checkpoint() as stored:
            return dict(stored.shards.metadata)

    def _open_checkpoint(self) -> StoredModel:
        path = self.directory / self.contract.server.model
        try:
            return open_model(path)
        except FileNotFoundError as error:
            raise JobError(f"server.model: there is no file {path}{file_advice(path)}") from error
        except SpecError as error:
            raise JobError(f"server.model: {error}") from error

    def _select_from(self, stored: StoredModel) -> ChunkSource:
        names = self._select_tensors([tensor.name for tensor in stored.spec.tensors])
        if len(names) == len(stored.spec.tensors):
            return stored
        try:
            selected = {name: stored.tensor(name) for name in names}
            return NamedArrays(ModelSpec.of(selected), selected)
        except SpecError as error:
            raise JobError(f"server.model: {error}") from error

    def _select_tensors(self, names: Collection[str]) -> list[str]:
        """Return the names that match a pattern of `wire.tensors`. Raises `JobError` for a pattern without a match."""
        patterns = self.contract.wire.tensors
        for pattern in patterns:
            if names and not any(fnmatchcase(name, pattern) for name in names):
                known = ", ".join(sorted(map(str, names))[:20])
                raise JobError(f"wire.tensors: no tensor of the model matches {pattern}; it has {known}")
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _find_job_file(path: Path) -> Path:
    if path.suffix == PACK_SUFFIX and path.is_file():
        raise JobError(f"{path}: expected a job's directory, got a pack; unpack it (unzip {path} -d DIR), or submit it")
    candidates = [path, path / "job.toml", BUNDLED_JOBS / path / "job.toml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    bundled = bundled_job_names()
    raise JobError(
        f"there is no job at {path}: expected a directory with job.toml, or the name of a bundled job "
        f"({', '.join(bundled)}){did_you_mean(str(path), [*_jobs_beside(path), *bundled])}"
    )


def _jobs_beside(path: Path) -> Iterator[str]:
    """Yield the paths of the jobs in a path's parent directory."""
    with suppress(OSError):
        for entry in islice(path.parent.iterdir(), MAX_BESIDE):
            if (entry / "job.toml").is_file():
                yield str(entry)
