"""The directory of an agent: what it holds of a job is never taken for that of another one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flcore.agent.agent_directory import AgentDirectory
from flcore.federation.lobby_messages import JobOffer

OFFER = JobOffer(
    id="small-1",
    name="small",
    contract="{}",
    contract_fingerprint="f" * 64,
    code_digest="c" * 64,
    pack_digest="a" * 64,
    pack_nbytes=10,
    federation="1" * 32,
)
OTHERS = {"federation": "2" * 32, "pack_digest": "b" * 64, "contract_fingerprint": "e" * 64}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[AgentDirectory]:
    made = AgentDirectory(tmp_path)
    yield made
    made.close()


def test_what_a_job_has_left_is_there_when_it_is_offered_again(directory: AgentDirectory) -> None:
    directory.prepare(OFFER).state.mkdir()
    assert directory.prepare(OFFER).state.exists()


@pytest.mark.parametrize("key", OTHERS)
def test_a_job_with_the_same_id_that_is_another_one_gets_nothing(directory: AgentDirectory, key: str) -> None:
    """A federation that is set up anew gives the same ids again, also for the same pack."""
    directory.prepare(OFFER).state.mkdir()
    assert not directory.prepare(OFFER.model_copy(update={key: OTHERS[key]})).state.exists()
