"""docs/sites.md is true: its site.toml files are accepted, its table has all keys, its code runs."""

import re
import tomllib
from pathlib import Path

import pytest

from flcore.agent import agent_directory, job_log, job_output, process_group, site_reports, supervised_job
from flcore.agent.site_rules import LimitsTable, SiteRules, parse_site_rules
from flcore.progress import report_progress
from tests.test_readme import blocks

PAGE = (Path(__file__).parents[3] / "docs/sites.md").read_text()


@pytest.mark.parametrize("text", blocks("toml", PAGE))
def test_its_site_files_are_accepted(text: str) -> None:
    assert parse_site_rules(tomllib.loads(text), "docs/sites.md") != SiteRules()


def test_its_table_has_all_keys_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \|", PAGE, re.MULTILINE))
    keys = {key for key in SiteRules.model_fields if key != "limits"}
    assert rows.keys() == keys | {f"limits.{key}" for key in LimitsTable.model_fields}
    for key in ("jobs", "same_code", "share_logs"):
        assert rows[key].strip("`").lower() == str(SiteRules.model_fields[key].default).lower()
    assert int(rows["limits.max_jobs"]) == LimitsTable().max_jobs


def test_its_numbers_are_those_of_the_code() -> None:
    backoff = [int(supervised_job.FIRST_BACKOFF_S * 2**n) for n in range(supervised_job.MAX_RESTARTS)]
    assert backoff == [1, 2, 4, 8, 16] and "1 s, then 2, 4, 8 and 16 s. After the sixth crash" in PAGE
    assert f"SIGKILL after {process_group.PATIENCE_S:.0f} s" in PAGE
    assert (job_log.LOG_FILES, job_log.MAX_LOG_BYTES) == (5, 1 << 20) and "5 files of 1 MiB" in PAGE
    assert (job_output.BYTES_PER_S, job_output.BURST_BYTES) == (1 << 20, 4 << 20)
    assert "More than 1 MiB a second, after the first 4 MiB" in PAGE
    assert site_reports.MAX_PENDING_BYTES == 256 << 10 and "256 KiB wait at most" in PAGE
    assert agent_directory.KEPT_LOGS == 10 and "the ten last ones" in PAGE


def test_its_code_tells_its_progress(tmp_path: Path) -> None:
    from flcore.job.code import JobCode

    [code] = blocks("python", PAGE)
    (tmp_path / "page.py").write_text(code)
    reports: list[str] = []
    with report_progress(lambda now: reports.append(str(now)), "north", "train", 1, 1):
        JobCode(tmp_path).load("page.py:train", "the page")({}, None)
    assert reports == ["north: round 1 of 1: train 0 of 10 (0 %)"]
