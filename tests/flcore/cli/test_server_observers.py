"""`flcore server` with metrics, traces and trackers: their options and their errors."""

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.flcore.command import said
from tests.flcore.processes import free_port, write_small_job

SITE = """
[tracking]
tensorbord = "tb"
"""


def refused(tmp_path: Path, *options: str, code: int = 1) -> str:
    """Return what a server of a small job prints that is refused before it runs anything."""
    if not (tmp_path / "small").exists():
        write_small_job(tmp_path)
    text = said("server", "small", "--insecure", "--port", str(free_port()), *options, cwd=tmp_path, code=code)
    assert not (tmp_path / "runs").exists()
    return " ".join(text.split())


def test_a_wrong_key_of_tracking_ends_the_server_before_its_run(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    text = refused(tmp_path, "--site", "site.toml")
    assert "site.toml: tracking.tensorbord: there is no such key" in text and "did you mean 'tensorboard'?" in text


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_tracker_that_is_not_installed_ends_the_server_before_its_run(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[tracking]\nmlflow = "mlruns"\n')
    text = refused(tmp_path, "--site", "site.toml")
    assert "the package mlflow cannot be imported" in text and "`pip install 'flcore[mlflow]'`" in text


@pytest.mark.skipif(find_spec("prometheus_client") is None, reason="prometheus-client is not installed")
def test_addresses_of_metrics_that_are_refused(tmp_path: Path) -> None:
    assert "invalid value for --metrics: expected [HOST:]PORT, got 'x:y:z'" in refused(
        tmp_path, "--metrics", "x:y:z", code=2
    )
    text = refused(tmp_path, "--metrics", "0.0.0.0:0")
    assert "got 0.0.0.0:0" in text and "--metrics-remote allows it" in text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = refused(tmp_path, "--metrics", str(taken.getsockname()[1]))
    assert "cannot serve metrics on 127.0.0.1" in text and "(--metrics)" in text
