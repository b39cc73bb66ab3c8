"""A run that is asked for a profile of its steps leaves a trace of them, in its folder and in MLflow."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from support import events, tiny_job, write_rows


def test_three_steps_of_a_run(train_warm: Callable[..., Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 64)
    training = {"max_steps": 8, "save_strategy": "no", "per_device_train_batch_size": 4, "profile_steps": 3}
    result = train_warm(tiny_job(tmp_path, "run", training=training, workers={"num_workers": 1}))
    run = Path(result.run_dir)
    with gzip.open(run / "profile" / "rank0.pt.trace.json.gz") as file:
        found = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    names = [event["name"] for event in found]
    steps = [event for event in found if event["name"].startswith("ProfilerStep#")]
    assert len(steps) == 3 and names.count("aten::embedding") == 9  # words, positions, types
    assert {"aten::scaled_dot_product_attention", "AddmmBackward0"} <= set(names)
    assert any("Optimizer.step" in name for name in names)
    (told,) = [event for event in events(run) if "artifact" in event]
    assert told["text"].startswith("profile of rank 0, steps 4 to 6: ")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    kept = client.list_artifacts(json.loads((run / "tracking.json").read_text())["run_id"], "profile")
    assert [file.path for file in kept] == ["profile/rank0.pt.trace.json.gz"]
