"""Reads the flags of `accelerate launch`, and the file that `accelerate config` writes, as keys of a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raytrain_nlp.cli.from_hf.variables import Processes, read_count, take_precision
from raytrain_nlp.config.yaml_text import parse_yaml

if TYPE_CHECKING:
    from raytrain_nlp.cli.from_hf.command import Command

_KINDS = {
    "DEEPSPEED": "use_deepspeed",
    "FSDP": "use_fsdp",
    "MULTI_GPU": "multi_gpu",
    "MEGATRON_LM": "use_megatron_lm",
    "XLA": "tpu",
    "TPU": "tpu",
}
"""`distributed_type` in the file -> the flag with the same meaning."""
_SHARDED = {
    "FULL_SHARD": 3,
    "HYBRID_SHARD": 3,
    "1": 3,
    "4": 3,
    "SHARD_GRAD_OP": 2,
    "HYBRID_SHARD_ZERO2": 2,
    "2": 2,
    "5": 2,
    "NO_SHARD": 0,
    "3": 0,
}
"""FSDP's sharding strategy, by name or number -> the ZeRO stage that shards the same."""
_SAID = {
    "m",
    "module",
    "no_python",
    "quiet",
    "debug",
    "config_file",
    "num_machines",
    "machine_rank",
    "compute_environment",
    "main_training_function",
    "same_network",
    "tpu_env",
    "tpu_use_cluster",
    "tpu_use_sudo",
    "downcast_bf16",
    "zero3_init_flag",
    "zero3_save_16bit_model",
    "deepspeed_multinode_launcher",
    "fsdp_config",
    "rdzv_backend",
    "distributed_type",
    "enable_cpu_affinity",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_stage",
    "offload_optimizer_device",
    "offload_param_device",
    "offload_optimizer_nvme_path",
    "offload_param_nvme_path",
}
"""Names without a note, because every job is so, or because they are read together with another name."""
_NAMED = ("num_machines", "machine_rank", "rdzv_backend", "same_network", "downcast_bf16", "enable_cpu_affinity")
"""Those of them that get a note if they are given as flags, and not only in the file."""


def read_accelerate(command: Command, options: list[tuple[str, str]], found: Processes) -> None:
    """Take the launcher's settings over into `command` and `found`. Flags take precedence over the file, and the flags
    of the script over both.

    Args:
        options: the launcher's flags: names without dashes, and values (empty for switches).
    """
    given = dict(options)
    values = {**_read_file(command, given.get("config_file")), **{name: value or True for name, value in given.items()}}
    if (count := values.get("num_processes")) is not None:
        found.total = read_count(command, "num_processes", str(count))
    elif isinstance(ids := values.get("gpu_ids"), str | int) and str(ids) != "all":
        found.total = len([part for part in str(ids).split(",") if part.strip()])
    on_cpu = _on(values.get("cpu")) or _on(values.get("use_cpu"))
    if on_cpu:
        command.values.setdefault("use_cpu", True)
    elif _on(values.get("multi_gpu")) or "gpu_ids" in given:
        command.use_gpu = found.all_gpus = True
    take_precision(command, str(values.get("mixed_precision") or "no"))
    if (threads := str(values.get("num_cpu_threads_per_process", ""))).isdecimal() and int(threads):
        command.workers.setdefault("resources_per_worker", {"CPU": int(threads)})
    if str(values.get("max_restarts", "")).isdecimal():
        command.workers["max_failures"] = int(values["max_restarts"])
    _read_compiler(command, values)
    if _on(values.get("use_deepspeed")) or "deepspeed_config_file" in values or "zero_stage" in given:
        _read_deepspeed(command, values)
    elif _on(values.get("use_fsdp")):
        _read_fsdp(command, values)
    _note_others(command, values, given)


def _read_file(command: Command, file: str | None) -> dict[str, Any]:
    """The values of the file that `accelerate config` has written, under the names of the flags."""
    if file is None:
        default = (
            Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
            / "accelerate"
            / "default_config.yaml"
        )
        if default.exists():
            command.note("config_file", f"{default} is not read; give it as --config_file.")
        return {}
    try:
        values = parse_yaml(Path(os.path.expanduser(file)).read_text(encoding="utf-8"))  # JSON is YAML
    except FileNotFoundError:
        command.problem("config_file", f"there is no such file ({file})", "Check the path.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        command.problem(
            "config_file", f"is not YAML ({file}: {' '.join(str(error).split())[:120]})", "Correct the file."
        )
        return {}
    if not isinstance(values, dict):
        command.problem("config_file", f"holds no mapping ({file})", "Write it with `accelerate config`.")
        return {}
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for section in ("deepspeed_config", "fsdp_config", "dynamo_config"):
        inner = values.get(section)
        flat |= inner if isinstance(inner, dict) else {}
    if (kind := _KINDS.get(str(values.get("distributed_type")).upper())) is not None:
        flat[kind] = True
    return {str(key): value for key, value in flat.items() if value is not None}


def _read_compiler(command: Command, values: dict[str, Any]) -> None:
    backend = str(values.get("dynamo_backend") or "no").lower()
    if backend != "no":
        command.values.setdefault("torch_compile", True)
        command.values.setdefault("torch_compile_backend", backend)
        if (mode := str(values.get("dynamo_mode") or "default")) != "default":
            command.values.setdefault("torch_compile_mode", mode)


def _read_deepspeed(command: Command, values: dict[str, Any]) -> None:
    """Take over DeepSpeed's settings, with the defaults of accelerate's `DeepSpeedPlugin`."""
    if "deepspeed" in command.values:
        command.note("use_deepspeed", "The script's --deepspeed goes before.")
        return
    if (file := values.get("deepspeed_config_file")) is not None:
        command.values["deepspeed"] = str(file)
        return
    stage = str(values.get("zero_stage", 2))
    if stage not in ("0", "1", "2", "3"):
        command.problem("zero_stage", f"should be 0, 1, 2 or 3 ({stage})", "Correct it.")
        return
    command.sharding = {"zero_stage": int(stage)}
    for key in ("offload_optimizer", "offload_param"):
        device = str(values.get(f"{key}_device") or "none")
        if device == "cpu" and (int(stage) == 3 or (key == "offload_optimizer" and int(stage) > 0)):
            command.sharding[key] = "cpu"
        elif device == "cpu":
            command.note(f"{key}_device", f"DeepSpeed does not read it at stage {stage}.")
        elif device != "none":
            command.note(f"{key}_device", f"{device} needs a DeepSpeed JSON; see deepspeed.config_file.")
    _number(command, "gradient_accumulation_steps", "gradient_accumulation_steps", values, int)
    _number(command, "gradient_clipping", "max_grad_norm", values, float)


def _number(command: Command, name: str, flag: str, values: dict[str, Any], kind: type) -> None:
    """Take over the number `name` of the launcher as the script's `flag`, unless the script sets that itself."""
    if (value := values.get(name)) in (None, "auto"):
        return
    try:
        number = kind(str(value))
    except ValueError:
        command.problem(name, f"is no number ({value})", "Correct it.")
        return
    if command.values.setdefault(flag, number) != number:
        command.note(name, f"The script's --{flag} goes before.")


def _read_fsdp(command: Command, values: dict[str, Any]) -> None:
    """Take over FSDP's settings as the ZeRO stage that shards the same."""
    if "deepspeed" in command.values:
        return
    strategy = str(values.get("fsdp_sharding_strategy") or "FULL_SHARD").upper()
    stage = _SHARDED.get(strategy, 3)
    if str(values.get("fsdp_reshard_after_forward", "true")).lower() == "false":
        stage = min(stage, 2)
    command.sharding = {"zero_stage": stage}
    if stage == 3 and _on(values.get("fsdp_offload_params")):
        command.sharding |= {"offload_param": "cpu", "offload_optimizer": "cpu"}
    if _on(values.get("fsdp_activation_checkpointing")):
        command.values.setdefault("gradient_checkpointing", True)
    command.note("use_fsdp", f"Sharding is DeepSpeed's here: {strategy} became ZeRO stage {stage}.")


def _note_others(command: Command, values: dict[str, Any], given: dict[str, str]) -> None:
    """Add a note for each setting that has no counterpart in a job. `given`: those given as flags."""
    read = {
        "num_processes",
        "gpu_ids",
        "cpu",
        "use_cpu",
        "multi_gpu",
        "mixed_precision",
        "num_cpu_threads_per_process",
        "max_restarts",
        "use_deepspeed",
        "use_fsdp",
        "deepspeed_config_file",
        "dynamo_backend",
        "dynamo_mode",
    }
    for name, value in values.items():
        if (
            name in read
            or name.startswith("fsdp_")
            or (name in _SAID and not (name in given and name in _NAMED))
            or value in (False, "", "no", "NO")
        ):
            continue
        if name in ("tpu", "use_megatron_lm", "use_parallelism_config") or name.startswith(
            ("megatron_", "parallelism_", "fp8_", "tpu_", "sagemaker_")
        ):
            command.note(name, "is not supported; see the section `deepspeed`.")
        elif name in given or name not in ("main_process_ip", "main_process_port", "machine_rank"):
            command.note(name, "A flag of the launcher; Ray places, connects and restarts the workers.")


def _on(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes")
