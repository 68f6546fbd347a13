"""Waiting for a server that is away."""

import pytest

from flcore.client.outage import FIRST_DELAY_S, JITTER, MAX_DELAY_S, Outage


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def away(seconds: float, give_up_after_s: float | None = None, draw: float = 0.5) -> tuple[list[float], list[str]]:
    """Return the delays and the notices of an outage, each try of which fails at once."""
    clock = Clock()
    outage = Outage(give_up_after_s, clock, lambda: draw)
    delays, notices = list[float](), list[str]()
    while clock.now < 100.0 + seconds:
        delay_s, notice = outage.failed("nobody is there")
        if notice:
            notices.append(notice)
        if delay_s is None:
            break
        delays.append(delay_s)
        clock.now += delay_s
    return delays, notices


def test_delays_double_up_to_the_longest_one() -> None:
    delays, _ = away(20)
    assert delays[:6] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 3.2])
    assert max(delays) == MAX_DELAY_S


@pytest.mark.parametrize("draw", [0.0, 0.25, 1.0])
def test_delays_vary_by_the_jitter(draw: float) -> None:
    delays, _ = away(20, draw=draw)
    factor = 1 + JITTER * (2 * draw - 1)
    assert delays[0] == pytest.approx(FIRST_DELAY_S * factor)
    assert max(delays) == pytest.approx(MAX_DELAY_S * factor)


def test_an_hour_takes_a_line_each_time_that_it_has_doubled() -> None:
    _, notices = away(3600)
    assert notices[0] == "nobody is there"
    times = [float(notice.split("(for ")[1].split(" s ")[0]) for notice in notices[1:]]
    assert len(times) == 9  # 8, 16, 32, ... 2048 s
    assert all(2**number <= time < 2**number + 4 for number, time in enumerate(times, 3))


def test_another_problem_is_told_at_once() -> None:
    outage = Outage(None, Clock())
    told = [outage.failed(problem)[1] for problem in ("refused", "refused", "no route", "no route")]
    assert told == ["refused", "", "no route", ""]


def test_a_client_gives_up_when_it_is_told_to() -> None:
    delays, notices = away(3600, give_up_after_s=10)
    assert sum(delays) == pytest.approx(10)
    assert notices[-1] == "nobody is there (given up after 10 s)"


def test_the_error_of_a_client_that_gives_up_says_how_long_it_has_tried() -> None:
    clock = Clock()
    outage = Outage(10, clock, lambda: 0.5)
    while outage.failed("connection refused")[0] is not None:
        clock.now += 1
    assert outage.explain_end("no route") == "given up after 10 s of trying; the last error: no route"


def test_an_outage_that_has_ended_counts_no_more() -> None:
    clock = Clock()
    outage = Outage(10, clock, lambda: 0.5)
    for _ in range(4):
        outage.failed("a")
    clock.now += 9
    outage.ended()
    assert outage.failed("a") == (FIRST_DELAY_S, "a")
    clock.now += 9.9
    assert outage.failed("a")[0] is not None
