"""flcore runs on POSIX systems. Importing this module first says so, where otherwise some module would be missing."""

try:
    import fcntl  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "flcore does not support this system: expected POSIX (Linux or macOS); on Windows, use WSL 2"
    ) from error
