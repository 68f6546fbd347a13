"""Soak: a federation over TLS for thousands of rounds, whose processes take no more at their end than once warm.

The full form (`make stress`) has 2,000 rounds of 4 MiB and 8 clients, and as many of 64 KiB: there, 5 KB that stay in
every round are found. The small form has models of a quarter of a MiB: a thread, a descriptor or a round's updates that
stay in every round are found in it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flcore import load
from tests.flcore.flatness import Tolerance, growths
from tests.flcore.soak import Sample, Usage, federation, figures

MIB = 1 << 20
FULL = Tolerance(pss_bytes=16 * MIB, heap_bytes=12 * MIB)
SMALL_MODELS = Tolerance(pss_bytes=16 * MIB, heap_bytes=4 * MIB)
SMALL = Tolerance(pss_bytes=8 * MIB, heap_bytes=8 * MIB, threads=6, descriptors=6, cpu=1.0)
"""Half of what fifteen rounds would add that leave a thread, a descriptor or their updates behind, or less."""


def soaked(folder: Path, rounds: int, model_bytes: int, tolerance: Tolerance, every: int) -> None:
    samples = federation(folder, rounds, model_bytes, print, every)
    for quarter in range(4):
        part = samples[quarter * len(samples) // 4 : (quarter + 1) * len(samples) // 4]
        print(f"quarter {quarter + 1}: {figures(part)}")
    assert [sample.round for sample in samples] == list(range(1, rounds))
    assert (load(folder / "runs/soak/model.safetensors")["w"] == rounds).all(), "each update counts once"
    assert growths(samples, tolerance) == []


@pytest.mark.long
def test_thirty_rounds_leave_nothing_behind(tmp_path: Path) -> None:
    soaked(tmp_path, 30, MIB // 4, SMALL, 10)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("model_bytes", "tolerance"), [(4 * MIB, FULL), (MIB // 16, SMALL_MODELS)])
def test_two_thousand_rounds_are_flat(tmp_path: Path, model_bytes: int, tolerance: Tolerance) -> None:
    soaked(tmp_path, 2_000, model_bytes, tolerance, 50)


def flat(number: int) -> Sample:
    """A sample of a run in which nothing grows but its records."""
    used = Usage(pss_bytes=180 * MIB, heap_bytes=120 * MIB, threads=20, descriptors=36, cpu_s=0.2 * number)
    files = {"state.sqlite": 7_000 * number, "state.sqlite-wal": 4 * MIB, "history.jsonl": 1_400 * number}
    return Sample(number, 0.5, used, (used, used), files | {"audit.jsonl": 3_500 * number, ".updates": 32 * MIB})


GROWTHS: dict[str, Callable[[Sample], Sample]] = {
    "heap_bytes": lambda it: replace(it, server=replace(it.server, heap_bytes=(120 << 20) + 20_000 * it.round)),
    "pss_bytes": lambda it: replace(it, server=replace(it.server, pss_bytes=(180 << 20) + 20_000 * it.round)),
    "threads": lambda it: replace(it, server=replace(it.server, threads=20 + it.round // 100)),
    "descriptors": lambda it: replace(it, server=replace(it.server, descriptors=36 + it.round // 100)),
    "CPU": lambda it: replace(it, server=replace(it.server, cpu_s=0.2 * it.round + 1e-4 * it.round**2)),
    "client process 2": lambda it: replace(it, clients=(it.clients[0], replace(it.clients[1], threads=it.round))),
    "state.sqlite:": lambda it: replace(it, files=it.files | {"state.sqlite": 7 * it.round**2}),
    "history.jsonl": lambda it: replace(it, files=it.files | {"history.jsonl": 2 * it.round**2}),
    "audit.jsonl": lambda it: replace(it, files=it.files | {"audit.jsonl": 2 * it.round**2}),
    "state.sqlite-wal": lambda it: replace(it, files=it.files | {"state.sqlite-wal": 7_000 * it.round}),
    ".updates": lambda it: replace(it, files=it.files | {".updates": 32_000 * it.round}),
    ".models": lambda it: replace(it, files=it.files | {".models": 8_000 * it.round}),
}


def test_a_run_in_which_only_records_grow_is_flat() -> None:
    assert growths([flat(number) for number in range(1, 2_000)], FULL) == []


@pytest.mark.parametrize("grown", GROWTHS)
def test_each_growth_is_found(grown: str) -> None:
    found = growths([GROWTHS[grown](flat(number)) for number in range(1, 2_000)], FULL)
    assert len(found) == 1 and grown in found[0]
