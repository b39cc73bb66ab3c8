"""A job without GPUs on a machine that has one. The GPU is a stand-in: torch says there is one to whoever does not hide
it in time.
"""

from __future__ import annotations

import json
from pathlib import Path

import support

import raytrain_nlp


def test_a_job_without_gpus_never_sees_one(tmp_path: Path) -> None:
    """Driver, fork server, feeds and workers of a ZeRO-3 run in a Ray of its own: none of our modules asks for a GPU,
    whoever asks is told that there is none, and DeepSpeed computes on the CPU."""
    support.write_rows(tmp_path / "train.jsonl", 32)
    asked = tmp_path / "asked.jsonl"
    job = support.tiny_job(
        tmp_path, "cpu", deepspeed={"zero_stage": 3}, training={"max_steps": 2}, workers={"use_gpu": False}
    )
    env = {
        name: value
        for name, value in support.hook_environment(tmp_path / "hooks.json", gpu=str(asked)).items()
        if name != "CUDA_VISIBLE_DEVICES"
    }
    done = support.run_cli("train", support.write_job(job, tmp_path / "job.yaml"), "--json", env=env)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in asked.read_text().splitlines()]
    root = str(Path(raytrain_nlp.__file__).parent)
    questions = [entry for entry in entries if "asked" in entry]
    assert questions and not [entry for entry in questions if entry["by"].startswith(root)]
    assert not [entry for entry in questions if entry["answer"]]
    assert [entry["accelerator"] for entry in entries if "accelerator" in entry] == ["cpu"] * 4
