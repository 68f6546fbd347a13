"""docs/tables.md is true: its snippets are run as printed, and it lists every column of a history."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from flcore import Aggregator, ModelSpec, RoundRecord, open_history
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage

DOC = (Path(__file__).parents[1] / "docs/tables.md").read_text()


def test_the_snippets_as_printed(tmp_path: Path) -> None:
    run = tmp_path / "runs/myjob"
    run.mkdir(parents=True)
    (run / "history.jsonl").write_text(RoundRecord(1, seconds={"round": 0.5}).to_json() + "\n")
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    storage = Storage("batch", Staging(0, run / ".staging"))
    aggregator = Aggregator(ModelSpec.of(arrays), storage=storage)
    with aggregator.update(client="hospital", weight=2) as update:
        update.write_all(arrays)
    history, staged = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    for snippet, expected in [(history, "1 0.5\n"), (staged, "hospital 2.0\nw [2, 3] 5.0\n")]:
        done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == expected
    aggregator.discard()


def test_every_column_of_a_history_is_listed(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").touch()
    rows = re.findall(r"^\| (`[^|]+`) \|", DOC, re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == open_history(tmp_path).column_names
