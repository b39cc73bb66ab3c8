"""Folders of runs and sweeps as training leaves them, without training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support import plain_job


def write_run(folder: Path, name: str, steps: int = 30, resumed_at: int | None = None, **record: Any) -> Path:
    """A run's folder: an event a step; where it was resumed, six steps were done twice, first with other figures."""
    events: list[dict[str, Any]] = [{"kind": "start", "time": 0, "step": 0, "world_size": 2}]

    def log(first: int, last: int, shift: float) -> None:
        for step in range(first, last + 1):
            metrics = {
                "loss": 1 / step + shift,
                "tokens_per_second": 100.0,
                "data_wait_share": 0.01,
                "padding_share": 0.1,
                "learning_rate": 1e-3,
            }
            events.append({"kind": "log", "time": 1000 * step, "step": step, "metrics": metrics})

    if resumed_at:
        log(1, resumed_at, 5.0)
        events.append({"kind": "checkpoint", "time": 1000 * resumed_at, "step": resumed_at, "seconds": 0.5})
        log(resumed_at + 1, resumed_at + 6, 5.0)
        events.append({"kind": "resume", "time": 1000 * (resumed_at + 7), "step": resumed_at, "world_size": 2})
        log(resumed_at + 1, steps, 0.0)
    else:
        log(1, steps, 0.0)
    events += [
        {"kind": "log", "time": 1000 * steps, "step": step, "metrics": {"eval_loss": 0.6, "eval_accuracy": 0.8}}
        for step in (steps // 2, steps)
    ]
    events.append({"kind": "notice", "time": 1000 * steps, "text": "a <script> of a warning"})
    return write_events(folder, name, events, **record)


def write_events(folder: Path, name: str, events: Iterable[dict[str, Any]], **record: Any) -> Path:
    """A run's folder with these events; `record`: what its run.json has besides, or instead."""
    run = folder / "runs" / name
    (run / "model").mkdir(parents=True)
    (run / "model" / "tokenizer_config.json").write_text("{}")
    job = plain_job(folder, name, data={"validation": "<b>v</b>.jsonl"})
    result = {
        "metrics": {"eval_loss": 0.5, "eval_accuracy": 0.875},
        "rows": {"train": 480, "validation": 51},
        "bad_rows": {"train": 3},
        "labels": ["a", "b"],
    }
    values = {"status": "finished", "job": job, "result": result, "versions": {"torch": "2"}, **record}
    (run / "run.json").write_text(json.dumps(values))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def write_sweep(folder: Path, name: str, trials: list[dict[str, Any]], space: dict[str, Any], **record: Any) -> Path:
    """A sweep's folder, of trials of 30 steps each; `trials`: what their records have besides."""
    sweep = folder / "runs" / name
    job = plain_job(folder, "base", data={"validation": "v.jsonl"}, lora={"r": 8, "lora_alpha": 16})
    for number, values in enumerate(trials):
        trial = write_run(folder, f"{name}-{number}")
        (sweep / "trials").mkdir(parents=True, exist_ok=True)
        trial.rename(sweep / "trials" / f"trial-{number:04d}")
        begun = {"number": number, "status": "finished", "history": [], "metrics": {}, "started": 1000.0 + 100 * number}
        mine = {**begun, "ended": 1060.0 + 100 * number, **values}
        (sweep / "trials" / f"trial-{number:04d}" / "trial.json").write_text(json.dumps(mine))
    config = {
        "kind": "sweep",
        "name": name,
        "job": job,
        "search_space": space,
        "metric": "eval_accuracy",
        "mode": "max",
    }
    (sweep / "sweep.json").write_text(json.dumps({"kind": "sweep", "status": "finished", "sweep": config, **record}))
    return sweep
