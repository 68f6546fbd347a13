"""site.toml: what is particular to one site, and what a server's says."""

import os
from pathlib import Path

import pytest

from flcore import JobError
from flcore.job.site import read_site, server_site


def test_the_jobs_own_is_read_if_there_is_one(tmp_path: Path) -> None:
    assert read_site(None, tmp_path) == {}
    (tmp_path / "site.toml").write_text('path = "/data"\n[server]\nbudget = "512MiB"\n')
    assert read_site(None, tmp_path)["path"] == "/data"
    assert server_site(read_site(None, tmp_path)).budget == "512MiB"
    other = tmp_path / "other.toml"
    other.write_text('[server]\nplan = "streaming"\n')
    assert server_site(read_site(other, tmp_path)).plan == "streaming"
    assert server_site({}).budget is None and server_site({}).connections is None
    assert server_site({"server": {"connections": 2048}}).connections == 2048


def test_a_byte_order_mark_is_read_over_and_another_encoding_named(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('path = "/data"\r\n', encoding="utf-8-sig", newline="")
    assert read_site(None, tmp_path) == {"path": "/data"}
    (tmp_path / "site.toml").write_text('path = "/data"', encoding="utf-16")
    with pytest.raises(
        JobError, match=r"site\.toml: cannot be read: expected UTF-8, got UTF-16, by its byte order mark"
    ):
        read_site(None, tmp_path)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "site.toml")
    for path in (None, tmp_path / "site.toml"):
        with pytest.raises(JobError, match=r"site\.toml: cannot be read: .* expected a regular file, got a named pipe"):
            read_site(path, tmp_path)


@pytest.mark.parametrize("content", ["= 3", "\udcff", "a = " + "[" * 5_000])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "site.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(JobError, match=r"site\.toml: cannot be read"):
        read_site(None, tmp_path)
    with pytest.raises(JobError, match=r"absent\.toml: cannot be read"):
        read_site(tmp_path / "absent.toml", tmp_path)


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"bugdet": "1GiB"}, "server.bugdet: there is no such key; expected one of budget, connections, plan"),
        ({"budget": 5}, "server.budget: Input should be a valid string, got 5"),
        ({"connections": 15}, "server.connections: Input should be greater than or equal to 16, got 15"),
        ({"connections": 1e3}, "server.connections: Input should be a valid integer, got 1000.0"),
        ({"plan": "at-close"}, "server.plan: Input .*, got 'at-close'; it is called batch now"),
        ({"plan": "later"}, "server.plan: Input should be 'batch' or 'streaming', got 'later'"),
    ],
)
def test_unknown_server_keys_are_refused_by_name(table: dict[str, object], place: str) -> None:
    with pytest.raises(JobError, match=f"site.toml: {place}"):
        server_site({"server": table})
