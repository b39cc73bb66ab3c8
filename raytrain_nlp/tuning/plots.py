"""Pictures of a sweep, as PNG: the figure over steps, against each key, parallel coordinates, importance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.reporting.figures import draw
from raytrain_nlp.tuning.trial_records import FAILED, Book, TrialRecord

_FEW = 3
"""The least number of finished trials for which importances are computed."""


def write_plots(config: SweepJob, book: Book, study: Any, folder: Path) -> list[Path]:
    """Write the plots for which there are enough trials, as PNG into `folder`; returns their files."""
    folder.mkdir(exist_ok=True)
    trials = [
        record for record in book.trials.values() if record.status != FAILED and _finite(record.value(config.metric))
    ]
    keys = [key for key, entry in config.search_space.items() if entry.searched]
    drawn = []

    def keep(name: str, paint: Callable[[Any], None], width: float = 8) -> None:
        drawn.append(folder / f"{name}.png")
        drawn[-1].write_bytes(draw(paint, width))

    keep("metric-over-steps", lambda figure: _over_steps(figure, config, list(book.trials.values())))
    if trials:
        keep("metric-against-keys", lambda figure: _against_keys(figure, config, trials, keys), width=4 * len(keys))
        keep("parallel-coordinates", lambda figure: _parallel(figure, config, trials, keys), width=2 + 2 * len(keys))
    if weights := importances(study, keys):
        keep("importance", lambda figure: _importance(figure, config, weights))
    return drawn


def importances(study: Any, keys: list[str]) -> dict[str, float]:
    """The share of the metric's variance that each searched key explains, from 0 to 1 (fANOVA, Hutter et al. 2014, by
    Optuna); empty where too few trials finished.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    always = [key for key in keys if all(key in trial.params for trial in finished)]
    varied = [key for key in always if len({json.dumps(trial.params[key]) for trial in finished}) > 1]
    if len(finished) < _FEW or not varied or len({trial.value for trial in finished}) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied)


def _over_steps(figure: Any, config: SweepJob, trials: list[TrialRecord]) -> None:
    axes = figure.add_subplot()
    for record in trials:
        points = [(entry["step"], entry[config.metric]) for entry in record.history if config.metric in entry]
        if points:
            style = "-" if record.status == "finished" else "--"
            axes.plot(*zip(*points), style, marker="o", markersize=3, label=f"{record.number} {record.status}")
    axes.set(xlabel="step", ylabel=config.metric, title=f"{config.name}: all trials")
    if len(trials) <= 20 and axes.lines:
        axes.legend(fontsize="small")


def _against_keys(figure: Any, config: SweepJob, trials: list[TrialRecord], keys: list[str]) -> None:
    for axes, key in zip(figure.subplots(1, len(keys), sharey=True, squeeze=False)[0], keys):
        shown = [record for record in trials if key in record.params]
        places, labels = _places([record.params[key] for record in shown], bool(config.search_space[key].choices))
        axes.scatter(places, [record.value(config.metric) for record in shown], c=[record.number for record in shown])
        axes.set_xlabel(key)
        if labels is not None:
            axes.set_xticks(range(len(labels)), labels)
        elif config.search_space[key].loguniform:
            axes.set_xscale("log")
    figure.axes[0].set_ylabel(config.metric)


def _parallel(figure: Any, config: SweepJob, trials: list[TrialRecord], keys: list[str]) -> None:
    from matplotlib import colormaps

    axes = figure.add_subplot()
    values = [value for record in trials if (value := record.value(config.metric)) is not None]
    low, high = min(values), max(values)
    columns = []
    for place, key in enumerate(keys):
        raw: list[Any] = [record.params.get(key) for record in trials]
        places, labels = _places(raw, bool(config.search_space[key].choices) or None in raw)
        if labels is None and config.search_space[key].loguniform:
            places = [math.log10(value) for value in places]
        columns.append(_scaled(places))
        ends = (labels[0], labels[-1]) if labels else (f"{min(raw):.3g}", f"{max(raw):.3g}")
        axes.text(place, -0.06, ends[0], ha="center", va="top", fontsize="small")
        axes.text(place, 1.03, ends[1], ha="center", fontsize="small")
    columns.append(_scaled(values))
    axes.text(len(keys), -0.06, f"{low:.4g}", ha="center", va="top", fontsize="small")
    axes.text(len(keys), 1.03, f"{high:.4g}", ha="center", fontsize="small")
    for row, heat in zip(zip(*columns), columns[-1]):
        axes.plot(row, color=colormaps["viridis"](heat), alpha=0.8)
    axes.set_xticks(range(len(columns)), [*keys, config.metric], rotation=15)
    axes.tick_params(axis="x", pad=18)
    axes.set_ylim(-0.02, 1.02)  # also where all trials are alike: the texts above and below are placed by it
    axes.set_yticks([])
    axes.grid(axis="x")


def _importance(figure: Any, config: SweepJob, weights: dict[str, float]) -> None:
    axes = figure.add_subplot()
    axes.barh(list(weights)[::-1], list(weights.values())[::-1])
    axes.set(xlabel=f"share of the variance of {config.metric} (fANOVA)", xlim=(0, 1))


def _places(values: list[Any], named: bool) -> tuple[list[float], list[str] | None]:
    """Numbers as they are; names by their place in a row, with the labels of the places."""
    if not named:
        return list(values), None
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    labels = [str(value) for value in (sorted(set(values)) if numbers else dict.fromkeys(map(str, values)))]
    return [labels.index(str(value)) for value in values], labels


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
