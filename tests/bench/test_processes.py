"""Rounds of real processes, at a size that measures nothing."""

import pytest
from flcore_bench import processes
from flcore_bench.round import SIZES_MB


@pytest.mark.serial
def test_both_sides_are_measured_with_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES_MB, "small", 2)
    monkeypatch.setitem(processes.ROUNDS, "small", 2)
    plaintext, tls = processes.process_rows("small", 2)
    assert len(plaintext.seconds) == len(tls.seconds) == 2
    assert plaintext.what.endswith("plaintext") and tls.what.endswith("mutual TLS")
    assert tls.against == {"plaintext": pytest.approx(tls.median_s / plaintext.median_s)}
    assert plaintext.bytes == tls.bytes == 2 * 4 * 2_000_000
