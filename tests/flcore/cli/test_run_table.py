"""The table at the end of a run."""

import pytest

from flcore.cli.run_table import best_alone, comparison_table
from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract
from flcore.server.history import RoundRecord
from flcore.simulation.baselines import Baselines


def contract(best: str | None) -> Contract:
    content = {
        "name": "reported",
        "clients": 20,
        "server": {"model": "code.py:model", "rounds": 1, **({} if best is None else {"best": best})},
        "client": {"executor": "code.py"},
        "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
    }
    return parse_contract(content, "the test's contract")


@pytest.mark.parametrize(("best", "expected"), [(None, 0.9), ("accuracy:max", 0.9), ("loss:min", 0.1)])
def test_the_best_client_alone_is_the_best_in_the_jobs_direction(best: str | None, expected: float) -> None:
    assert best_alone(contract(best), [0.5, 0.1, 0.9]) == expected


def test_more_than_twelve_clients_alone_are_told_by_the_best_one() -> None:
    alone = {f"client-{number:02}": number / 100 for number in range(20)}
    record = RoundRecord(1, validate={"loss": 0.5})
    table = comparison_table(contract("loss:min"), [record], Baselines(alone, centralised=0.01))
    names, values = ([*column.cells] for column in table.columns)
    row = names.index("the best of all 20 alone")
    assert values[row] == "0.000"
