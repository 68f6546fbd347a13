"""Whose turn it is, without a socket or a clock: shares, patience, supersession; and any history of events at all."""

import math
import os
from typing import Any

import pytest
from flcore_transport import WINDOW_PIECES, ConnectionLost, Refused
from flcore_transport.windows import MAX_PATIENCE_S, PATIENCE_S, Action, Ending, Step, Transfer, Windows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

KINDS = ("download", "upload")

HISTORIES = int(os.environ.get("FLCORE_HISTORIES", "300"))
"""How many are drawn: more in `make stress`."""


def asking(windows: Windows, client: str, kind: str = "upload", order: int = 1) -> Transfer:
    transfer, _ = windows.begin(client, kind, order)
    windows.ask(transfer)
    return transfer


def steps(actions: list[Action]) -> list[tuple[str, Step]]:
    return [(transfer.client, step) for transfer, step in actions]


def test_a_transfer_gets_a_quarter_of_what_is_free_and_never_none() -> None:
    windows = Windows(32)
    shares = [asking(windows, str(number)).window for number in range(9)]
    assert shares == [4, 4, 4, 4, 3, 2, 1, 1, 0]
    assert shares[0] == WINDOW_PIECES
    assert windows.free == 1, "each has one more for its socket's buffers"


def test_who_finds_none_waits_in_line_until_another_has_ended() -> None:
    windows = Windows(4)
    holders = [asking(windows, name) for name in ("a", "b")]
    first, gone, last = (asking(windows, name) for name in ("first", "gone", "last"))
    assert first.window == gone.window == last.window == 0
    assert windows.ask(first) == [], "it waits already"
    assert windows.end(gone) == []
    assert steps(windows.end(holders[0])) == [("first", Step.GO)]
    assert steps(windows.end(holders[1])) == [("last", Step.GO)]
    assert windows.end(first) == windows.end(last) == []
    assert windows.free == 4


def test_nothing_is_due_while_nobody_waits_or_stands() -> None:
    windows = Windows(4)
    one, two = asking(windows, "a"), asking(windows, "b")
    windows.stand(one, 10.0)
    assert windows.due_at == math.inf and windows.tick(1e6) == []
    asking(windows, "waits")
    assert windows.due_at == 10.0 + PATIENCE_S
    windows.move(one)
    assert windows.due_at == math.inf and windows.tick(1e6) == []
    windows.stand(two, 20.0)
    assert windows.tick(20.0 + PATIENCE_S - 0.01) == []
    assert steps(windows.tick(20.0 + PATIENCE_S)) == [("b", Step.END)]


def test_only_as_many_give_way_as_others_wait_and_those_that_stood_longest() -> None:
    windows = Windows(8)
    silent = [asking(windows, str(number)) for number in range(3)]
    for number, transfer in enumerate(silent):
        windows.stand(transfer, 10.0 - number)
    asking(windows, "waits")
    assert steps(windows.tick(100.0)) == [("2", Step.END)]
    assert windows.due_at == math.inf, "what ends gives back enough"
    assert steps(windows.end(silent[2])) == [("waits", Step.GO)]


@pytest.mark.parametrize("kind", KINDS)
def test_patience_is_each_orders_own_doubles_and_has_an_end(kind: str) -> None:
    windows, patience = Windows(4), PATIENCE_S
    held, waiting = asking(windows, "held"), asking(windows, "slow", kind)
    now = 0.0
    for _ in range(8):
        assert windows.patience_of(waiting) == patience
        slow, waiting = waiting, asking(windows, f"waits-{now}")
        windows.stand(slow, now)
        windows.tick(now := now + patience)
        if slow.ending is None:  # a download keeps what stands, and goes on
            windows.move(slow)
        windows.end(slow)
        windows.end(waiting)
        waiting = asking(windows, "slow", kind)
        patience = min(2 * patience, MAX_PATIENCE_S)
    assert windows.patience_of(waiting) == MAX_PATIENCE_S
    assert windows.patience_of(Transfer("slow", kind, 2)) == PATIENCE_S
    windows.end(waiting, is_done=True)
    assert windows.patience_of(Transfer("slow", kind, 1)) == PATIENCE_S
    assert held.window


def test_an_upload_that_stood_still_comes_back_and_other_endings_are_final() -> None:
    assert isinstance(Ending.STOOD_STILL.error(), ConnectionLost)
    for ending, kind in ((Ending.CUT, "cut"), (Ending.SUPERSEDED, "superseded")):
        error = ending.error()
        assert isinstance(error, Refused) and error.kind == kind


def test_a_download_that_stood_still_keeps_what_stands_and_ends_if_that_goes_on() -> None:
    windows = Windows(8)
    slow = asking(windows, "slow", "download")
    assert slow.window == 2
    for name in ("a", "b", "c"):
        asking(windows, name)
    windows.stand(slow, 0.0)
    assert steps(windows.tick(PATIENCE_S)) == [("slow", Step.GIVE_WAY), ("c", Step.GO)]
    assert (slow.window, slow.held, windows.free) == (0, 2, 0)
    asking(windows, "d")
    assert steps(windows.tick(PATIENCE_S + 2 * PATIENCE_S)) == [("slow", Step.END)]
    assert slow.ending is Ending.STOOD_STILL
    assert steps(windows.end(slow)) == [("d", Step.GO)]


def test_a_download_that_moves_again_stands_in_line_and_goes_on() -> None:
    windows = Windows(4)
    slow, other = asking(windows, "slow", "download"), asking(windows, "other")
    waiting = asking(windows, "waits")
    windows.stand(slow, 0.0)
    assert steps(windows.tick(PATIENCE_S)) == [("slow", Step.GIVE_WAY)]
    windows.move(slow)
    assert windows.ask(slow) == [(waiting, Step.GO)], "its pieces have gone, and the next gets them"
    assert steps(windows.end(other)) == [("slow", Step.GO)]


def test_the_newest_call_of_a_kind_ends_the_older_one_which_keeps_its_window_until_it_has_ended() -> None:
    windows = Windows(4)
    old = asking(windows, "a")
    new, actions = windows.begin("a", "upload", 2)
    assert actions == [(old, Step.END)] and old.ending is Ending.SUPERSEDED
    assert windows.ask(new) == [(new, Step.GO)]
    assert windows.free == 0
    windows.end(old)
    assert windows.free == 2
    assert windows.begin("a", "download", 2)[1] == [], "another kind"


def test_a_cut_ends_the_transfers_of_one_order_of_one_client() -> None:
    windows = Windows(32)
    up, down, next_, other = (
        asking(windows, "a", "upload", 1),
        asking(windows, "a", "download", 1),
        asking(windows, "b", "upload", 2),
        asking(windows, "c", "upload", 1),
    )
    assert steps(windows.cut("a", 2)) == []
    assert [transfer for transfer, _ in windows.cut("a", 1)] == [down, up]
    assert up.ending is down.ending is Ending.CUT
    assert next_.ending is other.ending is None
    assert windows.cut("a", 1) == [], "it has been told"


def test_too_few_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="4 pieces or more, not 3"):
        Windows(3)


class AnyHistory(RuleBasedStateMachine):
    """Calls of a few clients in any order, beside a model of them: who goes on, who waits, who has been told to end."""

    SHARED = 9

    def __init__(self) -> None:
        super().__init__()
        self.windows, self.now = Windows(self.SHARED), 0.0
        self.open: list[Transfer] = []
        self.told: set[Transfer] = set()
        self.waiting: list[Transfer] = []
        self.served: list[Transfer] = []

    def do(self, actions: list[Action]) -> None:
        for transfer, step in actions:
            assert transfer in self.open, "nothing is said to a call that has ended"
            if step is Step.GO:
                assert transfer is self.waiting.pop(0), "first in, first out"
                assert 1 <= transfer.window <= WINDOW_PIECES
            elif step is Step.END:
                assert transfer not in self.told, "an end is told once"
                self.told.add(transfer)
                if transfer in self.waiting:
                    self.waiting.remove(transfer)

    def finish(self, transfer: Transfer, *, is_done: bool = False) -> None:
        self.open.remove(transfer)
        if transfer in self.waiting:
            self.waiting.remove(transfer)
        self.do(self.windows.end(transfer, is_done=is_done))

    @rule(client=st.sampled_from("abcdef"), kind=st.sampled_from(KINDS), order=st.integers(1, 2))
    def call(self, client: str, kind: str, order: int) -> None:
        transfer, actions = self.windows.begin(client, kind, order)
        older = [one for one in self.open if (one.client, one.kind) == (client, kind) and one not in self.told]
        self.open.append(transfer)
        self.do(actions)
        assert [one for one, _ in actions] == older, "the newest call wins"
        self.waiting.append(transfer)
        self.do(self.windows.ask(transfer))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def stand(self, data: Any) -> None:
        transfer = data.draw(st.sampled_from(self.open))
        if transfer.window:
            self.windows.stand(transfer, self.now)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def move(self, data: Any) -> None:
        transfer = data.draw(st.sampled_from(self.open))
        if transfer.held:
            self.windows.move(transfer)
            if not transfer.window and transfer.ending is None:  # it had given way
                self.waiting.append(transfer)
                self.do(self.windows.ask(transfer))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_done=st.booleans())
    def end(self, data: Any, is_done: bool) -> None:
        self.finish(data.draw(st.sampled_from(self.open)), is_done=is_done)

    @rule(client=st.sampled_from("abcdef"), order=st.integers(1, 2))
    def cut(self, client: str, order: int) -> None:
        newest = {(one.client, one.kind): one for one in self.open}.values()
        wanted = {one for one in newest if (one.client, one.order) == (client, order) and one not in self.told}
        actions = self.windows.cut(client, order)
        self.do(actions)
        assert {one for one, _ in actions} == wanted

    @rule(passes=st.floats(0.0, 70.0))
    def time_passes(self, passes: float) -> None:
        self.now += passes
        self.do(self.windows.tick(self.now))
        assert self.windows.due_at > self.now, "a clock that follows it does not spin"

    @invariant()
    def no_more_is_out_than_is_shared(self) -> None:
        assert 0 <= self.windows.free == self.SHARED - sum(transfer.held for transfer in self.open)
        assert all(transfer.window in (0, transfer.held - 1) for transfer in self.open)

    @invariant()
    def who_waits_finds_none(self) -> None:
        assert all(transfer.window == 0 for transfer in self.waiting)
        assert not self.waiting or self.windows.free < 2

    def teardown(self) -> None:
        """Nobody starves: if those that hold a window all stand still, and end when told, all others get their turn."""
        waiting, rounds = list(self.waiting), 0
        while self.waiting:
            rounds += 1
            assert rounds <= 200, f"{self.waiting} got no turn"
            for transfer in [one for one in self.open if one.held and one not in self.told]:
                if transfer.standing_since is None:
                    self.windows.stand(transfer, self.now)
            self.time_passes(MAX_PATIENCE_S)
            for transfer in [one for one in self.open if one in self.told]:
                self.finish(transfer)
        for transfer in list(self.open):
            self.finish(transfer)
        assert self.windows.free == self.SHARED
        assert all(transfer.held == 0 for transfer in waiting)


AnyHistory.TestCase.settings = settings(max_examples=HISTORIES, stateful_step_count=40, deadline=None, print_blob=True)
TestAnyHistory = AnyHistory.TestCase
