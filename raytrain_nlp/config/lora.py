"""`lora:`: `peft.LoraConfig` by its own names, read from the installed `peft` without importing it."""

from __future__ import annotations

import functools
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raytrain_nlp.config.library_fields import LibraryRemark, read_fields, read_remarks
from raytrain_nlp.errors import Problem, nearest

MERGE = "merge_and_unload"
"""The one key of this package: whether `model/` is the base model with the adapter merged in, instead of the adapter
alone."""
_OURS = {
    "task_type": "It follows from the task; remove it.",
    "peft_type": "It is LORA; remove it.",
    "inference_mode": "An adapter that is trained is not in inference mode; remove it.",
    "base_model_name_or_path": "Use model.name_or_path.",
    "revision": "Use model.revision.",
    "peft_version": "It is that of the installed package; remove it.",
    "auto_mapping": "PEFT sets it; remove it.",
}
PISSA = re.compile(r"pissa_niter_[1-9]\d*")
"""Values of `init_lora_weights` that name PiSSA with a number of iterations of a fast SVD. PEFT's annotation spells
them `pissa_niter_[number of iters]`."""
_NEEDS_DATA = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}


_KEEPS_BASE = (None, True, False, "gaussian", "eva")
"""Values of `init_lora_weights` that leave the base model's own weights as they are."""


def keeps_base(lora: dict[str, Any]) -> bool:
    """Is the model without its adapter the base model, at any time of the training?"""
    return lora.get("init_lora_weights") in _KEEPS_BASE and lora.get("bias", "none") == "none"


def check_lora(lora: dict[str, Any]) -> list[Problem]:
    """A problem for each key or value that PEFT or this package does not accept."""
    fields, problems = lora_fields(), []
    for key, value in lora.items():
        at = f"lora.{key}"
        if key in _OURS:
            problems.append(Problem(at, "is not set here", _OURS[key]))
        elif key not in fields:
            problems.append(
                Problem(at, "unknown key", nearest(key, fields) or "See peft.LoraConfig for the valid names.")
            )
        elif not (key == "init_lora_weights" and isinstance(value, str) and PISSA.fullmatch(value)):
            try:
                fields[key].validate_python(value)
            except ValidationError as error:
                problems.append(Problem(at, f"is wrong ({value!r}): {error.errors()[0]['msg']}", "Correct the value."))
    for key in ("r", "lora_alpha"):
        if not problems and isinstance(lora.get(key), (int, float)) and lora[key] <= 0:
            problems.append(Problem(f"lora.{key}", f"must be above 0 ({lora[key]!r})", "Correct the value."))
    if not problems and not 0 <= lora.get("lora_dropout", 0) < 1:
        problems.append(
            Problem(
                "lora.lora_dropout", f"must be at least 0 and below 1 ({lora['lora_dropout']!r})", "Correct the value."
            )
        )
    init = lora.get("init_lora_weights")
    if init in _NEEDS_DATA:
        problems.append(
            Problem(
                "lora.init_lora_weights",
                f"{init!r} looks at data before training, which is not done here",
                "Use true, gaussian, olora or pissa.",
            )
        )
    return problems


@functools.cache
def lora_fields() -> dict[str, TypeAdapter[Any]]:
    """Type of every field of the installed `LoraConfig`, and of this package's own key, by name."""
    return read_fields("peft", "tuners/lora/config.py", "LoraConfig") | {MERGE: TypeAdapter(bool)}


def refusals() -> dict[str, str]:
    """Each field of `LoraConfig` that a job may not set -> what to do instead."""
    return dict(_OURS)


@functools.cache
def lora_remarks() -> dict[str, LibraryRemark]:
    """PEFT's default and help of each field of `LoraConfig`, by name."""
    return read_remarks("peft", "tuners/lora/config.py", "LoraConfig")
