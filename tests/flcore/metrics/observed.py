"""Runs that a test plays by hand, or makes, and watches with an observer."""

from collections.abc import Sequence
from pathlib import Path

from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract
from flcore.server.events import Event, Observer
from flcore.status import StatusBoard
from flcore.status.observed_run import ObservedRun, OpenObserver
from tests.flcore.status.played_job import PlayedJob


def small_contract(name: str = "played", rounds: int = 3) -> Contract:
    return parse_contract(
        {
            "name": name,
            "clients": ["north", "south"],
            "server": {"model": "code.py:initial_model", "rounds": rounds, "best": "loss:min"},
            "client": {"executor": "code.py", "hyperparameters": {"lr": 0.1, "layers": [8, 4]}},
            "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
        },
        "the test's contract",
    )


def observed_run(board: StatusBoard, run_id: str = "played-1", directory: Path = Path("absent")) -> ObservedRun:
    return ObservedRun(run_id, small_contract(), board, directory)


class WatchedJob(PlayedJob):
    """A played job whose events an observer gets, too, after the board."""

    def __init__(self) -> None:
        self.observe: Observer = lambda _: None
        super().__init__()

    def tell(self, *events: Event) -> None:
        for event in events:
            super().tell(event)
            self.observe(event)

    def play_round(self, number: int) -> None:
        """Both clients take part in a round."""
        self.send("north", "south", round_number=number, payload_id=f"model-{number - 1}")
        for client in ("north", "south"):
            self.download(client, round_number=number)
            self.upload(client, round_number=number)
            self.answer(client, round_number=number)
        self.fold("north", "south", round_number=number)
        self.finish(number)


def watch(events: Sequence[Event], board: StatusBoard, open_observer: OpenObserver, run_id: str = "made-1") -> None:
    """Tell the events of a run that is over to a board and to an observer, as its server has told them."""
    with open_observer(observed_run(board, run_id)) as observe:
        for event in events:
            board.observe(event)
            observe(event)
