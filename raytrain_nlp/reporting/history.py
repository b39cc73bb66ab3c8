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
_SMOOTHED = 20
"""A smoothed point is a mean of about this part of all points before it."""


@dataclass(frozen=True)
class Moment:
    """Something that happened after so many seconds, when training stood at a step."""

    seconds: float
    step: int


@dataclass
class History:
    """What `events.jsonl` says. A step that was repeated after a restart counts once, as it went the last time."""

    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    """Name -> step -> value. At step 0 only what was evaluated before the first update."""
    resumed: list[int] = field(default_factory=list)
    """Steps that training went on from after a restart."""
    repeated: int = 0
    """Steps that were done again after restarts, as far as they had been logged."""
    clock: list[Moment] = field(default_factory=list)
    """Each log of training, those of steps that were done again included."""
    restarts: list[Moment] = field(default_factory=list)
    """When workers were there again, and where they went on from."""
    saved: list[Moment] = field(default_factory=list)
    """Checkpoints that were committed."""
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """From the first event to the last, pauses between drivers included."""
    checkpoint_seconds: list[float] = field(default_factory=list)
    """What each took to be committed."""
    peak_memory: list[int] = field(default_factory=list)
    """Most bytes of each rank, of the last workers; empty where they have not ended well."""
    world_size: int | None = None
    """Of the last workers."""

    @property
    def checkpoints(self) -> int:
        """How many were committed."""
        return len(self.saved)

    @property
    def last_step(self) -> int:
        """The newest that any figure is of."""
        return max((step for line in self.figures.values() for step in line), default=0)

    def line(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure, in order."""
        points = sorted(self.figures.get(name, {}).items())
        return [step for step, _ in points], [value for _, value in points]

    def mean(self, name: str) -> float | None:
        """The mean of a figure over all its logs; None where there is none."""
        values = self.line(name)[1]
        return sum(values) / len(values) if values else None

    @property
    def evaluated(self) -> list[str]:
        """Names of the evaluation's figures: the loss, then the task's own."""
        names = sorted(name for name in self.figures if name.startswith("eval_") and name not in _NO_FIGURES)
        return [*(["eval_loss"] if "eval_loss" in names else []), *(name for name in names if name != "eval_loss")]


def read_history(run: Run) -> History:
    """All of a run's events."""
    history, first = History(), None
    for event, _ in read_events(run.paths.events):
        first = event["time"] if first is None else first
        history.seconds = (event["time"] - first) / 1000
        reader = _READERS.get(event["kind"])
        if reader is not None:
            reader(history, event)
    return history


def _log(history: History, event: dict[str, Any]) -> None:
    step = event["step"]
    for name, value in event["metrics"].items():
        if isinstance(value, (int, float)) and (step or name.startswith("eval_")):
            history.figures.setdefault(name, {})[step] = value
    if step:
        history.clock.append(Moment(history.seconds, step))


def _resume(history: History, event: dict[str, Any]) -> None:
    """What the workers that ended had done beyond the step is done again."""
    step = event["step"]
    history.repeated += max(history.last_step - step, 0)
    history.resumed.append(step)
    history.restarts.append(Moment(history.seconds, step))
    history.world_size = event.get("world_size")
    for line in history.figures.values():
        for later in [at for at in line if at > step]:
            del line[later]


def _start(history: History, event: dict[str, Any]) -> None:
    if history.clock:
        history.repeated += history.last_step
        history.restarts.append(Moment(history.seconds, 0))
    history.world_size = event.get("world_size")
    history.figures.clear()


def _notice(history: History, event: dict[str, Any]) -> None:
    history.notices.append(event["text"])


def _checkpoint(history: History, event: dict[str, Any]) -> None:
    history.saved.append(Moment(history.seconds, event["step"]))
    history.checkpoint_seconds.append(event.get("seconds", 0.0))


def _end(history: History, event: dict[str, Any]) -> None:
    history.peak_memory = list(event.get("peak_memory") or [])


_READERS = {
    "log": _log,
    "resume": _resume,
    "start": _start,
    **dict.fromkeys(("notice", "silent_error", "straggler"), _notice),
    "checkpoint": _checkpoint,
    "end": _end,
}


def smoothed(values: list[float]) -> list[float]:
    """An exponential mean that starts without a bias to 0 (Kingma and Ba 2015, section 3)."""
    mean, weight, found = 0.0, 0.0, []
    new = 1 / max(len(values) / _SMOOTHED, 1)
    for value in values:
        mean, weight = (1 - new) * mean + new * value, (1 - new) * weight + new
        found.append(mean / weight)
    return found
