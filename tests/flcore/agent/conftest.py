"""One warm process for all tests of agents: the one that a test leaves unused is the next test's."""

from collections.abc import Iterator

import pytest

from flcore.agent import agent
from flcore.agent.standby import StandbyProcesses
from tests.flcore.agent import supervised


class SharedProcesses(StandbyProcesses):
    """Processes of several agents, one after the other. The end of an agent leaves the warm one to the next."""

    def close(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """End the warm process."""
        super().close()


@pytest.fixture(scope="session")
def shared_processes() -> Iterator[SharedProcesses]:
    processes = SharedProcesses(None, None)
    yield processes
    processes.end()


@pytest.fixture(autouse=True)
def processes_are_shared(shared_processes: SharedProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have agents with the Python of the tests, and without GPUs, share their processes."""

    def processes(python: str | None, gpus: str | None) -> StandbyProcesses:
        return StandbyProcesses(python, gpus) if python or gpus else shared_processes

    for module in (agent, supervised):
        monkeypatch.setattr(module, "StandbyProcesses", processes)
