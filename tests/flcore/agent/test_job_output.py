"""What a job's process prints and tells: in order, each error on a line of its own."""

import os
import queue

import pytest
from flcore_transport import Ask

from flcore.agent.job_output import OutputReader
from flcore.agent.site_reports import SiteReports


@pytest.mark.parametrize("messages_first", [False, True])
def test_what_is_printed_before_a_message_comes_before_it(messages_first: bool) -> None:
    """The pipes are numbered in both orders, as a set of their numbers may be sorted."""
    one, other = os.pipe(), os.pipe()
    (messages, tell), (printed, write) = (one, other) if messages_first else (other, one)
    taken = list[bytes]()
    reader = OutputReader(printed, messages, taken.append, taken.append)
    os.write(write, b"before\nand half a line")
    os.write(tell, b'["error", "odd"]\n')
    os.close(write)
    os.close(tell)
    reader.read()
    assert taken == [b"before\nand half a line", b'["error", "odd"]']
    reader.close()
    os.close(messages)
    os.close(printed)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (b"loss 0.5\n", b"loss 0.5\nValueError: odd\nnext\n"),
        (b"loss 0.", b"loss 0.\nValueError: odd\nnext\n"),
        (b"", b"ValueError: odd\nnext\n"),
    ],
)
def test_an_error_has_a_line_of_its_own(printed: bytes, expected: bytes) -> None:
    sent = queue.SimpleQueue[bytes]()
    reports = SiteReports(lambda ask, _: sent.put(ask.body), "north", "all")
    job = reports.of_job("odd-1")
    if printed:
        job.printed(printed)
    job.error("ValueError: odd")
    job.printed(b"next\n")
    got = b""
    while len(got) < len(expected):
        got += sent.get(timeout=60)
    reports.close()
    assert got == expected


@pytest.mark.parametrize(("share_logs", "expected"), [("errors", b"odd\n"), ("all", b"a\nodd\n")])
def test_a_line_that_is_not_shared_needs_no_end(share_logs: str, expected: bytes) -> None:
    sent = queue.SimpleQueue[Ask]()
    reports = SiteReports(lambda ask, _: sent.put(ask), "north", share_logs)  # type: ignore[arg-type]
    reports.printed("odd-1", b"a")
    reports.error("odd-1", "odd")
    got = b""
    while len(got) < len(expected):
        got += sent.get(timeout=60).body
    reports.close()
    assert got == expected
