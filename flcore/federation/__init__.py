"""A standing federation, the server's side: a queue of jobs, and the jobs that run."""
