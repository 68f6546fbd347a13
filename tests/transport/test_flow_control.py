"""`FlowControl`, without a socket or a clock: windows, timeouts, superseded calls; and random histories of events."""

import math
import os
from collections.abc import Hashable
from typing import Any

import pytest
from flcore_transport import WINDOW_PIECES, ConnectionLost, Refused
from flcore_transport.flow_control import (
    MAX_YIELD_AFTER_S,
    YIELD_AFTER_S,
    Action,
    Ending,
    FlowControl,
    Instruction,
    Transfer,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

DIRECTIONS = ("download", "upload")

HISTORIES = int(os.environ.get("FLCORE_HISTORIES", "300"))
"""How many are drawn: more in `make stress`."""


def asking(flow_control: FlowControl, client: str, direction: str = "upload", assignment_id: int = 1) -> Transfer:
    transfer, _ = flow_control.begin(client, direction, assignment_id)
    flow_control.request_window(transfer)
    return transfer


def steps(actions: list[Action]) -> list[tuple[Hashable, Instruction]]:
    return [(transfer.client, instruction) for transfer, instruction in actions]


def test_a_window_is_a_quarter_of_the_free_pieces_and_at_least_one() -> None:
    flow_control = FlowControl(32)
    shares = [asking(flow_control, str(number)).window for number in range(9)]
    assert shares == [4, 4, 4, 4, 3, 2, 1, 1, 0]
    assert shares[0] == WINDOW_PIECES
    assert flow_control.free == 1, "each has one more for its socket's buffers"


def test_a_transfer_without_a_window_queues_until_another_has_ended() -> None:
    flow_control = FlowControl(4)
    holders = [asking(flow_control, name) for name in ("a", "b")]
    first, gone, last = (asking(flow_control, name) for name in ("first", "gone", "last"))
    assert first.window == gone.window == last.window == 0
    assert flow_control.request_window(first) == [], "it waits already"
    assert flow_control.end(gone) == []
    assert steps(flow_control.end(holders[0])) == [("first", Instruction.PROCEED)]
    assert steps(flow_control.end(holders[1])) == [("last", Instruction.PROCEED)]
    assert flow_control.end(first) == flow_control.end(last) == []
    assert flow_control.free == 4


def test_nothing_is_due_while_no_transfer_is_queued_or_stalled() -> None:
    flow_control = FlowControl(4)
    one, two = asking(flow_control, "a"), asking(flow_control, "b")
    flow_control.begin_client_wait(one, 10.0)
    assert flow_control.due_at == math.inf and flow_control.tick(1e6) == []
    asking(flow_control, "waits")
    assert flow_control.due_at == 10.0 + YIELD_AFTER_S
    flow_control.end_client_wait(one)
    assert flow_control.due_at == math.inf and flow_control.tick(1e6) == []
    flow_control.begin_client_wait(two, 20.0)
    assert flow_control.tick(20.0 + YIELD_AFTER_S - 0.01) == []
    assert steps(flow_control.tick(20.0 + YIELD_AFTER_S)) == [("b", Instruction.END)]


def test_as_many_transfers_yield_as_are_queued_the_longest_stalled_first() -> None:
    flow_control = FlowControl(8)
    silent = [asking(flow_control, str(number)) for number in range(3)]
    for number, transfer in enumerate(silent):
        flow_control.begin_client_wait(transfer, 10.0 - number)
    asking(flow_control, "waits")
    assert steps(flow_control.tick(100.0)) == [("2", Instruction.END)]
    assert flow_control.due_at == math.inf, "what ends gives back enough"
    assert steps(flow_control.end(silent[2])) == [("waits", Instruction.PROCEED)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_timeouts_are_per_assignment_double_and_have_a_maximum(direction: str) -> None:
    flow_control, yield_after_s = FlowControl(4), YIELD_AFTER_S
    reserved, waiting = asking(flow_control, "held"), asking(flow_control, "slow", direction)
    now = 0.0
    for _ in range(8):
        assert flow_control.yield_after_s(waiting) == yield_after_s
        slow, waiting = waiting, asking(flow_control, f"waits-{now}")
        flow_control.begin_client_wait(slow, now)
        flow_control.tick(now := now + yield_after_s)
        if slow.ending is None:  # a download keeps what stands, and goes on
            flow_control.end_client_wait(slow)
        flow_control.end(slow)
        flow_control.end(waiting)
        waiting = asking(flow_control, "slow", direction)
        yield_after_s = min(2 * yield_after_s, MAX_YIELD_AFTER_S)
    assert flow_control.yield_after_s(waiting) == MAX_YIELD_AFTER_S
    assert flow_control.yield_after_s(Transfer("slow", direction, 2)) == YIELD_AFTER_S
    flow_control.end(waiting, is_done=True)
    assert flow_control.yield_after_s(Transfer("slow", direction, 1)) == YIELD_AFTER_S
    assert reserved.window


def test_only_a_stalled_transfer_may_be_retried() -> None:
    assert isinstance(Ending.STALLED.error(), ConnectionLost)
    for ending, kind in ((Ending.CANCELLED, "cut"), (Ending.SUPERSEDED, "superseded")):
        error = ending.error()
        assert isinstance(error, Refused) and error.kind == kind


def test_a_stalled_download_keeps_the_pieces_in_flight_and_ends_after_another_timeout() -> None:
    flow_control = FlowControl(8)
    slow = asking(flow_control, "slow", "download")
    assert slow.window == 2
    for name in ("a", "b", "c"):
        asking(flow_control, name)
    flow_control.begin_client_wait(slow, 0.0)
    assert steps(flow_control.tick(YIELD_AFTER_S)) == [("slow", Instruction.YIELD_WINDOW), ("c", Instruction.PROCEED)]
    assert (slow.window, slow.reserved, flow_control.free) == (0, 2, 0)
    asking(flow_control, "d")
    assert steps(flow_control.tick(YIELD_AFTER_S + 2 * YIELD_AFTER_S)) == [("slow", Instruction.END)]
    assert slow.ending is Ending.STALLED
    assert steps(flow_control.end(slow)) == [("d", Instruction.PROCEED)]


def test_a_download_that_moves_again_queues_and_continues() -> None:
    flow_control = FlowControl(4)
    slow, other = asking(flow_control, "slow", "download"), asking(flow_control, "other")
    waiting = asking(flow_control, "waits")
    flow_control.begin_client_wait(slow, 0.0)
    assert steps(flow_control.tick(YIELD_AFTER_S)) == [("slow", Instruction.YIELD_WINDOW)]
    flow_control.end_client_wait(slow)
    assert flow_control.request_window(slow) == [(waiting, Instruction.PROCEED)], (
        "its pieces have gone, and the next gets them"
    )
    assert steps(flow_control.end(other)) == [("slow", Instruction.PROCEED)]


def test_a_newer_call_ends_the_older_one_which_keeps_its_window_until_it_has_ended() -> None:
    flow_control = FlowControl(4)
    old = asking(flow_control, "a")
    new, actions = flow_control.begin("a", "upload", 2)
    assert actions == [(old, Instruction.END)] and old.ending is Ending.SUPERSEDED
    assert flow_control.request_window(new) == [(new, Instruction.PROCEED)]
    assert flow_control.free == 0
    flow_control.end(old)
    assert flow_control.free == 2
    assert flow_control.begin("a", "download", 2)[1] == [], "another kind"


def test_cancelling_ends_the_transfers_of_one_assignment_of_one_client() -> None:
    flow_control = FlowControl(32)
    up, down, next_, other = (
        asking(flow_control, "a", "upload", 1),
        asking(flow_control, "a", "download", 1),
        asking(flow_control, "b", "upload", 2),
        asking(flow_control, "c", "upload", 1),
    )
    assert steps(flow_control.cancel("a", 2)) == []
    assert [transfer for transfer, _ in flow_control.cancel("a", 1)] == [down, up]
    assert up.ending is down.ending is Ending.CANCELLED
    assert next_.ending is other.ending is None
    assert flow_control.cancel("a", 1) == [], "it has been told"


def test_too_few_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 4 pieces in flight, got 3"):
        FlowControl(3)


class AnyHistory(RuleBasedStateMachine):
    """Calls of a few clients in any order, beside a model of them: who goes on, who waits, who has been told to end."""

    SHARED = 9

    def __init__(self) -> None:
        super().__init__()
        self.flow_control, self.now = FlowControl(self.SHARED), 0.0
        self.open: list[Transfer] = []
        self.told: set[Transfer] = set()
        self.waiting: list[Transfer] = []
        self.served: list[Transfer] = []

    def do(self, actions: list[Action]) -> None:
        for transfer, instruction in actions:
            assert transfer in self.open, "nothing is said to a call that has ended"
            if instruction is Instruction.PROCEED:
                assert transfer is self.waiting.pop(0), "first in, first out"
                assert 1 <= transfer.window <= WINDOW_PIECES
            elif instruction is Instruction.END:
                assert transfer not in self.told, "an end is told once"
                self.told.add(transfer)
                if transfer in self.waiting:
                    self.waiting.remove(transfer)

    def finish(self, transfer: Transfer, *, is_done: bool = False) -> None:
        self.open.remove(transfer)
        if transfer in self.waiting:
            self.waiting.remove(transfer)
        self.do(self.flow_control.end(transfer, is_done=is_done))

    @rule(client=st.sampled_from("abcdef"), direction=st.sampled_from(DIRECTIONS), assignment_id=st.integers(1, 2))
    def call(self, client: str, direction: str, assignment_id: int) -> None:
        transfer, actions = self.flow_control.begin(client, direction, assignment_id)
        older = [
            one for one in self.open if (one.client, one.direction) == (client, direction) and one not in self.told
        ]
        self.open.append(transfer)
        self.do(actions)
        assert [one for one, _ in actions] == older, "the newest call wins"
        self.waiting.append(transfer)
        self.do(self.flow_control.request_window(transfer))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def begin_client_wait(self, data: Any) -> None:
        transfer = data.draw(st.sampled_from(self.open))
        if transfer.window:
            self.flow_control.begin_client_wait(transfer, self.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end_client_wait(self, data: Any) -> None:
        transfer = data.draw(st.sampled_from(self.open))
        if transfer.reserved:
            self.flow_control.end_client_wait(transfer)
            if not transfer.window and transfer.ending is None:  # it had given way
                self.waiting.append(transfer)
                self.do(self.flow_control.request_window(transfer))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_done=st.booleans())
    def end(self, data: Any, is_done: bool) -> None:
        self.finish(data.draw(st.sampled_from(self.open)), is_done=is_done)

    @rule(client=st.sampled_from("abcdef"), assignment_id=st.integers(1, 2))
    def cancel(self, client: str, assignment_id: int) -> None:
        newest = {(one.client, one.direction): one for one in self.open}.values()
        wanted = {
            one for one in newest if (one.client, one.assignment_id) == (client, assignment_id) and one not in self.told
        }
        actions = self.flow_control.cancel(client, assignment_id)
        self.do(actions)
        assert {one for one, _ in actions} == wanted

    @rule(passes=st.floats(0.0, 70.0))
    def time_passes(self, passes: float) -> None:
        self.now += passes
        self.do(self.flow_control.tick(self.now))
        assert self.flow_control.due_at > self.now, "a clock that follows it does not spin"

    @invariant()
    def no_more_is_out_than_is_shared(self) -> None:
        assert 0 <= self.flow_control.free == self.SHARED - sum(transfer.reserved for transfer in self.open)
        assert all(transfer.window in (0, transfer.reserved - 1) for transfer in self.open)

    @invariant()
    def who_waits_finds_none(self) -> None:
        assert all(transfer.window == 0 for transfer in self.waiting)
        assert not self.waiting or self.flow_control.free < 2

    def teardown(self) -> None:
        """Nobody starves: if those that hold a window all stand still, and end when told, all others get their turn."""
        waiting, rounds = list(self.waiting), 0
        while self.waiting:
            rounds += 1
            assert rounds <= 200, f"{self.waiting} got no turn"
            for transfer in [one for one in self.open if one.reserved and one not in self.told]:
                if transfer.client_wait_since is None:
                    self.flow_control.begin_client_wait(transfer, self.now)
            self.time_passes(MAX_YIELD_AFTER_S)
            for transfer in [one for one in self.open if one in self.told]:
                self.finish(transfer)
        for transfer in list(self.open):
            self.finish(transfer)
        assert self.flow_control.free == self.SHARED
        assert all(transfer.reserved == 0 for transfer in waiting)


AnyHistory.TestCase.settings = settings(max_examples=HISTORIES, stateful_step_count=40, deadline=None, print_blob=True)
TestAnyHistory = AnyHistory.TestCase
