"""The server's side of a job: connected clients, task assignments, and their answers."""
