"""The report in a download: the job's sheet, and a table of its rounds."""

from collections.abc import Sequence
from pathlib import Path

from flcore.federation.messages import JobDetails
from flcore.identity.files import replace_file
from flcore.lead.job_sheet import first_line, sheet_lines
from flcore.server.history import RoundRecord
from flcore.server.round_table import round_table

REPORT_FILE = "report.txt"


def is_report_of(path: Path, job_id: str) -> bool:
    """Whether a path is free, or has an earlier report of this job, so that a report may be written there."""
    begin = f"{first_line(job_id)}\n".encode()
    try:
        with path.open("rb") as file:
            return file.read(len(begin)) == begin
    except FileNotFoundError:
        return not path.is_symlink()


def write_report(path: Path, details: JobDetails, history: Sequence[RoundRecord]) -> None:
    """Write a job's report, in place of an earlier one."""
    lines = [*sheet_lines(details), "", *round_table(history)]
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
