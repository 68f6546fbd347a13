"""The goals of a federation benchmark: each function returns a rule that turns a result into one `Goal`."""

from flcore_bench.case import CaseResult, EarlierResults, GoalRule
from flcore_bench.report import Goal


def peak_memory(most_bytes: float) -> GoalRule:
    """The server's peak memory is at most `most_bytes`."""
    return lambda result, _: _at_most("resident", result.figures.peak_bytes / 1e9, round(most_bytes / 1e9, 3), " GB")


def idle_memory(most_bytes: float) -> GoalRule:
    """The server's peak memory before the first task is at most `most_bytes`."""
    return lambda result, _: _at_most("idle", result.figures.idle_bytes / 1e6, most_bytes / 1e6, " MB")


def within_memory_bound() -> GoalRule:
    """The server's peak memory is at most the bound that flcore states for its plan and budget."""

    def goal(result: CaseResult, _: EarlierResults) -> Goal:
        return _at_most("peak", result.figures.peak_bytes / 1e9, round(result.run.memory_bound / 1e9, 3), " GB")

    return goal


def disk_usage(most_models: int) -> GoalRule:
    """The server's files hold at most `most_models` models at once."""

    def goal(result: CaseResult, _: EarlierResults) -> Goal:
        return _at_most("disk", result.figures.disk_bytes / result.run.model_bytes, most_models, " models")

    return goal


def over_hardware_floor(most: float) -> GoalRule:
    """A round takes at most `most` times as long as its bytes take at the machine's own rates. The case is rated."""

    def goal(result: CaseResult, _: EarlierResults) -> Goal:
        assert result.rates is not None  # noqa: S101 - the case is rated
        return _at_most("of its floor", result.seconds / result.rates.floor_s(result.run), most, "x")

    return goal


def check_share(most: float) -> GoalRule:
    """Checking received pieces takes one thread at most the share `most` of a round."""

    def goal(result: CaseResult, _: EarlierResults) -> Goal:
        check_s = result.figures.bytes_received / result.check_rate
        return _at_most("checks", check_s / result.seconds, most, "")

    return goal


def no_failures() -> GoalRule:
    """No client fails, and the server refuses no request."""
    return lambda result, _: _at_most("failed or refused", result.figures.failure_count, 0, "")


def task_delivery(most_s: float) -> GoalRule:
    """In the slowest round, a task reaches all clients within `most_s` seconds."""
    return lambda result, _: _at_most("reached all", max(result.figures.delivery_s), most_s, " s")


def relative_throughput(other: str, least: float) -> GoalRule:
    """Throughput is at least `least` times that of the earlier case `other`."""

    def throughput(result: CaseResult) -> float:
        return result.figures.bytes_per_round / result.seconds

    return lambda result, earlier: Goal(
        f"throughput of {other}", throughput(result) / throughput(earlier[other]), least
    )


def speedup_over(other: str, least: float) -> GoalRule:
    """A round is at least `least` times as fast as one of the earlier case `other`."""
    return lambda result, earlier: Goal(f"as fast as {other}", earlier[other].seconds / result.seconds, least)


def _at_most(what: str, value: float, bound: float, unit: str) -> Goal:
    return Goal(what, value, bound, is_at_least=False, unit=unit)
