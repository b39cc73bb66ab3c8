"""Turns a command of transformers' example scripts into a job: `raytrain-nlp from-hf -- run_glue.py ARGS...`.

Each flag becomes a key of the job, or a note that says why there is no such key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytrain_nlp.cli.from_hf.command import Command, read_command
from raytrain_nlp.cli.from_hf.flags import TASKS, TRUE_HERE, flags_of
from raytrain_nlp.cli.from_hf.lengths import fit_positions
from raytrain_nlp.cli.from_hf.own_loop import own_loop_flags
from raytrain_nlp.cli.from_hf.scripts import SCORED_FIRST, Sections, fill_data, fill_model, fill_task
from raytrain_nlp.config.load import load_job
from raytrain_nlp.config.training import check_training
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import check_run_name
from raytrain_nlp.storage.untrusted import read_json_file

_ON_GPU_ONLY = ("fp16", "fp16_full_eval", "tf32")
_TRACKERS = ("tensorboard", "wandb")
_ALWAYS = ("none", "mlflow")
"""Values of `--report_to` that need no key, as MLflow always tracks a job."""
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedulers that read the metric of the best model."""


def from_hf(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The job that does the same as a command, and a note `--flag: reason` for each flag that a job does not have.

    Args:
        argv: the words of the command, e.g. `["python", "run_glue.py", "--task_name", "mrpc", ...]`.

    Raises:
        InputError: with all problems: unknown flags, wrong values, and those of the job (`load_job`).

    Example:
        >>> import raytrain_nlp
        >>> command = "python run_glue.py --model_name_or_path bert-base-cased --task_name mrpc --do_train"
        >>> job, notes = raytrain_nlp.from_hf(f"{command} --output_dir runs/mrpc --learning_rate 2e-5".split())
        >>> job["task"], job["training"]["learning_rate"]
        ({'type': 'text-classification', 'glue': 'mrpc'}, 2e-05)
    """
    command = read_command(argv)
    misread = bool(command.problems)
    job: Sections = {
        key: {} for key in ("task", "model", "data", "training", "deepspeed", "workers", "checkpoint", "tracking")
    }
    job["task"]["type"] = TASKS.get(command.task, command.task)
    _fill_keys(command, job)
    fill_model(command, job)
    fill_data(command, job)
    fill_task(command, job)
    fit_positions(command, job)
    _fill_training(command, job)
    _fill_run(command, job)
    job["data"] = {key: job["data"][key] for key in ("train", "validation", *job["data"]) if key in job["data"]}
    job = {key: job[key] for key in ("name", "storage_path", "seed", *job) if job.get(key) not in (None, {})}
    _check(command, job, misread)
    return job, command.notes


def _fill_keys(command: Command, job: Sections) -> None:
    """Fill in keys whose values are those of flags, and add notes for flags without a key."""
    flags = {flag.name: flag for flag in own_loop_flags(command.task).values()} | flags_of(command.task)
    for name, value in command.values.items():
        target = flags[name].target
        if target.startswith("# "):
            if not isinstance(value, bool) or value != (name in TRUE_HERE):
                command.note(name, target[2:])
        elif "." in target:
            section, key = target.split(".")
            job[section][key] = value
        elif target:
            job[target] = value


def _fill_training(command: Command, job: Sections) -> None:
    """Fill in `training` and `checkpoint` where a job says something in another way than the script."""
    training, checkpoint = job["training"], job["checkpoint"]
    if training.get("logging_steps") == 0 and training.get("logging_strategy", "steps") != "steps":
        del training["logging_steps"]  # the script does not read it then
    if training.get("eval_strategy") == "no":
        del training["eval_strategy"]
        if command.get("do_eval", False):
            command.note("eval_strategy", "The script evaluates once, after training; a job after each epoch.")
    if training.get("eval_strategy") == "steps":  # written out, as the script's default is larger than a job's
        training["eval_steps"] = training.get("eval_steps") or training.get("logging_steps", 500)
    elif training.pop("eval_steps", None) is not None:
        command.note("eval_steps", "Without --eval_strategy steps the script does not read it.")
    if (ratio := command.get("warmup_ratio")) is not None and not training.get("warmup_steps"):
        if 0 <= ratio < 1:
            training["warmup_steps"] = ratio
        else:
            command.problem("warmup_ratio", f"should be at least 0 and below 1 ({ratio:g})", "Correct the value.")
    if (steps := command.get("save_steps")) is not None:
        if steps <= 0:
            checkpoint["save_strategy"] = "no"
            command.note("save_steps", "Not above 0 means no checkpoints, here save_strategy 'no'.")
        elif steps < 1:
            training["save_steps"] = steps  # a share of all steps
        else:
            checkpoint["save_steps"] = int(steps) if steps.is_integer() else steps
    chooses = (
        training.get("load_best_model_at_end")
        or checkpoint.get("save_strategy") == "best"
        or training.get("lr_scheduler_type") in _BY_METRIC
    )
    if isinstance(job["data"].get("validation"), dict) and (chooses or "metric_for_best_model" in training):
        training["metric_for_best_model"] = (
            f"eval_{SCORED_FIRST}_{training.get('metric_for_best_model', 'loss').removeprefix('eval_')}"
        )
    if not command.get("do_train", False):
        command.note("do_train", "It is not in the command, but a job always trains.")


def _fill_run(command: Command, job: Sections) -> None:
    """Fill in the run's name and storage path, its trackers, DeepSpeed and workers."""
    folder = command.get("output_dir", "trainer_output")
    parent, base = os.path.split(folder.rstrip("/") or "/")
    job["storage_path"] = parent or "."
    job["name"] = base
    if check_run_name(base):
        job["name"] = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", base)).strip("._-")[:100] or "run"
        command.note("output_dir", f"Its last part is no run name; the run is called {job['name']}.")
    for tracker in _as_list(command.get("report_to")):
        if tracker in _TRACKERS:
            job["tracking"].setdefault("report_to", []).append(tracker)
        elif tracker not in _ALWAYS:
            command.note(
                "report_to", f"{tracker} is not supported; MLflow is always there, tensorboard and wandb on request."
            )
    if (run_name := command.get("run_name")) not in (None, job["name"]):
        job["tracking"]["tags"] = {"run_name": run_name}  # a job's run is named like its folder
    deepspeed = command.get("deepspeed")
    if deepspeed is not None:
        job["deepspeed"] = {"config": deepspeed} if isinstance(deepspeed, dict) else {"config_file": deepspeed}
    else:
        job["deepspeed"] = command.sharding
    job["tracking"] |= command.tracking
    needs_gpu = command.use_gpu or any(job["training"].get(key) for key in _ON_GPU_ONLY) or _enabled(deepspeed, "fp16")
    job["workers"] = {
        "num_workers": command.num_workers,
        "use_gpu": needs_gpu and not command.get("use_cpu", False),
        **command.workers,
    }
    if job["workers"]["use_gpu"] and not any(
        job["training"].get(key) or _enabled(deepspeed, key) for key in ("bf16", "fp16")
    ):
        job["training"]["bf16"] = False  # the script trains in fp32, but a job's default on GPUs is bf16


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _enabled(deepspeed: Any, precision: str) -> bool:
    """Does a DeepSpeed JSON enable a precision?

    Args:
        deepspeed: its content or its file; one that cannot be read counts as no, and `load_job` reports it.
        precision: `fp16` or `bf16`.
    """
    try:
        config = read_json_file(Path(os.path.expanduser(deepspeed))) if isinstance(deepspeed, str) else deepspeed
        return config[precision]["enabled"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check(command: Command, job: Sections, misread: bool) -> None:
    """Raises `InputError` with the problems of the command and of the job. A key that comes from a flag is named by the
    flag.

    Args:
        misread: whether flags could not be read. Missing flags are then not reported, as they may only be misspelt.
    """
    if misread:
        problems = [problem for problem in command.problems if problem.what != "is missing"] + check_training(
            job.get("training", {})
        )[1]
    else:
        if not {"name_or_path", "config"} & set(job.get("model", {})) and "config_name" not in command.values:
            command.problem("model_name_or_path", "is missing", "Give a model.")
        if "train" not in job.get("data", {}):
            command.problem("train_file", "is missing", "A job needs training data: give it, or --dataset_name.")
        problems = command.problems + _problems_of_job(job, known=bool(command.problems))
    if problems:
        flags = flags_of(command.task)
        written = {
            flags[name].target: f"--{command.written.get(name, name)}" for name in command.values if name in flags
        }
        raise InputError(
            [Problem(written.get(problem.where, problem.where), problem.what, problem.todo) for problem in problems]
        )


def _problems_of_job(job: Sections, known: bool) -> list[Problem]:
    """The problems that `load_job` finds; without those of missing values if the command's problems are already
    `known`.
    """
    try:
        load_job(job)
    except InputError as error:
        return [
            problem
            for problem in error.problems
            if not (known and problem.what.startswith(("is missing", "needs either")))
        ]
    return []
