"""The progress of a transfer: silent for a second, then bytes and rate."""

import io

from rich.console import Console

from flcore.cli.transfer_progress import show_transfer


def shown(seconds: float, is_terminal: bool, first: int = 0) -> str:
    """Return what a transfer of 50 MB prints that takes so long."""
    now, out = [0.0], io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120, highlight=False)
    with show_transfer("sent", console, lambda: now[0]) as observe:
        for step in range(11):
            now[0] = seconds * step / 10
            observe(max(first, step * 5_000_000), 50_000_000)
    return out.getvalue()


def test_a_short_transfer_is_silent() -> None:
    assert shown(0.9, is_terminal=False) == shown(0.9, is_terminal=True) == ""


def test_a_long_one_ends_with_its_rate() -> None:
    assert shown(5.0, is_terminal=False) == "sent 50.0 MB in 5.0 s, 10.0 MB/s\n"


def test_bytes_of_an_earlier_transfer_do_not_count_for_the_rate() -> None:
    assert shown(5.0, is_terminal=False, first=25_000_000) == "sent 25.0 MB in 5.0 s, 5.0 MB/s\n"


def test_a_terminal_shows_it_while_it_lasts() -> None:
    printed = shown(5.0, is_terminal=True)
    assert "50.0/50.0 MB" in printed and "sent 50.0 MB in 5.0 s" in printed


def test_the_time_begins_with_the_first_byte_and_not_with_the_wait_for_the_server() -> None:
    now, out = [0.0], io.StringIO()
    console = Console(file=out, force_terminal=False, width=120, highlight=False)
    with show_transfer("sent", console, lambda: now[0]) as observe:
        now[0] = 14.9
        observe(0, 50_000_000)
        now[0] = 19.9
        observe(50_000_000, 50_000_000)
        now[0] = 20.4
    assert out.getvalue() == "sent 50.0 MB in 5.5 s, 9.1 MB/s\n"


def test_nothing_is_shown_of_a_pack_that_the_server_has_however_long_it_was_away() -> None:
    now, out = [0.0], io.StringIO()
    with show_transfer("sent", Console(file=out, force_terminal=False), lambda: now[0]) as observe:
        now[0] = 14.9
        observe(1_000, 1_000)
    assert out.getvalue() == ""
