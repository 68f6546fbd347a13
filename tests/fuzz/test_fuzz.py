"""The fuzzer's small form, its full form (`make fuzz`), and that it finds faults that are put in."""

import mmap
import random
import subprocess
import sys
from pathlib import Path

import pytest
from flcore_transport import Refused, control
from flcore_transport.control import encode_message
from flcore_transport.framing import CHECKSUM, checksum_of
from flcore_transport.messages import Receipt

from flcore.job import content
from tests.fuzz import run
from tests.fuzz.content_targets import Contents
from tests.fuzz.message_targets import MESSAGES, Messages, mutate_sealed
from tests.fuzz.mutations import join_fields, mutate_protobuf, split_fields, varint
from tests.fuzz.target import NotCanonical

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> int:
    """Run the fuzzer in a process of its own: it limits the address space."""
    return subprocess.run([sys.executable, "-m", "tests.fuzz.run", *arguments], cwd=ROOT, check=False).returncode


def test_two_thousand_mutated_inputs_are_refused_or_canonical() -> None:
    assert fuzz("--inputs", "2000", "--seed", "20") == 0


@pytest.mark.fuzz
@pytest.mark.timeout(3_600)
def test_a_million_mutated_inputs_are_refused_or_canonical() -> None:
    assert fuzz("--inputs", "1000000", "--seconds", "3300") == 0


class Planted:
    """A decoder with a fault, which depends on the input's number."""

    name, share, cases = "planted", 1, 1

    def make(self, draw: random.Random, case: int) -> bytes:
        return draw.randbytes(8)

    def feed(self, case: int, data: bytes) -> None:
        """Take any input, without a fault."""


class Crashes(Planted):
    def feed(self, case: int, data: bytes) -> None:
        raise RecursionError("too deep")


class Hangs(Planted):
    def feed(self, case: int, data: bytes) -> None:
        sum(range(3_000_000))


class Allocates(Planted):
    def feed(self, case: int, data: bytes) -> None:
        # A mapping of its own: the allocator may hand out pages that an earlier test has left resident.
        with mmap.mmap(-1, 160 << 20) as fresh:
            for start in range(0, len(fresh), mmap.PAGESIZE):
                fresh[start] = 1


@pytest.mark.parametrize(
    ("planted", "finding"), [(Crashes, "RecursionError: too deep"), (Hangs, " s; "), (Allocates, "MiB of memory")]
)
def test_a_crash_a_hang_and_a_large_allocation_are_found(
    planted: type[Planted], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MAX_INPUT_S", 0.01)
    if planted is Allocates and not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot reset the peak of a process's memory")
    fuzzer = run.Fuzzer(1)
    fuzzer.feed(planted(), 0)
    assert any(finding in failure for failure in fuzzer.failures)


def test_a_decoder_of_messages_that_is_not_strict_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_require_canonical", lambda message, body: None)
    fuzzer = run.Fuzzer(1)
    for number in range(50):
        fuzzer.feed(Messages(), number)
    assert any("encoded otherwise" in failure for failure in fuzzer.failures)


def test_a_content_with_two_meanings_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_require_unambiguous", lambda content_type, content: None)
    target = Contents()
    with pytest.raises(NotCanonical, match="stands twice"):
        target.feed(0, b'{"contract":"","contract":"{}","code_digest":"","version":""}')


def test_most_mutated_messages_reach_the_parser() -> None:
    draw, data = random.Random(3), encode_message(MESSAGES[0])
    mutated = [mutate_sealed(draw, data, data) for _ in range(500)]
    matching = sum(each[-CHECKSUM.size :] == checksum_of(each[: -CHECKSUM.size]) for each in mutated)
    assert 450 < matching < 500


def test_the_same_seed_and_number_give_the_same_input() -> None:
    target = Messages()
    inputs = [run.draw_input(target, 7, number) for number in range(20)]
    assert inputs == [run.draw_input(target, 7, number) for number in range(20)]
    assert inputs != [run.draw_input(target, 8, number) for number in range(20)]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_split_into_fields_and_joined(message: object) -> None:
    data = encode_message(message)[: -CHECKSUM.size]
    fields = split_fields(data)
    assert fields and join_fields(fields) == data
    draw = random.Random(3)
    mutated = {mutate_protobuf(draw, data, data) for _ in range(50)}
    assert len(mutated) > 30


@pytest.mark.parametrize("padding", [1, 3, 9])
def test_an_overlong_number_is_the_same_number(padding: int) -> None:
    overlong = varint(8) + varint(9, padding)
    assert len(overlong) == 2 + padding and overlong + checksum_of(overlong) != encode_message(Receipt(9))
    if padding < 9:  # a number has at most ten bytes
        with pytest.raises(Refused, match="canonical"):
            control.decode_message(Receipt, overlong + checksum_of(overlong))
