"""What a case is held to: each function here makes one kind of goal, for the tables of cases."""

from flcore_bench.case import Book, Measured, Wanted
from flcore_bench.formula import bound
from flcore_bench.row import Goal


def resident(most: float) -> Wanted:
    """The server's peak memory is at most so many bytes."""
    return lambda found, _: _at_most("resident", found.figures.peak_bytes / 1e9, round(most / 1e9, 3), " GB")


def idle(most: float) -> Wanted:
    """The server's peak memory before the first task is at most so many bytes."""
    return lambda found, _: _at_most("idle", found.figures.idle_bytes / 1e6, most / 1e6, " MB")


def under_formula() -> Wanted:
    """The server's peak memory is at most what the formula says."""
    return lambda found, _: _at_most("peak", found.figures.peak_bytes / 1e9, round(bound(found.run) / 1e9, 3), " GB")


def on_disk(models: int) -> Wanted:
    """The server's files hold at most so many models at once."""
    return lambda found, _: _at_most("disk", found.figures.disk_bytes / found.run.model_bytes, models, " models")


def over_floor(most: float) -> Wanted:
    """A round takes at most so many times what its bytes take at the machine's own rates."""

    def goal(found: Measured, _: Book) -> Goal:
        assert found.rates is not None  # noqa: S101 - the case is rated
        return _at_most("of its floor", found.seconds / found.rates.floor_s(found.run), most, "x")

    return goal


def checks(most: float) -> Wanted:
    """Checking what comes in takes at most this share of a round, by one thread."""

    def goal(found: Measured, _: Book) -> Goal:
        return _at_most("checks", found.figures.bytes_received / found.check_rate / found.seconds, most, "")

    return goal


def nobody_lost() -> Wanted:
    """No client fails, and nothing of any is refused."""
    return lambda found, _: _at_most("failed or refused", found.figures.losses, 0, "")


def reached(most: float) -> Wanted:
    """A task has reached all clients within so many seconds, in the slowest round."""
    return lambda found, _: _at_most("reached all", max(found.figures.reached_s), most, " s")


def throughput_of(other: str, least: float) -> Wanted:
    """Bytes move at no less than this share of another case's speed."""

    def speed(found: Measured) -> float:
        return found.figures.bytes_per_round / found.seconds

    return lambda found, book: Goal(f"throughput of {other}", speed(found) / speed(book[other]), least)


def times_as_fast(other: str, least: float) -> Wanted:
    """A round is so many times as fast as another case's."""
    return lambda found, book: Goal(f"as fast as {other}", book[other].seconds / found.seconds, least)


def _at_most(what: str, value: float, most: float, unit: str) -> Goal:
    return Goal(what, value, most, is_at_least=False, unit=unit)
