"""Checks that each name in the `lora` section matches a module, parameter, layer or token of the model. PEFT itself
only asks that any name of a list does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem, nearest


def check_lora_names(job: TrainJob, labels: list[str], tokenizer: Any) -> list[Problem]:
    """A problem for each name in `lora` that matches nothing of the job's model, or else what PEFT says when it applies
    the section to the model. The model is built on torch's meta device; no weights are loaded.
    """
    if job.lora is None:
        return []
    import torch

    from raytrain_nlp.modeling.lora import apply_lora, build_lora_config, without_weights
    from raytrain_nlp.modeling.model import build_empty_model
    from raytrain_nlp.tasks import build_task

    task = build_task(job.task)
    try:
        build_lora_config(job.lora, task)
    except InputError as error:
        return error.problems
    try:
        model = build_empty_model(job.model, task, labels, tokenizer)
    except InputError:
        raise
    except Exception:  # a config that the model's class refuses; it is reported where the model is built  # noqa: BLE001
        return []
    if problems := unmatched(job.lora, model):
        return problems
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apply_lora(model, without_weights(job.lora), task, False)
    except InputError as error:
        return error.problems
    return []


def unmatched(lora: dict[str, Any], model: Any) -> list[Problem]:
    """A problem for each name in the `lora` section that no module, parameter, layer or token of a model has.

    Args:
        lora: the section, by `peft.LoraConfig`'s names.
        model: the model without an adapter.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    targeted = _targeted(lora, model, modules)
    problems = []
    for key in ("target_modules", "exclude_modules"):
        problems += _unknown(
            key,
            lora.get(key),
            modules,
            lambda name, module: module == name or module.endswith(f".{name}"),
            single=_is_pattern,
        )
    problems += _unknown(
        "modules_to_save", lora.get("modules_to_save"), modules, lambda name, module: module.endswith(name)
    )
    problems += _unknown(
        "target_parameters",
        lora.get("target_parameters"),
        parameters,
        lambda name, parameter: parameter == name or parameter.endswith(f".{name}"),
    )
    for key in ("rank_pattern", "alpha_pattern"):
        problems += _unknown(
            key,
            list(lora.get(key) or {}),
            targeted,
            lambda name, module: re.match(rf"(.*\.)?({name})$", module) is not None,
        )
    patterns = lora.get("layers_pattern")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    problems += _unknown(
        "layers_pattern",
        patterns,
        modules,
        lambda name, module: re.match(rf"(?:^|.*?\.){name}\.\d+(\.|$)", module) is not None,
    )
    return problems + _unknown_layers(lora, patterns, targeted) + _unknown_tokens(lora, model, modules)


def _is_pattern(text: str) -> bool:
    """Is a text (in the place of a list) a regular expression of full module names? The exception is `all-linear`."""
    return text.lower() != "all-linear"


def _unknown(key: str, given: Any, names: list[str], matches: Any, single: Any = None) -> list[Problem]:
    """A problem for each given name that matches none of `names`.

    Args:
        key: key of the `lora` section.
        given: its value: a list, a text, or None.
        names: full names of modules or parameters.
        matches: `matches(given name, full name)`, as PEFT decides it.
        single: for a key whose value may be a regular expression: is this text one?
    """
    where = f"lora.{key}"
    if isinstance(given, str) and single is not None:
        try:
            found = not single(given) or any(re.fullmatch(given, name) for name in names)
        except re.error as error:
            return [Problem(where, f"is no regular expression ({given!r}: {error})", "Correct it.")]
        return (
            []
            if found
            else [
                Problem(
                    where,
                    f"matches no module of the model ({given!r})",
                    "A text alone is a regular expression of whole names; write a list.",
                )
            ]
        )
    problems = []
    for name in [given] if isinstance(given, str) else given or ():
        try:
            found = any(matches(str(name), module) for module in names)
        except re.error as error:
            problems.append(Problem(where, f"is no regular expression ({name!r}: {error})", "Correct it."))
            continue
        if not found:
            problems.append(Problem(where, f"nothing of the model has this name ({name!r})", _hint(str(name), names)))
    return problems


def _hint(name: str, names: Iterable[str]) -> str:
    """What to write instead of `name`: the most similar one among the last parts of the names, or a list of these."""
    last = list(dict.fromkeys(part for full in names if not (part := full.rpartition(".")[2]).isdecimal()))
    return (
        nearest(name.rpartition(".")[2], last)
        or f"There are {', '.join(last[:24])}{', ...' if len(last) > 24 else ''}."
    )


def _targeted(lora: dict[str, Any], model: Any, modules: list[str]) -> list[str]:
    """The modules that get an adapter according to `target_modules`; all modules if PEFT chooses."""
    given = lora.get("target_modules")
    if given is None or (isinstance(given, str) and not _is_pattern(given)):
        return modules
    if isinstance(given, str):
        try:
            return [name for name in modules if re.fullmatch(given, name)]
        except re.error:
            return modules
    return [name for name in modules if any(name == target or name.endswith(f".{target}") for target in given)]


def _unknown_layers(lora: dict[str, Any], patterns: list[str] | None, targeted: list[str]) -> list[Problem]:
    """A problem for each number in `layers_to_transform` without a layer that contains a targeted module."""
    wanted = lora.get("layers_to_transform")
    wanted = [wanted] if isinstance(wanted, int) else wanted or []
    layer = rf"(?:{'|'.join(patterns)})" if patterns else r"[^.]*"
    found = {int(match[1]) for name in targeted if (match := re.match(rf"(?:^|.*?\.){layer}\.(\d+)\.", name))}
    what = (
        f"layers {min(found)} to {max(found)} are there"
        if found
        else "no module that gets an adapter is in a numbered layer"
    )
    return [
        Problem("lora.layers_to_transform", f"no such layer ({number}; {what})", "Correct it.")
        for number in wanted
        if number not in found
    ]


def _unknown_tokens(lora: dict[str, Any], model: Any, modules: list[str]) -> list[Problem]:
    """A problem for each entry of `trainable_token_indices` that names no module or is no row of the input
    embedding.
    """
    given = lora.get("trainable_token_indices")
    if not given:
        return []
    where, rows = "lora.trainable_token_indices", model.get_input_embeddings().num_embeddings
    by_module = given if isinstance(given, dict) else {"": given}
    problems = [
        Problem(where, f"nothing of the model has this name ({name!r})", _hint(name, modules))
        for name in by_module
        if name and not any(module.endswith(name) for module in modules)
    ]
    beyond = [index for indices in by_module.values() for index in indices if not 0 <= index < rows]
    return problems + [
        Problem(where, f"no such token ({index}; the vocabulary has {rows})", "Correct it.") for index in beyond
    ]
