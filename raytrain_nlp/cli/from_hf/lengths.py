"""Limits the lengths in a job made from a command to the positions of its model."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.files import model_config, model_positions

_LENGTHS = {
    "text-classification": (("data", "max_length", "max_seq_length"),),
    "classification": (("data", "max_length", "max_seq_length"),),
    "xnli": (("data", "max_length", "max_seq_length"),),
    "token-classification": (("data", "max_length", "max_seq_length"),),
    "multiple-choice": (("data", "max_length", "max_seq_length"),),
    "question-answering": (("data", "max_length", "max_seq_length"),),
    "seq2seq-question-answering": (
        ("data", "max_length", "max_seq_length"),
        ("task", "max_target_length", "max_answer_length"),
    ),
    "causal-lm": (("task", "block_size", "block_size"),),
    "fim": (("task", "block_size", "block_size"),),
    "masked-lm": (("task", "block_size", "max_seq_length"), ("data", "max_length", "max_seq_length")),
    "permutation-lm": (("task", "block_size", "max_seq_length"), ("data", "max_length", "max_seq_length")),
    "summarization": (
        ("task", "max_source_length", "max_source_length"),
        ("task", "max_target_length", "max_target_length"),
    ),
    **dict.fromkeys(("dpo", "kto", "orpo", "reward"), (("data", "max_length", "max_length"),)),
    "translation": (
        ("task", "max_source_length", "max_source_length"),
        ("task", "max_target_length", "max_target_length"),
    ),
}
"""Script's entry -> section, key and flag of each length."""
_STRIDED, _STRIDE, _LEAST = ("question-answering",), 128, 8
"""Tasks that read long contexts in windows; run_qa.py's default of the tokens that two windows share; and the least
tokens of a window besides these.
"""


def fit_positions(command: Command, job: dict[str, Any]) -> None:
    """Lower the lengths in a job to the positions of its model, if the model's config is in the job or in a folder.
    Longer rows could not be computed; the scripts truncate, resize or stop in that case.
    """
    model = job["model"]
    config = model.get("config") or model_config(model.get("name_or_path") or "")
    most = model_positions(config) if config else None
    for section, key, flag in _LENGTHS[command.task]:
        length = job[section].get(key)
        if most is not None and isinstance(length, int) and length > most:
            job[section][key] = most
            command.note(flag, f"The model has {most} positions; {section}.{key} is {most}, not {length}.")
    stride, window = job["task"].get("doc_stride", _STRIDE), job["data"].get("max_length", 0)
    if command.task in _STRIDED and stride >= window - _LEAST:
        job["task"]["doc_stride"] = window // 2
        command.note(
            "doc_stride", f"Windows of {window} tokens cannot share {stride}; task.doc_stride is {window // 2}."
        )
