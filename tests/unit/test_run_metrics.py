"""A run's figures as metrics of Ray: which gauges are set, what Grafana's dashboard asks for, who exports nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.cluster import run_metrics
from raytrain_nlp.cluster.run_metrics import EVENTS, FIGURES, PREFIX, exported
from raytrain_nlp.run.observer import Observer

DASHBOARD = Path(__file__).parents[2] / "jobs" / "grafana.json"


class Gauge:
    """A stand-in for Ray's, which keeps what it is given."""

    made: dict[str, Any] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
        self.tag_keys, self.values, self.tags = tag_keys, [], {}
        Gauge.made[name.removeprefix(PREFIX)] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert {*self.tags, *(tags or {})} == set(self.tag_keys)
        self.values.append((value, *(tags or {}).values()))


@pytest.fixture
def observers(monkeypatch: pytest.MonkeyPatch) -> tuple[Observer, list[Any]]:
    """What the run's observer becomes on a cluster, and the events that the first one hears."""
    Gauge.made = {}
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr(run_metrics, "owns_ray", lambda: False)
    first, heard = Observer(), []
    monkeypatch.setattr(first, "event", heard.append)
    return exported(first, "mine"), heard


def test_each_event_sets_its_gauges_and_is_passed_on(
    observers: tuple[Observer, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        {"kind": "log", "step": 0, "metrics": {"data/rows.train": 9}},
        {"kind": "start", "step": 0, "world_size": 2},
        {"kind": "phase", "phase": "model"},
        {"kind": "log", "step": 5, "metrics": {"loss": 1.5, "mfu": 0.25, "time/step": 0.5, "time/forward": 0.1}},
        {"kind": "checkpoint", "step": 5, "seconds": 0.75},
        {"kind": "resume", "step": 5, "world_size": 1},
        {"kind": "log", "step": 6, "metrics": {"eval_loss": 1.25, "eval_accuracy": 0.5}},
        {"kind": "end", "step": 6},
    ]
    observer, heard = observers
    for event in events:
        observer.event(event)
    assert heard == events
    values = {name: list(dict.fromkeys(gauge.values)) for name, gauge in Gauge.made.items() if gauge.values}
    assert values == {
        "step": [(0,), (5,), (6,)],
        "workers": [(2,), (1,)],
        "restarts": [(0,), (1,)],
        "checkpoint_seconds": [(0.75,)],
        "loss": [(1.5,)],
        "mfu": [(0.25,)],
        "step_seconds": [(0.5,)],
        "eval_loss": [(1.25,)],
        "eval": [(0.5, "eval_accuracy")],
    }
    before = {name: len(gauge.values) for name, gauge in Gauge.made.items()}
    monkeypatch.setattr(run_metrics, "_AGAIN_S", -1.0)
    observer.progress({"step": 6, "total": 9})  # all are set again: Ray forgets what is not
    assert {name for name, gauge in Gauge.made.items() if len(gauge.values) > before[name]} == values.keys()
    assert {gauge.tags["run"] for gauge in Gauge.made.values()} == {"mine"}


def test_a_ray_of_the_drivers_own_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_metrics, "owns_ray", lambda: True)
    observer = Observer()
    assert exported(observer, "mine") is observer


def test_the_dashboard_shows_each_metric_and_no_other() -> None:
    asked = set(re.findall(r"ray_raytrain_nlp_(\w+)", DASHBOARD.read_text()))
    assert asked == {name for name, _ in FIGURES.values()} | set(EVENTS)
    board = json.loads(DASHBOARD.read_text())
    cells = [
        (column, row)
        for panel in board["panels"]
        for place in [panel["gridPos"]]
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
