"""Templates of jobs: `flcore new` copies one, with the name of the new job filled in."""

from flcore.templates.new_job import TEMPLATES, missing_packages, write_job

__all__ = ["TEMPLATES", "missing_packages", "write_job"]
