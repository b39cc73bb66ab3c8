"""`lora:`: `peft.LoraConfig` by its own names, read from the installed `peft` without importing it."""

from __future__ import annotations

import functools
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raytrain_nlp.config.library_fields import LibraryRemark, read_fields, read_remarks
from raytrain_nlp.errors import Problem, nearest

MERGE = "merge_and_unload"
"""The one key that is ours: whether `model/` is the base model with the adapter merged in, or the adapter alone."""
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
"""PiSSA by so many iterations of a fast SVD; PEFT's annotation spells the number `[number of iters]`."""
_NEEDS_DATA = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}


def check_lora(lora: dict[str, Any]) -> list[Problem]:
    """What PEFT or this package would not take."""
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
    """Name -> type of every field of the installed `LoraConfig`, and of ours."""
    return read_fields("peft", "tuners/lora/config.py", "LoraConfig") | {MERGE: TypeAdapter(bool)}


def refusals() -> dict[str, str]:
    """Every field of `LoraConfig` that a job may not set, and what to do instead."""
    return dict(_OURS)


@functools.cache
def lora_remarks() -> dict[str, LibraryRemark]:
    """Name -> what PEFT says of a field."""
    return read_remarks("peft", "tuners/lora/config.py", "LoraConfig")
