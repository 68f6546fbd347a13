"""Kernels with each rule of exact sums broken, which the law must reject: that shows that the checks bite."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import flcore_kernels
import pytest
from flcore_kernels import backend

from tests.kernels import law

ROOT = Path(__file__).parents[2]
KERNELS = Path(flcore_kernels.__file__).parent
FUSED = """

@intrinsic
def fused(typing, a, b, c):
    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate
"""


class Mutation(NamedTuple):
    """A rule broken: in `file`, each pattern, which occurs once, is replaced."""

    check: str
    file: str
    changes: list[tuple[str, str]]
    appended: tuple[str, str] = ("cpu/memory.py", "")


MUTATIONS = {
    "a carry": Mutation(
        "digits_stay_where_they_are",
        "cpu/digits.py",
        [
            (
                r" +for i in range\(2 \* BLOCK\):\n +memory.store_i64\(digits, i, memory.load_i64\(total, i\)\)\n",
                (
                    "        for i in range(BLOCK):\n"
                    "            lower = memory.load_i64(total, BLOCK + i)\n"
                    "            carry = (lower + (np.int64(1) << np.int64(47))) >> np.int64(48)\n"
                    "            upper = memory.load_i64(total, i) + carry\n"
                    "            memory.store_i64(digits, i, upper)\n"
                    "            memory.store_i64(digits, BLOCK + i, lower - (carry << np.int64(48)))\n"
                ),
            )
        ],
    ),
    "a fused multiply-add": Mutation(
        "terms_are_rounded_products",
        "cpu/exact.py",
        [
            (r" +v = t \+ \(both - u\)\n", "            v = memory.fused(w, np.float64(x), both - u)\n"),
            (r" +u = t \+ high\n", "            x = value(a, f, first + i)\n            u = t + high\n"),
        ],
        ("cpu/memory.py", FUSED),
    ),
    "levels by the floor of log2": Mutation(
        "levels_change_at_half_a_bin",
        "cpu/digits.py",
        [(r"ceiling = exponent \+ .*", "ceiling = exponent")],
    ),
    "a rounded sum of weights": Mutation(
        "the_sum_of_weights_is_exact",
        "totals.py",
        [
            (
                r" +self.weight \+= weight\n",
                (
                    "        from flcore_kernels.weights import UNIT, as_float_pair, exact_sum\n\n"
                    "        self.weight = exact_sum(np.array([as_float_pair(self.weight + weight)[0]]))\n"
                ),
            )
        ],
    ),
    "no count of terms": Mutation(
        "terms_are_counted", "totals.py", [(r"self.terms \+ terms > MAX_TERMS", "self.terms + terms < 0")]
    ),
    "a bfloat16 rounded to float32 before": Mutation(
        "results_are_rounded_once",
        "cpu/encode.py",
        [
            (
                r"def round_once\(value: Any\) -> Any:\n",
                "def round_once(value):\n        value = np.float64(np.float32(value))\n",
            )
        ],
    ),
    "a float32 rounded to float64 before": Mutation(
        "results_are_rounded_once",
        "cpu/quotient.py",
        [(r"round_once\(odd_neighbour\(quotient, remainder\) \* unit\)", "round_once(quotient * unit)")],
    ),
}


@pytest.mark.parametrize("check", law.CHECKS)
def test_the_kernels_keep_the_law(check: str) -> None:
    law.CHECKS[check](backend("cpu", threads=1))


def test_every_check_has_a_mutation_that_it_rejects() -> None:
    assert {mutation.check for mutation in MUTATIONS.values()} == set(law.CHECKS)


@pytest.mark.long
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_law_rejects(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    package = tmp_path / "flcore_kernels"
    shutil.copytree(KERNELS, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / mutation.file).read_text()
    for old, new in mutation.changes:
        source, count = re.subn(old, lambda _, text=new: text, source)  # type: ignore[misc]
        assert count == 1, f"{name}: {old!r} occurs {count} times in {mutation.file}"
    (package / mutation.file).write_text(source)
    with (package / mutation.appended[0]).open("a") as file:
        file.write(mutation.appended[1])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "FLCORE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.law", mutation.check],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == law.BROKEN, done.stdout + done.stderr
