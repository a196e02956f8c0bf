"""The files for Prometheus and Grafana, against the metrics that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
import yaml

from kitbash_ray.config import PROJECT

MONITORING = PROJECT / "monitoring"
#: What Prometheus makes of a histogram's name.
HISTOGRAM = re.compile(r"_(bucket|count|sum)$")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana_dashboard.json").read_text())
    return found


def made() -> dict[str, str]:
    """The names that actors/metrics.py makes, each with its kind."""
    source = (PROJECT / "actors" / "metrics.py").read_text()
    return {name: kind for kind, name in re.findall(r'(Tally|Histogram|Gauge)\(\s*"(kitbash_\w+)"', source)}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_counters_end_in_total_and_nothing_else_does() -> None:
    assert len(made()) >= 11
    assert {name for name in made() if name.endswith("_total")} == {name for name, kind in made().items() if kind == "Tally"}


def test_each_metric_of_the_dashboard_is_one_that_is_made(dashboard: dict[str, Any]) -> None:
    shown = {name for expression in expressions(dashboard) for name in re.findall(r"ray_(kitbash_\w+)", expression)}
    kinds = {name: made().get(HISTOGRAM.sub("", name)) for name in shown}
    assert {name for name, kind in kinds.items() if kind is None} == set()
    assert {name for name in shown if HISTOGRAM.search(name)} == {name for name, kind in kinds.items() if kind == "Histogram"}


def test_each_metric_that_is_made_is_on_the_dashboard(dashboard: dict[str, Any]) -> None:
    assert {name for name in made() if not any(f"ray_{name}" in each for each in expressions(dashboard))} == set()


def test_brackets_of_each_expression_are_closed(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        count = Counter(expression)
        assert (count["("], count["["], count["{"]) == (count[")"], count["]"], count["}"]), expression


def test_panels_have_their_own_id_and_place_and_the_chosen_datasource(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    taken = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert {source["datasource"]["uid"] for panel in panels for source in (panel, *panel["targets"])} == {"${datasource}"}


def test_prometheus_finds_the_nodes_by_the_file_that_ray_writes() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert set(config) == {"global", "scrape_configs"}
    [job] = config["scrape_configs"]
    assert set(job) == {"job_name", "file_sd_configs", "metric_relabel_configs"}
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    assert job["job_name"] == "ray"  # what Ray's own dashboards filter by
