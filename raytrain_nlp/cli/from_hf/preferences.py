"""What TRL's scripts for preference data (dpo.py, kto.py, orpo.py, reward.py) make of their flags: data, LoRA, losses,
and the defaults of their configs.
"""

from __future__ import annotations

import os
from typing import Any

from raytrain_nlp.cli.from_hf.command import Command

_LENGTH = 1024
_RATE, _REWARD_RATE = 1e-6, 1e-4
_LORA = {
    "r": ("lora_r", 16), "lora_alpha": ("lora_alpha", 32), "lora_dropout": ("lora_dropout", 0.05),
    "target_modules": ("lora_target_modules", None), "modules_to_save": ("lora_modules_to_save", None),
    "use_rslora": ("use_rslora", None), "use_dora": ("use_dora", None),
}  # fmt: skip
"""Key of `lora:` -> flag, and TRL's default."""
_METHODS = {"orpo": "orpo", "kto": "kto"}
"""Scripts with a method of their own -> its `loss_type`."""


def data_of_preferences(command: Command) -> dict[str, str]:
    """The splits of `--dataset_name`: training rows, and with `--eval_strategy` those of the test split."""
    name = command.get("dataset_name")
    if name is None:
        return {}
    if os.path.isdir(name):
        source = os.path.abspath(name)
    else:
        source = "hf://" + "/".join(filter(None, (name, command.get("dataset_config"))))
    found = {"train": f"{source}:{command.get('dataset_train_split', 'train')}"}
    if command.get("eval_strategy", "no") != "no":
        found["validation"] = f"{source}:{command.get('dataset_test_split', 'test')}"
    elif "dataset_test_split" in command.values:
        command.note("dataset_test_split", "Without --eval_strategy the script does not read it.")
    return found


def fill_preferences(command: Command, job: dict[str, Any]) -> None:
    """Fill in the loss, the length, the adapter, and what TRL's configs have as defaults."""
    training, rewards = job["training"], command.task == "reward"
    command.values.setdefault("do_train", True)
    job["data"].setdefault("max_length", _LENGTH)
    training.setdefault("learning_rate", _REWARD_RATE if rewards else _RATE)
    training.setdefault("logging_steps", 10)
    training.setdefault("gradient_checkpointing", True)
    if not training.get("fp16") and "bf16" not in training and command.use_gpu:
        training["bf16"] = True
    if command.task in _METHODS:
        job["task"].setdefault("loss_type", _METHODS[command.task])
    if command.task == "kto":
        job["task"]["kl_group_size"] = max(training.get("per_device_train_batch_size", 8), 2)
        training.setdefault("train_sampling_strategy", "sequential")
    _fill_losses(command, job)
    _fill_lora(command, job)


def _fill_losses(command: Command, job: dict[str, Any]) -> None:
    if command.get("precompute_ref_log_probs"):
        job["task"]["precompute_ref_log_probs"] = True
    losses = command.get("loss_type")
    if isinstance(losses, list):
        if len(losses) > 1:
            command.problem("loss_type", f"names several losses ({', '.join(losses)})", "A job has one: keep one.")
        elif losses:
            job["task"]["loss_type"] = losses[0]
    elif losses:
        job["task"]["loss_type"] = losses


def _fill_lora(command: Command, job: dict[str, Any]) -> None:
    if not command.get("use_peft", False):
        for flag, _ in _LORA.values():
            if flag in command.values:
                command.note(flag, "Without --use_peft the script does not read it.")
        return
    job["lora"] = {
        key: value for key, (flag, default) in _LORA.items() if (value := command.get(flag, default)) is not None
    }
    if (modules := job["lora"].get("target_modules")) and len(modules) == 1:
        job["lora"]["target_modules"] = modules[0] if modules[0] == "all-linear" else modules
