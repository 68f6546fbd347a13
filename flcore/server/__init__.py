"""The server's side of a job: who is connected, what is asked of them, and what becomes of their answers."""
