"""The table, the site.toml and the command of docs/tracking.md."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from flcore.server.history import Participation, RoundRecord
from flcore.tracking import MlflowSettings, TrackingSettings, WandbSettings, tracking_settings
from flcore.tracking.run_values import round_values
from tests.flcore.processes import free_port, read_until, started, write_small_job
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parents[3] / "docs" / "tracking.md").read_text()
(SITE,) = blocks("toml", PAGE)


def test_the_keys_of_the_table_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\| `tracking\.([\w.]+)` \|", PAGE, re.MULTILINE)
    tables: dict[str, type[BaseModel]] = {"mlflow": MlflowSettings, "wandb": WandbSettings}
    keys = [key for key in TrackingSettings.model_fields if key != "wandb"]
    assert sorted(rows) == sorted(
        [*keys, *(f"{name}.{key}" for name, table in tables.items() for key in table.model_fields)]
    )


def test_the_file_names_all_trackers() -> None:
    found = tracking_settings(tomllib.loads(SITE), Path("/srv"))
    assert found.tensorboard == "/srv/tensorboard" and found.mlflow is not None and found.wandb is not None


def test_the_names_of_values_are_those_of_the_page() -> None:
    metrics = {"loss": 1.0}
    part, seconds = Participation(1.0, metrics, 1, 1.0), {"round": 1.0}
    record = RoundRecord(1, ("north",), {"north": part}, train=metrics, validate=metrics, seconds=seconds)
    rows = re.findall(r"^\| (`.*?/.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+/[\w/]+)`", row)}
    plain = {name.replace("CLIENT", "north").replace("METRIC", "loss").replace("PHASE", "round") for name in named}
    assert plain == round_values(record).keys()


@pytest.mark.long
def test_the_command_tracks_with_all_packages(tmp_path: Path) -> None:
    for package in ("tensorboard", "mlflow", "wandb"):
        pytest.importorskip(package)
    [server] = [words for script in blocks("sh", PAGE) for words in commands(script) if words[0] == "flcore"]
    write_small_job(tmp_path)
    (tmp_path / "site.toml").write_text(SITE + "timeout_s = 300\n")
    words = ["small" if word == "myjob" else word for word in server]
    with started("-m", *words, "--insecure", "--port", str(free_port()), cwd=tmp_path) as serving:
        read_until(serving, "listening on")
        serving.terminate()
        serving.wait(170)
    assert (tmp_path / "mlruns/mlflow.db").is_file() and list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(list((tmp_path / "tensorboard").glob("small-*/events.*"))) == 1
