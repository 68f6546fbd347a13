"""The client's side of a job: the executor runs the code of a task next to its data."""
