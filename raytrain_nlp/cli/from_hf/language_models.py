"""What the scripts of language models make of their flags: length, column, and filling in the middle."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.files import first_rows, model_length
from raytrain_nlp.cli.from_hf.flags import script_flags

LONGEST = {"causal-lm": 1024, "fim": 1024, "masked-lm": 512, "permutation-lm": 512}
"""Tokens of a block if neither the command nor a tokenizer in a folder says them: run_clm.py's own limit,
the positions of BERT and RoBERTa, and run_plm.py's default.
"""
OWN_MODELS = {"permutation-lm": "xlnet"}
"""Type of the model from scratch of a script that has one only."""
_FIM_RATE = 0.5
"""run_fim.py's default."""
_FIM_TOKENS = ("fim_prefix_token", "fim_middle_token", "fim_suffix_token", "pad_token")

Sections = dict[str, Any]


def fill_language_model(command: Command, job: Sections) -> None:
    """Fill in the length and the column. The scripts take the column text if it exists, else the first."""
    by_line, masked = command.get("line_by_line", False), "max_seq_length" in script_flags(command.task)
    flag, section, key = (
        ("max_seq_length", "data", "max_length")
        if by_line
        else ("max_seq_length" if masked else "block_size", "task", "block_size")
    )
    known = model_length(command.get("tokenizer_name") or command.get("model_name_or_path"))
    limit = min(1024, known) if known else LONGEST[command.task]
    if (asked := command.get(flag)) is not None:
        job[section][key] = min(asked, known) if known else asked
    else:
        job[section][key] = limit
        if known is None:
            rule = "The script takes the tokenizer's model_max_length, at most 1024 as a rule"
            command.note(flag, f"{rule}; {limit} is written: correct {section}.{key} for a model of another length.")
    if not by_line and {"max_train_samples", "max_eval_samples"} & set(command.values):
        command.note(
            "max_train_samples",
            "The script counts blocks, a job counts rows: correct data.max_train_rows and data.max_validation_rows.",
        )
    file = command.get("train_file") if command.get("dataset_name") is None else None
    if file is not None and file.endswith(".txt") and not masked:
        if command.get("keep_linebreaks", True):
            command.note(
                "keep_linebreaks", "Each line of a text file that is not blank is a row, without its line break."
            )
    elif "keep_linebreaks" in command.values:
        command.note("keep_linebreaks", "The script does not read it without a text file.")
    rows = first_rows(file) if file else None
    if rows and "text" not in rows[0]:
        job["task"]["text_column"] = next(iter(rows[0]))


def fill_infilling(command: Command, job: Sections) -> None:
    """Fill in what run_fim.py does by default; its seed decides which documents are rearranged. Without any (a rate of
    0) the script still adds its tokens, which a job then does not.
    """
    fill_language_model(command, job)
    task = job["task"]
    task.setdefault("fim_rate", _FIM_RATE)
    if task["fim_rate"]:
        task |= {"fim_seed": command.get("seed")} if "seed" in command.values else {}
        return
    for key in [key for key in task if key.startswith("fim_") or key == "truncate_or_pad"]:
        del task[key]
    flags = {"fim_rate": "No document is rearranged, and no token is added."}
    flags |= dict.fromkeys(("fim_spm_rate", "truncate_or_pad", *_FIM_TOKENS), "No document is rearranged.")
    for flag, reason in flags.items():
        if flag in command.values:
            command.note(flag, reason)


def fill_permutation(command: Command, job: Sections) -> None:
    """Fill in what run_plm.py does: its length has a default."""
    command.values.setdefault("max_seq_length", LONGEST["permutation-lm"])
    fill_language_model(command, job)
