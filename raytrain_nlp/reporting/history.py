"""The figures of a run as lines over its steps, through all its restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.tracking.events import read_events

_NO_FIGURES = (
    "epoch",
    *(f"eval_{name}" for name in ("runtime", "samples", "features", "samples_per_second", "steps_per_second")),
)


@dataclass
class History:
    """What `events.jsonl` says. A step that was repeated after a restart counts once, as it went the last time."""

    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    """Name -> step -> value."""
    resumed: list[int] = field(default_factory=list)
    """Steps that training went on from after a restart."""
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """From the first event to the last, pauses between drivers included."""
    checkpoints: int = 0

    def line(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure, in order."""
        points = sorted(self.figures.get(name, {}).items())
        return [step for step, _ in points], [value for _, value in points]

    @property
    def evaluated(self) -> list[str]:
        """Names of the evaluation's figures: the loss, then the task's own."""
        names = sorted(name for name in self.figures if name.startswith("eval_") and name not in _NO_FIGURES)
        return [*(["eval_loss"] if "eval_loss" in names else []), *(name for name in names if name != "eval_loss")]


def read_history(run: Run) -> History:
    """All of a run's events."""
    history, first = History(), None
    for event, _ in read_events(run.paths.events):
        first = first or event["time"]
        history.seconds = (event["time"] - first) / 1000
        if event["kind"] == "log" and event["step"]:
            _add(history, event)
        elif event["kind"] == "resume":
            history.resumed.append(event["step"])
            for line in history.figures.values():  # what the workers that ended had done beyond is done again
                for step in [step for step in line if step > event["step"]]:
                    del line[step]
        elif event["kind"] == "start":
            history.figures.clear()
        elif event["kind"] == "notice":
            history.notices.append(event["text"])
        elif event["kind"] == "checkpoint":
            history.checkpoints += 1
    return history


def _add(history: History, event: dict[str, Any]) -> None:
    for name, value in event["metrics"].items():
        if isinstance(value, (int, float)):
            history.figures.setdefault(name, {})[event["step"]] = value
