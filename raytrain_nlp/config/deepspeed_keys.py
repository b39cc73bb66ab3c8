"""The keys of a DeepSpeed JSON: brought to one name each, and checked for those whose features this package does not
support.

DeepSpeed knows some keys under two or three names and refuses a file that has two of them; Hugging Face fills "auto"
under one name only. Features that a file switches off are removed from it, because DeepSpeed refuses keys of features
that it has dropped even where they are off.
"""

from __future__ import annotations

import ast
import functools
from typing import Any

from raytrain_nlp.errors import Problem, nearest
from raytrain_nlp.host.packages import package_folder

ZERO = "zero_optimization"
_SIZES = ("autotp_size", "tp_size", "size", "degree")
_HARMLESS = {
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "log_level",
    "timers",
    "comms_logger",
    "comms_config",
    "monitor_config",
    "flops_profiler",
    "activation_checkpointing",
    "checkpoint",
    "aio",
    "vocabulary_size",
    "disable_python_gc",
    "arguments",
}
"""Keys that are accepted unchanged: they print, measure, or are read by parts of DeepSpeed (or by other tools) that a
run does not use."""
_WITHOUT_EFFECT = {
    "activation_checkpointing": "models of transformers do not call DeepSpeed's; set training.gradient_checkpointing",
    "checkpoint": "checkpoints are written by this package",
    "comms_config": "DeepSpeed has no such key",
    "monitor_config": "DeepSpeed has no such key",
}
_KNOWN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    ZERO,
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "gradient_allreduce_op",
    "data_types",
    "disable_allgather",
    "seq_parallel_communication_data_type",
    "managed_gradient_accumulation",
}
_TRACKED = "Figures go to MLflow; see the section `tracking`."
_UNSUPPORTED = {
    "tensor_parallel": "Workers are data parallel; use ZeRO 3 for models larger than a GPU.",
    "sequence_parallel": "Workers are data parallel; lower data.max_length or use training.gradient_checkpointing.",
    "sequence_parallel_size": "Workers are data parallel; lower data.max_length or use "
    "training.gradient_checkpointing.",
    "expert_parallel": "Workers are data parallel; use ZeRO 3.",
    "use_data_before_expert_parallelism": "Workers are data parallel; use ZeRO 3.",
    "pipeline": "Workers are data parallel; use ZeRO 3 for models larger than a GPU.",
    "sparse_attention": "Set model.attn_implementation.",
    "curriculum_learning": "The plan decides the order of rows; see training.train_sampling_strategy.",
    "data_efficiency": "The plan decides the order of rows; see training.train_sampling_strategy.",
    "elasticity": "Use workers.num_workers: [MIN, MAX].",
    "autotuning": "`raytrain-nlp check` plans memory; set the values it finds.",
    "compression_training": "Train without it.",
    "hybrid_engine": "It is for generation inside of training; remove it.",
    "progressive_layer_drop": "Train without it.",
    "quantize_training": "Use model.quantization.",
    "weight_quantization": "Use model.quantization.",
    "eigenvalue": "Train without it.",
    "amp": "Use training.bf16 or training.fp16.",
    "fp8": "Use training.bf16 or training.fp16.",
    "torch_autocast": "Use training.bf16 or training.fp16.",
    "sparse_gradients": "Train without it.",
    "compile": "Use training.torch_compile and training.torch_compile_backend.",
    "graph_harvesting": "Use training.torch_compile.",
    "nebula": "Checkpoints are written by this package; see the section `checkpoint`.",
    "datastates_ckpt": "Checkpoints are written by this package; see the section `checkpoint`.",
    "dataloader_drop_last": "Use training.dataloader_drop_last.",
    **dict.fromkeys(("tensorboard", "wandb", "comet", "csv_monitor"), _TRACKED),
}
_UNSUPPORTED_ZERO = {
    "zenflow": "Use offload_optimizer.",
    "elastic_checkpoint": "Checkpoints load on another number of workers without it.",
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), "Remove it."),
}


def canonical_config(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with each key under the name that Hugging Face fills, without features that are
    switched off. Two names of one key are both kept, for `check_keys` to report.
    """
    found = {key: value for key, value in config.items() if not (key in _UNSUPPORTED and not _is_on(value))}
    if "bfloat16" in found and "bf16" not in found:
        found["bf16"] = found.pop("bfloat16")
    if isinstance(found.get(ZERO), bool):
        found[ZERO] = {"stage": int(found[ZERO])}
    if isinstance(found.get(ZERO), dict):
        found[ZERO] = _canonical_zero(found[ZERO])
    return found


def _canonical_zero(zero: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in zero.items():
        name = zero_names().get(key, key)
        if key in _UNSUPPORTED_ZERO and not _is_on(value):
            continue
        if key in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"):  # of DeepSpeed before 0.4
            if value is not True or name not in zero_names():
                continue
            value = {"device": "cpu"}
        found[key if name != key and (name in zero or name in found) else name] = value
    return found


def check_keys(config: dict[str, Any]) -> list[Problem]:
    """A problem for each key that repeats another under a second name, that DeepSpeed does not know, or whose feature
    is not supported.
    """
    problems = []
    for key, value in config.items():
        where = f"deepspeed.config.{key}"
        if key in _UNSUPPORTED:
            problems.append(Problem(where, "is not supported here", _UNSUPPORTED[key]))
        elif key == "bfloat16":
            problems.append(Problem(where, "means the same as bf16", "Keep one."))
        elif key == "gradient_allreduce_op" and value == "sum":
            problems.append(
                Problem(where, "is not supported here: gradients are averaged over ranks (sum)", "Remove it.")
            )
        elif key not in _KNOWN | _HARMLESS and not key.startswith(("_", "comment", "//")) and _is_on(value):
            problems.append(
                Problem(
                    where,
                    "is no key of DeepSpeed, which would ignore it",
                    nearest(key, _KNOWN | _HARMLESS) or "Remove it.",
                )
            )
    return problems + _check_zero(config.get(ZERO) or {})


def _check_zero(zero: dict[str, Any]) -> list[Problem]:
    problems, names = [], zero_names()
    for key in zero:
        where = f"deepspeed.config.{ZERO}.{key}"
        if key in _UNSUPPORTED_ZERO:
            problems.append(Problem(where, "is not supported here", _UNSUPPORTED_ZERO[key]))
        elif key not in names:
            problems.append(
                Problem(
                    where, "unknown key", nearest(key, names) or "See DeepSpeed's documentation of zero_optimization."
                )
            )
        elif names[key] != key and names[key] in zero:
            problems.append(Problem(where, f"means the same as {names[key]}", "Keep one."))
    return problems


def without_effect(config: dict[str, Any]) -> list[str]:
    """A line of text for each key that is accepted and has no effect."""
    return [
        f"deepspeed.config.{key} has no effect: {reason}" for key, reason in _WITHOUT_EFFECT.items() if key in config
    ]


def _is_on(value: Any) -> bool:
    """Does the value of a section, a switch or a size turn its feature on?"""
    if isinstance(value, dict):
        if "enabled" in value:
            return value["enabled"] not in (False, "auto")
        if "disable" in value or "deepcompile" in value:
            return not value.get("disable", False) and value.get("deepcompile", True)
        sizes = [size for key in _SIZES if isinstance(size := value.get(key), int)]
        return any(size > 1 for size in sizes) if sizes else bool(value)
    return value > 1 if isinstance(value, (int, float)) and not isinstance(value, bool) else bool(value)


@functools.cache
def zero_names() -> dict[str, str]:
    """Each name that a key of `zero_optimization` has or had -> its present name, read from the source of the installed
    DeepSpeed, which is not imported.

    The alias of a field is its present name; a deprecated field names its successor.
    """
    source = package_folder("deepspeed") / "runtime" / "zero" / "config.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DeepSpeedZeroConfig"
    ).body
    used: dict[str, str] = {}
    successors: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, texts = node.target.id, _texts(node.value)
            used[name] = texts.get("alias", name)
            if "new_param" in texts:
                successors[name] = texts["new_param"]
    names = {**used, **{alias: alias for alias in used.values()}}
    return {**names, **{old: used.get(new, new) for old, new in successors.items()}}


def _texts(value: ast.expr | None) -> dict[str, str]:
    """The keyword arguments of pydantic's `Field` that are text, and the texts in the dicts among its arguments."""
    found: dict[str, str] = {}
    for keyword in value.keywords if isinstance(value, ast.Call) else ():
        pairs = [(keyword.arg, keyword.value)]
        if isinstance(keyword.value, ast.Dict):
            pairs = [
                (getattr(key, "value", None), item)
                for key, item in zip(keyword.value.keys, keyword.value.values, strict=True)
            ]
        found |= {
            key: item.value
            for key, item in pairs
            if key is not None and isinstance(item, ast.Constant) and isinstance(item.value, str)
        }
    return found
