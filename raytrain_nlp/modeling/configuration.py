"""The `transformers` config of a job's model, from the job's fields, the tokenizer and the task. Errors that a model
family raises over a config become an `InputError` of one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.failures import from_another_rank, out_of_memory, raised_in
from raytrain_nlp.tasks.base import Task


def build_model_config(
    config: ModelConfig, task: Task, labels: list[str], tokenizer: Any, with_labels: bool = True
) -> Any:
    """The `transformers` config of a model from scratch: the job's fields, the tokenizer's vocabulary, the task's
    labels.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    assert config.config is not None, "a model from scratch"
    first, last = (_first_id(tokenizer, *names) for names in (("cls", "bos"), ("sep", "eos")))
    ids = {"cls_token_id": first, "sep_token_id": last, "bos_token_id": first, "eos_token_id": last}
    defaults = CONFIG_MAPPING[config.config["model_type"]]().to_dict()  # ids of a vocabulary of their own
    ids = {name: value for name, value in ids.items() if isinstance(defaults.get(name), int)}
    if defaults.get(
        "is_encoder_decoder"
    ):  # T5's decoder starts with the pad token, that of BART and similar families with the end-of-sequence token
        starts_with_end = defaults.get("decoder_start_token_id") is not None and defaults.get(
            "decoder_start_token_id"
        ) == defaults.get("eos_token_id")
        ids["decoder_start_token_id"] = last if starts_with_end and last is not None else tokenizer.pad_token_id
    special = {
        **ids,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **task.special_tokens(tokenizer),
    }
    values = {**special, **config.config, **(task.model_kwargs(labels) if with_labels else {})}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _first_id(tokenizer: Any, *names: str) -> int | None:
    """Id of the first of these special tokens that the tokenizer has."""
    return next((found for name in names if (found := getattr(tokenizer, f"{name}_token_id")) is not None), None)


def load_config(config: ModelConfig, task: Task, tokenizer: Any) -> Any:
    """The `transformers` config of a job's model as far as it is known without labels. Raises `InputError` where the
    family refuses it.
    """
    from transformers import AutoConfig

    with told_as_problem(config):
        if config.config:
            return build_model_config(config, task, [], tokenizer, with_labels=False)
        return AutoConfig.from_pretrained(
            config.name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )


@contextlib.contextmanager
def told_as_problem(config: ModelConfig) -> Iterator[None]:
    """Turn any exception that a model family raises over a config or weights into an `InputError`. Those that the model
    did not cause pass through: from DeepSpeed, from another rank, or because memory ran out.
    """
    try:
        yield
    except Exception as error:
        if (
            isinstance(error, InputError)
            or raised_in(error, "deepspeed")
            or out_of_memory(str(error))
            or from_another_rank(error)
        ):
            raise
        lines = [" ".join(line.split()) for line in str(error).strip().splitlines() if line.strip()]
        reason = (
            (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:300]
            if lines
            else type(error).__name__
        )
        if isinstance(
            error, (ZeroDivisionError, AttributeError, KeyError, IndexError)
        ):  # they do not say what they are about
            reason = f"{type(error).__name__}: {reason}"
        if config.config:
            what = f"is refused by its family ({config.config['model_type']}: {reason.rstrip('.')})"
            raise InputError(Problem("model.config", what, "Correct the values.")) from error
        raise InputError(
            Problem(
                "model",
                f"cannot be loaded for this task ({config.name_or_path}: {reason.rstrip('.')})",
                "Check name, config and task.",
            )
        ) from error
