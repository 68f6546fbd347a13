"""The versions of Python and of the packages, compared with the bounds that flcore's own metadata declares."""

import operator
import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from flcore.doctor.result import CheckResult, Outcome

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?P<extras>\[[^]]*\])?\s*(?P<bounds>[^;]*)(?:;(?P<marker>.*))?")
COMPARISONS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}

PACKAGES_SHOWN = ("numpy", "numba", "grpcio", "pyarrow")
"""The packages whose versions stand in the result; all are compared."""


def check_python(version: Sequence[int] = sys.version_info[:3], bounds: str | None = None) -> CheckResult:
    """Compare Python's version with `requires-python`.

    Args:
        version: Python's version.
        bounds: What flcore needs, such as ">=3.11". Default: None, as its metadata say.
    """
    needed = bounds if bounds is not None else metadata.metadata("flcore")["Requires-Python"]
    found = ".".join(map(str, version))
    if _fits(found, needed):
        return CheckResult("python", "ok", f"Python {found}")
    return CheckResult(
        "python", "failed", f"Python {found}; flcore needs {needed}", f"install flcore with a Python {needed}"
    )


def check_packages(
    requirements: Sequence[str] | None = None, version_of: Callable[[str], str] = metadata.version
) -> CheckResult:
    """Compare the versions of packages with the bounds of flcore's requirements.

    A package of an extra is compared only if it is installed, and is a warning.

    Args:
        requirements: Requirements such as "numba>=0.61,<0.69". Default: None, those of flcore's metadata.
        version_of: Returns the version of an installed package, or raises `PackageNotFoundError`.
    """
    versions, broken, odd = dict[str, str](), list[str](), list[str]()
    for requirement in metadata.requires("flcore") or () if requirements is None else requirements:
        parts = REQUIREMENT.match(requirement)
        if parts is None or parts["name"] == "flcore":
            continue
        is_extra, bounds = "extra" in (parts["marker"] or ""), parts["bounds"].strip()
        try:
            found = versions[parts["name"]] = version_of(parts["name"])
        except metadata.PackageNotFoundError:
            if not is_extra:
                broken.append(f"{parts['name']}{bounds} is not installed")
            continue
        if not _fits(found, bounds):
            (odd if is_extra else broken).append(f"{parts['name']} {found}, expected {parts['name']}{bounds}")
    if broken or odd:
        expected = " ".join(f"'{each.rpartition('expected ')[2].removesuffix(' is not installed')}'"
                            for each in broken + odd)  # fmt: skip
        outcome: Outcome = "failed" if broken else "warning"
        return CheckResult("packages", outcome, "; ".join(broken + odd), f"pip install {expected}")
    shown = ", ".join(f"{name} {versions[name]}" for name in PACKAGES_SHOWN if name in versions)
    return CheckResult("packages", "ok", shown or "nothing is required")


def _fits(version: str, bounds: str) -> bool:
    """Whether a version is within bounds.

    >>> _fits("0.68.1", ">=0.61,<0.69"), _fits("0.70.0rc1", ">=0.61,<0.69"), _fits("2.0", "")
    (True, False, True)
    """
    for bound in filter(None, (each.strip() for each in bounds.split(","))):
        sign = next((sign for sign in COMPARISONS if bound.startswith(sign)), "")
        if sign and not COMPARISONS[sign](*_padded(version, bound.removeprefix(sign))):
            return False
    return True


def _padded(one: str, other: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of two versions, with as many zeros as make them equally long."""
    first, second = ([int(number) for number in re.match(r"\s*([\d.]*)", text)[1].split(".") if number]  # type: ignore[index]
                     for text in (one, other))  # fmt: skip
    length = max(len(first), len(second))
    return tuple(first + [0] * (length - len(first))), tuple(second + [0] * (length - len(second)))
