"""What trackers get of a run: flat parameters and values by name, bounded, whatever clients send."""

from flcore.server.history import Participation, RoundRecord
from flcore.tracking.run_values import MAX_SITE_METRICS, MAX_VALUES, flat_parameters, round_values
from tests.flcore.metrics.observed import small_contract


def test_the_contract_is_flat() -> None:
    found = flat_parameters(small_contract())
    assert (found["name"], found["server.rounds"], found["server.best"]) == ("played", 3, "loss:min")
    assert found["client.hyperparameters.lr"] == 0.1 and found["client.hyperparameters.layers"] == "[8, 4]"
    assert found["clients"] == "['north', 'south']" and found["tasks.train.returns"] == "weights"
    assert all(isinstance(value, str | int | float | bool) for value in found.values())


def test_a_round_has_values_for_itself_and_for_each_site() -> None:
    record = RoundRecord(
        2,
        ("north", "south"),
        {"north": Participation(3.0, {"loss": 0.5}, 100, 1.5)},
        {"train": {"south": "lost"}, "validate": {"south": "lost"}},
        {"loss": 0.5},
        {"accuracy": 0.9},
        200,
        100,
        {"round": 2.0, "train": 1.0},
    )
    assert round_values(record) == {
        "train/loss": 0.5,
        "validate/accuracy": 0.9,
        "seconds/round": 2.0,
        "seconds/train": 1.0,
        "bytes/sent": 200,
        "bytes/received": 100,
        "clients/sampled": 2,
        "clients/updates": 1,
        "clients/failed": 1,
        "site_weight/north": 3.0,
        "site_seconds/north": 1.5,
        "site_bytes/north": 100,
        "site/north/loss": 0.5,
    }


def test_names_of_clients_and_of_their_metrics_are_bounded_and_plain() -> None:
    hostile = {"../../etc/passwd\n\x1b[2J" + "x" * 500: 1.0, "..": 2.0, "": 3.0}
    many = {f"m{number}": 1.0 for number in range(1_000)}
    updates = {f"c{number}": Participation(1.0, many, 1, 1.0) for number in range(300)}
    updates = {'<b>"evil"</b>': Participation(1.0, hostile, 1, 1.0)} | updates
    found = round_values(RoundRecord(1, tuple(updates), updates))
    assert len(found) <= MAX_VALUES
    assert max(len([name for name in found if name.startswith(f"site/c{n}/")]) for n in range(50)) == MAX_SITE_METRICS
    evil = [name for name in found if "evil" in name]
    assert "site/_b__evil___b_/_" in evil and "site_weight/_b__evil___b_" in evil
    for name in found:
        assert len(name) <= 140 and all(char.isalnum() or char in "_-./ " for char in name)
        assert not {"", ".", ".."} & set(name.split("/"))
