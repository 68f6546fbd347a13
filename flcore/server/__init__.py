"""The server's side of a job: connected clients, attempts at tasks, and their answers."""
