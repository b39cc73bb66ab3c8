"""The panels of a sweep: the figure over steps, against each key, parallel coordinates, importance. The best trial has
one colour in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.reporting.charts import BEST, COLORS, Axis, Bars, Chart, Line, Panel, Parallel
from raytrain_nlp.run.trial_records import FAILED, FINISHED, TrialRecord

_GREY = "#8a93a0"


def sweep_panels(
    config: SweepJob, trials: list[TrialRecord], best: int | None, weights: Mapping[str, float]
) -> list[Panel]:
    """The panels there are enough trials for.

    Args:
        best: number of the best trial; None: none has finished.
        weights: the importance of each key; empty where it is not known.
    """
    scored = scored_trials(config, trials)
    keys = [key for key, entry in config.search_space.items() if entry.searched]
    panels = [_over_steps(config, trials, best)]
    if scored:
        panels += [_against_keys(config, scored, keys, best), _parallel(config, scored, keys, best)]
    if weights:
        says = (
            f"Of the differences in {config.metric} between trials, the share that each key accounts for (fANOVA): a "
            f"key near 0 may be left as it is."
        )
        shown = sorted(weights.items(), key=lambda pair: -pair[1])
        bars = Bars("", f"share of the variance of {config.metric}", *map(list, zip(*shown, strict=True)))
        panels.append(Panel("importance", "What counted", says, [bars]))
    return panels


def scored_trials(config: SweepJob, trials: list[TrialRecord]) -> list[TrialRecord]:
    """Those that have a finite figure and have not failed."""
    return [
        record
        for record in trials
        if record.status != FAILED and (value := record.value(config.metric)) is not None and math.isfinite(value)
    ]


def _over_steps(config: SweepJob, trials: list[TrialRecord], best: int | None) -> Panel:
    lines = []
    for record in sorted(trials, key=lambda record: record.number == best):  # the best one above all
        points = [(entry["step"], entry[config.metric]) for entry in record.history if config.metric in entry]
        if not points:
            continue
        x, y = map(list, zip(*points, strict=True))
        mine, ended = record.number == best, record.status == FINISHED
        label = f"trial {record.number}, {'best' if mine else record.status}"
        color = BEST if mine else COLORS[0] if ended else _GREY
        lines.append(Line(label, x, y, color, 2.5 if mine else 1.2, 1 if mine else 0.6, dots=True, dashed=not ended))
    says = (
        f"{config.metric} of each trial at each of its evaluations. Orange: the best; dashed: trials that did not "
        f"finish, stopped early by the scheduler or failed."
    )
    return Panel("metric-over-steps", "All trials", says, [Chart("", "step", config.metric, lines)])


def _against_keys(config: SweepJob, trials: list[TrialRecord], keys: list[str], best: int | None) -> Panel:
    charts: list[Chart | Bars | Parallel] = []
    for key in keys:
        shown = [record for record in trials if key in record.params]
        places, labels = _places([record.params[key] for record in shown], bool(config.search_space[key].choices))
        values = [record.value(config.metric) or 0.0 for record in shown]
        points = list(zip(shown, places, values, strict=True))
        lines = [
            Line(label, [x for _, x, _ in part], [y for _, _, y in part], color, 0, dots=True)
            for label, color, part in (
                ("trials", COLORS[0], [point for point in points if point[0].number != best]),
                (f"best: trial {best}", BEST, [point for point in points if point[0].number == best]),
            )
            if part
        ]
        ticks = dict(enumerate(labels)) if labels else {}
        xlog = bool(config.search_space[key].loguniform)
        charts.append(
            Chart("", key, config.metric, lines, ticks={float(at): text for at, text in ticks.items()}, xlog=xlog)
        )
    says = (
        f"{config.metric} of each trial by the value of each key: a slope means that the key counts. Orange: the best."
    )
    return Panel("metric-against-keys", "What each key does", says, charts)


def _parallel(config: SweepJob, trials: list[TrialRecord], keys: list[str], best: int | None) -> Panel:
    axes = []
    for key in keys:
        raw: list[Any] = [record.params.get(key) for record in trials]
        places, labels = _places(raw, bool(config.search_space[key].choices) or None in raw)
        if labels is None and config.search_space[key].loguniform:
            places = [math.log10(value) for value in places]
        ends = (labels[0], labels[-1]) if labels else (f"{min(raw):.3g}", f"{max(raw):.3g}")
        axes.append(Axis(key, _scaled(places), ends))
    values = [record.value(config.metric) or 0.0 for record in trials]
    axes.append(Axis(config.metric, _scaled(values), (f"{min(values):.4g}", f"{max(values):.4g}")))
    names = [
        f"trial {record.number}: {', '.join(f'{key} {_told(value)}' for key, value in record.params.items())}"
        for record in trials
    ]
    line = next((place for place, record in enumerate(trials) if record.number == best), None)
    says = (
        f"A line for each trial through its values to its {config.metric}. Orange: the best. Where scripts run: drag "
        f"along an axis to see the trials that pass there alone, along others to narrow down, double-click for all."
    )
    return Panel("parallel-coordinates", "Values and result", says, [Parallel("", axes, names, line)])


def _places(values: list[Any], named: bool) -> tuple[list[float], list[str] | None]:
    """Numbers as they are; names by their place in a row, with the labels of the places."""
    if not named:
        return list(values), None
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    labels = [str(value) for value in (sorted(set(values)) if numbers else dict.fromkeys(map(str, values)))]
    return [float(labels.index(str(value))) for value in values], labels


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
