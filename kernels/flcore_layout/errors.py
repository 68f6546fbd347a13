"""The one root of the errors of all packages."""


class FlcoreError(Exception):
    """The root of every error that flcore raises on purpose."""
