"""The events of a job that a test plays by hand, with a clock of its own."""

from flcore.server.events import (
    BytesTransferred,
    ClientJoined,
    ClientLeft,
    Event,
    RoundFinished,
    RunStarted,
    TaskAnswered,
    TaskSent,
    UpdatesFolded,
)
from flcore.server.history import Participation, RoundRecord
from flcore.server.transfer_events import DownloadBegan, DownloadEnded, UploadBegan, UploadEnded, UploadQueued
from flcore.status import ClientStatus, StatusBoard
from flcore.status.timeline import PhaseName

START_S = 1_000.0


class PlayedJob:
    """A board, and the events of its job. Each event comes one second after the last one."""

    def __init__(self, rounds: int = 3, clients: tuple[str, ...] = ("north", "south")) -> None:
        self.now = START_S
        self.board = StatusBoard("played", rounds, clients, clock=lambda: self.now)
        self.tell(RunStarted("run-1", "played", "f", "c", "1"))

    def tell(self, *events: Event) -> None:
        for event in events:
            self.now += 1.0
            self.board.observe(event)

    def join(self, *clients: str) -> None:
        for count, client in enumerate(clients, 1):
            self.tell(ClientJoined(client, count))

    def leave(self, client: str) -> None:
        self.tell(ClientLeft(client, 0))

    def send(self, *clients: str, task: str = "train", round_number: int = 1, payload_id: str = "model-0") -> None:
        self.tell(TaskSent(task, round_number, len(clients), clients, payload_id))

    def download(self, client: str, *, task: str = "train", round_number: int = 1) -> None:
        """Two pieces of 1 MB, a second apart."""
        where = (task, round_number, client)
        self.tell(BytesTransferred(1_000_000, 0, client), DownloadBegan(*where))
        self.tell(BytesTransferred(1_000_000, 0, client), DownloadEnded(*where, 2_000_000))

    def upload(self, client: str, *, task: str = "train", round_number: int = 1) -> None:
        """Two pieces of 3 MB, a second apart."""
        where = (task, round_number, client)
        self.tell(UploadQueued(*where), UploadBegan(*where, 0))
        self.tell(BytesTransferred(0, 3_000_000, client), BytesTransferred(0, 3_000_000, client))
        self.tell(UploadEnded(*where, 6_000_000))

    def answer(self, client: str, *, task: str = "train", round_number: int = 1) -> None:
        self.tell(TaskAnswered(task, client, round_number, 1, 2.0, 6_000_000, "digest"))

    def fold(self, *clients: str, task: str = "train", round_number: int = 1) -> None:
        self.tell(UpdatesFolded(task, round_number, clients))

    def finish(self, round_number: int = 1, seconds: float = 10.0, **fields: object) -> RoundRecord:
        updates = {"north": Participation(2.0, {"loss": 0.5}, 6_000_000, 3.0)}
        record = RoundRecord(round_number, ("north", "south"), updates, seconds={"round": seconds}, **fields)  # type: ignore[arg-type]
        self.tell(RoundFinished(record))
        return record

    def client(self, name: str) -> ClientStatus:
        [found] = [client for client in self.board.snapshot().clients if client.name == name]
        return found

    def phases(self, client: str, round_number: int = 1) -> list[PhaseName]:
        return [each.phase for each in self.board.timeline(round_number) if each.client == client]
