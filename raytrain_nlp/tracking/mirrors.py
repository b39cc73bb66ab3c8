"""TensorBoard and Weights & Biases beside MLflow: each follows the same event log in a thread of its own, and stops
nothing.

What a thread raises is told by `warn` and ends it: its tracker may be in any state. MLflow and the event log have all
figures, and the next --resume mirrors what is missing. A figure is written once through every restart: how far the log
has been mirrored, and each figure's last step, are kept beside the run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.tracking.events import read_events

_POLL_S = 1.0
_CLOSE_S = 30.0
_STEP = "train/global_step"


class Sink(Protocol):
    """One tracker that takes figures."""

    def write(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        """Take the new figures of one step."""

    def flush(self) -> None:
        """Bring to disk what was written."""

    def close(self, failed: bool) -> None:
        """The run has ended."""


class TensorBoardSink:
    """An event file in RUN/tensorboard; `tensorboard --logdir STORAGE_PATH` shows all runs."""

    def __init__(self, paths: RunPaths, params: dict[str, Any], state: dict[str, Any], experiment: str):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(paths.run / "tensorboard"))
        if not state["offset"]:
            self._writer.add_text("job", "\n".join(f"    {key}: {value}" for key, value in sorted(params.items())))

    def write(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(_grouped(key), value, step, walltime=time_s)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandbSink:
    """One run of Weights & Biases, taken up again by its id; WANDB_MODE=offline keeps it in RUN/wandb.

    The axis is `train/global_step`, as of Hugging Face's callback: wandb's own steps begin at 0 again in a run that is
    resumed offline. What the machine and the command line look like is not sent: they may hold secrets.
    """

    def __init__(self, paths: RunPaths, params: dict[str, Any], state: dict[str, Any], experiment: str):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", experiment),
            name=paths.run.name,
            id=state["run_uid"],
            resume="allow",
            dir=str(paths.run),
            config=params,
            settings=wandb.Settings(
                silent=True, console="off", disable_code=True, disable_git=True, x_disable_meta=True
            ),
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def write(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        self._run.log({**{_grouped(key): value for key, value in metrics.items()}, _STEP: step})

    def flush(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


SINKS: dict[str, Callable[..., Sink]] = {"tensorboard": TensorBoardSink, "wandb": WandbSink}


class Mirror:
    """Sends a run's events to one sink."""

    def __init__(
        self, name: str, paths: RunPaths, params: dict[str, Any], experiment: str, warn: Callable[[str], None]
    ):
        self._name, self._paths, self._params, self._experiment, self._warn = name, paths, params, experiment, warn
        self._file: Path = paths.run / f"{name}.json"
        tracked = read_json(paths.tracking) or {}
        self._state: dict[str, Any] = {
            "run_uid": tracked.get("run_uid"),
            "offset": 0,
            "last_step": {},
            **(read_json(self._file) or {}),
        }
        self._closing = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Mirror:
        self._thread.start()
        return self

    def close(self, status: str) -> None:
        """Send what is left. What a tracker that hangs does not take stays in the event log, for the next --resume."""
        self._failed = status != "FINISHED"
        self._closing.set()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"{self._name} does not end; what it did not take is kept in {self._paths.events}.")

    def _run(self) -> None:
        try:
            sink = SINKS[self._name](self._paths, self._params, self._state, self._experiment)
            while not self._closing.wait(_POLL_S):
                self._ship(sink)
            self._ship(sink)
            sink.close(self._failed)
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, training goes on
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            with contextlib.suppress(Exception):
                self._warn(
                    f"{self._name} fails: {reason}. Training goes on; its figures are in {self._paths.events} and in "
                    f"MLflow."
                )

    def _ship(self, sink: Sink) -> None:
        start, last_step = self._state["offset"], dict(self._state["last_step"])
        offset = start
        for event, end in read_events(self._paths.events, start):
            offset = end
            if event["kind"] == "log":
                new = {
                    key: value
                    for key, value in event["metrics"].items()
                    if isinstance(value, (int, float)) and event["step"] > last_step.get(key, -1)
                }
                if new:
                    sink.write(new, event["step"], event["time"] / 1000)
                    last_step |= dict.fromkeys(new, event["step"])
        if offset != start:
            sink.flush()
            self._state.update(offset=offset, last_step=last_step)
            write_json(self._file, self._state)


def _grouped(key: str) -> str:
    """Names as Hugging Face's callbacks write them: `eval/loss`, `train/loss`."""
    if "/" in key:
        return key
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key.removeprefix('train_')}"
