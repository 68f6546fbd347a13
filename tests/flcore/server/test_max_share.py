"""The bound on one client's share of a round."""

import pytest

from flcore.errors import JobError
from tests.flcore.conftest import Stage, adding, mean_of


@pytest.mark.parametrize("stage", ["grpc", "in-process"], indirect=True)
def test_a_client_with_a_huge_weight_has_no_more_than_its_share(stage: Stage) -> None:
    stage.open(clients=["a", "b", "c"], wait_for=3, quorum=3, rounds=1, bounds={"max_share": 0.5})
    stage.client("a", adding(4.0, weight=1e6))
    stage.client("b", adding(0.0, weight=10.0))
    stage.client("c", adding(0.0, weight=10.0))
    outcome = stage.result()
    assert mean_of(outcome) == {2.0}
    (record,) = outcome.history
    assert record.capped_weights == {"a": 20.0}
    assert record.updates["a"].weight == 1e6


def test_a_share_that_cannot_hold_is_refused(stage: Stage) -> None:
    with pytest.raises(JobError, match=r"bounds\.max_share = 0\.2 cannot hold with server\.quorum = 3"):
        stage.open(clients=3, quorum=3, bounds={"max_share": 0.2})


def test_the_streaming_plan_cannot_bound_shares(stage: Stage) -> None:
    with pytest.raises(JobError, match="choose the plan batch"):
        stage.open(clients=2, quorum=2, bounds={"max_share": 0.5}, plan="streaming")
