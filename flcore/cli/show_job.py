"""The sheet of a job of a standing federation, for `flcore show ID`."""

import json

from flcore.lead.connection import FederationConnection
from flcore.lead.job_sheet import sheet_lines


def show_job(federation: FederationConnection, id: str, as_json: bool) -> None:  # noqa: A002 - its name
    """Print a job's sheet, or all that the server knows of it as JSON."""
    details = federation.job(id).details
    if as_json:
        print(json.dumps(details.model_dump()))
        return
    for line in sheet_lines(details):
        print(line)
