"""Committed checkpoints and the exported model as MLflow's logged models, with the figures of their step.

MLflow gets no copy of the weights: the model is an external one, whose folder is a tag. Each is logged once, by its
name in its run, through every restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tracking.accepted import name_of
from raytrain_nlp.tracking.events import read_events

KEPT_TAG = "raytrain_nlp.kept"
_TAIL = 2 << 20
"""Bytes of the event log before a checkpoint in which the figures of its step are looked for."""
Datasets = dict[str, dict[str, str]]
"""Validation split -> name and digest of its data set."""


def log_checkpoint(
    client: Any, run: Any, paths: RunPaths, event: dict[str, Any], until: int, datasets: Datasets
) -> str:
    """The id of the logged model of a checkpoint. `until`: offset of its event in the log."""
    step = event["step"]
    folder = paths.store.address_of(paths.checkpoints / f"checkpoint-{step}")
    figures = figures_of(paths.events, step, max(until - _TAIL, 0), until)
    return _log(client, run, f"checkpoint-{step}", "checkpoint", folder, step, figures, datasets)


def log_model(client: Any, run: Any, paths: RunPaths, event: dict[str, Any], until: int, datasets: Datasets) -> str:
    """The id of the logged model of the exported one, which has the figures of the step its weights are of."""
    figures = figures_of(paths.events, event["step"], 0, until)
    folder = paths.store.address_of(paths.model)
    return _log(client, run, "model", event["task"], folder, event["step"], figures, datasets)


def figures_of(events: Path, step: int, start: int, until: int) -> dict[str, tuple[float, int]]:
    """Name -> value and time stamp of a step's figures between two offsets: the first ones, as the run has them."""
    found: dict[str, tuple[float, int]] = {}
    for event, behind in read_events(events, start):
        if behind > until:
            break
        if event["kind"] == "log" and event["step"] == step:
            for key, value in event["metrics"].items():
                if isinstance(value, (int, float)) and not key.startswith(("system/", "data/")):
                    found.setdefault(key, (float(value), event["time"]))
    return found


def _log(
    client: Any,
    run: Any,
    name: str,
    kind: str,
    folder: str,
    step: int,
    figures: dict[str, tuple[float, int]],
    datasets: Datasets,
) -> str:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    experiment, run_id = run.info.experiment_id, run.info.run_id
    # one whose making was not confirmed may be there
    there = client.search_logged_models([experiment], filter_string=f"name = '{name}' AND source_run_id = '{run_id}'")
    if there:
        model = there[0]
    else:
        tags = {"mlflow.model.isExternal": "true", "raytrain_nlp.path": folder, "raytrain_nlp.step": str(step)}
        model = client.create_logged_model(experiment, name, run_id, tags=tags, model_type=kind)
    metrics = []
    for key, (value, time) in figures.items():
        data = _dataset_of(key, datasets)
        metrics.append(Metric(name_of(key), value, time, step, model.model_id, data.get("name"), data.get("digest")))
    if metrics:
        client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return str(model.model_id)


def _dataset_of(key: str, datasets: Datasets) -> dict[str, str]:
    """What a figure was computed on."""
    if not key.startswith("eval_"):
        return {}
    for split, found in datasets.items():
        name = split.partition(".")[2]
        if not name or key.startswith(f"eval_{name}_"):
            return found
    return {}
