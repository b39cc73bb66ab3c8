"""Preference tuning and reward models: losses beside TRL's trainers, a killed run, other numbers of workers, what is
predicted and exported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_truth import CASES, LLAMA, LORA, compare_with_trl, labelled_rows, pair_rows, write_lines
from support import checkpoint_tensors, events, losses, recorded_rows, tiny_job

STEPS, SAVE, KILLED = 12, 5, 9
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"task": {"type": "preference"}},
    "lora": {"task": {"type": "preference", "disable_dropout": False}, "lora": {**LORA, "lora_dropout": 0.1}},
    "kto": {"task": {"type": "preference", "loss_type": "kto"}},
    "orpo": {"task": {"type": "preference", "loss_type": "orpo"}},
    "reward": {"task": {"type": "reward-modeling"}},
}


ALL = ["sigmoid", "lora", "reward", *sorted(CASES.keys() - {"sigmoid", "lora", "reward"})]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ALL)
def test_losses_without_zero_are_those_of_trl(shared_ray: Any, tmp_path: Path, case: str) -> None:
    compare_with_trl(tmp_path, case, 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ALL)
def test_losses_under_zero_3_are_those_of_trl(shared_ray: Any, tmp_path: Path, case: str) -> None:
    compare_with_trl(tmp_path, case, 3)


def job_of(folder: Path, name: str, kind: str, workers: int) -> dict[str, Any]:
    job = tiny_job(
        folder, name, model={"config": LLAMA},
        data={"global_batch_size": 16, "max_length": 48, "validation": str(folder / "validation.jsonl")},
        deepspeed={"zero_stage": 3}, checkpoint={"save_steps": SAVE},
        training={"max_steps": STEPS, "eval_strategy": "no"},
        workers={"num_workers": workers, "max_failures": 1},
    )  # fmt: skip
    job["training"].pop("per_device_train_batch_size", None)
    lora = {"lora": dict(RUNS[kind]["lora"])} if "lora" in RUNS[kind] else {}
    return {**job, "task": RUNS[kind]["task"], **lora}


def batches(folder: Path) -> dict[int, set[tuple[int, int]]]:
    """Of each step the rows and what stood in them, whichever rank had them; of a repeated step both times."""
    found: dict[int, set[tuple[int, int]]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(zip(entry["rows"], entry["content"], strict=True))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", RUNS)
def test_killed_run_and_one_and_three_workers(shared_ray: Any, tmp_path: Path, kind: str) -> None:
    import raytrain_nlp

    make = labelled_rows if kind == "kto" else pair_rows
    write_lines(tmp_path / "train.jsonl", make(100, 1))
    write_lines(tmp_path / "validation.jsonl", make(21, 2))
    runs, seen, figures = {}, {}, {}
    for name, workers in (("whole", 2), ("killed", 2), ("single", 1), ("three", 3)):
        rows = tmp_path / f"rows-{name}"
        rows.mkdir()
        marker = str(tmp_path / "marker")
        kill = {"kill": {"point": "mid_step", "rank": 1, "step": KILLED, "marker": marker}} if name == "killed" else {}
        shared_ray(record_rows=str(rows), **kill)
        result = raytrain_nlp.train(job_of(tmp_path, name, kind, workers))
        runs[name], figures[name], seen[name] = Path(result.run_dir), result.metrics, batches(rows)
    assert [event["step"] for event in events(runs["killed"]) if event["kind"] == "resume"] == [SAVE]
    killed, whole = (
        checkpoint_tensors(runs[name] / "checkpoints" / f"checkpoint-{STEPS - STEPS % SAVE}")
        for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys() and len(whole) > 10
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    assert losses(runs["killed"]) == losses(runs["whole"]) and len(losses(runs["whole"])) == STEPS
    assert seen["single"] == seen["whole"] == seen["killed"] == seen["three"]
    assert sorted(seen["whole"]) == list(range(STEPS))
    if kind != "lora":  # there each rank drops out other things
        for name in ("single", "three"):
            assert losses(runs[name]) == pytest.approx(losses(runs["whole"]), abs=1e-4)
            assert figures[name]["eval_loss"] == pytest.approx(figures["whole"]["eval_loss"], abs=1e-4)


@pytest.mark.timeout(900)
def test_a_reward_model_scores_as_its_pipeline_and_a_tuned_model_writes(shared_ray: Any, tmp_path: Path) -> None:
    import transformers

    import raytrain_nlp

    rows = pair_rows(100, 1)
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "validation.jsonl", pair_rows(21, 2))
    shared_ray()
    texts = [{"text": f"{row['prompt']}{row['chosen']}"} for row in rows[:20]]
    write_lines(tmp_path / "texts.jsonl", texts)
    reward = raytrain_nlp.train(job_of(tmp_path, "reward", "reward", 2))
    raytrain_nlp.predict(reward.run_dir, str(tmp_path / "texts.jsonl"), str(tmp_path / "scores.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    pipe = transformers.pipeline("text-classification", model=reward.model_dir, function_to_apply="none")
    end = pipe.tokenizer.eos_token
    expected = [pipe(row["text"] + end)[0]["score"] for row in texts]
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-4)

    tuned = raytrain_nlp.train(job_of(tmp_path, "tuned", "orpo", 2))
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[:5]])
    raytrain_nlp.predict(tuned.run_dir, str(tmp_path / "prompts.jsonl"), str(tmp_path / "written.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "written.jsonl").read_text().splitlines()]
    assert len(written) == 5 and all(isinstance(row["prediction"], str) for row in written)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tuned.model_dir)).__name__ == "LlamaForCausalLM"
    exported = raytrain_nlp.export(tuned.run_dir, str(tmp_path / "exported"))
    assert "pipeline_tag: text-generation" in (tmp_path / "exported" / "README.md").read_text(), exported
