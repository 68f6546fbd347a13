"""The page docs/nvflare.md, as printed, in a real simulator: with NVFLARE's own mean and with flcore's."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.skipif(find_spec("nvflare") is None, reason="NVFLARE is not installed (make test-adapters)")
PAGE = (Path(__file__).parents[3] / "docs/nvflare.md").read_text()


def block(language: str, text: str) -> str:
    (found,) = [each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text in each]
    return str(found)


def changed(program: str, diff: str) -> str:
    """Apply a diff that adds lines, each behind the one above it, which is unique in the program."""
    above = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert program.count(above + "\n") == 1, above
            program = program.replace(above + "\n", f"{above}\n{line[1:]}\n")
        above = line[1:]
    return program


def run(home: Path, job: str, where: str) -> npt.NDArray[np.float32]:
    """Run a job; `where` is the folder of its run."""
    home.mkdir()
    (home / "client.py").write_text(block("python", "flare.init()"))
    (home / "job.py").write_text(job)
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    cache = settings.get("FLCORE_CACHE_DIR", str(Path.home() / ".cache" / "flcore"))
    settings |= {"HOME": str(home), "TMPDIR": str(home), "FLCORE_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "job.py"],
        cwd=home,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "refused" not in done.stdout, done.stdout
    config = (home / where / "app_server/config/config_fed_server.json").read_text()
    assert ("flcore.adapters.nvflare.FlcoreAggregator" in config) == ("FlcoreAggregator" in job)
    log = (home / where).parent / "log.txt"  # a release's console may leave out what is not NVFLARE's own
    assert ("flcore combines: mean, exact" in log.read_text()) == ("FlcoreAggregator" in job)
    return np.asarray(np.load(home / where / "models/server.npy"))


@pytest.mark.timeout(600)
def test_the_same_job_with_nvflares_mean_and_with_ours_comes_to_the_same_model(tmp_path: Path) -> None:
    plain = block("python", "recipe.execute")
    with_ours = changed(plain, block("diff", "FlcoreAggregator"))
    assert with_ours.count("FlcoreAggregator") == 2
    where = "line/server/simulate_job"
    theirs, ours = run(tmp_path / "theirs", plain, where), run(tmp_path / "ours", with_ours, where)
    assert theirs.dtype == ours.dtype == np.float32
    assert np.allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    assert np.allclose(ours, [1, -2, 3], atol=0.1), "it has learnt"


def test_a_rule_of_ones_own_as_printed() -> None:
    from nvflare.app_common.abstract.fl_model import FLModel

    namespace: dict[str, Any] = {}
    exec(block("python", "class Middle"), namespace)
    aggregator = namespace["Middle"]()
    for site, value in enumerate((1.0, 2.0, 90.0)):
        meta = {"NUM_STEPS_CURRENT_ROUND": 1, "client_name": f"site-{site}"}
        aggregator.accept_model(FLModel(params={"w": np.full(3, value)}, params_type="FULL", meta=meta))
    assert aggregator.aggregate_model().params["w"].tolist() == [2.0] * 3


@pytest.mark.timeout(300)
def test_a_job_of_parts_runs_as_printed(tmp_path: Path) -> None:
    found = run(tmp_path / "parts", block("python", "ScatterAndGather("), "runs/server/simulate_job")
    assert np.allclose(found, [1, -2, 3], atol=0.1)
