"""A fault of the server's disk: the lead reads what happened and to whom, the operator also where."""

import errno
from pathlib import Path
from typing import Any

import pytest

from flcore.federation.messages import FileList, FilePart, ListFiles, ReadFile
from tests.flcore.federation.small_federation import Federation, packed, write_job
from tests.flcore.server.failing_disk import FailingDisk, Fault

FULL = "No space left on device"


def test_an_update_that_the_disk_does_not_keep_names_no_folder_of_the_server_to_the_lead(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FailingDisk(monkeypatch).fault = Fault("pwritev", r"\.updates/\d+-south-.*segment", errno.ENOSPC)
    lead = federation.lead()
    once: dict[str, Any] = {"server__on_quorum_failure": "skip", "server__quorum_retries": 0}
    job_id = lead.submit(packed(write_job(tmp_path / "job", rounds=1)), **once)
    for name in ("north", "south"):
        federation.agent(name)
    assert lead.wait(job_id).state == "done"

    told = {"show": lead.show(job_id).sites["south"]}
    for file in lead.ask(ListFiles(id=job_id), FileList)[0].files:
        told[file.name] = lead.ask(ReadFile(id=job_id, name=file.name, offset=0), FilePart)[1].decode("latin-1")
    for place in ("show", "server.log", "run/history.jsonl"):
        assert "client 'south': the disk does not keep it: segment" in told[place] and FULL in told[place], told[place]
    assert [place for place, text in told.items() if str(federation.directory) in text] == []

    lines = [record.getMessage() for record in caplog.records if FULL in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith(f"{job_id}: south failed in train: "), lines
    assert f"{federation.directory}/jobs/{job_id}/run/.updates/" in lines[0]
