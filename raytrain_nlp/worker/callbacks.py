"""What happens beside training: figures and progress to the run's files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from raytrain_nlp.modeling.rank_symmetry import SharedDraws, forget_gradients
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.node_load import NodeLoad, loads_of_others
from raytrain_nlp.worker.progress import CLOCK

_PROGRESS_S = 0.5


class EventCallback(TrainerCallback):
    """On the first rank: every log to the event log, with the machine's load; the step to `progress.json`."""

    def __init__(self, events: EventLog, progress: Path, nodes: Path, total_steps: int):
        self._events, self._progress, self._total_steps = events, progress, total_steps
        self._load, self._nodes = NodeLoad(), nodes
        self._shown = 0.0
        self._last: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._events.write("phase", phase="train")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        metrics = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "loss" in metrics:
            metrics |= self._system()
            self._last = metrics
        self._events.write("log", step=state.global_step, metrics=metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 or not self._shown:
            self._events.write("phase", phase="first step", step=state.global_step)
        now = time.monotonic()
        if now - self._shown >= _PROGRESS_S or state.global_step == self._total_steps:
            self._shown = now
            shown: dict[str, float] = {
                key: self._last[key] for key in ("loss", "tokens_per_second", "mfu") if key in self._last
            }
            _write_progress(
                self._progress, {"step": state.global_step, "total": self._total_steps, "epoch": state.epoch, **shown}
            )

    def _system(self) -> dict[str, float]:
        """MLflow's names for system metrics; megabytes and percent, of each node and of its first rank's process."""
        figures = {**self._load.figures(), **loads_of_others(self._nodes)}
        return {f"system/{name}": value for name, value in figures.items()}


class EvalProgress(TrainerCallback):
    """On the first rank: which batch of an evaluation is scored, to `progress.json`."""

    def __init__(self, progress: Path, total_steps: int):
        self._progress, self._total_steps = progress, total_steps
        self._step, self._shown = 0, 0.0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step += 1
        now = time.monotonic()
        if now - self._shown >= _PROGRESS_S or self._step == self._total_steps:
            self._shown = now
            _write_progress(self._progress, {"step": self._step, "total": self._total_steps})


class LayerdropCallback(TrainerCallback):
    """Layers are drawn anew in each step, on all ranks alike."""

    def __init__(self, draws: SharedDraws):
        self._draws = draws

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._draws.begin(state.global_step)
        forget_gradients(getattr(optimizer, "optimizer", optimizer))


class ClockCallback(TrainerCallback):
    """Sets `CLOCK`."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.start(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.done(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.pause()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.pause()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.pause()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        CLOCK.pause()


def _write_progress(path: Path, progress: dict[str, Any]) -> None:
    with replacing(path, durable=False) as file:
        json.dump(progress, file)
