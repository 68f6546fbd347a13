"""Recorded replacements of a model by `save` and `publish`, between one file and several, by links and by copies."""

import errno
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from flcore import Model, load, open_model, save
from flcore.model.atomic_replace import publish
from flcore.model.chunks import copy_chunks
from flcore.model.model_writer import TemporaryModels
from tests.faults.disk_model import require_complete
from tests.faults.disk_recorder import DiskRecorder
from tests.faults.operations import Mark

ONE_FILE, SHARDS = 10**9, 12_000
"""`shard_bytes` with which a model of `model_of` is one file, or two and an index."""

MODELS = Path("new/models")
"""The directory of the models, which the first `save` creates."""


Arrays = dict[str, npt.NDArray[Any]]


def model_of(version: int) -> Arrays:
    """Return a version of a model: some pages, in which each element differs from that of other versions."""
    steps = np.arange(3000, dtype=np.float32)
    return {"w": steps + np.float32(10_000 * version), "b": np.full((7, 3), version, np.float16)}


def record_saves(root: Path, shard_bytes: Sequence[int], *, with_best: bool = False) -> DiskRecorder:
    """Save a version for each of `shard_bytes`; with `with_best`, also publish every second one as `best`."""
    recorder = DiskRecorder(root)
    with recorder.recording():
        for version, size in enumerate(shard_bytes, 1):
            publish_version(recorder, root / MODELS, "model", version, shard_bytes=size)
            if with_best and version % 2:
                publish_version(recorder, root / MODELS, "best", version)
    require_complete(recorder)
    return recorder


def record_publications(root: Path, versions: int, *, by_copy: bool) -> DiskRecorder:
    """Write versions as temporary models, which are not synced, and publish each."""
    recorder = DiskRecorder(root)
    with recorder.recording(), mock.patch.object(os, "link", _no_links) if by_copy else nullcontext():
        temporary = TemporaryModels(root / "temporary")
        for version in range(1, versions + 1):
            model = Model.of(model_of(version))
            with temporary(model.spec) as writer:
                copy_chunks(model, writer)
                stored = writer.commit()
            for name in ("model", "best"):
                recorder.mark("publishing", name=name, version=version)
                publish(stored, root / MODELS / f"{name}.safetensors")
                recorder.mark("published", name=name, version=version)
            stored.close()
    require_complete(recorder)
    return recorder


def check_replacement(image: Path, marks: Sequence[Mark]) -> None:
    """Raise an error unless each model is complete and recent enough, and can be replaced once more."""
    directory = image / MODELS
    check_models(directory, marks)
    last = max((mark.facts["version"] for mark in marks), default=0)
    for name in {mark.facts["name"] for mark in marks}:
        path = directory / f"{name}.safetensors"
        for version, shard_bytes in ((last + 1, SHARDS), (last + 2, ONE_FILE)):
            save(model_of(version), path, shard_bytes=shard_bytes)
            assert stored_version(path) == version
        assert not list(directory.glob(f".{name}.*")), "files of the writer that died have stayed"


def publish_version(recorder: DiskRecorder, directory: Path, name: str, version: int, **options: Any) -> None:
    """Publish a version of a model: `best` as a link to `model`, any other name from memory."""
    recorder.mark("publishing", name=name, version=version)
    path = directory / f"{name}.safetensors"
    if name == "best":
        with open_model(directory / "model.safetensors") as stored:
            publish(stored, path)
    else:
        save(model_of(version), path, **options)
    recorder.mark("published", name=name, version=version)


def check_models(directory: Path, marks: Sequence[Mark]) -> None:
    """Raise an error unless each name has a complete model, never older than the last one that was published."""
    for name in {mark.facts["name"] for mark in marks if "name" in mark.facts}:
        versions = [(mark.name, mark.facts["version"]) for mark in marks if mark.facts.get("name") == name]
        begun, done = (
            max((version for kind, version in versions if kind == wanted), default=0)
            for wanted in ("publishing", "published")
        )
        try:
            version = stored_version(directory / f"{name}.safetensors")
        except FileNotFoundError:
            version = 0  # none: right before the first one has been published
        assert done <= version <= begun, f"expected version {done} to {begun} of {name}, got {version}"


def stored_version(path: Path) -> int:
    """Return the version of a stored model; raise an error if it is not one version, bit for bit."""
    arrays = load(path)
    version = int(arrays["b"].flat[0])
    for name, expected in model_of(version).items():
        assert arrays[name].tobytes() == expected.tobytes(), f"{path}: tensor {name} is not that of version {version}"
    return version


def _no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
