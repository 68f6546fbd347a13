"""Versions, open files, memory and the kernel's settings: each check passes and fails."""

import resource
from importlib import metadata
from pathlib import Path

import pytest

from flcore.doctor.machine import check_descriptors, check_huge_pages, check_memory, check_overcommit
from flcore.doctor.versions import check_packages, check_python

REQUIREMENTS = ("numpy>=2.0", "numba<0.69,>=0.61", "torch>=2.4; extra == 'torch'", "flcore[plot]; extra == 'demo'")
MIB = 1 << 20


def versions(**installed: str):  # type: ignore[no-untyped-def]
    def version_of(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    return version_of


def test_python() -> None:
    assert check_python().outcome == "ok"
    assert check_python((3, 11, 0), ">=3.11").outcome == "ok"
    found = check_python((3, 10, 14), ">=3.11")
    assert (found.outcome, found.found) == ("failed", "Python 3.10.14; flcore needs >=3.11")


def test_the_packages_of_this_installation() -> None:
    found = check_packages()
    assert found.outcome == "ok" and all(name in found.found for name in ("numpy 2", "numba 0", "grpcio 1", "pyarrow"))


def test_packages_within_their_bounds() -> None:
    found = check_packages(REQUIREMENTS, versions(numpy="2.0", numba="0.68.1rc1"))
    assert (found.outcome, found.found) == ("ok", "numpy 2.0, numba 0.68.1rc1")


def test_a_package_beyond_its_bound_and_one_that_is_missing_fail() -> None:
    found = check_packages(REQUIREMENTS, versions(numba="0.69.0"))
    assert found.outcome == "failed"
    assert found.found == "numpy>=2.0 is not installed; numba 0.69.0, expected numba<0.69,>=0.61"
    assert found.advice == "pip install 'numpy>=2.0' 'numba<0.69,>=0.61'"


def test_a_package_of_an_extra_beyond_its_bound_is_a_warning() -> None:
    found = check_packages(REQUIREMENTS, versions(numpy="2.3", numba="0.61", torch="2.3.9"))
    assert (found.outcome, found.found) == ("warning", "torch 2.3.9, expected torch>=2.4")


@pytest.mark.parametrize(
    ("clients", "limit", "outcome"),
    [(100, 456, "ok"), (100, 455, "failed"), (10_000, 1_024, "failed"), (10_000, resource.RLIM_INFINITY, "ok")],
)
def test_open_files(clients: int, limit: int, outcome: str) -> None:
    found = check_descriptors(clients, limit)
    assert found.outcome == outcome and f"needs {2 * clients + 256:,}" in found.found
    assert ("LimitNOFILE" in found.advice) == (outcome == "failed")


def test_descriptors_that_a_server_reserves_are_those_of_the_transport() -> None:
    from flcore_transport.grpc_server import RESERVED_DESCRIPTORS

    from flcore.doctor import machine

    assert machine.RESERVED_DESCRIPTORS == RESERVED_DESCRIPTORS


@pytest.mark.parametrize(
    ("available", "limit", "outcome", "advice"),
    [
        (8_000, 16_000, "ok", ""),
        (1_000, 16_000, "warning", "--budget 584MiB"),
        (8_000, 1_000, "warning", "--budget 584MiB"),  # a control group's limit
        (400, 16_000, "failed", "at least 480 MiB"),
    ],
)
def test_memory(available: int, limit: int, outcome: str, advice: str) -> None:
    found = check_memory(available * MIB, limit * MIB)
    assert found.outcome == outcome and advice in found.advice
    assert found.found.startswith(f"{min(available, limit):,} MiB of {limit:,} MiB are available; a server takes 1,440")


def test_overcommit(tmp_path: Path) -> None:
    (tmp_path / "sys/vm").mkdir(parents=True)
    for mode, outcome in (("0", "ok"), ("1", "ok"), ("2", "warning")):
        (tmp_path / "sys/vm/overcommit_memory").write_text(f"{mode}\n")
        (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nCommitLimit:    2097152 kB\n")
        assert check_overcommit(tmp_path).outcome == outcome
    assert "2,048 MiB may be reserved" in check_overcommit(tmp_path).found
    assert check_overcommit(tmp_path / "none").outcome == "ok"


def test_huge_pages(tmp_path: Path) -> None:
    file = tmp_path / "kernel/mm/transparent_hugepage/enabled"
    file.parent.mkdir(parents=True)
    for text, outcome in (("[always] madvise never", "ok"), ("always [madvise] never", "ok"),
                          ("always madvise [never]", "warning")):  # fmt: skip
        file.write_text(f"{text}\n")
        assert check_huge_pages(tmp_path).outcome == outcome
    assert check_huge_pages(tmp_path / "none").found == "transparent huge pages: unknown"
