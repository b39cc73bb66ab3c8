"""What a job says of GPUs and of packages that it needs, checked without looking at a machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING, Any

from raytrain_nlp.errors import Problem, nearest

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob

_FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4"),
}
"""Attention implementation of transformers -> the module that it imports, and the package that contains it."""
_TORCH_FLASH, _TORCH_FLASH_SINCE = "flash_attention_2", (2, 11)
"""The implementation whose kernels torch has too, and the first version of torch that has them for several documents in
a row."""
_ATTENTION = ("eager", "sdpa", "flex_attention", *_FLASH)
_NEED_GPU = (*_FLASH, "flex_attention")
"""Attention implementations that train on a GPU only; torch has no gradient of flex attention on CPU."""
_NO_GPU = "needs a GPU (workers.use_gpu is false)"
_USE_ONE = "set workers.use_gpu: true"


def check_hardware(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Contradictions about quantization, attention, precision and GPUs.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    return [*_check_quantization(job), *_check_attention(job), *_check_precision(job, values), *_check_gpus(job)]


def _check_quantization(job: TrainJob) -> list[Problem]:
    if job.model.quantization is None:
        return []
    problems = []
    if job.lora is None:
        problems.append(
            Problem(
                "model.quantization", "needs an adapter: quantized weights cannot be trained", "Add a `lora` section."
            )
        )
    if job.model.config is not None:
        problems.append(
            Problem("model.quantization", "needs pretrained weights", "Set model.name_or_path instead of model.config.")
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(
            Problem(
                "model.quantization",
                "needs bitsandbytes, which is not installed",
                "pip install 'raytrain-nlp[quantization]'.",
            )
        )
    elif not job.workers.use_gpu:
        problems.append(
            Problem(
                "model.quantization",
                "is for GPUs here (workers.use_gpu is false)",
                "Set workers.use_gpu: true, or remove it.",
            )
        )
    return problems


def _check_attention(job: TrainJob) -> list[Problem]:
    """Attention whose package is not installed, that is unknown, or that needs a GPU. transformers itself would say so
    only when each worker builds its model.
    """
    name = job.model.attention
    where = f"model.{'' if job.model.attn_implementation else 'config.'}attn_implementation"
    if name is None:
        return []
    if "/" in name:  # a kernel of the hub
        return (
            []
            if _installed("kernels")
            else [
                Problem(
                    where,
                    f"needs the package kernels, which is not installed ({name})",
                    "pip install kernels, or use sdpa.",
                )
            ]
        )
    if name not in _ATTENTION:
        own = job.trainer.model_fields_set or job.model.trust_remote_code  # whose code may register more
        return (
            []
            if own
            else [
                Problem(
                    where,
                    f"unknown attention ({name!r})",
                    nearest(name, _ATTENTION) or f"Use one of {', '.join(_ATTENTION)}.",
                )
            ]
        )
    module, package = _FLASH.get(name, (None, None))
    if module and not _installed(module) and not _installed("kernels") and not uses_torch_flash(name):
        return [
            Problem(
                where,
                f"needs the package {package}, which is not installed ({name})",
                f"pip install {package}, here and on the nodes, or use sdpa.",
            )
        ]
    return (
        [Problem(where, f"{_NO_GPU} ({name})", f"Use sdpa, or {_USE_ONE}.")]
        if name in _NEED_GPU and not job.workers.use_gpu
        else []
    )


def uses_torch_flash(attention: str | None) -> bool:
    """Does this attention run on torch's own kernels, because the package that has its kernels is not installed?"""
    if attention != _TORCH_FLASH or _installed(_FLASH[attention][0]) or _installed("kernels"):
        return False
    version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("torch"))
    return version is not None and (int(version[1]), int(version[2])) >= _TORCH_FLASH_SINCE


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _check_precision(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    problems = []
    if values.get("fp16") and values.get("bf16"):
        problems.append(Problem("training.fp16", "excludes training.bf16", "Keep one."))
    for key in ("fp16", "fp16_full_eval", "tf32"):
        if values.get(key) and not job.workers.use_gpu:
            problems.append(Problem(f"training.{key}", _NO_GPU, f"Use bf16, or {_USE_ONE}."))
    return problems


def _check_gpus(job: TrainJob) -> list[Problem]:
    where, workers = "workers.resources_per_worker", job.workers
    each = workers.resources_per_worker.get("GPU")
    if each is None:
        return []
    if each and not workers.use_gpu:
        return [Problem(where, "asks for GPUs while workers.use_gpu is false", f"{_USE_ONE.capitalize()}.")]
    if not each and workers.use_gpu:
        return [Problem(where, "asks for no GPU while workers.use_gpu is true", "Remove GPU from it.")]
    if each != int(each) and (each > 1 or workers.num_workers > 1):
        what = (
            f"gives {workers.num_workers} workers parts of a GPU (GPU: {each:g}), and NCCL takes one worker of each GPU"
        )
        return [Problem(where, what, "Write GPU: 1, and as many workers as there are GPUs.")]
    return []
