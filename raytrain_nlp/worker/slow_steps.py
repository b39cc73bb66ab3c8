"""A step that takes far longer than the others is told in one line: which rank is where.

    each rank: a thread reads `CLOCK` -> step late: RUN/slow/rank-N.json {step, where} -> the first rank joins them to a
    notice

The run's loop starts the thread and ends it (`watched`). It looks at the main thread's stack and needs nothing that is
not
loaded: no torch call, no collective, for those are what may hang. If it fails it says so once and ends; training goes
    on.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from raytrain_nlp.compat.deepspeed import UPDATE_FUNCTION
from raytrain_nlp.failures import Place
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.progress import CLOCK

_TIMES = 10
"""Medians of a step after which it is late,"""
_LEAST_S, _FIRST_S = 20.0, 600.0
"""but not before so many seconds; the first steps, which may compile kernels."""
_POLL_S, _JOIN_S = 1.0, 3.0
_PAUSES = {"evaluate", "evaluation_loop", "_save_checkpoint", "_load_best_model", "export_model", "export_chrome_trace"}
"""Functions in which no step goes on."""


@contextlib.contextmanager
def watched(model: Any, paths: RunPaths, events: EventLog, rank: int, world_size: int) -> Iterator[None]:
    """While inside, a late step of this rank is told. `model`: what the main thread computes with, for the names of its
    modules.
    """
    over, main = threading.Event(), threading.get_ident()
    folder = paths.run / "slow"

    def watch() -> None:
        told = -1
        try:
            names = {id(module): name for name, module in model.named_modules()}
            while not over.wait(_POLL_S):
                elapsed = time.monotonic() - CLOCK.since
                if elapsed < _POLL_S or CLOCK.step == told:
                    continue
                frames = _stack(sys._current_frames().get(main))
                if any(frame.f_code.co_name in _PAUSES for frame in frames):
                    CLOCK.pause()
                elif elapsed > _limit():
                    told, step = CLOCK.step, CLOCK.step + 1
                    mine = folder / f"rank-{rank}.json"
                    write_json(mine, {"step": step, "where": _where(frames, names)})
                    paths.store.push(mine)
                    if rank == 0 and not over.wait(_JOIN_S):
                        places = [
                            paths.store.refetch(path) and read_json(path)
                            for path in (folder / f"rank-{number}.json" for number in range(world_size))
                        ]
                        events.write("notice", text=_line(step, elapsed, CLOCK.median, places))
                del frames
        except Exception as error:  # noqa: BLE001 - it watches; what it cannot see does not end a run
            events.write("notice", text=f"slow steps are not watched any more ({type(error).__name__}: {error}).")

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2 * _JOIN_S)
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _limit() -> float:
    """Seconds after which the step of this rank is late."""
    return _FIRST_S if CLOCK.median is None else max(_TIMES * CLOCK.median, _LEAST_S)


def _stack(frame: FrameType | None) -> list[FrameType]:
    """The frames of a thread, outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _where(frames: list[FrameType], names: dict[int, str]) -> str:
    """The module of the model that computes, what is done with it, and the innermost line that is not torch's or
    Python's.
    """
    functions = {frame.f_code.co_name for frame in frames}
    doing = next((text for name, text in _DOING if name in functions), "")
    module = next((found for frame in reversed(frames) if (found := names.get(id(frame.f_locals.get("self"))))), None)
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


def _line(step: int, seconds: float, median: float | None, places: list[Any]) -> str:
    told = [place["where"] if place and place["step"] == step else "elsewhere" for place in places]
    usual = f"; others take {median:.2g} s" if median is not None else ""
    return (
        f"step {step} has taken {seconds:.0f} s so far{usual}. "
        + "; ".join(f"rank {rank}: {where}" for rank, where in enumerate(told))
        + "."
    )
