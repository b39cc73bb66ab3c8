"""What run_classification.py and run_xnli.py make of their flags; they classify texts as run_glue.py does, but have
other flags.
"""

from __future__ import annotations

from typing import Any

from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.files import first_rows, is_number

Sections = dict[str, Any]
_XNLI = "facebook/xnli"


def name_splits(command: Command, source: str) -> dict[str, Any]:
    """The sources of training and validation rows: the splits of the dataset that the command names, which may be
    several.

    Args:
        source: the dataset as `hf://NAME`.
    """
    found = {}
    for split in ("train", "validation"):
        names = [name.strip() for name in command.get(f"{split}_split_name", split).split(",")]
        found[split] = [f"{source}:{name}" for name in names] if len(names) > 1 else f"{source}:{names[0]}"
    return found


def fill_texts(command: Command, job: Sections) -> None:
    """Fill in the columns and the problem type of run_classification.py."""
    task = job["task"]
    job["data"].setdefault("max_length", 128)
    names = command.get("text_column_names")
    task["text_columns"] = [name.strip() for name in names.split(",")] if names else ["sentence"]
    delimiter = command.get("text_column_delimiter", " ")
    if len(task["text_columns"]) > 1:
        task["text_column_delimiter"] = delimiter
    elif "text_column_delimiter" in command.values:
        command.note("text_column_delimiter", "The script does not read it with one column.")
    file = command.get("train_file") if command.get("dataset_name") is None else None
    rows, label = first_rows(file) if file else None, task.get("label_column", "label")
    if file is not None:
        for split in ("train_split_name", "validation_split_name"):
            if split in command.values:
                command.note(split, "The script does not read it beside --train_file.")
    asked = command.get("do_regression")
    if asked or asked is None and rows and any(is_number(row.get(label)) for row in rows):
        task["problem_type"] = "regression"
    elif rows and any(isinstance(row.get(label), list) for row in rows):
        task["problem_type"] = "multi_label_classification"
    elif not rows and asked is None:
        command.note(
            "do_regression",
            "The script sees by the labels what they are; where they are numbers or lists set task.problem_type to "
            "regression or multi_label_classification.",
        )


def data_of_xnli(command: Command) -> dict[str, Any]:
    """The section `data` of run_xnli.py: rows of one language, or training rows of one and validation rows of
    another.
    """
    language = command.get("language")
    if language is None:
        command.problem("language", "is missing", "Name the language of the validation rows.")
    for flag in ("train_file", "validation_file", "dataset_name", "dataset_config_name"):
        if flag in command.values:
            command.note(flag, "The script does not read it: its rows are XNLI's.")
    learned = command.get("train_language") or language
    return {"train": f"hf://{_XNLI}/{learned}:train", "validation": f"hf://{_XNLI}/{language}:validation"}


def fill_xnli(command: Command, job: Sections) -> None:
    """Fill in the columns and the length of run_xnli.py."""
    job["data"].setdefault("max_length", 128)
    job["task"]["text_columns"] = ["premise", "hypothesis"]
