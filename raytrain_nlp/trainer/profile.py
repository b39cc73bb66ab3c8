"""`training.profile_steps`: a few steps of the first rank under torch's profiler, as a trace in the run's folder.

What is recorded lies behind the first steps, in which kernels are chosen and memory is taken. The trace opens in
https://ui.perfetto.dev; a step is an event `ProfilerStep#N` there.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback

from raytrain_nlp.distributed.device import uses_gpu
from raytrain_nlp.distributed.timeline import PROFILE, TIMELINE
from raytrain_nlp.errors import StorageError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.storage import shown
from raytrain_nlp.storage.atomic import temporary_name
from raytrain_nlp.tracking.events import EventLog

_WARM_UP = 3
"""Steps of an attempt before the first that is recorded."""
_SUFFIX = ".pt.trace.json.gz"


@contextlib.contextmanager
def profiled(trainer: Any, steps: int, paths: RunPaths, events: EventLog, rank: int) -> Iterator[None]:
    """While inside, so many steps of `trainer` are recorded, where this is the first rank; 0: none."""
    if not steps or rank:
        yield
        return
    callback = ProfileCallback(steps, paths, events)
    trainer.add_callback(callback)
    try:
        yield
    finally:  # of a training that failed, too: the process may go on to another
        callback.end()
        trainer.remove_callback(callback)


class ProfileCallback(TrainerCallback):
    """Records steps from the fourth of an attempt on; where there are not so many, the last ones."""

    def __init__(self, steps: int, paths: RunPaths, events: EventLog):
        self._steps, self._paths, self._events = steps, paths, events
        self._profiler: Any = None
        self._first = self._step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begun = state.global_step
        self._first = max(min(begun + _WARM_UP, state.max_steps - self._steps), begun) + 1
        self._step = begun

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._first and self._profiler is None and state.global_step + 2 >= self._first:
            self._steps = min(self._steps, state.max_steps - self._first + 1)
            self._profiler = _profiler(self._steps, state.global_step + 1 < self._first, self._write)
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._profiler is not None:
            self._profiler.step()
            if self._step >= self._first + self._steps - 1:
                self.end()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end()

    def end(self) -> None:
        """Record no more. What has been recorded of fewer steps is written."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        self._first = 0

    def _write(self, profiler: Any) -> None:
        """A profile that cannot be written is told; it ends no run."""
        if self._step < self._first:
            return
        path = self._paths.profile / f"rank0{_SUFFIX}"
        temporary = path.with_name(f"{temporary_name(path).name}.gz")  # the name says that it is to be compressed
        try:
            with TIMELINE.phase(PROFILE):
                path.parent.mkdir(parents=True, exist_ok=True)
                profiler.export_chrome_trace(str(temporary))
                os.replace(temporary, path)
                self._paths.store.push(path)
        except (OSError, StorageError) as error:
            self._events.write("notice", text=f"the profile cannot be written ({error}); training goes on.")
        else:
            self._events.write(
                "notice",
                text=f"profile of rank 0, {_said(self._first, self._step)}: {shown(path)}. It opens in "
                "https://ui.perfetto.dev.",
                artifact=str(path.relative_to(self._paths.run)),
            )
        finally:
            temporary.unlink(missing_ok=True)


def _said(first: int, last: int) -> str:
    return f"steps {first} to {last}" if last > first else f"step {first}"


def _profiler(steps: int, warm_up: bool, made: Callable[[Any], None]) -> Any:
    """`made` is called with it when so many steps have been recorded, behind one more where it is to `warm_up`."""
    from torch.profiler import ProfilerActivity, profile, schedule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a step to warm up, torch warns of it
        return profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if uses_gpu() else [])],
            schedule=schedule(wait=0, warmup=int(warm_up), active=steps, repeat=1),
            on_trace_ready=made,
            acc_events=True,
        )
