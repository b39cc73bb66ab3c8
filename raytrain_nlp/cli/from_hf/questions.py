"""What run_qa.py and run_seq2seq_qa.py make of their flags: columns and lengths."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.files import first_rows, model_length
from raytrain_nlp.config.tasks.question import DEFAULT_LENGTH

_COLUMNS = {"question_column": "question", "context_column": "context", "answer_column": "answers"}
_SAMPLES = ("max_train_samples", "max_eval_samples")


def fill_questions(command: Command, job: dict[str, Any]) -> None:
    """Fill in columns and length. The scripts take the columns question, context and answers if they exist, else the
    first three.
    """
    task = job["task"]
    known = model_length(command.get("tokenizer_name") or command.get("model_name_or_path"))
    job["data"]["max_length"] = min(filter(None, (command.get("max_seq_length") or DEFAULT_LENGTH, known)))
    file = command.get("train_file") if command.get("dataset_name") is None else None
    rows = first_rows(file) if file else None
    names = list(rows[0]) if rows and "data" not in rows[0] else []  # in SQuAD's files the rows are below `data`
    for (key, usual), first in zip(_COLUMNS.items(), names[:3], strict=False):
        if usual not in names:
            task.setdefault(key, first)
    if task.get("null_score_diff_threshold") is not None and not task.get("version_2_with_negative"):
        del task["null_score_diff_threshold"]
        command.note("null_score_diff_threshold", "The script does not read it without --version_2_with_negative.")
    for flag in _SAMPLES if task["type"] == "question-answering" else ():
        if flag in command.values:
            command.note(flag, "The script cuts off features behind the same number, too; a job counts questions.")
