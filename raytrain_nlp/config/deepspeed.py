"""`deepspeed:`: ZeRO by a few keys of this package, or by a DeepSpeed JSON file as Hugging Face users write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, PrivateAttr, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler, ValidatorFunctionWrapHandler

from raytrain_nlp.config.base import Section, accepts_also
from raytrain_nlp.config.deepspeed_keys import ZERO, canonical_config
from raytrain_nlp.errors import Problem
from raytrain_nlp.storage.untrusted import read_json_file

_SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "bf16.enabled": "bf16",
    "fp16.enabled": "fp16",
}
"""Key of DeepSpeed's configuration -> the field of `TrainingArguments` with the same meaning, as in
transformers/integrations/deepspeed.py."""
_DEFAULTS = {"bf16": False, "fp16": False}


class DeepSpeedConfig(Section):
    """DeepSpeed ZeRO. With stage 0 training is plain DDP, without DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = Field(0, json_schema_extra=accepts_also({"const": "auto"}))
    """1: the optimizer state is sharded over the workers; 2: gradients too; 3: parameters too. `auto`, the default on
    GPUs: the stage with the fastest step among those that fit the memory."""
    offload_optimizer: Literal["cpu"] | None = None
    """Keep the optimizer state in CPU memory."""
    offload_param: Literal["cpu"] | None = None
    """Keep the parameters in CPU memory; needs stage 3."""
    stage3_param_persistence_threshold: int | None = Field(None, ge=0)
    """Stage 3 leaves parameters with fewer elements than this unsharded. Default: Hugging Face's `auto`."""
    config_file: str | None = None
    """Path of a DeepSpeed JSON file, which takes the place of the keys above. Its "auto" values are filled as Hugging
    Face does."""
    config: dict[str, Any] | None = None
    """The content of such a file, written in the job file."""
    _auto: bool = PrivateAttr(default=False)

    @model_validator(mode="wrap")
    @classmethod
    def _left_open(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> DeepSpeedConfig:
        """Read `zero_stage: auto` as the lowest stage that the other keys allow, until the driver has chosen one."""
        asked = isinstance(values, dict) and values.get("zero_stage") == "auto"
        if asked and (values.get("config") is not None or values.get("config_file") is not None):
            raise ValueError("zero_stage: auto contradicts the DeepSpeed configuration, which says it || Keep one.")
        section = cast(DeepSpeedConfig, handler({**values, "zero_stage": _least_stage(values)} if asked else values))
        section._auto = section._auto or asked
        return section

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **({"zero_stage": "auto"} if self._auto else {})}

    @property
    def auto(self) -> bool:
        """Does the job ask for the stage to be chosen? `zero_stage` is the lowest possible one until it has been."""
        return self._auto

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("config"), dict):
            return {**values, "config": canonical_config(values["config"])}
        if not isinstance(values.get("config_file"), str) or values.get("config") is not None:
            return values
        path = Path(os.path.expanduser(values["config_file"]))
        try:
            config = read_json_file(path, pairs=_without_twins)
        except FileNotFoundError:
            raise ValueError(f"config_file: there is no such file ({path}) || Check the path.") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"config_file: is not JSON ({path}: {error}) || Correct the file.") from None
        return {**values, "config": canonical_config(config) if isinstance(config, dict) else config}

    @model_validator(mode="after")
    def _stages(self) -> DeepSpeedConfig:
        if self.config is not None:
            return self._check_config(self.config)
        if self.offload_param and self.zero_stage != 3:
            raise ValueError(
                f"offload_param needs zero_stage 3, not {self.zero_stage} || Set zero_stage: 3 or remove offload_param."
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload_optimizer needs zero_stage 1, 2 or 3 || Raise zero_stage or remove offload_optimizer."
            )
        if self.stage3_param_persistence_threshold is not None and self.zero_stage != 3:
            raise ValueError("stage3_param_persistence_threshold needs zero_stage 3 || Set zero_stage: 3 or remove it.")
        return self

    def _check_config(self, config: dict[str, Any]) -> DeepSpeedConfig:
        zero = config.get(ZERO, {})
        if not isinstance(zero, dict):
            raise ValueError("config: zero_optimization should be a mapping || See DeepSpeed's documentation.")
        if (stage := zero.get("stage", 0)) not in (0, 1, 2, 3):
            raise ValueError(f"config: zero_optimization.stage should be 0, 1, 2 or 3 ({stage!r}) || Correct it.")
        for key in ("zero_stage", "offload_optimizer", "offload_param", "stage3_param_persistence_threshold"):
            if key in self.model_fields_set and getattr(self, key) != self._of_config(key, zero):
                raise ValueError(
                    f"{key} contradicts the DeepSpeed configuration ({getattr(self, key)!r} and "
                    f"{self._of_config(key, zero)!r}) || Keep one."
                )
        object.__setattr__(self, "zero_stage", stage)
        return self

    def _of_config(self, key: str, zero: dict[str, Any]) -> Any:
        if key == "zero_stage":
            return zero.get("stage", 0)
        value = zero.get(key)
        return value.get("device") if isinstance(value, dict) else value

    @property
    def enabled(self) -> bool:
        """Does the run use DeepSpeed?"""
        return self.config is not None or self.zero_stage > 0


def _least_stage(values: dict[str, Any]) -> int:
    if values.get("offload_param") or values.get("stage3_param_persistence_threshold") is not None:
        return 3
    return 1 if values.get("offload_optimizer") else 0


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises `ValueError` for a key that is given twice, of which `json` would silently keep
    the last.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(
            f"the key {next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))!r} stands there twice"
        )
    return found


def apply_deepspeed_config(config: dict[str, Any], values: dict[str, Any], num_workers: int) -> list[Problem]:
    """Set in `values`, the values for `TrainingArguments`, what DeepSpeed's configuration says and the job does not.

    Returns:
        A problem for each value that the job and the configuration contradict each other about.
    """
    problems = []
    for key, name in _SAME.items():
        value = _find(config, key)
        if value in (None, "auto"):
            continue
        if name in values and values[name] != value:
            problems.append(_contradiction(key, value, f"training.{name}", values[name]))
        elif name not in values and _DEFAULTS.get(name) != value:
            values[name] = value
    betas = _find(config, "optimizer.params.betas")
    for i, name in enumerate(("adam_beta1", "adam_beta2")):
        if isinstance(betas, list) and len(betas) == 2 and values.setdefault(name, betas[i]) != betas[i]:
            problems.append(_contradiction("optimizer.params.betas", betas[i], f"training.{name}", values[name]))
    problems += _made_twice(config, values)
    total = config.get("train_batch_size", "auto")
    parts = values.get("gradient_accumulation_steps", 1) * num_workers
    if isinstance(total, int) and "per_device_train_batch_size" not in values and total % parts == 0:
        values["per_device_train_batch_size"] = total // parts
    if total != "auto" and total != values.get("per_device_train_batch_size", 8) * parts:
        product = (
            f"{values.get('per_device_train_batch_size', 8)} x {values.get('gradient_accumulation_steps', 1)} x "
            f"{num_workers}"
        )
        what = "per_device_train_batch_size x gradient_accumulation_steps x num_workers"
        problems.append(_contradiction("train_batch_size", total, what, product))
    return problems


def _made_twice(config: dict[str, Any], values: dict[str, Any]) -> list[Problem]:
    """A problem for each setting of the job's optimizer or scheduler that `transformers` would ignore, because
    DeepSpeed's configuration has an optimizer or scheduler of its own.
    """
    problems = []
    for section, names, same in (
        (
            "optimizer",
            ("optim", "optim_args", "optim_target_modules"),
            {"adamw": ("adamw_torch", "adamw_torch_fused"), "adam": ("adamw_torch", "adamw_torch_fused")},
        ),
        (
            "scheduler",
            ("lr_scheduler_type", "lr_scheduler_kwargs"),
            {"warmuplr": ("constant_with_warmup",), "warmupdecaylr": ("linear",), "warmupcosinelr": ("cosine",)},
        ),
    ):
        kind = str(_find(config, f"{section}.type"))
        for name in names:
            if section in config and name in values and values[name] not in same.get(kind.lower(), ()):
                problems.append(
                    Problem(
                        f"deepspeed.config.{section}",
                        f"takes precedence over training.{name} ({kind} and {values[name]})",
                        "Remove one of them.",
                    )
                )
    return problems


def _find(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _contradiction(key: str, value: Any, where: str, other: Any) -> Problem:
    return Problem(
        f"deepspeed.config.{key}",
        f"contradicts {where} ({value} and {other})",
        'Write "auto" there, or make them equal.',
    )
