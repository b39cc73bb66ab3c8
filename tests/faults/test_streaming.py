"""A run whose data are prepared in windows while it trains: killed and continued, it is the run that was never
killed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import checkpoint_tensors, events, losses, recorded_rows, tiny_job, write_rows

STEPS, SAVE, ROWS = 40, 5, 600
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
}


def test_streamed_run_survives_a_kill_bit_for_bit(
    shared_ray: Any, train_warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 rows in windows, 40 steps of 16: all of the first epoch, once, and a part of the second."""
    import raytrain_nlp
    from raytrain_nlp.data import windows

    monkeypatch.setattr(windows, "FIRST_BYTES", 4000)
    monkeypatch.setattr(windows, "LARGEST_BYTES", 16000)
    write_rows(tmp_path / "train.jsonl", ROWS)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("no json\n")

    def train(name: str, storage: str, **hooks: Any) -> Any:
        shared_ray(record_rows=str(tmp_path / name), **hooks)
        (tmp_path / name).mkdir()
        job = tiny_job(
            tmp_path,
            name,
            storage_path=str(tmp_path / storage),
            model={"config": LLAMA},
            data={"streaming": True, "max_bad_rows": 1},
            training={"max_steps": STEPS},
            deepspeed={"zero_stage": 3},
            checkpoint={"save_steps": SAVE},
            workers={"max_failures": 2},
        )
        return (raytrain_nlp.train if hooks else train_warm)({**job, "task": {"type": "causal-lm", "packing": "none"}})

    truth = train("whole", "first")
    assert (
        truth.rows == {"train": ROWS}
        and truth.tokenized_rows == ROWS
        and truth.bad_rows == {"train": 1}
        and truth.global_step == STEPS
    )
    killed = train(
        "killed", "second", kill={"point": "mid_step", "rank": 1, "step": 23, "marker": str(tmp_path / "marker")}
    )
    assert killed.restarts == 1 and [
        event["step"] for event in events(Path(killed.run_dir)) if event["kind"] == "resume"
    ] == [20]
    ours, theirs = (
        checkpoint_tensors(Path(result.run_dir) / "checkpoints" / f"checkpoint-{STEPS}") for result in (killed, truth)
    )
    assert (
        ours.keys() == theirs.keys()
        and len(ours) > 10
        and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    )
    assert losses(Path(killed.run_dir)) == losses(Path(truth.run_dir)) and len(losses(Path(truth.run_dir))) == STEPS
    rows = {(entry["step"], entry["rank"]): entry["rows"] for entry in recorded_rows(tmp_path / "whole")}
    assert rows == {(entry["step"], entry["rank"]): entry["rows"] for entry in recorded_rows(tmp_path / "killed")}
    seen: list[int] = []
    for step in range(STEPS):
        seen += rows[step, 0] + rows[step, 1]
    assert sorted(seen[:ROWS]) == list(range(ROWS)) and len(seen) > ROWS
    quarantined = [json.loads(line) for line in (Path(killed.run_dir) / "quarantine.jsonl").read_text().splitlines()]
    assert [(bad["split"], bad["line"]) for bad in quarantined] == [("train", ROWS + 1)]
