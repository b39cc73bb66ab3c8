"""A run's figures as metrics of Ray, so that a cluster's Prometheus and Grafana (jobs/grafana.json) show them.

Ray exports the metrics of each of its processes, the driver's too, on the metrics port of the node. Prometheus finds
them as `ray_raytrain_nlp_NAME`, with the tag `run`. A Ray that the driver has started itself exports nothing.
"""

from __future__ import annotations

import time
from typing import Any

from raytrain_nlp.cluster.session import owns_ray
from raytrain_nlp.run.observer import Observer

PREFIX = "raytrain_nlp_"
FIGURES = {
    "loss": ("loss", "Mean training loss since the last log"),
    "grad_norm": ("grad_norm", "Norm of the gradient before clipping"),
    "learning_rate": ("learning_rate", "Learning rate of the first parameter group"),
    "epoch": ("epoch", "Epochs of training data used"),
    "tokens_per_second": ("tokens_per_second", "Tokens without padding that all workers train on in a second"),
    "samples_per_second": ("samples_per_second", "Rows that all workers train on in a second"),
    "mfu": ("mfu", "Model FLOPs utilization of the first worker's GPU, 0 to 1"),
    "padding_share": ("padding_share", "Padding among the tokens of training batches, 0 to 1"),
    "data_wait_share": ("data_wait_share", "Share of a step that the first worker waits for rows, 0 to 1"),
    "time/step": ("step_seconds", "Seconds of an optimizer update"),
    "time/communication_wait": ("communication_wait_seconds", "Seconds of an update that the first worker waits"),
    "eval_loss": ("eval_loss", "Loss of the last evaluation"),
}
"""Figure of a `log` event -> the metric's name without the prefix, and its description."""
EVENTS = {
    "step": "Optimizer updates made",
    "workers": "Workers of the run",
    "checkpoint_seconds": "Seconds that training waited for the last checkpoint",
    "restarts": "Starts of a group of workers that went on from a checkpoint, since the driver started",
    "eval": "A figure of the last evaluation; the tag `figure` names it",
}
"""Metrics of the other events."""
_AGAIN_S = 5.0


def exported(observer: Observer, run: str) -> Observer:
    """An observer that tells `observer` everything and exports what it hears; `observer` itself where nothing is
    exported.
    """
    return observer if owns_ray() else _ExportingObserver(observer, run)


class _ExportingObserver(Observer):
    """Sets gauges in the thread that follows the run's events. An error of Ray's is reported by that thread, as one of
    the observer's own, and the run goes on.
    """

    def __init__(self, observer: Observer, run: str):
        from ray.util.metrics import Gauge

        self._observer, self._restarts, self._recorded = observer, 0, 0.0
        self._values: dict[tuple[str, str | None], float] = {}
        """Name of a metric, and the figure it is of where it has that tag -> its value."""
        texts = {**dict(FIGURES.values()), **EVENTS}
        self._gauges: dict[str, Any] = {
            name: Gauge(PREFIX + name, text, tag_keys=("run", "figure") if name == "eval" else ("run",))
            for name, text in texts.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def stage(self, text: str) -> None:
        self._observer.stage(text)

    def tell(self, text: str) -> None:
        self._observer.tell(text)

    def progress(self, progress: dict[str, Any]) -> None:
        self._observer.progress(progress)
        if time.monotonic() - self._recorded > _AGAIN_S:
            self._record()

    def warn(self, text: str) -> None:
        self._observer.warn(text)

    def event(self, event: dict[str, Any]) -> None:
        self._observer.event(event)
        kind = event.get("kind")
        if "step" in event and kind in ("log", "start", "resume", "checkpoint"):
            self._values["step", None] = event["step"]
        if kind == "log":
            self._set_figures(event.get("metrics", {}))
        elif kind == "checkpoint" and "seconds" in event:
            self._values["checkpoint_seconds", None] = event["seconds"]
        elif kind in ("start", "resume"):
            self._restarts += kind == "resume"
            self._values["restarts", None] = self._restarts
            self._values["workers", None] = event.get("world_size", 0)
        self._record()

    def _set_figures(self, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            if key in FIGURES:
                self._values[FIGURES[key][0], None] = value
            elif key.startswith("eval_"):
                self._values["eval", key] = value

    def _record(self) -> None:
        """Set all gauges: Ray stops exporting one that has not been set for a while."""
        self._recorded = time.monotonic()
        for (name, figure), value in self._values.items():
            self._gauges[name].set(value, tags={"figure": figure} if figure else None)
