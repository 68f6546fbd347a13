"""The backends are twins: the same verbs, with the same signatures, in the same order, and as `Backend` says."""

import ast
import inspect
from pathlib import Path

import flcore_kernels
import pytest
from flcore_kernels.backend import Backend
from flcore_kernels.cpu.backend import CpuBackend
from flcore_kernels.cuda.backend import CudaBackend

from tests.kernels.resident import Resident

KERNELS = Path(flcore_kernels.__file__).parent


def verbs(backend: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(verb)
        for name, verb in vars(backend).items()
        if inspect.isfunction(verb) and not name.startswith("_")
    }


@pytest.mark.parametrize("twin", [CpuBackend, CudaBackend])
def test_the_twins_have_the_verbs_of_a_backend_in_its_order(twin: type) -> None:
    wanted, found = verbs(Backend), verbs(twin)
    assert list(found) == list(wanted)
    for name in wanted:
        assert str(found[name]).replace("weights_", "weights") == str(wanted[name]), name
    assert verbs(CpuBackend) == verbs(CudaBackend)


def test_what_the_tests_put_before_a_backend_has_its_verbs() -> None:
    assert list(verbs(Resident)) == list(verbs(Backend))


def test_a_verb_that_one_twin_gains_shows() -> None:
    class Gained(CudaBackend):
        def order(self) -> None:
            """A verb that the other has not."""

    assert {**verbs(CudaBackend), **verbs(Gained)} != verbs(CpuBackend)


def test_each_file_of_the_sources_is_compiled_and_has_a_twin() -> None:
    from flcore_kernels.cuda.kernels import FILES

    assert sorted(path.stem for path in (KERNELS / "cuda/source").glob("*")) == sorted(FILES)
    for name in FILES:
        assert (KERNELS / f"cpu/{name}.py").exists(), name


def test_the_names_of_kernels_are_made_by_functions_of_the_same_names() -> None:
    def made(file: str) -> set[str]:
        tree = ast.parse((KERNELS / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        return {name for name in names if name.endswith("_kernel")}

    ours, theirs = made("cuda/kernels.py"), made("cpu/kernels.py") | made("cpu/scan.py")
    assert theirs - ours == {"exact_fallback_kernel"}, "long division is a part of the kernels there"
    assert ours <= theirs
