"""Numbers as text, as the command line, pages and reports show them."""

from flcore.number_text import duration_text, metrics_text, seconds_text


def test_durations() -> None:
    assert [duration_text(each) for each in (0, 59.4, 60, 3599, 3600, 90_000)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 00 min",
    ]


def test_a_measured_duration_is_exact_below_a_minute_and_a_duration_above() -> None:
    for seconds in (60.0, 75.3, 3_599.4, 7_325.0):
        assert seconds_text(seconds) == duration_text(seconds)
    assert [seconds_text(each) for each in (0.0712, 1.0, 59.94)] == ["0.071 s", "1.0 s", "59.9 s"]


def test_names_of_metrics_are_bounded_and_printable() -> None:
    line = metrics_text({"\x1b[2J" + "x" * 100: 0.5})
    assert line.isprintable() and line.endswith("... 0.5") and len(line) < 50
