"""A job that never ran, on a clock of its own: the same bars, lines and reasons each time, of any size."""

import math
from random import Random

from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    Event,
    HistoryRestored,
    JoinRefused,
    RoundFinished,
    RunStarted,
    StorageOpened,
    TaskAnswered,
    TaskSent,
    UpdatesFolded,
)
from flcore.server.history import Participation, RoundRecord
from flcore.server.transfer_events import DownloadBegan, DownloadEnded, UploadBegan, UploadEnded, UploadQueued
from flcore.status import StatusBoard

NOW_S = 1_790_000_000.0
MODEL_BYTES = 182_000_000
REFUSAL = "the update of st-marys is not finite: `encoder.norm.bias`, element 118 is nan"
FAILURE = "the client's task failed: FileNotFoundError: scans/2026-11/index.csv"

SITES = (
    "aarhus", "bergen", "charite", "dresden", "geneva", "leiden", "lund", "mayo-east", "oulu", "porto", "st-marys",
    "tallinn",
)  # fmt: skip


def contract(clients: tuple[str, ...], rounds: int) -> Contract:
    return parse_contract(
        {
            "name": "chest-xray",
            "clients": list(clients),
            "server": {"rounds": rounds, "workflow": "fed_avg", "quorum": 2, "model": "code.py"},
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
            "bounds": {"max_weight": 100_000, "max_abs": 1e4, "max_metrics": 8},
        },
        "the test's contract",
    )


class SyntheticJob:
    """A board in the middle of a round: one client uploads slowly, one is refused, one failed, one is lost.

    Args:
        clients: The names of the clients; at least five.
        rounds: The number of rounds of the contract.
        over: The number of rounds that are over.
        played: The number of those that have a timeline.
        ends_now: Whether the present moment is the machine's, so that a browser sees the round go on.
    """

    def __init__(
        self,
        clients: tuple[str, ...] = SITES,
        rounds: int = 60,
        over: int = 23,
        played: int = 6,
        now_s: float = NOW_S,
    ) -> None:
        self._random = Random(7)
        self.clients, self.rounds, self.end = clients, rounds, now_s
        self.contract = contract(clients, rounds)
        self.now = now_s - 60.0 * (played + 1)
        self.board = StatusBoard("chest-xray", rounds, clients, id="run-7f3a", clock=lambda: self.now)
        self.tell(RunStarted("run-7f3a", "chest-xray", "f", "c", "1"))
        self.tell(StorageOpened(4 << 30, 3 << 30, lambda: 1_310_000_000, None))
        self.tell(HistoryRestored(tuple(self.record(number) for number in range(1, over - played + 1))))
        for count, client in enumerate(clients, 1):
            self.tell(ClientJoined(client, count))
        for number in range(over - played + 1, over + 1):
            self._play(number)
        self.now = now_s - 31.0
        self.tell(JoinRefused("unknown-laptop", "expected a client of the contract, got 'unknown-laptop'"))
        self.present = over + 1
        self._play_present(self.present)
        self.now = now_s

    def end_training(self) -> None:
        """End the present round's training: all uploads end, the slow client's last, and the updates are folded."""
        number, slow = self.present, self.clients[7 % len(self.clients)]
        for name in self.clients[2::3]:
            if name not in self.out:
                self.tell(
                    UploadEnded("train", number, name, MODEL_BYTES),
                    TaskAnswered("train", name, number, 1, 100.0, MODEL_BYTES, "digest"),
                )
        self.now += 5.0
        self._upload(number, slow, 1.0)
        self.tell(UpdatesFolded("train", number, tuple(name for name in self.clients if name not in self.out)))

    def validate(self) -> None:
        """Let those that are connected answer a validation, all but the first: it still works on it."""
        number = self.present
        there = tuple(name for name in self.clients if name != self.clients[4])
        self.tell(TaskSent("validate", number, len(there), there, f"model-{number + 1}"))
        for name in there[1:]:
            self.answer_validation(name)

    def answer_validation(self, name: str) -> None:
        """Let one client answer the validation."""
        self.now += 0.1
        self.tell(TaskAnswered("validate", name, self.present, 2, 100.0, 0, "digest"))

    def tell(self, *events: Event) -> None:
        for event in events:
            self.board.observe(event)

    def record(self, number: int) -> RoundRecord:
        fade = math.exp(-number / 14)
        updates = {
            client: Participation(
                100.0 + index % 50,
                {
                    "loss": 0.22 + 1.9 * fade * (1 + 0.02 * (index % 9)) + self._random.uniform(-0.02, 0.02),
                    "accuracy": 0.94 - 0.5 * fade - 0.008 * (index % 7) + self._random.uniform(-0.006, 0.006),
                },
                MODEL_BYTES,
                22.0 + index % 11 + self._random.uniform(0, 4),
            )
            for index, client in enumerate(self.clients)
            if client not in self._left_out(number)
        }
        size = MODEL_BYTES * len(self.clients)
        train = {"loss": 0.24 + 1.9 * fade + self._random.uniform(-0.01, 0.01)}
        validate = {
            "loss": 0.27 + 1.85 * fade + self._random.uniform(-0.02, 0.02),
            "accuracy": 0.93 - 0.52 * fade + self._random.uniform(-0.008, 0.008),
        }
        failed = dict.fromkeys(self._left_out(number), FAILURE)
        seconds = {"train": 36.0 + self._random.uniform(-3, 3), "fold": 2.1, "validate": 6.0}
        seconds["round"] = sum(seconds.values()) + 1.2
        return RoundRecord(
            number,
            self.clients,
            updates,
            {"train": failed} if failed else {},
            train,
            validate,
            size,
            len(updates) * MODEL_BYTES,
            seconds,
            is_best=number % 3 == 0,
        )

    def _left_out(self, number: int) -> tuple[str, ...]:
        return (self.clients[3],) if number % 8 == 5 else ()

    def _begin(self, number: int) -> float:
        begin = self.now
        self.tell(TaskSent("train", number, len(self.clients), self.clients, f"model-{number}"))
        return begin

    def _download(self, number: int, client: str, begin: float, index: int) -> float:
        self.now = begin + 0.3 + 0.25 * (index % 13)
        self.tell(DownloadBegan("train", number, client), BytesTransferred(MODEL_BYTES, 0, client))
        self.now += 2.0 + 0.2 * (index % 5)
        self.tell(DownloadEnded("train", number, client, MODEL_BYTES))
        return self.now

    def _upload(self, number: int, client: str, seconds: float) -> None:
        self.tell(UploadQueued("train", number, client))
        self.now += 0.4
        self.tell(UploadBegan("train", number, client, 0), BytesTransferred(0, MODEL_BYTES // 2, client))
        self.now += seconds
        self.tell(BytesTransferred(0, MODEL_BYTES // 2, client), UploadEnded("train", number, client, MODEL_BYTES))
        self.tell(TaskAnswered("train", client, number, 1, 100.0, MODEL_BYTES, "digest"))

    def _play(self, number: int) -> None:
        """A whole round of 50 seconds."""
        begin = self._begin(number)
        for index, client in enumerate(self.clients):
            self.now = self._download(number, client, begin, index) + 10.0 + 1.7 * (index % 11)
            if client in self._left_out(number):
                self.tell(ClientFailed("train", client, FAILURE, number))
            else:
                self._upload(number, client, 3.0 + 0.5 * (index % 6))
        self.now = begin + 48.0
        folded = tuple(client for client in self.clients if client not in self._left_out(number))
        self.tell(UpdatesFolded("train", number, folded))
        self.now = begin + 50.0
        self.tell(RoundFinished(self.record(number)))
        self.now = begin + 60.0

    def _play_present(self, number: int) -> None:
        """A round that has gone on for 31 seconds."""
        begin = self._begin(number)
        refused, failed, lost, slow = (self.clients[at] for at in (-2, 3, 4, 7 % len(self.clients)))
        self.out = (refused, failed, lost)
        for index, client in enumerate(self.clients):
            trained = self._download(number, client, begin, index) + 8.0 + 1.1 * (index % 11)
            self.now = trained
            if client == failed:
                self.tell(ClientFailed("train", client, FAILURE, number))
            elif client == lost:
                self.now = trained - 4.0
                self.tell(ClientLeft(client, len(self.clients) - 1))
            elif client == refused:
                self.tell(UploadQueued("train", number, client), UploadBegan("train", number, client, 0))
                self.now += 1.5
                self.tell(AnswerRefused("train", client, number, 1, "non-finite", REFUSAL))
                self.tell(ClientFailed("train", client, REFUSAL, number))
            elif client == slow:
                self.now = begin + 9.0
                self.tell(TaskProgress(client, "train", number, self.rounds, 31, 100))
            elif index % 3 == 2:
                self.tell(UploadQueued("train", number, client))
                self.now += 1.0
                self.tell(UploadBegan("train", number, client, 0), BytesTransferred(0, MODEL_BYTES // 3, client))
            else:
                self._upload(number, client, 2.0 + 0.4 * (index % 4))


MANY = tuple(f"hospital-{number:03}" for number in range(1, 201))


def large_job(now_s: float = NOW_S) -> SyntheticJob:
    """200 clients and 500 rounds."""
    return SyntheticJob(MANY, 500, 499, 8, now_s)
