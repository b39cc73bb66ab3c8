"""Rows of preferences, and what TRL's own trainers make of them: the truth for the tasks of preference data."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
STEPS, ROWS, HELD_OUT, BATCH = 20, 400, 51, 16
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "attention_dropout": 0.0,
}  # fmt: skip
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_WORDS = "ada bell curie darwin euler fermi gauss hopper ising joule kepler lovelace maxwell noether".split()


def pair_rows(count: int, seed: int, chats: bool = False) -> list[dict[str, Any]]:
    """Prompts whose first word the better completion repeats; of several lengths."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.sample(_WORDS, draw.randint(2, 8))
        right = " ".join([words[0]] * draw.randint(1, 4))
        wrong = " ".join(draw.choices(words[1:], k=draw.randint(1, 6)))
        prompt: Any = " ".join(words) + " ?"
        if chats:
            asked = [{"role": "user", "content": prompt}]
            answers = [[{"role": "assistant", "content": text}] for text in (right, wrong)]
            rows.append({"chosen": asked + answers[0], "rejected": asked + answers[1]})
        else:
            rows.append({"prompt": prompt, "chosen": f" {right}", "rejected": f" {wrong}"})
    return rows


def labelled_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Completions one by one, each with a label."""
    draw, rows = random.Random(seed), []
    for row in pair_rows(count, seed):
        label = draw.random() < 0.6
        rows.append({"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_start(folder: Path, auto_model: str = "AutoModelForCausalLM", config: dict[str, Any] | None = None) -> Any:
    """A tokenizer and a model for both sides, in FOLDER/start. Returns the tokenizer."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    texts = [" ".join(row["prompt"].split() + row["chosen"].split()) for row in pair_rows(200, 9)]
    texts += ["user: assistant: system: "]
    cached = train_tokenizer(texts, TokenizerTraining(vocab_size=300), "decoder", "key", folder / "tokenizers", None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(cached)
    tokenizer.chat_template = TEMPLATE
    transformers.set_seed(3)
    more = {"num_labels": 1} if "Classification" in auto_model else {}
    values = {**(config or LLAMA), "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **more}
    model = getattr(transformers, auto_model).from_config(transformers.AutoConfig.for_model(**values))
    if hasattr(model, "score"):  # of the size that a trained head has, so that losses differ
        model.score.weight.data.normal_(0, 0.3)
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    return tokenizer


def trl_logs(
    folder: Path,
    task: dict[str, Any],
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]] | None = None,
    *,
    lora: dict[str, Any] | None = None,
    max_length: int = 32,
    batch: int = BATCH,
) -> list[dict[str, float]]:
    """The logs of TRL's trainer for a task, in one process: a step for each `batch` rows, in the order of `rows`, and
    an evaluation of all rows at once at the end.

    Args:
        task: the section of the job.
    """
    import trl
    import trl.experimental.orpo
    from datasets import Dataset
    from transformers import AutoTokenizer

    loss = task.get("loss_type", "sigmoid")
    start, tokenizer = str(folder / "start"), AutoTokenizer.from_pretrained(folder / "start")
    more = {
        key: task[key] for key in ("beta", "label_smoothing", "desirable_weight", "undesirable_weight") if key in task
    }
    if task["type"] == "reward-modeling":
        trainer, config, more = trl.RewardTrainer, trl.RewardConfig, {}
        more = {key: task[key] for key in ("center_rewards_coefficient",) if key in task}
    elif loss == "orpo":
        trainer, config = trl.experimental.orpo.ORPOTrainer, trl.experimental.orpo.ORPOConfig
        tokenizer.bos_token = None  # ORPOTrainer puts it before every prompt, the others as the tokenizer does
    elif loss in ("kto", "apo_zero_unpaired"):
        trainer, config, more = trl.KTOTrainer, trl.KTOConfig, {**more, "loss_type": loss}
    else:
        trainer, config, more = trl.DPOTrainer, trl.DPOConfig, {**more, "loss_type": [loss]}
    arguments = config(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=len(held_out or rows),
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_length=max_length,
        seed=7,
        **more,
    )
    model: Any = start
    if loss == "orpo" or task["type"] == "reward-modeling":
        import transformers

        kind = "AutoModelForSequenceClassification" if task["type"] == "reward-modeling" else "AutoModelForCausalLM"
        model = getattr(transformers, kind).from_pretrained(start)
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(copy.deepcopy(rows)),
        eval_dataset=Dataset.from_list(copy.deepcopy(held_out)) if held_out else None,
        processing_class=tokenizer,
        peft_config=_peft(lora),
    )
    made.train()
    if held_out:
        made.evaluate()
    return made.state.log_history


def _peft(lora: dict[str, Any] | None) -> Any:
    import peft

    return peft.LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None


CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"task": {"type": "preference", "beta": 0.3}},
    "ipo": {"task": {"type": "preference", "loss_type": "ipo", "beta": 0.3}},
    "hinge": {"task": {"type": "preference", "loss_type": "hinge", "beta": 0.3}},
    "robust": {"task": {"type": "preference", "loss_type": "robust", "label_smoothing": 0.1}},
    "chats": {"task": {"type": "preference"}, "chats": True},
    "lora": {"task": {"type": "preference", "beta": 0.3}, "lora": LORA},
    "lora, computed before": {"task": {"type": "preference", "precompute_ref_log_probs": True}, "lora": LORA},
    "orpo": {"task": {"type": "preference", "loss_type": "orpo"}},
    "kto": {"task": {"type": "preference", "loss_type": "kto", "kl_group_size": BATCH, "desirable_weight": 1.3}},
    "kto, lora": {"task": {"type": "preference", "loss_type": "kto", "kl_group_size": BATCH}, "lora": LORA},
    "apo_zero_unpaired": {"task": {"type": "preference", "loss_type": "apo_zero_unpaired"}},
    "reward": {"task": {"type": "reward-modeling", "center_rewards_coefficient": 0.01}},
}
"""Jobs whose losses are compared: the task, the adapter, whether rows are chats."""
_OTHER_NAMES = {
    "epoch",
    "step",
    "learning_rate",
    "loss",
    "grad_norm",
    "runtime",
    "samples_per_second",
    "steps_per_second",
}


def compare_with_trl(folder: Path, case: str, zero_stage: int, workers: int = 2) -> Any:
    """Train a case on two workers and with TRL, and compare each loss, the figures of the last step and those of the
    evaluation. Returns the result of the run.
    """
    import numpy as np
    from support import losses, tiny_job

    import raytrain_nlp
    from raytrain_nlp.data.plan import Plan, PlanSpec

    found = CASES[case]
    task, lora, chats = found["task"], found.get("lora"), found.get("chats", False)
    unpaired = task.get("loss_type") in ("kto", "apo_zero_unpaired")
    write_start(folder, "AutoModelForSequenceClassification" if case == "reward" else "AutoModelForCausalLM")
    rows = {
        split: labelled_rows(count, seed) if unpaired else pair_rows(count, seed, chats)
        for split, count, seed in (("train", ROWS, 1), ("validation", HELD_OUT, 2))
    }
    for split, made in rows.items():
        write_lines(folder / f"{split}.jsonl", made)
    length = 72 if chats or case == "reward" else 32
    job = tiny_job(
        folder, "run", model={"name_or_path": str(folder / "start"), "config": None, "tokenizer": None},
        data={"validation": str(folder / "validation.jsonl"), "max_length": length},
        deepspeed={"zero_stage": zero_stage}, workers={"num_workers": workers},
        training={
            "max_steps": STEPS, "save_strategy": "no", "per_device_train_batch_size": BATCH // workers,
            "train_sampling_strategy": "sequential" if unpaired else "random",
        },
    )  # fmt: skip
    result = raytrain_nlp.train({**job, "task": task, **({"lora": dict(lora)} if lora else {})})
    plan = Plan(PlanSpec(ROWS, 7, job["training"]["train_sampling_strategy"], BATCH))
    order = [int(row) for step in range(STEPS) for row in plan.at(step)[2]]
    logs = trl_logs(
        folder, task, [rows["train"][row] for row in order], rows["validation"], lora=lora, max_length=length
    )
    theirs = [log for log in logs if "loss" in log]
    np.testing.assert_allclose(losses(Path(result.run_dir)), [log["loss"] for log in theirs], atol=1e-4, rtol=0)
    (evaluated,) = (log for log in logs if "eval_loss" in log)
    compared = result.metrics.keys() & {f"eval_{name}" for name in _names(evaluated)}
    assert len(compared) >= 5
    for name in compared:
        assert abs(result.metrics[name] - evaluated[name]) < 1e-3, (name, result.metrics[name], evaluated[name])
    return result


def _names(log: dict[str, float]) -> set[str]:
    return {name.removeprefix("eval_") for name in log} - _OTHER_NAMES | ({"loss"} if "eval_loss" in log else set())
