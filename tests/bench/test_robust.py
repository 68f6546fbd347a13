"""`flcore bench robust` at a size that takes seconds: clients, trainings, the table, its files, and docs/robust.md."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flcore_bench import ATTACKS, Machine, RobustReport, RobustSettings, digit_clients
from flcore_bench.digit_clients import SHAPES, DigitClients, DigitsMissing
from flcore_bench.robust import NONE, Cell, cells, trained
from flcore_bench.robust_plot import heat_map
from typer.testing import CliRunner

import flcore
from flcore.cli.main import command_line
from tests.flcore.command import said
from tests.test_readme import blocks, commands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/robust.md").read_text()
MACHINE = Machine("processor", 2, 24.0, "Linux", "3.11", "numpy 2.0")


@pytest.fixture(scope="module")
def clients() -> DigitClients:
    pytest.importorskip("sklearn")
    return DigitClients.draw(clients=15, attackers=3, alpha=10.0, seed=1)


def test_clients_share_the_scans_evenly_and_the_test_is_nobody_s(clients: DigitClients) -> None:
    assert clients.owned.shape == (15, 89) and len(set(clients.owned.ravel().tolist())) == 15 * 89
    assert len(clients.scans) + len(clients.test[1]) == 1_797
    assert len(set(clients.weights.tolist())) == 1, "so the attackers have 3/15 of the weight, and no more"
    assert len(set(clients.hostile.tolist())) == 3
    shares = np.array([np.bincount(clients.labels[rows], minlength=10) for rows in clients.owned])
    assert shares.max() > 25 and (shares <= 1).sum() > 10, "not IID: that would be about 9 of each"


def test_the_labels_of_attackers_alone_are_flipped(clients: DigitClients) -> None:
    changed = clients.poisoned_labels != clients.labels
    assert not changed[np.delete(clients.owned, clients.hostile, axis=0)].any()
    assert changed[clients.owned[clients.hostile]].all()


def test_a_step_follows_the_gradient(clients: DigitClients, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on one scan, repeated, against the difference quotients of the cross-entropy."""
    monkeypatch.setattr(digit_clients, "STEPS", 1)
    one = replace(clients, owned=clients.owned[:2, :1])
    model = one.first_model()
    update = one.train(model, one.labels, 0.01, np.random.default_rng(0))
    assert update.shape == (2, sum(int(np.prod(shape)) for shape in SHAPES))

    def loss(parameters: np.ndarray, row: int) -> float:
        w1, b1, w2, b2 = (
            part.reshape(shape)
            for part, shape in zip(np.split(parameters, np.cumsum([4096, 64, 640])), SHAPES, strict=True)
        )
        scores = np.maximum(one.scans[row] @ w1 + b1, 0) @ w2 + b2
        return float(np.log(np.exp(scores).sum()) - scores[one.labels[row]])

    exact = model.astype(np.float64)
    for client, place in ((0, 4_100), (1, 4_150), (0, 4_200), (1, 4_805), (0, 4_801)):
        step = np.zeros(len(exact))
        step[place] = 1e-5
        slope = (loss(exact + step, one.owned[client, 0]) - loss(exact - step, one.owned[client, 0])) / 2e-5
        assert update[client, place] == pytest.approx(-0.01 * slope, abs=1e-5)


def test_rules_hold_where_the_mean_does_not(clients: DigitClients) -> None:
    free = trained(clients, 10, "mean", NONE).accuracy
    assert free > 0.8
    assert trained(clients, 10, "mean", "sign_flip").accuracy < 0.4
    for rule in ("clipped_mean(quantile=0.5)", "multi_krum(f=3)", "nnm(f=3) + trimmed_mean(f=3)"):
        assert trained(clients, 10, rule, "scaling").accuracy > free - 0.1
    assert trained(clients, 10, "mean", NONE).accuracy == free, "the same seed gives the same training"


def test_a_claim_of_a_larger_weight_breaks_weighted_trimming_only(clients: DigitClients) -> None:
    def accuracy(rule: str) -> float:
        return trained(clients, 10, rule, "constant", claim=2.0).accuracy

    assert accuracy("trimmed_mean(f=3)") < 0.5 < 0.7 < accuracy("trimmed_mean(f=3, weighted=false)")
    assert trained(clients, 2, "mean", NONE, claim=2.0) == trained(clients, 2, "mean", NONE)
    text = report(RobustSettings(claim=2.0)).text()
    assert "3 of 15 clients attack and claim 2 times their weights, alpha 10, seed 1." in text


def test_a_model_that_grows_beyond_all_bounds_is_lost(clients: DigitClients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcore_bench.robust.LARGEST", 1e-3)
    assert trained(clients, 3, "mean", NONE).lost_in == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attackers": 8}, "fewer than half of the 15 clients, got 8"),
        ({"attacks": ("flip",)}, "attack 'flip' does not exist; expected one of sign_flip, "),
        ({"attackers": 4}, r"'bulyan\(f=4\)' needs 19 updates or more, and there are 15 clients"),
        ({"rules": ("krums",)}, "rule 'krums' does not exist"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_first_round(changes: dict[str, object], says: str) -> None:
    with pytest.raises(flcore.JobError, match=says):
        RobustSettings(**changes)  # type: ignore[arg-type]


def test_without_the_digits_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcore.jobs.digits.digits.find_spec", lambda _: None)
    with pytest.raises(DigitsMissing, match=r"pip install 'flcore\[demo\]'"):
        DigitClients.draw(clients=15, attackers=3, alpha=10.0, seed=1)


def report(settings: RobustSettings, accuracy: float = 0.9, **changed: float) -> RobustReport:
    found = [
        Cell(rule, attack, changed.get(attack, accuracy))
        for rule in settings.all_rules
        for attack in (NONE, *settings.attacks)
    ]
    return RobustReport("flcore bench robust", "2026-12-01", 60.0, MACHINE, settings, found)


def test_the_table_has_at_most_100_columns_and_says_which_goals_are_missed() -> None:
    full = report(RobustSettings(), label_flip=0.83, mimic=0.84)
    text = full.text()
    assert max(map(len, text.splitlines()[4:])) <= 100  # below the command and the machine
    assert len(full.goals) == 4 * len(ATTACKS), "clipped_mean, multi_krum and two chains with nnm"
    missed = [line for line in text.splitlines() if line.endswith("missed")]
    assert [line.partition(" under ")[2] for line in missed if "multi_krum" in line] == [
        "mimic: 6 points (<= 5 points) missed"
    ]
    assert len(missed) == 4 and "32 of 36 goals met." in text  # 7 points are within the 8 of label_flip


def test_a_long_name_of_a_rule_has_a_line_of_its_own() -> None:
    long = "arc(f=3) + nnm(f=3, weighted=false) + trimmed_mean(f=3, weighted=false)"
    lines = report(RobustSettings(rules=("mean", long))).text().splitlines()
    assert long in lines and max(map(len, lines[4:])) <= 100
    assert report(RobustSettings(rules=("median",))).goals == [], "there is no mean to compare with"


def test_the_command_writes_all_files(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    options = ["--rounds", "2", "--clients", "7", "--attackers", "1", "--rule", "mean", "--attack", "alie"]
    files = ["--json", "a.json", "--csv", "a.csv", "--plot", "a.png"]
    printed = said("bench", "robust", *options, *files, cwd=tmp_path)
    assert "1 of 7 clients attack, alpha 10, seed 1." in printed
    assert "\nflcore bench robust --rounds=2 --clients=7 --attackers=1 --rule=mean --attack=alie, " in printed
    written = json.loads((tmp_path / "a.json").read_text())
    assert [cell["attack"] for cell in written["cells"]] == ["none", "alie"] and written["settings"]["rounds"] == 2
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(
        [cell["accuracy"] for cell in written["cells"]], abs=1e-6
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_all_attacks_run_with_all_rules_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    settings = RobustSettings(rounds=1, clients=7, attackers=1)
    found = list(cells(settings))
    assert len(found) == len({(cell.rule, cell.attack) for cell in found}) == 11 * 10
    assert "training: mean (1 of 11)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernels", "--seed", "1"], "expected no --seed with kernels: robust alone takes it"),
        (["kernels", "--csv", "a.csv"], "expected no --csv with kernels"),
        (["robust", "--scale", "full"], "expected no --scale with robust, which has options of its own"),
        (["robust", "--threads", "1"], "expected no --threads with robust"),
    ],
)
def test_options_of_other_benchmarks_are_refused(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(command_line("bench"), ["bench", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and says in " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.output).split())


def table_of_the_page() -> dict[str, list[str]]:
    lines = re.findall(r"^\| `(.+?)` \|((?: \S+ \|){10})$", PAGE, re.MULTILINE)
    return {rule: cells.replace("|", " ").split() for rule, cells in lines}


def test_the_picture_is_that_of_the_page_s_table(tmp_path: Path) -> None:
    """`FLCORE_PICTURES=1` draws docs/robust.png from the table of the page (docs/robust.md)."""
    pytest.importorskip("matplotlib")
    table, settings = table_of_the_page(), RobustSettings()
    assert tuple(table) == settings.all_rules
    found = [
        Cell(rule, attack, float(accuracy) / 100)
        for rule, accuracies in table.items()
        for attack, accuracy in zip((NONE, *settings.attacks), accuracies, strict=True)
    ]
    drawn = RobustReport("flcore bench robust", "", 0.0, MACHINE, settings, found)
    heat_map(drawn, tmp_path / "robust.png")
    assert (tmp_path / "robust.png").stat().st_size > 20_000
    if os.environ.get("FLCORE_PICTURES"):
        shutil.copy(tmp_path / "robust.png", ROOT / "docs")
    assert (ROOT / "docs/robust.png").read_bytes().startswith(b"\x89PNG") and "(robust.png)" in PAGE
    # What the page says of its table.
    verdict = f"{sum(goal.is_met for goal in drawn.goals)} of {len(drawn.goals)}"
    assert verdict in PAGE, f"the table of the page meets {verdict} goals"


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    """At one round here, and the full one with fewer clients and a rule."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    full, chosen = (words for script in blocks("sh", PAGE) for words in commands(script))
    smaller = ["--rounds", "1", "--clients", "7", "--attackers", "1"]
    assert "110 cells" in PAGE
    said(*full[1:], *smaller, "--rule", "median", cwd=tmp_path)
    assert (tmp_path / "robust.png").exists() and (tmp_path / "robust.csv").exists()
    assert "nnm(f=2) + median" in said(*chosen[1:], "--rounds", "1", cwd=tmp_path)


def test_the_page_tells_every_attack() -> None:
    assert re.findall(r"^\| `(\w+)` \| [a-z-]+ \| ", PAGE, re.MULTILINE) == list(ATTACKS)
