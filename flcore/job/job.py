"""A job: a contract and the directory with its code."""

import tomllib
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from flcore.aggregation.rules import Rule
from flcore.errors import JobError, SpecError
from flcore.job.code import JobCode, code_digest
from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract
from flcore.job.rules import load_rule_with
from flcore.model.checkpoint import open_model
from flcore.model.chunks import ChunkSource
from flcore.model.model import NamedArrays
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel
from flcore.text import decode_text

BUNDLED_JOBS = Path(__file__).parent.parent / "jobs"


@dataclass(frozen=True)
class Job:
    """A contract, and the directory with the code that it names. Read by `Job.load`.

    Attributes:
        contract: The content of job.toml, validated.
        directory: The directory of job.toml and the code.

    Example:
        >>> job = Job.load("digits")
        >>> job.contract.name, job.contract.server.rule
        ('digits', 'mean')
    """

    contract: Contract
    directory: Path

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
        except ValueError as error:
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
        return Job(parse_contract(content | given, "the changed job"), self.directory) if overrides else self

    @cached_property
    def code_digest(self) -> str:
        """The SHA-256 digest of the files that can be imported from the job's directory."""
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
        return self.code.load(reference, f"{self.directory / 'job.toml'}: {key}")

    def load_rule(self) -> Rule:
        """Return the rule that combines updates (`server.rule`). Raises `JobError` if it cannot be loaded."""
        return load_rule_with(
            self.contract.server.rule,
            lambda reference: self.load_reference("server.rule", reference),
            f"{self.directory / 'job.toml'}: server.rule",
        )

    def initial_model(self) -> ChunkSource:
        """Open the checkpoint of the first global model, or call the job's function with the seed.

        A checkpoint's values are read lazily, unless `wire.tensors` selects some of its tensors.

        Returns:
            The model, with the tensors that `wire.tensors` selects.

        Raises:
            JobError: The checkpoint or the function is missing or invalid, or a pattern of `wire.tensors` matches no
                tensor.
        """
        if self._has_checkpoint:
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
        if not self._has_checkpoint:
            return {}
        with self._open_checkpoint() as stored:
            return dict(stored.shards.metadata)

    @property
    def _has_checkpoint(self) -> bool:
        """Whether `server.model` names a checkpoint, not a function."""
        source = self.contract.server.model
        return source.endswith((MODEL_SUFFIX, INDEX_SUFFIX)) or not (":" in source or source.endswith(".py"))

    def _open_checkpoint(self) -> StoredModel:
        path = self.directory / self.contract.server.model
        try:
            return open_model(path)
        except FileNotFoundError as error:
            raise JobError(f"server.model: there is no file {path}") from error
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
    candidates = [path, path / "job.toml", BUNDLED_JOBS / path / "job.toml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    bundled = ", ".join(sorted(entry.parent.name for entry in BUNDLED_JOBS.glob("*/job.toml")))
    raise JobError(
        f"there is no job at {path}: expected a directory with job.toml, or the name of a bundled job ({bundled})"
    )
