"""The cache of compiled code: the user's own, never stale, and shared by processes that start at once."""

import os
import platform
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_kernels import cpu_cache
from flcore_kernels.cpu_cache import Kernel, cache_directory
from numba import types

SCRIPT = """
import sys, numpy as np
from flcore_kernels import backend, cpu_observe
kernel = cpu_observe.largest_kernel("int8")
if "at once" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
compiled = kernel.warm()
assert backend("cpu").largest([np.array([1, -5, 3], np.int8)], "int8") == [5.0]
assert kernel.warm() is False
print("compiled" if compiled else "fetched")
"""


@pytest.fixture(autouse=True)
def _own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FLCORE_CACHE_DIR", str(tmp_path / "kept"))
    cache_directory.cache_clear()
    yield
    cache_directory.cache_clear()


def doubling(name: str = "doubling") -> Kernel:
    def build() -> Any:
        def double(x):  # type: ignore[no-untyped-def]
            return 2.0 * x

        return double

    return Kernel(name, types.float64(types.float64), build)


def mode(place: Path) -> int:
    return stat.S_IMODE(place.stat().st_mode)


def test_the_directory_is_where_the_variable_says_and_the_users_alone(tmp_path: Path) -> None:
    old = os.umask(0o002)  # where every user has a group, new directories are writable for it
    try:
        directory = cache_directory()
    finally:
        os.umask(old)
    assert directory is not None
    assert directory.parent == tmp_path / "kept"
    assert mode(directory) == mode(directory.parent) == 0o700


def test_the_home_of_caches_is_the_place_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FLCORE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    directory = cache_directory()
    assert directory is not None
    assert directory.parent == tmp_path / "xdg/flcore"


@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_a_directory_that_others_can_write_to_is_not_used(bits: int, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o755 | bits)
    with pytest.warns(RuntimeWarning, match="others can write to .*chmod go-w"):
        assert cache_directory() is None
    kernel = doubling()
    assert kernel.warm(notice=False)
    assert kernel(21.0) == 42.0
    assert not list(tmp_path.rglob("*.nb?"))


def test_a_kernels_directory_of_another_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() is not None
    cache_directory.cache_clear()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert cache_directory() is None


def test_a_place_where_no_directory_can_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert cache_directory() is None


def digest_with(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        return cpu_cache._digest()


def test_whatever_changes_changes_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import llvmlite
    import numba

    class Features:
        def flatten(self) -> str:
            return "+nothing"

    first = cpu_cache._digest()
    assert cpu_cache._digest() == first
    found = {
        first,
        digest_with(monkeypatch, sys, "version", "4.0"),
        digest_with(monkeypatch, platform, "machine", lambda: "abacus"),
        digest_with(monkeypatch, numba, "__version__", "9"),
        digest_with(monkeypatch, llvmlite, "__version__", "9"),
        digest_with(monkeypatch, llvmlite.binding, "get_host_cpu_name", lambda: "i386"),
        digest_with(monkeypatch, llvmlite.binding, "get_host_cpu_features", Features),
    }
    assert len(found) == 7
    for name, text in (("cpu_cache.py", "a = 1"), ("cpu_cache.py", "a = 2"), ("other.py", "b = 1")):
        (tmp_path / name).write_text(text)
        found.add(digest_with(monkeypatch, cpu_cache, "__file__", str(tmp_path / "cpu_cache.py")))
    assert len(found) == 10


def test_a_kernel_is_compiled_once_and_then_fetched() -> None:
    first, second = doubling(), doubling()
    assert first.warm(notice=False) is True
    assert first.warm() is False
    assert second.warm() is False
    assert first(1.5) == second(1.5) == 3.0
    assert doubling("another").warm(notice=False) is True


def test_numbas_own_cache_still_does_what_ours_is_made_of(tmp_path: Path) -> None:
    """Three names of `cpu_cache` are not public: one index and one file of code a kernel, where we say."""
    doubling().warm(notice=False)
    directory = cache_directory()
    assert directory is not None
    assert sorted(place.name for place in directory.iterdir()) == ["doubling.1.nbc", "doubling.nbi"]
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_notice_is_for_a_person_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cpu_cache._tell_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doubling("noticed").warm()
    assert capsys.readouterr().err == ""


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_may_compile_at_once_and_a_third_compiles_nothing() -> None:
    both = [start("at once"), start("at once")]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        told, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        assert told in ("compiled\n", "fetched\n")
    third = start()
    told, _ = third.communicate(timeout=100)
    assert (third.returncode, told) == (0, "fetched\n")


def test_the_kernels_of_this_process_give_what_they_should() -> None:
    kernel = doubling("checked")
    assert np.array([kernel(x) for x in (0.0, -1.5, 1e308)]).tolist() == [0.0, -3.0, np.inf]
