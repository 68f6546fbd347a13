"""The cache of compiled code: the user's own, never stale, and shared by processes that start at once."""

import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import llvmlite
import llvmlite.binding
import numba
import numpy as np
import pytest
from flcore_kernels import code_cache
from flcore_kernels.cpu import compiler as cpu_compiler
from flcore_kernels.cpu.compiler import Kernel, cache_directory
from flcore_kernels.cpu.warm import compile_ahead
from flcore_kernels.errors import KernelError
from numba import types
from numba.core import serialize

SCRIPT = """
import sys, numpy as np
from flcore_kernels import backend
from flcore_kernels.cpu import scan
kernel = scan.max_abs_kernel("int8")
if "at once" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
compiled = kernel.warm()
assert backend("cpu").max_abs([np.array([1, -5, 3], np.int8)], "int8") == [5.0]
assert kernel.warm() is False
print("compiled" if compiled else "fetched")
"""


@pytest.fixture(autouse=True)
def _own_directory(own_cache: None) -> Iterator[None]:
    yield
    cast("Any", numba.config).reload_config()


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
    for place in [cache_directory(), tmp_path / "kept"]:
        assert place is not None
        os.chown(place, 54321, -1) if os.getuid() == 0 else None
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(RuntimeWarning, match="not kept, because .*kept belongs to user"):
        assert cache_directory() is None


def test_a_place_where_no_directory_can_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert cache_directory() is None


def digest_with(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        cpu_compiler._processor.cache_clear()
        digest = cpu_compiler._digest()
    cpu_compiler._processor.cache_clear()
    return digest


def test_whatever_changes_changes_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Features:
        def flatten(self) -> str:
            return "+nothing"

    first = cpu_compiler._digest()
    assert cpu_compiler._digest() == first
    found = {
        first,
        digest_with(monkeypatch, sys, "version", "4.0"),
        digest_with(monkeypatch, platform, "machine", lambda: "abacus"),
        digest_with(monkeypatch, numba, "__version__", "9"),
        digest_with(monkeypatch, llvmlite, "__version__", "9"),
        digest_with(monkeypatch, llvmlite.binding, "get_host_cpu_name", lambda: "i386"),
        digest_with(monkeypatch, llvmlite.binding, "get_host_cpu_features", Features),
        digest_with(monkeypatch, cpu_compiler, "_SOURCES", "other loops"),
    }
    assert len(found) == 8


def test_a_processor_whose_features_llvm_does_not_know_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Any:
        raise RuntimeError("failed to get host cpu features.")

    assert digest_with(monkeypatch, llvmlite.binding, "get_host_cpu_features", unknown)


SETTINGS = {
    "OPT": 0,
    "LOOP_VECTORIZE": 0,
    "SLP_VECTORIZE": 1,
    "CPU_NAME": "generic",
    "CPU_FEATURES": "+sse2",
    "ENABLE_AVX": 0,
    "DEBUGINFO_DEFAULT": 1,
    "BOUNDSCHECK": 1,
    "DEBUG_NRT": 1,
    "ENABLE_PROFILING": 1,
    "LLVM_REFPRUNE_PASS": 0,
    "DISABLE_INTEL_SVML": 1,
    "USE_LLVMLITE_MEMORY_MANAGER": 1,
    "EXTEND_VARIABLE_LIFETIMES": 1,
    "JIT_COVERAGE": 1,
}


def test_each_setting_of_numba_that_changes_the_code_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {digest_with(monkeypatch, numba.config, name, value) for name, value in SETTINGS.items()}
    assert len(found | {cpu_compiler._digest()}) == len(SETTINGS) + 1


def test_a_setting_of_the_environment_counts_from_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cpu_compiler._digest()
    monkeypatch.setenv("NUMBA_LOOP_VECTORIZE", "0")
    assert cpu_compiler._digest() != first


@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "CACHE_DIR", "THREADING_LAYER", "CUDA_LOG_SIZE"])
def test_a_setting_that_does_not_change_the_code_does_not_cost_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_with(monkeypatch, numba.config, name, 3) == cpu_compiler._digest()


def test_sources_are_known_by_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = set()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cuda").mkdir()
    for name, text in (("cpu/a.py", "a = 1"), ("cpu/a.py", "a = 2"), ("other.py", "b = 1")):
        (tmp_path / name).write_text(text)
        found.add(cpu_compiler._digest_of_sources(tmp_path))
    assert len(found) == 3
    (tmp_path / "cuda/a.py").write_text("c = 1")
    assert cpu_compiler._digest_of_sources(tmp_path) in found
    assert cpu_compiler._digest_of_sources(tmp_path / "archive.zip") == ""
    monkeypatch.setattr(cpu_compiler, "_SOURCES", "")
    with pytest.warns(RuntimeWarning, match="sources that name them cannot be read"):
        assert cache_directory() is None


def test_a_kernel_is_compiled_once_and_then_fetched() -> None:
    first, second = doubling(), doubling()
    assert first.warm(notice=False) is True
    assert first.warm() is False
    assert second.warm() is False
    assert first(1.5) == second(1.5) == 3.0
    assert doubling("another").warm(notice=False) is True


def test_numba_still_does_what_keeping_is_made_of(tmp_path: Path) -> None:
    """A file a kernel, where we say, and nothing of Numba's own. Its private names are bounded in pyproject.toml."""
    doubling().warm(notice=False)
    directory = cache_directory()
    assert directory is not None
    assert [place.name for place in directory.iterdir()] == ["doubling.nbc"]
    assert doubling().warm() is False
    assert not list(tmp_path.rglob("__pycache__"))
    (numbas,) = [
        each
        for each in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
        if each.startswith("numba>")
    ]
    assert ",<" in numbas, "a version that was not tried may have other private names"


def damaged(change: Callable[[Path], object]) -> Path:
    """Keep a kernel, damage its file, and hold that it is compiled anew and kept again."""
    assert doubling().warm(notice=False)
    path = doubling().path()
    assert path is not None
    change(path)
    kernel = doubling()
    assert kernel.warm(notice=False) is True
    assert kernel(21.0) == 42.0
    assert code_cache.read(path) is not None  # whole again; its length varies with what Numba counted so far
    assert doubling().warm() is False
    return path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("length", [0, 10, 100, -1])
def test_a_file_that_was_cut_is_compiled_anew(length: int) -> None:
    damaged(lambda path: path.write_bytes(path.read_bytes()[:length]))


@pytest.mark.parametrize("place", [0, 50, 100, 1000, -1])
def test_a_file_of_which_a_bit_has_turned_is_compiled_anew(place: int) -> None:
    damaged(lambda path: flip(path, place))


def test_a_file_of_numbas_own_is_never_unpickled(tmp_path: Path) -> None:
    damaged(lambda path: path.write_bytes(f"cos\nmkdir\n(V{tmp_path}/made\ntR.".encode()))
    assert not (tmp_path / "made").exists()


def test_code_that_cannot_be_loaded_is_compiled_anew() -> None:
    with pytest.warns(RuntimeWarning, match="compiled anew, as it cannot be loaded: .*ModuleNotFoundError"):
        damaged(lambda path: code_cache.write(path, b"cnowhere\nnothing\n."))


def test_a_kernel_that_cannot_be_kept_runs() -> None:
    path = doubling().path()
    assert path is not None
    path.mkdir()
    kernel = doubling()
    with pytest.warns(RuntimeWarning, match="not kept in .*: Is a directory"):
        assert kernel.warm(notice=False) is True
    assert kernel(21.0) == 42.0


def test_a_result_that_cannot_be_pickled_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> bytes:
        raise RuntimeError("no compiled object yet")

    monkeypatch.setattr(serialize, "dumps", broken)
    kernel = doubling()
    with pytest.warns(RuntimeWarning, match="not kept: .*no compiled object yet"):
        assert kernel(21.0) == 42.0


def test_a_directory_may_disappear_meanwhile(tmp_path: Path) -> None:
    first = doubling()
    first.warm(notice=False)
    shutil.rmtree(tmp_path / "kept")
    assert first(21.0) == 42.0
    assert doubling().warm(notice=False) is True
    assert doubling().warm() is False


def test_compiling_ahead_tells_where_nothing_can_be_kept() -> None:
    directory = cache_directory()
    assert directory is not None
    (directory / "merge-exact.nbc").mkdir()
    with pytest.raises(KernelError, match="cannot be kept here"):
        list(compile_ahead([("merge",)], 1))


def test_where_numba_may_not_compile_an_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as disabled:
        disabled.setattr(numba.config, "DISABLE_JIT", 1)
        with pytest.raises(KernelError, match="NUMBA_DISABLE_JIT forbids it: unset it"):
            doubling()(1.0)
    assert doubling()(1.0) == 2.0


@pytest.mark.parametrize(
    ("setting", "code", "told"),
    [
        ("NUMBA_OPT=0", 0, "not kept: they hold addresses of this process, as with NUMBA_OPT=0"),
        ("NUMBA_DISABLE_JIT=1", 1, "KernelError: the kernels are compiled code, and NUMBA_DISABLE_JIT forbids it"),
        ("NUMBA_CACHE_LOCATOR_CLASSES=no.Such", 0, ""),
    ],
)
def test_a_setting_of_the_environment_ends_in_a_result_or_an_error(setting: str, code: int, told: str) -> None:
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "compiled" in done.stdout or code


@pytest.mark.serial
def test_numba_works_where_no_signal_reaches_it() -> None:
    """An interrupt in the middle of its work left objects of LLVM that were freed twice, which ended one run in ten."""
    works = []

    def build() -> Any:
        def double(x):  # type: ignore[no-untyped-def]
            return 2.0 * x

        works.append(threading.current_thread())
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        return double

    kernel = Kernel("interrupted", types.float64(types.float64), build)
    with pytest.raises(KeyboardInterrupt):
        kernel.warm(notice=False)
    assert kernel(21.0) == 42.0
    assert len(works) == 1
    assert works[0] is not threading.main_thread()
    assert kernel.warm() is False


def test_a_kernel_is_compiled_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert doubling()(21.0) == 42.0


def test_a_notice_is_for_a_person_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cpu_compiler._tell_once.cache_clear()
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


def test_the_kernels_of_rules_are_those_that_rules_ask_for() -> None:
    from flcore_kernels.cpu.warm import kernel_of, rule_keys_of

    keys = rule_keys_of(["float32", "int8[256]", "bfloat16", "int64"])
    assert len(set(keys)) == len(keys)
    for needed in (
        ("median", "float32", "float64"),
        ("weighted-median", "bfloat16", "float64"),
        ("distances", "bfloat16"),
        ("mix", "bfloat16", "float32"),
        ("mix", "int64", "float64"),
        ("trimmed-mean", "float64", "float64"),  # of mixed integers
        ("step", "adaptive", "float64", "float32"),
    ):
        assert needed in keys
        kernel_of(needed)
    assert not any("int8[256]" in key for key in keys)
