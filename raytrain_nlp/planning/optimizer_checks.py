"""Checks the optimizer and the scheduler of a job by building them once: missing packages, wrong arguments, and
arguments that nothing reads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import Problem

OPTIM_KEYS = ("optim", "optim_args", "optim_target_modules")
_SCHEDULER_KEYS = ("lr_scheduler_type", "lr_scheduler_kwargs")
_PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_bnb": "bitsandbytes",
    "adamw_8bit": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "lion": "bitsandbytes",
    "paged": "bitsandbytes",
    "rmsprop_bnb": "bitsandbytes",
}
"""Beginning of an optimizer's name -> the module that it needs."""
_STEPS = 1000
"""Steps of a schedule that is built before those of the run are counted."""


def missing_package(optim: str) -> Problem | None:
    """A problem if the package that `training.optim` needs is not installed. Imports nothing."""
    module = next((module for name, module in _PACKAGES.items() if optim.startswith(name)), None)
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return Problem(
        "training.optim",
        f"needs {module}, which is not installed ({optim})",
        "Choose another optimizer, or install it.",
    )


def check_optimizer(arguments: Any, job: TrainJob) -> list[Problem]:
    """Problems of an optimizer that cannot be built, or that does not read one of its arguments.

    Args:
        arguments: the job's `transformers.TrainingArguments`.
    """
    import torch
    from transformers import Trainer

    name, values = str(getattr(arguments.optim, "value", arguments.optim)), job.arguments()
    low_rank = name.startswith(("galore", "apollo"))
    if name.endswith("layerwise") and job.workers.num_workers > 1:
        return [
            Problem(
                "training.optim",
                f"updates layer by layer, which more than one worker cannot ({name})",
                f"Use {name.removesuffix('_layerwise')}.",
            )
        ]
    if values.get("optim_target_modules") is not None and not low_rank:
        return [
            Problem(
                "training.optim_target_modules",
                f"is read by GaLore and APOLLO only, not by {name}",
                "Remove it, or choose their optimizer.",
            )
        ]
    try:
        made, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer) and not low_rank:
            made([torch.nn.Parameter(torch.zeros(2, 2))], **kwargs)
    except Exception as error:  # missing packages, unknown arguments, values out of range  # noqa: BLE001
        if "model" in str(error) and (low_rank or "lomo" in name):
            return []  # the packages are installed; nothing more can be checked without the model
        what = f"{name} cannot be made: {first_line(error)}"
        if "optim_args" in values and not isinstance(error, ImportError) and "install" not in str(error):
            return [Problem("training.optim_args", what, "Correct them.")]
        return [Problem("training.optim", what, "Choose another optimizer, or install what it needs.")]
    return [
        Problem("training.optim_args", f"{name} does not read {key!r}", "Remove it.")
        for key in _unread(arguments, values.get("optim_args"))
    ]


def _unread(arguments: Any, text: str | None) -> Iterator[str]:
    """The keys of `optim_args` (`text`, `key=value,...`) that change none of the optimizer's arguments, for three very
    different values.
    """
    from transformers import Trainer

    for pair in filter(None, (text or "").replace(" ", "").split(",")):
        key = pair.partition("=")[0]
        made = []
        for args in (f"{key}=3", f"{key}=0.123", f"{key}=true"):
            arguments.optim_args = args
            try:
                made.append(repr(Trainer.get_optimizer_cls_and_kwargs(arguments)[1]))
            except Exception:  # the key is read, as its value is refused  # noqa: BLE001
                break
        else:
            if len(set(made)) == 1:
                yield key
    arguments.optim_args = text


def check_scheduler(job: TrainJob, total_steps: int | None = None) -> list[Problem]:
    """A problem if the scheduler cannot be built with its arguments, or gives no number at one of the steps that are
    tried: first, last, and around warmup.

    Args:
        total_steps: optimizer steps of the run; None while they are not counted.
    """
    values = job.arguments()
    if not any(key in values for key in _SCHEDULER_KEYS) or "scheduler" in (job.deepspeed.config or {}):
        return []
    if isinstance(values.get("lr_scheduler_kwargs"), str):
        return [
            Problem(
                "training.lr_scheduler_kwargs",
                f"is no mapping ({values['lr_scheduler_kwargs']!r})",
                "Write name: value.",
            )
        ]
    import torch
    from transformers.optimization import get_scheduler

    kind, kwargs, steps = (
        values.get("lr_scheduler_type", "linear"),
        values.get("lr_scheduler_kwargs"),
        total_steps or _STEPS,
    )
    warmup = values.get("warmup_steps", 0)
    warmup = min(int(warmup if warmup >= 1 else warmup * steps), steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=values.get("learning_rate", 5e-5))
    try:
        made = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(kwargs or {}),
        )
        for place in sorted({0, 1, warmup // 2, warmup, (warmup + steps) // 2, steps - 1, steps}):
            for rate in getattr(made, "lr_lambdas", ()):
                float(rate(place))
    except Exception as error:  # an unknown name, a wrong value or a missing argument  # noqa: BLE001
        where = "training.lr_scheduler_kwargs" if kwargs else "training.lr_scheduler_type"
        return [
            Problem(
                where,
                f"the scheduler '{kind}' refuses them: {first_line(error)}",
                "Correct training.lr_scheduler_kwargs.",
            )
        ]
    if kwargs and str(kind) in ("constant", "constant_with_warmup"):
        return [Problem("training.lr_scheduler_kwargs", f"the scheduler '{kind}' reads none", "Remove them.")]
    return []


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
