"""Checks the section `training` with transformers' own classes, without a model: contradictions, optimizer, scheduler,
compiler, packages.

`transformers.TrainingArguments` takes seconds to import. It is not imported for a job that sets only keys whose values
`config/` has checked completely (`SETTLED`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.deepspeed import DeepSpeedConfig
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.planning.optimizer_checks import (
    OPTIM_KEYS,
    check_optimizer,
    check_scheduler,
    first_line,
    missing_package,
)

SETTLED = {
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "logging_steps",
    "logging_first_step",
    "logging_strategy",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "tf32",
    "gradient_checkpointing",
    "activation_checkpointing",
    "label_smoothing_factor",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "predict_with_generate",
    "generation_max_length",
    "generation_num_beams",
    "ddp_timeout",
}
"""Keys of `training` that `config.training` and `config.job` check completely."""
_SETTLED_VALUES = {
    "optim": {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"},
    "lr_scheduler_type": {
        "linear",
        "cosine",
        "cosine_with_restarts",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
    },
}
"""Values of other keys that need neither a package nor arguments."""
_RECOMPUTING = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_FOR_METRICS = ("inputs", "loss")
"""Names that `include_for_metrics` may hold."""
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of `torch.compile`."""


def check_training_values(job: TrainJob) -> list[Problem]:
    """A problem for each value that `TrainingArguments`, or a class or package that it names, would refuse."""
    values = job.arguments()
    shares = any(
        0 < (values.get(key) or 1) < 1 for key in ("eval_steps", "save_steps", "logging_steps")
    )  # shares of all steps, whose multiples `TrainingArguments` checks
    if not shares and all(
        key in SETTLED or (isinstance(value, str) and value in _SETTLED_VALUES.get(key, ()))
        for key, value in values.items()
    ):
        return []
    if all(key in SETTLED or key in OPTIM_KEYS for key in values) and (
        problem := missing_package(str(values.get("optim", "")))
    ):
        return [problem]
    with _quiet():
        arguments, problems = _ask_arguments(job)
        if arguments is None:
            return problems
        if any(key in values for key in OPTIM_KEYS) and "optimizer" not in (job.deepspeed.config or {}):
            problems += check_optimizer(arguments, job)
        problems += (
            _check_compiler(values)
            + _check_metric_inputs(values)
            + _check_recomputing(arguments, values)
            + _check_packages(values)
            + _check_generation(values)
        )
        return problems + check_scheduler(job)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings while inside, and restore the environment variables afterwards: workers would inherit what a
    library sets.
    """
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)


def _ask_arguments(job: TrainJob) -> tuple[Any, list[Problem]]:
    """The job's `TrainingArguments`, built as for one process on CPU without DeepSpeed, and a problem for each
    combination of values that they refuse. After each problem one of its values is left out and the rest tried again.
    The arguments are None if even that fails.
    """
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.arguments import build_arguments

    here = job.model_copy(
        update={"workers": job.workers.model_copy(update={"use_gpu": False}), "deepspeed": DeepSpeedConfig()}
    )
    generates = build_task(job.task).generates
    problems: list[Problem] = []

    def ask(values: dict[str, Any]) -> tuple[Any, str | None]:
        here._training = values
        try:
            return build_arguments(here, "unused", generates), None
        except InputError as error:
            return None, error.problems[0].what
        except Exception as error:  # an error of transformers that `build_arguments` does not translate  # noqa: BLE001
            return None, f"transformers refuses it: {first_line(error)}"

    def refuses(same: str, values: dict[str, Any]) -> bool:
        return ask(values)[1] == same

    values = {key: value for key, value in job.arguments().items() if key not in ("tf32", "fp16")}  # they need a GPU
    for _ in range(len(values)):
        arguments, refused = ask(values)
        if refused is None:
            return arguments, problems
        guilty = _smallest(values, functools.partial(refuses, refused))
        where = [f"training.{key}" for key in guilty] or ["training"]
        told = ", ".join(f"{key} {guilty[key]!r}" for key in guilty)
        problems.append(
            Problem(
                where[0],
                f"{refused.rstrip('.')} ({told})",
                "Correct one of them." if len(guilty) > 1 else "Correct it.",
            )
        )
        values = {
            key: value
            for key, value in values.items()
            if key != next((k for k in guilty if k in job.training), next(iter(guilty), None))
        }
        if not guilty:
            break
    return None, problems


def _smallest(values: dict[str, Any], fails: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The values without which `fails` is no longer true, found by leaving out one after the other."""
    for key in list(values):
        without = {name: value for name, value in values.items() if name != key}
        if fails(without):
            values = without
    return values


def _check_compiler(values: dict[str, Any]) -> list[Problem]:
    from accelerate.utils import DynamoBackend

    problems, known = [], [backend.value.lower() for backend in DynamoBackend if backend.value != "NO"]
    if (backend := values.get("torch_compile_backend")) is not None and backend.lower() not in known:
        problems.append(
            Problem(
                "training.torch_compile_backend",
                f"unknown backend ({backend!r})",
                nearest(backend.lower(), known) or f"Use one of {', '.join(known)}.",
            )
        )
    if (mode := values.get("torch_compile_mode")) is not None and mode not in _MODES:
        problems.append(
            Problem(
                "training.torch_compile_mode",
                f"unknown mode ({mode!r})",
                nearest(mode, _MODES) or f"Use one of {', '.join(_MODES)}.",
            )
        )
    return problems


def _check_metric_inputs(values: dict[str, Any]) -> list[Problem]:
    """A problem for each unknown name in `include_for_metrics`, which transformers would silently ignore."""
    given = values.get("include_for_metrics") or []
    unknown = [name for name in given if name not in _FOR_METRICS]
    hints = {name: nearest(str(name), _FOR_METRICS) or f"Use {' or '.join(_FOR_METRICS)}." for name in unknown}
    return [Problem("training.include_for_metrics", f"unknown name ({name!r})", hint) for name, hint in hints.items()]


def _check_recomputing(arguments: Any, values: dict[str, Any]) -> list[Problem]:
    """A problem if `torch.utils.checkpoint` refuses the arguments for it, which it would do in the first forward
    pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    given = dict(arguments.activation_checkpointing_kwargs or {})
    where = f"training.{next((key for key in _RECOMPUTING if key in values), _RECOMPUTING[0])}"
    every = given.pop("every_n_layers", 1)
    given.pop("offload", None)
    if not arguments.activation_checkpointing:
        return []
    if not isinstance(every, int) or every < 1:
        return [Problem(where, f"every_n_layers should be a number of layers, from 1 on ({every!r})", "Correct it.")]
    try:
        checkpoint(torch.nn.Identity(), torch.ones(1, requires_grad=True), **({"use_reentrant": False} | given))
    except Exception as error:  # torch may raise anything over them  # noqa: BLE001
        return [Problem(where, f"torch.utils.checkpoint refuses them ({first_line(error)})", "Correct them.")]
    return []


def _check_packages(values: dict[str, Any]) -> list[Problem]:
    from transformers.utils import is_liger_kernel_available

    if values.get("use_liger_kernel") and not is_liger_kernel_available():
        return [
            Problem(
                "training.use_liger_kernel", "needs liger-kernel, which is not installed", "pip install liger-kernel."
            )
        ]
    return []


def _check_generation(values: dict[str, Any]) -> list[Problem]:
    given = values.get("generation_config")
    if not isinstance(given, str):
        return []
    from transformers import Seq2SeqTrainer

    try:
        Seq2SeqTrainer.load_generation_config(given)
    except Exception as error:  # no such file, no JSON, contradicting values  # noqa: BLE001
        return [
            Problem(
                "training.generation_config", f"cannot be read ({given}: {first_line(error)})", "Check folder and file."
            )
        ]
    return []
