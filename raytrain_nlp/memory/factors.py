"""What a rank's memory depends on, read from a job and its model: ZeRO's stage and buffers, precision, optimizer,
elements.
"""

from __future__ import annotations

from typing import Any

import torch

from raytrain_nlp.config import TrainJob
from raytrain_nlp.memory.activations import LARGE
from raytrain_nlp.memory.zero import Setting, Weights

_MOMENTS = {"sgd": 0, "adafactor": 0, "lion": 1, "lomo": 0, "adalomo": 0, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
"""Values an optimizer other than Adam keeps of a parameter, by the beginning of its name in
`TrainingArguments.optim`.
"""


def find_setting(job: TrainJob, model: Any) -> Setting:
    """The settings of DeepSpeed, DDP and the optimizer that a rank's memory depends on."""
    from raytrain_nlp.worker.arguments import build_deepspeed

    values, use_gpu = job.arguments(), job.workers.use_gpu
    config = build_deepspeed(job.deepspeed, use_gpu) if job.deepspeed.enabled else {}
    zero, hidden = config.get("zero_optimization", {}), _hidden_size(model)

    def elements(key: str, default: int, auto: float) -> int:
        value = zero.get(key, zero.get(f"stage3_{key}", default))
        return int(auto if value == "auto" else value)

    overlap = (
        use_gpu if job.deepspeed.config is None else job.deepspeed.zero_stage == 3
    )  # ours, also at stages that are only considered; DeepSpeed's
    optim = str(getattr(values.get("optim"), "value", values.get("optim", "adamw")))
    return Setting(
        zero_stage=job.deepspeed.zero_stage,
        num_workers=job.workers.num_workers,
        use_gpu=use_gpu,
        mixed=bool(values.get("bf16") or values.get("fp16")),
        weight_bytes=2 if job.model.weights_dtype in ("bfloat16", "float16") else 4,
        moment_bytes=moment_bytes(optim),
        quantized_bytes=0.5 if (job.model.quantization or {}).get("load_in_4bit") else 1,
        offload_optimizer=_offloaded(zero, "offload_optimizer"),
        offload_param=_offloaded(zero, "offload_param"),
        reduce_bucket=elements("reduce_bucket_size", 500_000_000, hidden * hidden),
        prefetch_bucket=elements("prefetch_bucket_size", 50_000_000, 0.9 * hidden * hidden),
        max_live=elements("max_live_parameters", 1_000_000_000, 1e9),
        overlap=bool(zero.get("overlap_comm", overlap)),
        accumulation=job.gradient_accumulation_steps,
    )


def moment_bytes(optim: str) -> float:
    """Bytes that an optimizer of `TrainingArguments.optim` keeps of a trained parameter, besides its master copy."""
    name = optim.removeprefix("paged_")
    values = next((count for kind, count in _MOMENTS.items() if name.startswith(kind)), 2)
    return values * (0.5 if "4bit" in name else 1 if "8bit" in name else 4)


def _offloaded(zero: dict[str, Any], key: str) -> bool:
    return isinstance(zero.get(key), dict) and zero[key].get("device", "none") != "none"


def _hidden_size(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0) or 1024)


def count_weights(job: TrainJob, model: Any) -> Weights:
    """The numbers of elements of a model's parameters: all, trained, kept whole by ZeRO-3, small, and quantized."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    threshold = job.deepspeed.stage3_param_persistence_threshold
    threshold = 10 * _hidden_size(model) if threshold is None else threshold
    # bitsandbytes quantizes linear layers, except the one that computes the logits
    head = model.get_output_embeddings()
    linear = (
        [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
        if job.model.quantization
        else []
    )
    return Weights(
        total=sum(size for size, _ in sizes),
        trainable=sum(size for size, trained in sizes if trained),
        persistent=sum(size for size, _ in sizes if size <= threshold),
        small=sum(size for size, _ in sizes if size * 4 < LARGE),
        quantized=sum(weight.numel() for weight in linear if not weight.requires_grad),
        tensors=len(sizes),
    )
