"""Example scripts with a training loop of their own (`run_glue_no_trainer.py`). They become the same job as the script
with `Trainer` for the same task, called their sibling here.

Their flags are stored under the sibling's names. These scripts always train, evaluate after each epoch, and save only
the final model unless `--checkpointing_steps` is given.
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
"""Fields of `TrainingArguments` that these scripts have as flags."""
_RENAMED = {"max_train_steps": "max_steps", "num_warmup_steps": "warmup_steps"}
"""Flags of these scripts -> their siblings' flags."""
_OTHER_NAMES = {"max_length": "max_seq_length", "fim_pad_token": "pad_token"}
"""The same, for siblings that have the second flag."""
_OWN_LENGTH, _OWN_LENGTH_TASKS = 128, ("text-classification", "token-classification", "multiple-choice")
"""Default tokens of a row, and the tasks whose scripts have it."""
_FAST = "# transformers 5 takes the fast tokenizer where there is one."
# flags that siblings do not have
_OTHERS = {
    "use_slow_tokenizer": (bool, _FAST),
    "checkpointing_steps": (str, ""),
    "with_tracking": (bool, ""),
    "model_type": (str, "# The model's own config says it."),
    "debug": (bool, "# A job has no shorter run of its own; set data.max_train_rows."),
}


@functools.cache
def own_loop_flags(task: str) -> dict[str, Flag]:
    """All flags of a script with a loop of its own, by the name that they have there; `Flag.name` is the sibling's.

    Args:
        task: the sibling's entry in `flags.SCRIPTS`.
    """
    known = flags_of(task)
    flags = {name: known[name] for name in (*script_flags(task), *_SHARED)}
    flags |= {name: known[of] for name, of in _RENAMED.items()}
    flags |= {name: known[of] for name, of in _OTHER_NAMES.items() if of in known and name not in flags}
    for name, (kind, target) in _OTHERS.items():
        flags.setdefault(name, Flag(f"own_{name}", TypeAdapter(kind), target))  # `own_`: siblings have another --debug
    if "keep_linebreaks" in flags:
        flags["no_keep_linebreaks"] = replace(flags["keep_linebreaks"], constant=False)
    return flags


def settle_own_loop(command: Command) -> None:
    """Set the siblings' flags to what these scripts do by default."""
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
