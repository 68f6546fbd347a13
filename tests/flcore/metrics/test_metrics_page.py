"""The commands and the table of docs/metrics.md."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from flcore.metrics import FAMILIES
from tests.flcore.processes import free_port, read_until, started, write_small_job
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
SERVERS = [words for script in blocks("sh", PAGE) for words in commands(script) if words[0] == "flcore"]
HERE = {"myjob": "small", "9464": "0", "10.8.0.1:9464": "0.0.0.0:0"}
"""What stands in the commands of the page, and what does here."""


def test_the_table_has_all_metrics() -> None:
    rows = re.findall(r"^\| `(flcore_\w+)` \| (\w+) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (each.sample_name, each.kind, ", ".join(f"`{label}`" for label in each.labels), each.help) for each in FAMILIES
    ]


@pytest.mark.parametrize("command", SERVERS, ids=" ".join)
def test_a_server_of_one_job_serves_its_metrics(command: list[str], tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    if "--traces" in command:
        pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    write_small_job(tmp_path)
    words = [HERE.get(word, word) for word in command]
    options = ("--insecure", "--port", str(free_port()), "--log-format", "json")
    with started("-m", *words, *options, cwd=tmp_path) as server:
        printed = read_until(server, '"listening"')
        lines = [json.loads(line) for line in printed.splitlines()]
        urls = [line["url"] for line in lines if line["event"] == "metrics"]
        assert len(urls) == ("--metrics" in command)
        if urls:
            with urllib.request.urlopen(urls[0].replace("0.0.0.0", "127.0.0.1"), timeout=30) as reply:
                text = reply.read().decode()
            assert 'flcore_job_running{job_id="small"} 1.0' in text
            assert 'flcore_planned_rounds{job_id="small"} 100000.0' in text
            assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)
