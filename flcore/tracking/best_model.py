"""The files of a run's best model, for trackers that keep it."""

from pathlib import Path

from flcore.model.model_paths import INDEX_SUFFIX
from flcore.model.shard_layout import read_index
from flcore.model.stored_model import resolve_checkpoint

BEST_MODEL = "best.safetensors"


def best_model_files(directory: Path) -> list[Path]:
    """Return the file of a run's best model, or its index and its files; empty if the run has none."""
    path = resolve_checkpoint(directory / BEST_MODEL)
    if not path.is_file():
        return []
    shards = read_index(path).values() if path.name.endswith(INDEX_SUFFIX) else ()
    return [path, *(path.with_name(name) for name in dict.fromkeys(shards))]
