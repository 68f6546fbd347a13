"""The dashboard for Grafana asks for metrics that there are, with labels that they have."""

import json
import re
from pathlib import Path
from typing import Any

import flcore.metrics
from flcore.metrics import FAMILIES

DASHBOARD = json.loads((Path(flcore.metrics.__file__).parent / "grafana.json").read_text())
SUFFIXES = ("_bucket", "_sum", "_count")
PROCESS = {"process_resident_memory_bytes"}
SAMPLES = {
    name: set(family.labels) | ({"le"} if name.endswith("_bucket") else set())
    for family in FAMILIES
    for name in (
        [f"{family.name}{suffix}" for suffix in SUFFIXES] if family.kind == "histogram" else [family.sample_name]
    )
}


def queries() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*targets, *(each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each)]


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:flcore|process)_\w+", query))


def test_each_query_asks_for_metrics_that_there_are() -> None:
    for query in queries():
        assert names_in(query), query
        assert names_in(query) <= SAMPLES.keys() | PROCESS, query


def test_each_query_groups_and_selects_by_labels_that_its_metrics_have() -> None:
    for query in queries():
        used = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        used |= set(re.findall(r"(\w+)=~?\"", query))
        for name in names_in(query) - PROCESS:
            assert used <= SAMPLES[name], query
        assert all(query.count(left) == query.count(right) for left, right in ("()", "[]", "{}")), query


def test_counters_are_shown_as_rates_alone() -> None:
    for query in queries():
        for name in names_in(query):
            if name.endswith(("_total", *SUFFIXES)):
                assert re.search(rf"(?:rate|increase)\({name}\b", query), query


def test_each_metric_is_on_the_dashboard() -> None:
    shown = set[str]().union(*map(names_in, queries()))
    for family in FAMILIES:
        assert any(name.startswith(family.name) for name in shown), family.name


def test_panels_have_numbers_places_and_titles_of_their_own() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) and all(x + 6 <= 24 for x, _ in places)
