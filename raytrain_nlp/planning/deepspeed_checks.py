"""Checks a job's own DeepSpeed JSON (`deepspeed.config`) with DeepSpeed's classes, in the driver, before workers
start.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import Problem, nearest
from raytrain_nlp.planning.deepspeed_zero import check_autos, check_zero

_WHERE = "deepspeed.config"
_SECTIONS = {"DeepSpeedZeroConfig": "zero_optimization", "DeepSpeedFP16Config": "fp16", "DeepSpeedBF16Config": "bf16"}
"""DeepSpeed's pydantic models -> their section of the JSON, which the models' errors do not name."""
_ADAM = ("adam", "adamw")
_POPPED = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")
"""Parameters of Adam that DeepSpeed removes before it builds the optimizer."""
_CUDA_ONLY = ("lamb", "lion")
_MUP = ("muadam", "muadamw", "musgd")


def check_deepspeed(job: TrainJob, total_steps: int | None = None) -> list[Problem]:
    """A problem for everything in `deepspeed.config` that DeepSpeed would refuse, its optimizer and scheduler included.
    No problems if the job has no DeepSpeed JSON of its own.

    Args:
        total_steps: optimizer steps of the run; None while they are not known.
    """
    if job.deepspeed.config is None:
        return []
    from raytrain_nlp.compat.deepspeed import import_deepspeed
    from raytrain_nlp.worker.arguments import build_deepspeed

    level = logging.getLogger("DeepSpeed").level
    import_deepspeed()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        given = build_deepspeed(job.deepspeed, job.workers.use_gpu)
        if problems := [*check_autos(given), *check_zero(given["zero_optimization"], job.workers)]:
            return problems
        config = _filled(given, job, total_steps or 1)
        return [
            *_check_config(config),
            *_check_optimizer(config.get("optimizer"), job.workers.use_gpu),
            *_check_scheduler(config.get("scheduler"), total_steps),
        ]
    finally:
        logging.getLogger("DeepSpeed").setLevel(level)


def _filled(config: dict[str, Any], job: TrainJob, total_steps: int) -> dict[str, Any]:
    """The configuration as it would be for a single process: each "auto" replaced by the job's value or left out."""
    config, values = copy.deepcopy(config), job.arguments()
    micro, accumulation = values["per_device_train_batch_size"], values.get("gradient_accumulation_steps", 1)
    config |= {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation,
    }
    rate = values.get("learning_rate", 5e-5)
    for section, autos in {
        "optimizer": {"lr": rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
        "scheduler": {"warmup_min_lr": 0, "warmup_max_lr": rate, "warmup_num_steps": 1, "total_num_steps": total_steps},
    }.items():
        params = config.get(section, {}).get("params") if isinstance(config.get(section), dict) else None
        for key, value in autos.items():
            if isinstance(params, dict) and params.get(key) == "auto":
                params[key] = value
    return {key: value for key, value in config.items() if value != "auto"}


def _check_config(config: dict[str, Any]) -> Iterator[Problem]:
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(config)
    except ValidationError as error:
        section = _SECTIONS.get(error.title, error.title)
        for found in error.errors(include_url=False):
            where = ".".join([_WHERE, section, *(str(part) for part in found["loc"])])
            shown = f" ({found['input']!r})" if isinstance(found.get("input"), (str, int, float, bool)) else ""
            yield Problem(
                where, f"DeepSpeed refuses it: {found['msg'].removeprefix('Value error, ')}{shown}", "Correct it."
            )
    except Exception as error:  # asserts, its own class, KeyError where a section is no mapping  # noqa: BLE001
        yield Problem(_WHERE, f"DeepSpeed refuses it: {_first_line(error)}", "Correct it.")


def _check_optimizer(section: Any, use_gpu: bool) -> Iterator[Problem]:
    if section is None:
        return
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        yield Problem(f"{_WHERE}.optimizer", "has no type", "Write e.g. AdamW.")
        return
    import importlib.util

    import torch

    name, params, where, one = (
        section["type"],
        dict(section.get("params") or {}),
        f"{_WHERE}.optimizer",
        ([torch.nn.Parameter(torch.zeros(1))],),
    )
    names = [key for key, found in vars(torch.optim).items() if isinstance(found, type)]
    if "max_grad_norm" in params:
        yield Problem(f"{where}.params.max_grad_norm", "is not taken by DeepSpeed", "Use gradient_clipping.")
    elif name.lower() in _MUP:
        if importlib.util.find_spec("mup") is None:
            yield Problem(f"{where}.type", f"needs mup, which is not installed ({name})", "pip install mup.")
    elif name.lower() in _CUDA_ONLY:
        if not use_gpu:
            yield Problem(f"{where}.type", f"needs a GPU ({name}; workers.use_gpu is false)", "Use AdamW.")
    elif name.lower() in _ADAM:
        params = {key: value for key, value in params.items() if key not in _POPPED}
        fused = use_gpu and not section.get("params", {}).get("torch_adam")
        yield from _try(where, _fused_adam() if fused else torch.optim.AdamW, params, () if fused else one)
    elif name.lower() in ("adagrad", "muon"):
        return
    elif name not in names:
        yield Problem(
            f"{where}.type",
            f"is no optimizer of DeepSpeed or torch.optim ({name})",
            nearest(name, [*names, "AdamW"]) or "Use AdamW.",
        )
    else:
        yield from _try(where, getattr(torch.optim, name), params, one)


def _fused_adam() -> Callable[..., Any]:
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam


def _check_scheduler(section: Any, total_steps: int | None) -> Iterator[Problem]:
    if section is None:
        return
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        yield Problem(f"{_WHERE}.scheduler", "has no type", "Write e.g. WarmupLR.")
        return
    import torch
    from deepspeed.runtime import lr_schedules

    name, params, where = section["type"], dict(section.get("params") or {}), f"{_WHERE}.scheduler"
    found = (
        getattr(lr_schedules, name, None)
        if name in lr_schedules.VALID_LR_SCHEDULES
        else getattr(torch.optim.lr_scheduler, name, None)
    )
    if not isinstance(found, type):
        near = (
            nearest(name, lr_schedules.VALID_LR_SCHEDULES)
            or f"Use one of {', '.join(lr_schedules.VALID_LR_SCHEDULES)}."
        )
        yield Problem(f"{where}.type", f"is no scheduler of DeepSpeed or torch ({name})", near)
        return
    yield from _try(
        where, found, params, (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3, momentum=0.9),)
    )
    if total_steps is not None and params.get("total_num_steps", total_steps) != total_steps:
        yield Problem(
            f"{where}.params.total_num_steps",
            f"contradicts the steps of the job ({params['total_num_steps']} and {total_steps})",
            'Write "auto".',
        )


def _try(
    where: str, factory: Callable[..., Any], params: dict[str, Any], arguments: tuple[Any, ...]
) -> Iterator[Problem]:
    """A problem for each of `params` that a class does not take, or one if the class refuses their values.

    Args:
        where: the key of the job that a problem names.
        factory: the class of an optimizer or scheduler.
        arguments: its positional arguments; if empty, the class is not called and only its signature is read.
    """
    known = [name for name in inspect.signature(factory).parameters if name not in ("self", "params", "optimizer")]
    unknown = [key for key in params if key not in known]
    for key in unknown:
        name = getattr(factory, "__name__", "It")
        yield Problem(
            f"{where}.params.{key}",
            f"unknown key: {name} does not take it",
            nearest(key, known) or f"It takes {', '.join(known)}.",
        )
    if arguments and not unknown:
        try:
            factory(*arguments, **params)
        except Exception as error:  # a class may raise anything over its arguments  # noqa: BLE001
            yield Problem(f"{where}.params", f"{factory.__name__} refuses them: {_first_line(error)}", "Correct them.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
