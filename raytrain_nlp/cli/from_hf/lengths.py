"""Lengths of a job made from a command, within what its model has positions for."""

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
    "masked-lm": (("task", "block_size", "max_seq_length"), ("data", "max_length", "max_seq_length")),
    "summarization": (
        ("task", "max_source_length", "max_source_length"),
        ("task", "max_target_length", "max_target_length"),
    ),
    "translation": (
        ("task", "max_source_length", "max_source_length"),
        ("task", "max_target_length", "max_target_length"),
    ),
}
"""Keys of a job that are lengths, and their flags."""
_STRIDED, _STRIDE, _LEAST = ("question-answering",), 128, 8
"""Whose rows are windows; tokens that these share, as run_qa.py has them; those of a question and special ones."""


def fit_positions(command: Command, job: dict[str, Any]) -> None:
    """Lengths within what a model in a folder has positions for: beyond them it cannot run, and the scripts cut, resize
    or stop.
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
