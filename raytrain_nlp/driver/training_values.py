"""What `transformers` says of the section `training` without a model: contradictions, optimizer, scheduler, compiler, packages.

A job of plain numbers says nothing that needs asking; `transformers.TrainingArguments` takes seconds to import and is left alone then.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.deepspeed import DeepSpeedConfig
from raytrain_nlp.errors import InputError, Problem, nearest

SETTLED = {
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "warmup_steps", "logging_steps", "logging_first_step", "logging_strategy", "seed",
    "data_seed", "train_sampling_strategy", "dataloader_drop_last", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps",
    "save_total_limit", "neftune_noise_alpha", "bf16", "fp16", "tf32", "gradient_checkpointing", "activation_checkpointing", "label_smoothing_factor",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "predict_with_generate", "generation_max_length", "generation_num_beams", "ddp_timeout",
}  # fmt: skip
"""Fields of which `config.training` and `config.job` have said all there is to say."""
_SETTLED_VALUES = {
    "optim": {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"},
    "lr_scheduler_type": {"linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"},
}
"""Values that need neither a package nor an argument."""
_PACKAGES = {
    "galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim", "grokadamw": "grokadamw", "schedule_free": "schedulefree",
    "stable_adamw": "optimi", "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "adamw_torch_xla": "torch_xla", "adamw_torch_npu": "torch_npu",
    "adamw_anyprecision": "torchdistx", "adamw_bnb": "bitsandbytes", "adamw_8bit": "bitsandbytes", "ademamix": "bitsandbytes", "lion": "bitsandbytes",
    "paged": "bitsandbytes", "rmsprop_bnb": "bitsandbytes",
}  # fmt: skip
"""Beginning of an optimizer's name -> the module it is in: told at once where nothing else needs asking."""
_STEPS = 1000
"""Of a schedule, where those of the run are not counted yet."""
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of `torch.compile`."""
_OPTIM_KEYS = ("optim", "optim_args", "optim_target_modules")
_SCHEDULER_KEYS = ("lr_scheduler_type", "lr_scheduler_kwargs")


def check_training_values(job: TrainJob) -> list[Problem]:
    """All that `TrainingArguments` and the classes it names would refuse, a problem for each."""
    values = job.arguments()
    shares = any(0 < (values.get(key) or 1) < 1 for key in ("eval_steps", "save_steps", "logging_steps"))  # of all steps: their multiples are its business
    if not shares and all(key in SETTLED or (isinstance(value, str) and value in _SETTLED_VALUES.get(key, ())) for key, value in values.items()):
        return []
    if all(key in SETTLED or key in _OPTIM_KEYS for key in values) and (problem := _missing_package(str(values.get("optim", "")))):
        return [problem]
    with _quiet():
        arguments, problems = _ask_arguments(job)
        if arguments is None:
            return problems
        if any(key in values for key in _OPTIM_KEYS) and "optimizer" not in (job.deepspeed.config or {}):
            problems += _check_optimizer(arguments, job)
        problems += _check_compiler(values) + _check_packages(values) + _check_generation(values)
        return problems + check_scheduler(job)


def _missing_package(optim: str) -> Problem | None:
    module = next((module for name, module in _PACKAGES.items() if optim.startswith(name)), None)
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return Problem("training.optim", f"needs {module}, which is not installed ({optim})", "Choose another optimizer, or install it.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a library leaves in the environment, and what it warns of, stays inside: workers are started from here."""
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
    """The arguments as of one process on CPU, and everything they refuse: what is refused is left out and the rest asked again."""
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.arguments import build_arguments

    here = job.model_copy(update={"workers": job.workers.model_copy(update={"use_gpu": False}), "deepspeed": DeepSpeedConfig()})
    generates, problems = build_task(job.task).generates, []

    def ask(values: dict[str, Any]) -> tuple[Any, str | None]:
        here._training = values
        try:
            return build_arguments(here, "unused", generates), None
        except InputError as error:
            return None, error.problems[0].what
        except Exception as error:  # what they say of themselves in other words
            return None, f"transformers refuses it: {_first_line(error)}"

    values = {key: value for key, value in job.arguments().items() if key not in ("tf32", "fp16")}  # of GPUs
    for _ in range(len(values)):
        arguments, refused = ask(values)
        if refused is None:
            return arguments, problems
        guilty = _smallest(values, lambda some, same=refused: ask(some)[1] == same)
        where = [f"training.{key}" for key in guilty] or ["training"]
        told = ", ".join(f"{key} {guilty[key]!r}" for key in guilty)
        problems.append(Problem(where[0], f"{refused.rstrip('.')} ({told})", "Correct one of them." if len(guilty) > 1 else "Correct it."))
        values = {key: value for key, value in values.items() if key != next((k for k in guilty if k in job.training), next(iter(guilty), None))}
        if not guilty:
            break
    return None, problems


def _smallest(values: dict[str, Any], fails: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The values that are needed for a failure."""
    for key in list(values):
        without = {name: value for name, value in values.items() if name != key}
        if fails(without):
            values = without
    return values


def _check_optimizer(arguments: Any, job: TrainJob) -> list[Problem]:
    """Can the optimizer be made, and does it read every argument it is given?"""
    import torch
    from transformers import Trainer

    name, values = str(getattr(arguments.optim, "value", arguments.optim)), job.arguments()
    low_rank = name.startswith(("galore", "apollo"))
    if name.endswith("layerwise") and job.workers.num_workers > 1:
        return [Problem("training.optim", f"updates layer by layer, which more than one worker cannot ({name})", f"Use {name.removesuffix('_layerwise')}.")]
    if values.get("optim_target_modules") is not None and not low_rank:
        return [Problem("training.optim_target_modules", f"is read by GaLore and APOLLO only, not by {name}", "Remove it, or choose their optimizer.")]
    try:
        made, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer) and not low_rank:
            made([torch.nn.Parameter(torch.zeros(2, 2))], **kwargs)
    except Exception as error:  # packages that are missing, arguments that are none, values out of range
        if "model" in str(error) and (low_rank or "lomo" in name):
            return []  # the packages are there; the rest needs the model
        what = f"{name} cannot be made: {_first_line(error)}"
        if "optim_args" in values and not isinstance(error, ImportError) and "install" not in str(error):
            return [Problem("training.optim_args", what, "Correct them.")]
        return [Problem("training.optim", what, "Choose another optimizer, or install what it needs.")]
    return [Problem("training.optim_args", f"{name} does not read {key!r}", "Remove it.") for key in _unread(arguments, values.get("optim_args"))]


def _unread(arguments: Any, text: str | None) -> Iterator[str]:
    """Keys of `optim_args` that change nothing, whatever their value."""
    from transformers import Trainer

    for pair in filter(None, (text or "").replace(" ", "").split(",")):
        key = pair.partition("=")[0]
        made = []
        for args in (f"{key}=3", f"{key}=0.123", f"{key}=true"):
            arguments.optim_args = args
            try:
                made.append(repr(Trainer.get_optimizer_cls_and_kwargs(arguments)[1]))
            except Exception:  # it is read, and is no such value
                break
        else:
            if len(set(made)) == 1:
                yield key
    arguments.optim_args = text


def check_scheduler(job: TrainJob, total_steps: int | None = None) -> list[Problem]:
    """Can the scheduler be made with its arguments, and does it give a number at each step?"""
    values = job.arguments()
    if not any(key in values for key in _SCHEDULER_KEYS) or "scheduler" in (job.deepspeed.config or {}):
        return []
    if isinstance(values.get("lr_scheduler_kwargs"), str):
        return [Problem("training.lr_scheduler_kwargs", f"is no mapping ({values['lr_scheduler_kwargs']!r})", "Write name: value.")]
    import torch
    from transformers.optimization import get_scheduler

    kind, kwargs, steps = values.get("lr_scheduler_type", "linear"), values.get("lr_scheduler_kwargs"), total_steps or _STEPS
    warmup = values.get("warmup_steps", 0)
    warmup = min(int(warmup if warmup >= 1 else warmup * steps), steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=values.get("learning_rate", 5e-5))
    try:
        made = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=dict(kwargs or {}))
        for place in sorted({0, 1, warmup // 2, warmup, (warmup + steps) // 2, steps - 1, steps}):
            for rate in getattr(made, "lr_lambdas", ()):
                float(rate(place))
    except Exception as error:  # a name, a value or a missing argument, in whatever words
        where = "training.lr_scheduler_kwargs" if kwargs else "training.lr_scheduler_type"
        return [Problem(where, f"the scheduler '{kind}' refuses them: {_first_line(error)}", "Correct training.lr_scheduler_kwargs.")]
    if kwargs and str(kind) in ("constant", "constant_with_warmup"):
        return [Problem("training.lr_scheduler_kwargs", f"the scheduler '{kind}' reads none", "Remove them.")]
    return []


def _check_compiler(values: dict[str, Any]) -> list[Problem]:
    from accelerate.utils import DynamoBackend

    problems, known = [], [backend.value.lower() for backend in DynamoBackend if backend.value != "NO"]
    if (backend := values.get("torch_compile_backend")) is not None and backend.lower() not in known:
        problems.append(Problem("training.torch_compile_backend", f"unknown backend ({backend!r})", nearest(backend.lower(), known) or f"Use one of {', '.join(known)}."))
    if (mode := values.get("torch_compile_mode")) is not None and mode not in _MODES:
        problems.append(Problem("training.torch_compile_mode", f"unknown mode ({mode!r})", nearest(mode, _MODES) or f"Use one of {', '.join(_MODES)}."))
    return problems


def _check_packages(values: dict[str, Any]) -> list[Problem]:
    from transformers.utils import is_liger_kernel_available

    if values.get("use_liger_kernel") and not is_liger_kernel_available():
        return [Problem("training.use_liger_kernel", "needs liger-kernel, which is not installed", "pip install liger-kernel.")]
    return []


def _check_generation(values: dict[str, Any]) -> list[Problem]:
    given = values.get("generation_config")
    if not isinstance(given, str):
        return []
    from transformers import Seq2SeqTrainer

    try:
        Seq2SeqTrainer.load_generation_config(given)
    except Exception as error:  # no such file, no JSON, values that contradict
        return [Problem("training.generation_config", f"cannot be read ({given}: {_first_line(error)})", "Check folder and file.")]
    return []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
