"""What each restart of a run took, by phase, from its events."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.tracking.events import read_events

NOTICED, _PLACED = "until it was noticed", "old workers ended, new ones started"
_PHASES = {
    "worker": _PLACED,
    "imports": "ranks connected, checkpoint found",
    "model": "libraries and model loaded",
    "train": "state of the checkpoint loaded",
    "first step": "first step",
}
"""Phase that a worker tells the end of -> its name for people."""


@dataclass
class Recovery:
    """One restart."""

    step: int = 0
    """From which training went on."""
    since: float = 0.0
    """When its first phase that is known began, in seconds since the epoch: at the last event before a failure, or at
    the first of another driver.
    """
    seconds: dict[str, float] = field(default_factory=dict)
    """Name of a phase -> its seconds. That until a failure was noticed is counted from the last event before it, so it
    is at most too long by the time between two logs. It is missing where nobody notices: a killed driver.
    """


def read_recoveries(run: Run) -> list[Recovery]:
    """The restarts of a run that came to a first step, in order."""
    found: list[Recovery] = []
    now: Recovery | None = None
    last = since = 0.0
    trained = False
    for event, _ in read_events(run.paths.events):
        kind, moment = event["kind"], event["time"] / 1000
        if kind == "failure" and trained and now is None:
            now = Recovery(since=last, seconds={NOTICED: moment - last})
            since = moment
        elif kind == "datasets" and trained:  # the first event of another driver
            now, since = Recovery(since=moment), moment
        elif kind == "phase" and event.get("phase") == "worker" and trained and now is None:
            now, since = Recovery(since=last), last  # its workers were asked to go
        if kind == "resume" and now is not None:
            now.step = event["step"]
        name = _PHASES.get(event.get("phase", "")) if kind == "phase" else None
        if name and now is not None:
            now.seconds[name] = now.seconds.get(name, 0.0) + moment - since
            since = moment
        if kind == "phase" and event.get("phase") == "first step":
            trained = True
            if now is not None:
                found.append(now)
            now = None
        last = moment
    return found


def recovery_rows(recoveries: list[Recovery]) -> dict[str, str]:
    """Name of a phase -> its median and longest time, and those of all phases together."""
    if not recoveries:
        return {}
    rows = {"restarts": str(len(recoveries))}
    for name in (NOTICED, *_PHASES.values()):
        if values := [one.seconds[name] for one in recoveries if name in one.seconds]:
            rows[name] = _told(values)
    rows["together"] = _told([sum(one.seconds.values()) for one in recoveries])
    return rows


def _told(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} s" + (f", at most {max(values):.1f} s" if len(values) > 1 else "")
