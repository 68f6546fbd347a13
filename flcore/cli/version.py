"""`flcore --version`: what a report of a fault needs to say."""

import typer


def print_version(is_wanted: bool) -> None:
    """Print versions, platform and kernels, and exit, if the option was given."""
    if not is_wanted:
        return
    import platform  # each command would wait for these imports

    from flcore.version import __version__

    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"flcore {__version__}, {python}, {platform.platform()}")
    print(f"kernels: {_kernels()}")
    raise typer.Exit


def _kernels() -> str:
    """Return the backends of the kernels, each with the version of its compiler. Imports none of them."""
    cuda = next((each for each in map(_distribution, ("cupy-cuda13x", "cupy-cuda12x", "cupy")) if each), None)
    return f"cpu ({_distribution('numba') or 'Numba is not installed'}), cuda ({cuda or 'CuPy is not installed'})"


def _distribution(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None
