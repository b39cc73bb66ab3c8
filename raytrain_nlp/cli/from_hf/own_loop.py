"""Examples with a loop of their own (`run_glue_no_trainer.py`): the same job as their sibling's with `Trainer`.

They are read by their own flags, kept under the sibling's names. They always train and evaluate, after each epoch, and
save a model at the end alone unless `--checkpointing_steps` is given.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from raytrain_nlp.cli.from_hf.flags import Flag, flags_of, script_flags

if TYPE_CHECKING:
    from raytrain_nlp.cli.from_hf.command import Command

SUFFIX = "_no_trainer.py"
_SHARED = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "weight_decay", "num_train_epochs",
    "gradient_accumulation_steps", "lr_scheduler_type", "output_dir", "seed", "push_to_hub", "hub_model_id",
    "hub_token", "resume_from_checkpoint", "report_to",
)  # fmt: skip
"""Fields of `TrainingArguments` that these scripts have, too."""
_RENAMED = {"max_train_steps": "max_steps", "num_warmup_steps": "warmup_steps"}
_LENGTHS = {"max_length": "max_seq_length"}
"""Where the sibling has the second."""
_OWN_LENGTH, _OWN_LENGTH_TASKS = 128, ("text-classification", "token-classification", "multiple-choice")
"""Tokens of a row where the command does not say."""
_FAST = "# transformers 5 takes the fast tokenizer where there is one."
_OTHERS = {
    "use_slow_tokenizer": (bool, _FAST),
    "checkpointing_steps": (str, ""),
    "with_tracking": (bool, ""),
    "model_type": (str, "# The model's own config says it."),
    "debug": (bool, "# A job has no shorter run of its own; set data.max_train_rows."),
}


@functools.cache
def own_loop_flags(task: str) -> dict[str, Flag]:
    """Every flag of a script with a loop of its own; `name` is that of the sibling's flag."""
    known = flags_of(task)
    flags = {name: known[name] for name in (*script_flags(task), *_SHARED)}
    flags |= {name: known[of] for name, of in _RENAMED.items()}
    flags |= {name: known[of] for name, of in _LENGTHS.items() if of in known and name not in flags}
    for name, (kind, target) in _OTHERS.items():
        flags.setdefault(name, Flag(f"own_{name}", TypeAdapter(kind), target))  # `Trainer` has a --debug of its own
    if "keep_linebreaks" in flags:
        flags["no_keep_linebreaks"] = replace(flags["keep_linebreaks"], constant=False)
    return flags


def settle_own_loop(command: Command) -> None:
    """What these scripts do without a flag, in the words of their siblings."""
    values = command.values
    values |= {"do_train": True, "do_eval": True, "eval_strategy": "epoch"}
    if command.task in _OWN_LENGTH_TASKS:
        values.setdefault("max_seq_length", _OWN_LENGTH)
    if "predict_with_generate" in flags_of(command.task):
        values.setdefault("predict_with_generate", True)
    steps = values.pop("own_checkpointing_steps", None)
    if steps is None:
        values["save_strategy"] = "no"
    elif steps == "epoch":
        values["save_strategy"] = "epoch"
    elif steps.isdecimal() and int(steps):
        values["save_steps"] = float(steps)
    else:
        command.problem("own_checkpointing_steps", f"is neither a number nor epoch ({steps})", "Correct the value.")
    if not values.pop("own_with_tracking", False):
        values.pop("report_to", None)
    elif values.get("report_to", "all") in ("all", ["all"]):
        values.pop("report_to", None)
        command.note("own_with_tracking", "MLflow always tracks a job; tensorboard and wandb by tracking.report_to.")
