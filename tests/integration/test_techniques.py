"""LoRA, NEFTune, DeepSpeed JSON and the user's own code, each on two workers, together where they meet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import events, losses, tiny_job, write_rows

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "vocab_size": 400,
}
SHARDED = {"zero_stage": 3, "stage3_param_persistence_threshold": 0}
"""Small weights are sharded too."""

USER_CODE = '''
import json, os
from torch import nn
from transformers import Trainer, TrainerCallback

class DocTrainer(Trainer):
    """As in the documentation of Trainer: a loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.CrossEntropyLoss()(outputs.logits.view(-1, self.model.config.num_labels), labels.view(-1))
        return (loss, outputs) if return_outputs else loss

class StepTrainer(Trainer):
    """A training step of its own, with the signature of older versions."""

    def training_step(self, model, inputs):
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach()

class Counter(TrainerCallback):
    """Counts what it is told."""

    def __init__(self):
        self.counts = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.counts["train_begin"] = self.counts.get("train_begin", 0) + 1

    def on_step_end(self, args, state, control, **kwargs):
        self.counts["step_end"] = self.counts.get("step_end", 0) + 1

    def on_epoch_end(self, args, state, control, **kwargs):
        self.counts["epoch_end"] = self.counts.get("epoch_end", 0) + 1
        with open(os.path.join(os.path.dirname(__file__), f"counts-{args.process_index}.json"), "w") as file:
            json.dump(self.counts, file)

class NoiseTrainer(Trainer):
    """Writes how far NEFTune's noise takes each embedding from the clean one, in training and in evaluation."""

    def _measured(self, model, inputs, call):
        import torch
        embedding = self.accelerator.unwrap_model(model).get_input_embeddings()
        seen = {}
        clean = embedding.register_forward_hook(lambda module, args, output: seen.update(clean=output.detach().clone()), prepend=True)
        noisy = embedding.register_forward_hook(lambda module, args, output: seen.update(noisy=output.detach().clone()))
        try:
            return call()
        finally:
            clean.remove()
            noisy.remove()
            rows, length, width = seen["clean"].shape
            entry = {"training": model.training, "length": length, "width": width, "most": (seen["noisy"] - seen["clean"]).abs().max().item()}
            with open(os.path.join(os.path.dirname(__file__), f"noise-{self.args.process_index}.jsonl"), "a") as file:
                file.write(json.dumps(entry) + chr(10))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._measured(model, inputs, lambda: super(NoiseTrainer, self).compute_loss(model, inputs, return_outputs=return_outputs))

class Faulty(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        raise KeyError("my own mistake")

def accuracy_of_mine(prediction):
    return {"mine": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

def shout(row):
    return None if row["text"].startswith("ada") else {**row, "text": row["text"].upper()}
'''  # noqa: E501


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory; its name is new in each test, as imported modules stay."""
    name = f"user_code_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    return name


def train(folder: Path, name: str, job: dict[str, Any] | None = None, **sections: Any) -> Any:
    import raytrain_nlp

    made = tiny_job(folder, name, training={"save_strategy": "no"})
    for key, value in sections.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, dict) and key != "task" else value
    return raytrain_nlp.train(made)


def adapter_job() -> dict[str, Any]:
    """LoRA + ZeRO-3 + gradient checkpointing + NEFTune on a causal language model, checkpoints every 5 steps."""
    return {
        "task": {"type": "causal-lm", "packing": "none", "text_column": "text"},
        "model": {"config": LLAMA, "tokenizer": "train", "tokenizer_training": {"vocab_size": 400}},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "deepspeed": SHARDED,
        "training": {
            "max_steps": 12,
            "neftune_noise_alpha": 5,
            "gradient_checkpointing": True,
            "save_strategy": "steps",
        },
        "checkpoint": {"save_steps": 5},
    }


@pytest.mark.quick
def test_lora_with_everything_trains_and_resumes(shared_ray: Any, tmp_path: Path) -> None:
    """Killed at step 8 and resumed at 5: the adapter of the run that was never killed, bit for bit. The base is never
    touched.
    """
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    write_rows(tmp_path / "train.jsonl", 250)
    whole = Path(train(tmp_path, "whole", **adapter_job()).run_dir)
    shared_ray(kill={"point": "mid_step", "rank": 1, "step": 8, "marker": str(tmp_path / "killed")})
    killed = adapter_job() | {"workers": {"max_failures": 1}}
    result = train(tmp_path, "killed", **killed)
    run = Path(result.run_dir)
    assert [event["step"] for event in events(run) if event["kind"] == "resume"] == [5] and losses(run) == losses(whole)
    adapter = "model/adapter_model.safetensors"
    assert (run / adapter).read_bytes() == (whole / adapter).read_bytes()
    base = [(folder / "base_model" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert base[0] == base[1]

    expected = get_peft_model(
        AutoModelForCausalLM.from_pretrained(run / "base_model"),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )
    trainable, _ = expected.get_nb_trainable_parameters()
    with safe_open(run / adapter, framework="pt") as file:
        names = list(file.keys())
        assert sum(file.get_tensor(name).numel() for name in names) == trainable
        assert all("lora_" in name for name in names)
        assert any(file.get_tensor(name).abs().max() > 0 for name in names if "lora_B" in name)
    states = [path for path in (run / "checkpoints" / "checkpoint-10").rglob("*model_states*")]
    assert states and sum(path.stat().st_size for path in states) < len(base[0])  # the base is in no checkpoint
    loaded = AutoPeftModelForCausalLM.from_pretrained(run / "model")
    assert loaded.peft_config["default"].base_model_name_or_path == str(run / "base_model")


def test_merged_adapter_has_the_adapters_logits(shared_ray: Any, tmp_path: Path) -> None:
    """merge_and_unload: a plain model; the adapter alone on the same data ends with the same figures and logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    write_rows(tmp_path / "train.jsonl", 200)
    lora = {"r": 4, "lora_alpha": 16, "target_modules": ["query", "value"], "use_rslora": True}
    data = {"validation": str(tmp_path / "train.jsonl")}
    apart = train(tmp_path, "apart", lora=lora, data=data, training={"learning_rate": 0.05})
    merged = train(
        tmp_path, "merged", lora={**lora, "merge_and_unload": True}, data=data, training={"learning_rate": 0.05}
    )
    base = AutoModelForSequenceClassification.from_pretrained(Path(apart.run_dir) / "base_model")
    adapted = PeftModel.from_pretrained(base, apart.model_dir).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(merged.model_dir).eval()
    ids = torch.randint(10, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
        np.testing.assert_allclose(plain(input_ids=ids).logits, logits, atol=1e-4)
        with adapted.disable_adapter():
            assert (adapted(input_ids=ids).logits - logits).abs().max() > 1e-2  # the adapter does something
    assert merged.metrics["eval_loss"] == pytest.approx(apart.metrics["eval_loss"], abs=1e-6)


@pytest.mark.parametrize("alpha", [5, 0])
def test_neftune_noise_is_in_training_only_and_in_its_bound(
    shared_ray: Any, tmp_path: Path, code: str, alpha: int
) -> None:
    """Jain et al. 2023, algorithm 1: uniform noise of at most alpha / sqrt(length x width); under ZeRO-3 and LoRA."""
    write_rows(tmp_path / "train.jsonl", 100)
    lora = {"lora": {"r": 4, "target_modules": ["query", "value"]}} if alpha else {}
    data = {"validation": str(tmp_path / "train.jsonl"), "max_validation_rows": 20}
    train(
        tmp_path, "neftune", deepspeed=SHARDED, data=data, trainer={"class": f"{code}:NoiseTrainer"},
        training={"max_steps": 4, "eval_strategy": "epoch", "neftune_noise_alpha": alpha}, **lora,
    )  # fmt: skip
    seen = [json.loads(line) for rank in (0, 1) for line in (tmp_path / f"noise-{rank}.jsonl").read_text().splitlines()]
    assert {entry["training"] for entry in seen} == {True, False}
    for entry in seen:
        bound = alpha / (entry["length"] * entry["width"]) ** 0.5 if entry["training"] else 0
        assert entry["most"] <= bound * 1.00001
        assert entry["most"] > 0.9 * bound or bound == 0


@pytest.mark.parametrize(("name", "stage"), [("DocTrainer", 0), ("StepTrainer", 3)])
def test_users_trainer_and_callback(shared_ray: Any, tmp_path: Path, code: str, name: str, stage: int) -> None:
    """Unchanged on our feed: the same losses as without it (it computes the same loss), and the callback hears of every
    step.
    """
    write_rows(tmp_path / "train.jsonl", 160)
    sections = {"deepspeed": {"zero_stage": stage}, "data": {"validation": str(tmp_path / "train.jsonl")}}
    user = {"class": f"{code}:{name}", "callbacks": [f"{code}:Counter"], "compute_metrics": f"{code}:accuracy_of_mine"}
    ours = train(tmp_path, "ours", trainer=user, **sections)
    plain = train(tmp_path, "plain", **sections)
    np.testing.assert_allclose(losses(Path(ours.run_dir)), losses(Path(plain.run_dir)), atol=1e-6)
    assert (
        ours.metrics["eval_mine"] == pytest.approx(plain.metrics["eval_accuracy"])
        and ours.metrics["eval_accuracy"] == plain.metrics["eval_accuracy"]
    )
    for rank in (0, 1):
        assert json.loads((tmp_path / f"counts-{rank}.json").read_text()) == {
            "train_begin": 1,
            "step_end": 10,
            "epoch_end": 1,
        }


def test_error_in_the_users_code_shows_the_users_line(shared_ray: Any, tmp_path: Path, code: str) -> None:
    from raytrain_nlp.errors import RunError

    write_rows(tmp_path / "train.jsonl", 40)
    with pytest.raises(RunError, match="my own mistake") as error:
        train(tmp_path, "faulty", trainer={"class": f"{code}:Faulty"}, workers={"max_failures": 3})
    line = 1 + USER_CODE.splitlines().index('        raise KeyError("my own mistake")')
    assert f"{code}.py:{line}" in str(error.value) and "compute_loss" in str(error.value)
    assert [event["kind"] for event in events(tmp_path / "runs" / "faulty")].count("start") == 1  # no restart mends it


def test_users_preprocess_and_deepspeed_json(shared_ray: Any, tmp_path: Path, code: str) -> None:
    """Rows as the user's function returns them; a DeepSpeed file with "auto" values and an optimizer, equal to our
    keys.
    """
    write_rows(tmp_path / "train.jsonl", 200)
    texts = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    kept = [text for text in texts if not text.startswith("ada")]
    config = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": "auto", "warmup_num_steps": 1, "total_num_steps": "auto"},
        },
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    (tmp_path / "ds.json").write_text(json.dumps(config))
    user = {"preprocess": f"{code}:shout"}
    ours = train(
        tmp_path,
        "json",
        trainer=user,
        deepspeed={"config_file": str(tmp_path / "ds.json")},
        training={"learning_rate": 1e-4, "warmup_steps": 1},
    )
    assert ours.rows == {"train": len(kept)} and ours.left_out == {"train": len(texts) - len(kept)}
    assert len(losses(Path(ours.run_dir))) == ours.global_step == -(-len(kept) // 16)
    record = json.loads((Path(ours.run_dir) / "run.json").read_text())
    assert record["job"]["deepspeed"]["config"] == config
