"""What each example script makes of its own flags: model, data, columns and lengths, with the script's defaults. The
functions `fill_*` change the sections of the job that they are given.
"""

from __future__ import annotations

import os
from typing import Any

from raytrain_nlp.cli.from_hf.classification import data_of_xnli, fill_texts, fill_xnli, name_splits
from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.files import first_rows, is_number, model_config, model_length
from raytrain_nlp.cli.from_hf.flags import OF_TRL
from raytrain_nlp.cli.from_hf.language_models import (
    LONGEST,
    OWN_MODELS,
    fill_infilling,
    fill_language_model,
    fill_permutation,
)
from raytrain_nlp.cli.from_hf.preferences import data_of_preferences, fill_preferences
from raytrain_nlp.cli.from_hf.questions import fill_questions
from raytrain_nlp.config.tasks.classification import GLUE_COLUMNS
from raytrain_nlp.errors import nearest

_SUMMARY_COLUMNS = {
    "amazon_reviews_multi": ("review_body", "review_title"), "big_patent": ("description", "abstract"),
    "cnn_dailymail": ("article", "highlights"), "orange_sum": ("text", "summary"), "pn_summary": ("article", "summary"),
    "psc": ("extract_text", "summary_text"), "samsum": ("dialogue", "summary"), "thaisum": ("body", "summary"),
    "xglue": ("news_body", "news_title"), "xsum": ("document", "summary"), "wiki_summary": ("article", "highlights"),
    "multi_news": ("document", "summary"),
}  # fmt: skip
"""Datasets that run_summarization.py knows -> their columns of texts and of summaries."""
_LONGEST_ROWS = {"multiple-choice": 1024, "token-classification": 512}
"""Tokens of a row if the command does not say them: run_swag.py's own limit, and the positions of BERT and RoBERTa."""
_OWN_DATA = {"multiple-choice": ("allenai/swag", "regular")}
"""Dataset of the hub, and its config, on which a script trains if its command names no data."""
_NAMED_TASKS = ("text-classification",)
"""Tasks whose `--task_name` is the name of a dataset (GLUE)."""
SCORED_FIRST = "matched"
"""The validation set of MNLI that the script scores during training, and by which it chooses the best model."""

Sections = dict[str, Any]


def fill_model(command: Command, job: Sections) -> None:
    """Fill in `model`, pretrained or from scratch."""
    name, kind, config_name = (command.get(flag) for flag in ("model_name_or_path", "model_type", "config_name"))
    overrides = command.get("config_overrides")
    if overrides is not None and (name or config_name):
        command.problem("config_overrides", "excludes --model_name_or_path and --config_name", "Keep one.")
    if name is not None:
        if kind is not None:
            command.note("model_type", "The model's own config says it.")
        if config_name not in (None, name):
            command.note("config_name", "The config comes with model.name_or_path.")
    elif config_name is not None:
        if (config := model_config(config_name)) is None:
            command.problem(
                "config_name",
                f"is no folder with a config.json ({config_name})",
                "Download it, or give --model_type and --config_overrides.",
            )
        else:
            job["model"]["config"] = config
    elif (kind := kind or OWN_MODELS.get(command.task)) is not None:
        job["model"]["config"] = {"model_type": kind, **_overrides(command, overrides or "")}
    dtype = command.get("dtype")
    if dtype == "auto":
        command.note("dtype", "Weights are loaded in float32; set model.dtype for another type.")
    elif dtype is not None:
        job["model"]["dtype"] = dtype


def _overrides(command: Command, text: str) -> Sections:
    """The values of `n_embd=10,scale_attn_weights=false`; other forms are added to the command's problems."""
    values: Sections = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            command.problem("config_overrides", f"is not of the form key=value,key=value ({part!r})", "Correct it.")
        else:
            values[key.strip()] = _scalar(value.strip())
    return values


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def fill_data(command: Command, job: Sections) -> None:
    """Fill in `data`, and note sources that the script would not read."""
    evaluates = command.get("do_eval", False) or command.get("eval_strategy", "no") != "no"
    if command.task in OF_TRL:
        job["data"] |= data_of_preferences(command)
        return
    if command.task == "xnli":
        job["data"] |= {split: name for split, name in data_of_xnli(command).items() if evaluates or split == "train"}
        return
    glue = command.get("task_name") if command.task in _NAMED_TASKS else None
    dataset, config = command.get("dataset_name"), command.get("dataset_config_name")
    files = {"train": command.get("train_file"), "validation": command.get("validation_file")}
    if not any((glue, dataset, *files.values())):
        dataset, config = _OWN_DATA.get(command.task, (None, config))
    if glue is not None or dataset is not None:
        winner = "task_name" if glue is not None else "dataset_name"
        for flag in (
            "train_file",
            "validation_file",
            *(("dataset_name", "dataset_config_name") if glue is not None else ()),
        ):
            if command.get(flag) is not None:
                command.note(flag, f"The script does not read it beside --{winner}.")
        source = f"nyu-mll/glue/{glue.lower()}" if glue is not None else "/".join(filter(None, (dataset, config)))
        if glue is None and (dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or os.path.isdir(dataset)):
            command.problem(
                "dataset_name",
                f"is a folder, not a dataset of the hub ({dataset})",
                "Name its files: --train_file, --validation_file.",
            )
        files = {"train": f"hf://{source}:train", "validation": f"hf://{source}:validation"}
        if command.task == "classification":
            files = name_splits(command, f"hf://{source}")
        if glue is not None and glue.lower() == "mnli":
            files["validation"] = _validations_of_mnli(command, files["validation"])
    elif config is not None:
        command.note("dataset_config_name", "The script does not read it without --dataset_name.")
    if files["validation"] is not None and not evaluates and glue is None and dataset is None:
        command.note("validation_file", "Without --do_eval the script does not read it.")
    if files["train"] is not None:
        job["data"]["train"] = files["train"]
    if evaluates and files["validation"] is not None:
        job["data"]["validation"] = files["validation"]
    elif evaluates and command.task not in LONGEST:
        command.problem("validation_file", "is missing", "--do_eval and --eval_strategy need it.")
    if command.task in LONGEST:
        _note_split(command, job, bool(files["validation"]), from_hub=glue is not None or dataset is not None)


def _validations_of_mnli(command: Command, source: str) -> str | Sections:
    """The validation data of MNLI. The script scores the matched rows during training, and with `--do_eval` the
    mismatched rows as well afterwards.
    """
    if not command.get("do_eval", False):
        return f"{source}_matched"
    command.note(
        "task_name",
        "The script's eval_accuracy is eval_matched_accuracy of the job, its eval_accuracy_mm is "
        "eval_mismatched_accuracy.",
    )
    return {name: f"{source}_{name}" for name in (SCORED_FIRST, "mismatched")}


def _note_split(command: Command, job: Sections, validation: bool, from_hub: bool) -> None:
    """Note that scripts of language models take validation rows from the training rows if there are no others, which a
    job does not.
    """
    flag = "validation_split_percentage"
    percentage = command.get(flag, 5)
    if not validation:
        lost = [
            key
            for key in ("eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end")
            if job["training"].pop(key, None)
        ]
        without = f" ({', '.join(lost)} left out)" if lost else ""
        rule = (
            f"The script holds back the first {percentage} % of the rows; a job trains on all and evaluates "
            f"nothing{without}"
        )
        command.note(flag, f"{rule}: split the file and add data.validation.")
    elif flag in command.values:
        split = "A job needs a dataset with a validation split; it cannot take rows from the training split."
        command.note(flag, split if from_hub else "The script does not read it beside --validation_file.")


def fill_task(command: Command, job: Sections) -> None:
    """Fill in the rest of `task`, and the lengths."""
    _TASKS[command.task](command, job)


def _fill_classification(command: Command, job: Sections) -> None:
    job["data"].setdefault("max_length", 128)
    if (glue := command.get("task_name")) is not None:
        if glue.lower() in GLUE_COLUMNS:
            job["task"]["glue"] = glue.lower()
        else:
            command.problem(
                "task_name",
                f"unknown task ({glue})",
                nearest(glue.lower(), GLUE_COLUMNS) or f"Tasks: {', '.join(GLUE_COLUMNS)}.",
            )
    elif command.get("dataset_name") is not None:
        job["task"]["text_columns"] = ["text"]
        command.note(
            "dataset_name",
            "The script takes the first columns besides `label`; [text] is assumed: correct task.text_columns where "
            "the dataset has others.",
        )
    elif (file := command.get("train_file")) is not None:
        rows = first_rows(file)
        if rows is None:
            job["task"]["text_columns"] = ["sentence"]
            command.note(
                "train_file",
                "It could not be looked into for its columns; [sentence] is assumed: correct task.text_columns where "
                "it has others.",
            )
            return
        columns = [name for name in rows[0] if name != "label"]
        pair = ["sentence1", "sentence2"]
        job["task"]["text_columns"] = pair if set(pair) <= set(columns) else columns[:2]
        if any(is_number(row.get("label")) for row in rows):
            job["task"]["problem_type"] = "regression"


def _fill_summarization(command: Command, job: Sections) -> None:
    dataset, file = command.get("dataset_name"), command.get("train_file")
    columns: tuple[str, ...] | None = _SUMMARY_COLUMNS.get((dataset or "").split("/")[-1])
    if columns is None and dataset is None and file is not None and (rows := first_rows(file)):
        columns = tuple(rows[0])[:2]
    names = ("text_column", "summary_column")
    for i, name in enumerate(names):
        if columns and len(columns) > i:
            job["task"].setdefault(name, columns[i])
    if not all(name in job["task"] for name in names):
        source = "dataset_name" if dataset is not None else "train_file"
        command.note(
            source,
            "The script takes the first two columns; text and summary are assumed: correct task.text_column and "
            "task.summary_column.",
        )
    _fill_seq2seq(command, job)


def _fill_translation(command: Command, job: Sections) -> None:
    for flag in ("source_lang", "target_lang"):
        if flag not in job["task"]:
            command.problem(flag, "is missing", "Give both languages.")
    _fill_seq2seq(command, job)


def _fill_choices(command: Command, job: Sections) -> None:
    """Fill in the columns of SWAG, which the script reads in any file, and the length."""
    job["task"] |= {"context_column": "sent1", "start_column": "sent2"}
    _fill_length(command, job, "The script takes the tokenizer's model_max_length, at most 1024")


def _fill_length(command: Command, job: Sections, rule: str) -> None:
    """Fill in `data.max_length`. If it is only a guess, a note says so, which begins with the script's `rule`."""
    known = model_length(command.get("tokenizer_name") or command.get("model_name_or_path"))
    asked = command.get("max_seq_length")
    job["data"]["max_length"] = min(filter(None, (asked or _LONGEST_ROWS[command.task], known)))
    if asked is None and known is None:
        command.note("max_seq_length", f"{rule}; correct data.max_length for a model of another length.")


def _fill_tags(command: Command, job: Sections) -> None:
    """Fill in columns and length. The script takes the columns tokens and TASK_NAME_tags (ner_tags by
    default) if they exist, else the first two.
    """
    _fill_length(command, job, "The script takes the tokenizer's model_max_length; 512 is written")
    file = command.get("train_file") if command.get("dataset_name") is None else None
    rows = first_rows(file) if file else None
    usual = {"text_column": "tokens", "label_column": f"{command.get('task_name', 'ner')}_tags"}
    for (key, name), first in zip(usual.items(), list(rows[0])[:2] if rows else (None, None), strict=False):
        job["task"].setdefault(key, name if first is None or rows and name in rows[0] else first)
    if not rows and not {"text_column_name", "label_column_name"} <= set(command.values):
        command.note(
            "dataset_name" if file is None else "train_file",
            "The script takes the first two columns where there are none of these names: correct task.text_column and "
            "task.label_column.",
        )


def _fill_generated_answers(command: Command, job: Sections) -> None:
    fill_questions(command, job)
    _fill_generation(command, job)


def _fill_seq2seq(command: Command, job: Sections) -> None:
    job["task"].setdefault("max_source_length", 1024)
    _fill_generation(command, job)


def _fill_generation(command: Command, job: Sections) -> None:
    beams = job["training"].pop("generation_num_beams", None)
    if beams is not None and job["task"].setdefault("num_beams", beams) != beams:
        command.note("generation_num_beams", "--num_beams goes before it.")
    job["task"].setdefault("num_beams", 1)
    if "validation" in job["data"]:
        job["training"].setdefault("predict_with_generate", False)


_TASKS = {
    "text-classification": _fill_classification,
    "classification": fill_texts,
    "xnli": fill_xnli,
    "multiple-choice": _fill_choices,
    "token-classification": _fill_tags,
    "question-answering": fill_questions,
    "seq2seq-question-answering": _fill_generated_answers,
    "causal-lm": fill_language_model,
    "fim": fill_infilling,
    "masked-lm": fill_language_model,
    "permutation-lm": fill_permutation,
    "summarization": _fill_summarization,
    "translation": _fill_translation,
    **dict.fromkeys(OF_TRL, fill_preferences),
}
