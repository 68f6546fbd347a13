"""Runs in Weights & Biases, offline by default. Needs the extra `wandb`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from flcore.server.events import RunEnd
from flcore.tracking.settings import WandbSettings
from flcore.tracking.tracker import TrackedRun


class WandbTracker:
    """Tracks a run with a run of Weights & Biases. It records nothing of the machine, its output or its code.

    Args:
        settings: The table of site.toml.
    """

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._run: Any = None

    def begin(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one that has the same id. The contract's keys are its configuration."""
        directory = Path(self._settings.directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            mode=self._settings.mode,
            dir=str(directory),
            id=run.id,
            name=run.name,
            config={**run.parameters, **run.digests},
            resume="allow",
            reinit="create_new",  # jobs run side by side
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log_values(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values, with the round as their step."""
        self._run.log(dict(values), step=round_number)

    def log_best_model(self, files: Sequence[Path]) -> None:
        """Log the best model as an artifact.

        Its files are not copied: what is offline refers to the run's directory until `wandb sync` has sent them.
        """
        artifact = wandb.Artifact(f"best-model-{self._run.id}", type="model")
        for file in files:
            artifact.add_file(str(file), policy="immutable")
        self._run.log_artifact(artifact)

    def end(self, end: RunEnd) -> None:
        """Finish the run."""
        self._run.summary["flcore_end"] = end
        self._run.finish(exit_code=0 if end == "done" else 1)
