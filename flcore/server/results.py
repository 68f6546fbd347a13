"""The results of a run: its history, its last model and its best one."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flcore.errors import JobError
from flcore.model.atomic_replace import publish
from flcore.model.checkpoint import open_model, save
from flcore.model.chunks import GlobalModel, elements_digest
from flcore.model.model_paths import MODEL_SUFFIX
from flcore.model.shard_layout import total_bytes
from flcore.model.spec import ModelSpec
from flcore.model.stored_model import StoredModel, resolve_checkpoint
from flcore.server.call_log import Call
from flcore.server.events import ModelPublished, NoBestModel, Observer, ignore_events
from flcore.server.history import RoundRecord
from flcore.server.past_model import PastModel
from flcore.server.published_models import PublishedModels
from flcore.server.results_file import write_results
from flcore.server.run_directory import RunDirectory
from flcore.server.run_state import RecordedCall

MAX_HASHED_BYTES = 1 << 20
"""A published file up to this size is read again for its digest, in 1.5 ms at 0.7 GB/s. Larger ones are not."""

MODEL_HEADER_BYTES = 1 << 20
"""Disk space reserved for the headers of a model's files: enough for some thousand tensors."""


class Publication(NamedTuple):
    """A published model.

    Attributes:
        is_best: Whether it is the best one so far.
        checkpoint: The file of its checkpoint; empty if it has none.
        best_value: The best value so far.
        digest: The digest of its elements; empty without a directory.
    """

    is_best: bool
    checkpoint: str = ""
    best_value: float | None = None
    digest: str = ""

    @classmethod
    def of(cls, call: RecordedCall | Call) -> "Publication":
        """Return the publication of a recorded call."""
        return cls(*(call.result[name] for name in cls._fields))


class Results:
    """The history and the last model: in memory, or in a directory after every round.

    Args:
        directory: The run's directory. None: nothing is written.
        best: The contract's `server.best`, such as "accuracy:max". None: there is no best model. The best model is kept
            on disk only.
        observe: Receives `NoBestModel` events. Default: ignores them.
        metadata: The metadata of the models' files. Default: none.
        checkpoint_every: The models of every so many rounds are kept, in files of their own. Default: None, no round's.
        digest_of: Returns the digest of a model's elements. Default: computes it.

    Attributes:
        model: The model that was published last; None if none was. For a run that goes on: in the calls that the
            workflow has made, recorded ones included.
        restored: The model that was published last in the rounds that were over at the start, until the workflow loops
            over its rounds.
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        best: str | None,
        observe: Observer = ignore_events,
        metadata: Mapping[str, str] | None = None,
        checkpoint_every: int | None = None,
        digest_of: Callable[[GlobalModel], str] = elements_digest,
    ) -> None:
        self._records: list[RoundRecord] = []  # without a directory
        self.model: GlobalModel | None = None
        self.restored: GlobalModel | None = None
        self._published = None if directory is None else PublishedModels(directory.path)
        self._directory, self._best, self._observe = directory, best, observe
        self._metadata, self._checkpoint_every = metadata, checkpoint_every
        self._digest_of = digest_of
        self._best_value: float | None = None

    def add(self, record: RoundRecord) -> None:
        """Add the record of a finished round to the history."""
        if self._directory is None:
            self._records.append(record)
        else:
            self._directory.append(record)

    @property
    def history(self) -> list[RoundRecord]:
        """The records of all rounds that are over.

        With a directory they are read from its file. They are not kept in memory: 10,000 rounds of 100 clients would
        take half a gigabyte.
        """
        return list(self._records) if self._directory is None else self._directory.read_history()

    def forget_rounds(self, records: Sequence[RoundRecord]) -> None:
        """Rounds at the end of the history have to be run again: only `records` are left."""
        if self._directory is not None:
            self._directory.restore_history(records)

    def reserve(self, spec: ModelSpec) -> None:
        """Reserve disk space for the next model, before updates use it. Raises `OSError`."""
        if self._directory is not None:
            self._directory.reserve(total_bytes(spec) + MODEL_HEADER_BYTES)

    def free_reserve(self) -> None:
        """Free the reserved disk space, because the next model is written now."""
        if self._directory is not None:
            self._directory.free_reserve()

    def publish(
        self,
        model: GlobalModel,
        metrics: dict[str, float],
        round_number: int = 0,
        call: int = 0,
        decide: Callable[[Publication], None] = lambda _: None,
    ) -> Publication:
        """Make a model the last one, the best one if its metrics are the best so far, and its round's checkpoint.

        Args:
            model: The model.
            metrics: Its metrics, by name.
            round_number: The number of the round. Default: 0, none.
            call: The number of the workflow's call. Default: 0.
            decide: Called when the model is on the disk, before it replaces the last one: from here on, a restarted
                server publishes it. Default: does nothing.

        The model that it replaces stays in `.published` until `end_round`.
        """
        publication = self._decide(metrics, round_number)
        if self._published is None:
            decide(publication)
        else:
            publication = publication._replace(digest=self._digest_of(model))
            self.free_reserve()
            path = self._published.path(call)
            if isinstance(model, StoredModel):
                publish(model, path)
            else:
                save(model, path, self._metadata)
            decide(publication)
            self._published.add(call, is_best=publication.is_best)
            self._replace_models(path, publication, round_number)
        self.model, self._best_value = model, publication.best_value
        return publication

    def save_results(self, content: bytes) -> None:
        """Write `results.json`, if the run has a directory."""
        if self._directory is not None:
            write_results(self._directory.path, content)

    def replay(self, model: GlobalModel, call: Call, *, is_replaced: bool) -> None:
        """A recorded publication is made again: its model is the last one.

        Args:
            model: The model. A handle of a past model can be read from here on, if its files are there.
            call: The recorded call.
            is_replaced: Whether a later publication of its round has replaced the model of its checkpoint.
        """
        publication = Publication.of(call)
        if self._published is not None and self._directory is not None:
            self._published.add(call.number, is_best=publication.is_best)
            if isinstance(model, PastModel) and self._published.has(call.number):
                stored = self._published.open(call.number)  # at once, because a later publication removes the file
                model.tie(lambda: stored)
            elif isinstance(model, PastModel) and publication.checkpoint and not is_replaced:
                kept = self._directory.path / publication.checkpoint
                model.tie(lambda: open_model(kept))
        self.model, self._best_value = model, publication.best_value

    def end_round(self, *, is_past: bool = False) -> None:
        """The round under way is over on the record: models that it has replaced are removed.

        Args:
            is_past: Whether the round was over before the server was restarted. Then nothing is removed.
        """
        if self._published is not None and self._published.end_round() and not is_past:
            self._published.remove_others()

    def restore(self, publications: Sequence[RecordedCall], last_past_call: int) -> None:
        """Take up the results of a run that goes on.

        The last publication is done again, and the removal of earlier models, as they may have been cut.

        Args:
            publications: The recorded calls of `publish`, in order.
            last_past_call: The number of the last call before the end of the last round that is over.

        Raises:
            RecordError: A model that the run needs is missing or damaged. Nothing was changed.
        """
        if self._published is None or not publications:
            return
        past = [each for each in publications if each.number <= last_past_call]
        for each in (*past[-1:], publications[-1]):
            self._published.require_undamaged(each.number, Publication.of(each).digest)
        for each in past:
            self._published.add(each.number, is_best=Publication.of(each).is_best)
        self._published.end_round()
        self._published.remove_others(*(each.number for each in publications[len(past) :]))
        if past:
            self.restored = self._published.open(past[-1].number)
            self._best_value = Publication.of(past[-1]).best_value
        self._restore_names(publications)

    def begin_rounds(self, *, are_left_out: bool) -> None:
        """The workflow loops over its rounds. `are_left_out`: those that are over are not yielded again."""
        if are_left_out and self.restored is not None:
            self.model = self.restored
        self.restored = None

    def forget_publications(self, left: Sequence[RecordedCall]) -> None:
        """Publications of the record have to be made again: only those that are `left` count."""
        if self._published is not None:
            self._published.remove_others()
            self._restore_names(left)

    def _restore_names(self, publications: Sequence[RecordedCall]) -> None:
        """Give the last model and the best one of the record their names."""
        assert self._directory is not None  # noqa: S101 - only called with one
        assert self._published is not None  # noqa: S101 - as above
        if not publications or not self._published.has(publications[-1].number):
            return
        last = publications[-1]
        best = [each for each in publications if Publication.of(each).is_best][-1:]
        if best and best != [last] and self._published.has(best[0].number):
            with self._published.open(best[0].number) as stored:
                publish(stored, self._directory.path / "best.safetensors")
        self._replace_models(self._published.path(last.number), Publication.of(last), last.round)

    def _replace_models(self, path: Path, publication: Publication, round_number: int) -> None:
        """Give a published model its names. They are links: the files are not copied (see `publish`)."""
        directory = self._directory
        assert directory is not None  # noqa: S101 - only called with one
        names = ["best.safetensors"] * publication.is_best + [publication.checkpoint] * bool(publication.checkpoint)
        with open_model(path) as stored:
            for name in ["model.safetensors", *names]:
                publish(stored, directory.path / name)
            file = resolve_checkpoint(directory.path / "model.safetensors")
            self._report_publication(stored, file, round_number, is_best=publication.is_best)

    def last(self) -> GlobalModel:
        """Return the last model. One in files is opened at its published path, because temporary files are removed."""
        if self._directory is not None and isinstance(self.model, StoredModel | PastModel):
            return open_model(self._directory.path / "model.safetensors")
        if self.model is None:
            raise JobError("no model was published")
        return self.model

    def _report_publication(self, model: GlobalModel, file: Path, round_number: int, *, is_best: bool) -> None:
        is_small = file.stat().st_size <= MAX_HASHED_BYTES and file.suffix == MODEL_SUFFIX
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if is_small else None
        spec = model.spec
        self._observe(ModelPublished(round_number, file.name, is_best, spec.fingerprint, spec.nbytes, digest))

    def _decide(self, metrics: dict[str, float], round_number: int) -> Publication:
        every = self._checkpoint_every
        is_checkpoint = self._directory is not None and every is not None and round_number and round_number % every == 0
        checkpoint = f"round-{round_number:05d}{MODEL_SUFFIX}" if is_checkpoint else ""
        if self._best is None:
            return Publication(is_best=False, checkpoint=checkpoint)
        name, _, direction = self._best.partition(":")
        if name not in metrics:
            self._observe(NoBestModel(name, tuple(sorted(metrics))))
            return Publication(is_best=False, checkpoint=checkpoint, best_value=self._best_value)
        value = metrics[name] if direction == "max" else -metrics[name]
        is_better = self._best_value is None or value > self._best_value
        if math.isnan(value) or not is_better:
            return Publication(is_best=False, checkpoint=checkpoint, best_value=self._best_value)
        return Publication(is_best=True, checkpoint=checkpoint, best_value=value)
