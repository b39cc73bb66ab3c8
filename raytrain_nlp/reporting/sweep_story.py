"""A sweep as its report tells it: which trial the result is, what the sweep took, and what to try next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import SweepPaths, read_json
from raytrain_nlp.reporting.markup import number, shortened
from raytrain_nlp.reporting.sweep_panels import scored_trials
from raytrain_nlp.run.trial_records import FAILED, FINISHED, STOPPED, TrialRecord, read_trials

IMPORTANCE = "importance.json"
"""Beside the pictures of a sweep: the importance of each key."""
_EDGE = 0.05
"""Of a range, on the scale it is drawn on: so near an end a value is at the edge."""
_NO_EFFECT = 0.05
_KNOWN = 8
"""Finished trials without which nothing is said of keys that have no effect."""
_ALIKE = 0.005
_RISING = 0.01


@dataclass(frozen=True)
class SweepStory:
    """A sweep, as far as it has come."""

    paths: SweepPaths
    status: str
    config: SweepJob | None
    """None where a record of another version cannot be read."""
    trials: list[TrialRecord]
    best: TrialRecord | None
    """The result; while the sweep goes on the best of those that have finished."""
    seconds: float | None
    """From the start of the first trial to the end of the last."""
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def trial_seconds(self) -> float:
        """Of all trials together."""
        return sum(trial.ended - trial.started for trial in self.trials if trial.ended and trial.started)

    def verdict(self) -> str:
        """One sentence: the result, against the middle of the trials, and what the sweep took."""
        if self.config is None or self.best is None:
            return f"No trial has finished yet; the sweep is {self.status}."
        metric, value = self.config.metric, self.best.value(self.config.metric)
        values = sorted(trial.value(metric) or 0.0 for trial in scored_trials(self.config, self.trials))
        middle = values[len(values) // 2]
        given = ", ".join(
            f"{key} {number(at) if isinstance(at, float) else at}" for key, at in self.best.params.items()
        )
        counts = ", ".join(
            f"{count} {name}"
            for name in (FINISHED, STOPPED, FAILED)
            if (count := sum(trial.status == name for trial in self.trials))
        )
        return (
            f"Trial {self.best.number} is {'the result' if self.status == 'finished' else 'the best so far'}: "
            f"{metric.removeprefix('eval_').replace('_', ' ')} {number(value or 0.0)} with {given}; the middle one of "
            f"{len(self.trials)} trials ({counts}) has {number(middle)}."
        )


def read_sweep(paths: SweepPaths) -> SweepStory:
    """What a sweep's folder says; also of one that goes on."""
    record = read_json(paths.record) or {}
    try:
        trials = list(read_trials(paths))
    except (InputError, TypeError):
        trials = []
    try:
        config = SweepJob.model_validate(record.get("sweep"))
    except ValidationError:
        config = None
    result = record.get("result") or {}
    best = next((trial for trial in trials if trial.number == result.get("best_trial")), None)
    if best is None and config is not None:
        best = _best_of(config, [trial for trial in scored_trials(config, trials) if trial.status == FINISHED])
    begun = [trial.started for trial in trials if trial.started]
    ended = [trial.ended for trial in trials if trial.ended]
    seconds = max(ended) - min(begun) if begun and ended else None
    weights = read_json(paths.plots / IMPORTANCE) or {}
    return SweepStory(paths, str(record.get("status", "unknown")), config, trials, best, seconds, weights)


def _best_of(config: SweepJob, trials: list[TrialRecord]) -> TrialRecord | None:
    sign = 1 if config.mode == "max" else -1
    return max(trials, key=lambda trial: (sign * (trial.value(config.metric) or 0.0), -trial.number), default=None)


def next_steps(story: SweepStory) -> list[str]:
    """What to try next, a sentence each, most promising first."""
    config, best = story.config, story.best
    if config is None or best is None:
        return []
    said = [text for key in best.params if (text := _at_edge(config, key, best.params[key]))]
    said += _without_effect(story, config)
    history = [entry[config.metric] for entry in best.history if config.metric in entry]
    if len(history) > 1:
        gained = (history[-1] - history[-2]) * (1 if config.mode == "max" else -1)
        if gained > _RISING * abs(history[-2]):
            said.append("The best trial still gained at its last evaluation: give the trials more steps.")
    failed = [trial for trial in story.trials if trial.status == FAILED]
    if failed:
        reason = shortened(failed[0].reason or "no reason", 160)
        said.append(f"{len(failed)} of {len(story.trials)} trials failed, the first with: {reason}")
    values = sorted(
        (trial.value(config.metric) or 0.0 for trial in scored_trials(config, story.trials)),
        reverse=config.mode == "max",
    )
    if len(values) > 2 and abs(values[0] - values[1]) <= _ALIKE * abs(values[0]):
        said.append(
            "The two best trials are alike: train the best job with other seeds before taking one for the better."
        )
    return said


def _at_edge(config: SweepJob, key: str, value: Any) -> str | None:
    entry = config.search_space.get(key)
    if entry is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if entry.bounds:
        low, high = entry.bounds
    elif entry.choices and len(set(map(str, entry.choices))) > 2 and all(_is_number(one) for one in entry.choices):
        low, high = min(entry.choices), max(entry.choices)
    else:
        return None
    scale = math.log if entry.loguniform else float
    place = (scale(value) - scale(low)) / (scale(high) - scale(low))
    if _EDGE < place < 1 - _EDGE:
        return None
    side, end = ("below", low) if place <= _EDGE else ("above", high)
    return (
        f"The best value of {key} ({number(value)}) is at the edge of what was tried: try values {side} {number(end)}."
    )


def _without_effect(story: SweepStory, config: SweepJob) -> list[str]:
    finished = sum(trial.status == FINISHED for trial in story.trials)
    if finished < _KNOWN:
        return []
    return [
        f"{key} made next to no difference ({weight:.0%} of what varied): leave it at one value, and search another."
        for key, weight in story.weights.items()
        if weight < _NO_EFFECT
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
