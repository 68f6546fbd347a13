"""Workflows: the server's program, round by round. One workflow per file."""
