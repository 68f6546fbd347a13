"""The driver of the suite: every test is in one lane, and the last line tells what happened."""

from itertools import product

from _pytest.mark.expression import Expression

from tests.run import LANES, Lane, summary

MARKS = ("serial", "device", "gpu", "stress", "fuzz", "large")


def lanes_of(marks: set[str]) -> list[str]:
    """Return the lanes that select a test with some marks."""

    def takes(lane: str) -> bool:
        options = LANES[lane]
        return Expression.compile(options[options.index("-m") + 1]).evaluate(lambda name, /, **_: name in marks)

    return [lane for lane in LANES if takes(lane)]


def test_every_test_is_in_one_lane_unless_it_has_a_verb_of_its_own() -> None:
    for has in product((False, True), repeat=len(MARKS)):
        marks = {mark for mark, is_there in zip(MARKS, has, strict=True) if is_there}
        expected = "device" if "device" in marks else "serial" if "serial" in marks else "parallel"
        assert lanes_of(marks) == ([] if marks & {"gpu", "stress", "fuzz", "large"} else [expected])


def test_the_summary_ends_with_a_line_on_the_whole_run() -> None:
    tests = {f"tests.test_a::test_{number}": float(number) for number in range(12)}
    lanes = {
        "parallel": Lane(0, {"tests": 12, "failures": 0, "errors": 0, "skipped": 2}, tests, 60.0),
        "serial": Lane(
            1, {"tests": 2, "failures": 1, "errors": 0, "skipped": 0}, {"tests.test_b::test_slow": 99.0}, 99.0
        ),
    }
    lines = summary(lanes, 10.0, set()).splitlines()
    assert lines[-1] == "1 failed, 11 passed, 2 skipped in 2 min 49 s (kernels 10 s, parallel 60 s, serial 99 s)"
    assert lines[2].split() == ["99.0", "s", "tests.test_b::test_slow"]
    assert sum("::" in line for line in lines) == 10
    assert [line.split() for line in lines[-4:-2]] == [["99.0", "s", "tests.test_b"], ["66.0", "s", "tests.test_a"]]


def test_kernels_that_were_not_compiled_ahead_are_named() -> None:
    told = summary({"parallel": Lane(0, {"tests": 1}, {"tests.test_a::test": 1.0}, 1.0)}, 0.0, {"mean-b", "mean-a"})
    assert "tests/kernels/needed.py): mean-a, mean-b" in told
    assert told.splitlines()[-1].startswith("2 kernels compiled late, 1 passed")
