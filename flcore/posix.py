"""flcore needs a POSIX system. This module is imported first, so that other systems get one clear error."""

try:
    import fcntl  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "flcore does not support this system: expected POSIX (Linux or macOS); on Windows, use WSL 2"
    ) from error
