"""Which rank is slower than the others, and in what: every 50 steps the ranks tell each other how long they were busy
themselves, without the time they waited for each other.

    each rank: `TIMELINE.steps` -> seconds of each step by phase -> gathered by the first rank -> `find_straggler`

A rank that waits in a collective is not the slow one; it is the one it waits for. So only what a rank does alone is
compared: waiting for its rows, forward, backward, update, and Python between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.timeline import OWN, TIMELINE
from raytrain_nlp.tracking.events import EventLog

STEPS = 50
"""Steps from one comparison to the next."""
SHARE = 0.3
"""By how much of the others' time a rank must be slower."""
_LEAST_S = 30.0
"""Seconds that are compared at least: what short steps take in less time is chance."""
_FLOOR_S = 0.01
"""Seconds a step by which a rank must be slower at least: the first rank writes events, which costs milliseconds."""
_PARTS = 5
"""A rank must be slower in each of so many parts of the time."""
_SAID = {
    "data_wait": "waiting for its rows",
    "forward": "its forward pass",
    "backward": "its backward pass",
    "update": "its update",
    "other": "Python between the passes",
}


@dataclass(frozen=True)
class Straggler:
    """A rank that is slower than the others."""

    rank: int
    phase: str
    """One of `timeline.OWN`: in which it loses most."""
    own: float
    """Seconds of a mean step that it is busy itself."""
    others: float
    """The same of the others, their median."""

    @property
    def waits_for(self) -> str:
        return "data" if self.phase == "data_wait" else "compute"

    @property
    def text(self) -> str:
        more = self.own / max(self.others, 1e-9) - 1
        return (
            f"rank {self.rank} is {more:.0%} slower than the others: {self.own:.3g} s a step of its own, "
            f"{self.others:.3g} s theirs; most of it in {_SAID[self.phase]}"
        )


def find_straggler(seconds: Sequence[np.ndarray], share: float = SHARE) -> Straggler | None:
    """The rank that is slower than the median of the others by more than `share`, in each part of the time; None where
    there is none.

    Args:
        seconds: of each rank, float [steps, phases of `OWN`]; steps that all ranks have.
    """
    if len(seconds) < 2 or not len(seconds[0]):
        return None
    steps = [len(part) for part in np.array_split(seconds[0], _PARTS)]
    # sums first, then the median over ranks: that of single steps would be below the mean that a rank is measured by
    parts = np.array([[part.sum() for part in np.array_split(mine, _PARTS)] for mine in seconds])
    phases = np.array([mine.mean(axis=0) for mine in seconds])
    found: Straggler | None = None
    for rank in range(len(seconds)):
        theirs = np.median(np.delete(parts, rank, axis=0), axis=0)
        if not (parts[rank] - theirs > np.maximum(share * theirs, _FLOOR_S * np.array(steps))).all():
            continue
        others = np.median(np.delete(phases, rank, axis=0), axis=0)
        own = float(phases[rank].sum())
        if found is None or own > found.own:
            found = Straggler(rank, OWN[int((phases[rank] - others).argmax())], own, float(others.sum()))
    return found


class StragglerCallback(TrainerCallback):
    """On every rank: compares what ranks were busy with, and tells of a straggler once, until another is found."""

    def __init__(self, events: EventLog, rank: int):
        self._events, self._rank = events, rank
        self._seconds: list[list[np.ndarray]] = []
        """Of each comparison that has not been judged, those of each rank."""
        self._told: tuple[int, str] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % STEPS:
            return
        found = gather_objects(np.array(TIMELINE.steps(), dtype=np.float32).reshape(-1, len(OWN)), to_rank=0)
        if self._rank == 0:
            self._take(found, state.global_step)

    def _take(self, found: list[np.ndarray], step: int) -> None:
        steps = min(map(len, found))
        self._seconds.append([part[:steps] for part in found])
        seconds = [np.concatenate(parts) for parts in zip(*self._seconds, strict=True)]
        if max((part.sum() for part in seconds), default=0.0) < _LEAST_S or len(seconds[0]) < STEPS - 1:
            return
        self._seconds = []
        straggler = find_straggler(seconds)
        if straggler is None:
            if self._told is not None:
                self._events.write("notice", text=f"rank {self._told[0]} keeps up with the others again (step {step}).")
            self._told = None
        elif self._told != (straggler.rank, straggler.phase):
            self._told = (straggler.rank, straggler.phase)
            self._events.write(
                "straggler",
                step=step,
                rank=straggler.rank,
                waits_for=straggler.waits_for,
                phase=straggler.phase,
                own=round(straggler.own, 4),
                others=round(straggler.others, 4),
                text=f"{straggler.text} (over {len(seconds[0])} steps up to {step}).",
            )
