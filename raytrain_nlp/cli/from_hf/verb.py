"""`raytrain-nlp from-hf -- SCRIPT ARGS...`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

HELP = "Print the job file that equals a command of transformers' example scripts (run_glue.py, run_clm.py, ...)."
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Typer leaves all flags to the script, whether there is a `--` before it or not."""


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- SCRIPT ARGS...", help="The command as in a shell; it may begin with a launcher (torchrun, ...)."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as one JSON object.")] = False,
) -> None:
    """Translate a command."""
    from raytrain_nlp.cli.from_hf.convert import from_hf

    job, notes = from_hf(command)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(job) if as_json else render_job(job, notes), end="\n" if as_json else "")


def render_job(job: dict[str, Any], notes: list[str]) -> str:
    """The job as YAML. Comments say where it differs from the script by default; the notes follow at the end."""
    import yaml

    remarks = _remarks(job)
    lines = ["# A command of transformers' examples as a job file, by `raytrain-nlp from-hf`."]
    for key, value in job.items():
        lines += [f"# {remark}" for remark in remarks.get(key, ())]
        lines.append(yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=10_000).rstrip("\n"))
    lines += (
        ["", "# Without an equal key, or not quite equal:", *(f"#   {' '.join(note.split())}" for note in notes)]
        if notes
        else []
    )
    return "\n".join(lines) + "\n"


def _remarks(job: dict[str, Any]) -> dict[str, list[str]]:
    """Section -> remarks on differences between the job and the script that come from defaults, not from a flag."""
    training = job.get("training", {})
    remarks: dict[str, list[str]] = {"data": [], "training": [], "workers": []}
    if "validation" in job["data"] and "eval_strategy" not in training:
        remarks["data"].append("Evaluated after each epoch; the script does so once, after training.")
    if "train_sampling_strategy" not in training:
        where = "training" if training else "workers"
        remarks[where].append(
            "Batches group rows by length; `train_sampling_strategy: random` under `training` is the script's way."
        )
    if not job["workers"]["use_gpu"]:
        remarks["workers"].append(
            "Set use_gpu: true, and bf16: false under training, to train on GPUs as the script would where there are "
            "any."
        )
    return remarks
