"""The table [tracking] of a server's site.toml."""

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flcore import JobError
from flcore.tracking import Trackers, TrackingSettings, tracking_settings

SITE = """
[tracking]
tensorboard = "tb"
mlflow = "mlruns"
wandb = {project = "hospitals"}
max_model = "512MiB"
"""


def test_the_table_is_read_and_its_paths_are_relative_to_the_file() -> None:
    found = tracking_settings(tomllib.loads(SITE), Path("/srv/federation"))
    assert found.tensorboard == "/srv/federation/tb" and found.max_model_bytes == 512 << 20
    assert found.mlflow is not None and found.wandb is not None
    assert (found.mlflow.uri, found.mlflow.experiment) == ("/srv/federation/mlruns", None)
    assert (found.wandb.project, found.wandb.mode, found.wandb.directory) == (
        "hospitals",
        "offline",
        "/srv/federation",
    )


@pytest.mark.parametrize("uri", ["https://mlflow.example.org", "sqlite:////srv/mlflow.db", "databricks"])
def test_a_uri_stays_as_it_is(uri: str) -> None:
    content = {"tracking": {"mlflow": {"uri": uri, "experiment": "digits"}}}
    found = tracking_settings(content, Path("/srv")).mlflow
    assert found is not None and (found.uri, found.experiment) == (uri, "digits")


def test_without_the_table_nothing_is_tracked() -> None:
    assert tracking_settings({"server": {}}, Path("/srv")) == TrackingSettings()
    with Trackers.of(TrackingSettings()).observe_run(None) as observe:  # type: ignore[arg-type]
        observe(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            {"tensorbord": "tb"},
            "site.toml: tracking.tensorbord: there is no such key, expected one of tensorboard, mlflow, wandb, ",
        ),
        (
            {"wandb": {"projekt": "x", "project": "x"}},
            "directory; did you mean 'project'?",
        ),
        (
            {"mlflow": {"url": "x", "uri": "x"}},
            "expected one of uri, experiment; did you mean 'uri'?",
        ),
        ({"wandb": {"project": "x", "mode": "of"}}, "tracking.wandb.mode: Input should be 'offline' or 'online', got"),
        ({"wandb": {}}, "tracking.wandb.project: Field required"),
        ({"mlflow": 3}, "tracking.mlflow: "),
        ({"tensorboard": ""}, "tracking.tensorboard: String should have at least 1 character"),
        ({"max_model": "much"}, "tracking.max_model: Value error, expected a number and a unit, such as 512MiB"),
        ({"timeout_s": 0}, "tracking.timeout_s: Input should be greater than 0"),
        ("tb", "tracking: Input should be"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name(table: Any, text: str) -> None:
    with pytest.raises(JobError) as found:
        tracking_settings({"tracking": table}, Path("/srv"))
    assert text in str(found.value)


@pytest.mark.parametrize(
    ("table", "package"),
    [({"tensorboard": "tb"}, "tensorboard"), ({"mlflow": "runs"}, "mlflow"), ({"wandb": {"project": "p"}}, "wandb")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    table: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"flcore.tracking.{package}_tracker", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JobError, match=rf"tracking\.{package}: the package {package} cannot be imported .*`pip"):
        Trackers.of(tracking_settings({"tracking": table}, Path("/srv")))
