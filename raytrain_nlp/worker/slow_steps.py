"""A step that takes far longer than the others is told in one line: which rank is where. One that does not end at all
is ended: a rank that still answers leaves the group, which Ray Train then starts again from the last checkpoint.

    each rank: a thread reads `CLOCK`; says where the rank is (`rank_places`)
    step late: -> a notice, by the first rank that answers; the stacks of all ranks are kept
    step hung: -> failure.json, and the ranks that answer end

The run's loop starts the thread and ends it (`watched`). It looks at the main thread's stack and needs nothing that is
not loaded: no torch call, no collective, for those are what may hang. If it fails it says so once and ends; training
goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from raytrain_nlp.compat.deepspeed import UPDATE_FUNCTION
from raytrain_nlp.failures import Place
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.run.rank_places import RankPlaces, describe, frames_of, stack_lines, suspects
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.progress import CLOCK

_TIMES, _MORE_S = 3, 20.0
"""Medians of a step and seconds besides, after which it is late."""
_HUNG_TIMES, _HUNG_S = 20, 300.0
"""The same of a step that is taken for hung, where the job does not say."""
_FIRST_S = 600.0
"""Both of the first steps, which may compile kernels."""
_POLL_S, _JOIN_S = 1.0, 3.0
_EXIT = 75
_PAUSES = {
    "evaluate",
    "evaluation_loop",
    "_save_checkpoint",
    "_load_best_model",
    "compute_reference",
    "export_model",
    "export_chrome_trace",
}
"""Functions in which no step goes on."""


@contextlib.contextmanager
def watched(
    model: Any,
    paths: RunPaths,
    events: EventLog,
    rank: int,
    world_size: int,
    hang_timeout_s: float | None = None,
) -> Iterator[None]:
    """While inside, a late step of this rank is told, and a hung one ended.

    Args:
        model: what the main thread computes with, for the names of its modules.
        hang_timeout_s: seconds after which a step is hung; 0: none is; None: 20 times the median step, 300 at least.
    """
    places = RankPlaces(paths, rank, world_size)
    watch = _Watch(model, paths, events, places, hang_timeout_s)
    thread = threading.Thread(target=watch.run, name="watch", daemon=True)
    places.forget()
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        thread.join(timeout=2 * _JOIN_S)
        if rank == 0:
            places.remove()


class _Watch:
    """What the thread does."""

    def __init__(self, model: Any, paths: RunPaths, events: EventLog, places: RankPlaces, hang_timeout_s: float | None):
        self._model, self._paths, self._events, self._places = model, paths, events, places
        self._hang_timeout_s = hang_timeout_s
        self._main = threading.get_ident()
        self._told = -1
        self.over = threading.Event()

    def run(self) -> None:
        try:
            names = {id(module): name for name, module in self._model.named_modules()}
            while not self.over.wait(_POLL_S):
                self._places.arm()
                self._look(names)
        except Exception as error:  # noqa: BLE001 - it watches; what it cannot see does not end a run
            self._places.forget()
            text = f"slow steps are not watched any more ({type(error).__name__}: {error})."
            self._events.write("notice", text=text)
        finally:
            self._places.disarm()

    def _look(self, names: dict[int, str]) -> None:
        elapsed, step = time.monotonic() - CLOCK.since, CLOCK.step + 1
        if elapsed < _POLL_S and not self._places.due:
            return
        frames = frames_of(sys._current_frames().get(self._main))
        if any(frame.f_code.co_name in _PAUSES for frame in frames):
            CLOCK.pause()
        elif elapsed > _limit() and self._told != step:
            self._told = step
            self._tell(step, elapsed, _where(frames, names), stack_lines(frames))
        elif (limit := _hung_limit(self._hang_timeout_s)) and elapsed > limit and self._told == step:
            self._leave(step)
        if self._places.due:
            self._places.beat(step, _where(frames, {}), stack_lines(frames), late=self._told == step)

    def _tell(self, step: int, elapsed: float, where: str, stack: list[str]) -> None:
        self._places.late(step, where, stack)
        if self.over.wait(_JOIN_S):
            return
        places = self._places.read()
        self._places.keep_silent(step, places)
        if self._speaks(step, places):
            events = self._events if self._places.rank == 0 else EventLog(self._paths.events)
            events.write("notice", text=_line(step, elapsed, CLOCK.median, describe(step, places)))

    def _speaks(self, step: int, places: list[dict[str, Any] | None]) -> bool:
        """Is this the first rank that answers? Where ranks share no folder, the first alone speaks."""
        answering = [rank for rank, place in enumerate(places) if place and place["late"] and place["step"] == step]
        first = answering[0] if answering else self._places.rank
        return self._places.rank == (first if self._paths.store.shared else 0)

    def _leave(self, step: int) -> None:
        """End this process, so that Ray Train ends the others and starts a new group."""
        places = self._places.read()
        guilty, words = suspects(places), describe(step, places)
        who = [(rank, words[rank]) for rank in guilty] or list(enumerate(words))
        error = f"step {step} hangs: " + "; ".join(f"rank {rank}: {_without_age(text)}" for rank, text in who)
        error += f". Stacks of all ranks: {self._paths.store.address_of(self._paths.hangs / f'step-{step}')}."
        if self._places.rank == min(set(range(len(places))) - set(guilty), default=self._places.rank):
            before = read_json(self._paths.failure) or {}
            hung = [step, guilty]
            again = before.get("hung") == hung  # as in the group before: so would the next
            write_json(self._paths.failure, {**before, "error": error, "again": again, "hang": True, "hung": hung})
            self._paths.store.push(self._paths.failure, patience=1)
            events = self._events if self._places.rank == 0 else EventLog(self._paths.events)
            events.write("notice", text=f"{error} The workers are ended.")
        time.sleep(_JOIN_S)  # the other ranks that answer may be a little behind; what was written goes out
        os._exit(_EXIT)


def _limit() -> float:
    """Seconds after which the step of this rank is late."""
    return _FIRST_S if CLOCK.median is None else _TIMES * CLOCK.median + _MORE_S


def _hung_limit(hang_timeout_s: float | None) -> float | None:
    """Seconds after which the step of this rank is hung, which has been told to be late before; None: never."""
    if hang_timeout_s == 0:
        return None
    default = max(_HUNG_TIMES * (CLOCK.median or 0), _HUNG_S)
    return max(default if hang_timeout_s is None else hang_timeout_s, _limit() + 2 * _JOIN_S)


def _without_age(text: str) -> str:
    """The same words whenever the same happens again."""
    return text.partition(";")[0]


def _where(frames: list[FrameType], names: dict[int, str]) -> str:
    """The module of the model that computes, what is done with it, and the innermost line that is not torch's or
    Python's.

    Args:
        names: of modules, by id; none: no module is named.
    """
    functions = {frame.f_code.co_name for frame in frames}
    doing = next((text for name, text in _DOING if name in functions), "")
    module = None
    if names:  # asking a frame for its locals makes it hold them, tensors too, for longer than its function does
        found = (names.get(id(frame.f_locals.get("self"))) for frame in reversed(frames))
        module = next(filter(None, found), None)
    places = [Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in frames]
    place = next((place for place in reversed(places) if place.owner not in (None, "torch", "threading")), None)
    return ", ".join(filter(None, (doing, module, f"at {place}" if place else None)))


_DOING = (
    ("get_batch_samples", "waiting for rows"),
    (UPDATE_FUNCTION, "update"),
    ("backward", "backward pass"),
    ("forward", "forward pass"),
)
"""By a function on the stack; the first that is there (accelerate's backward of DeepSpeed holds the update)."""


def _line(step: int, seconds: float, median: float | None, places: list[str]) -> str:
    usual = f"; others take {median:.2g} s" if median is not None else ""
    told = "; ".join(f"rank {rank}: {where}" for rank, where in enumerate(places))
    return f"step {step} has taken {seconds:.0f} s so far{usual}. {told}."
