"""The job: the contract between a server and its clients, and the code beside it."""
