"""A whole federation on one machine: the server here, the clients in worker processes or in threads."""
