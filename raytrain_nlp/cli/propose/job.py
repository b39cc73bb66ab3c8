"""Writes the commented job file for a source of rows from its columns, task, model and sizes, with the reasons."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from raytrain_nlp.cli.propose.columns import Sample, read_sample
from raytrain_nlp.cli.propose.model import Choice, choose_model
from raytrain_nlp.cli.propose.options import Options
from raytrain_nlp.cli.propose.tasks import Proposal, propose_task
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.errors import InputError, Problem

_MORE_FROM_SCRATCH = 1.5
"""Factor for the estimated tokens if a tokenizer is trained: its small vocabulary splits words into more tokens."""
_LONGEST, _BLOCK = 512, 128
"""Tokens of a row or block at most, and of a block for a small model from scratch."""
_POSITIONS = ("max_position_embeddings", "n_positions")
_SPLITS = ("validation", "test")
_NAMED = re.compile(r"train(ing)?", re.I)


class Draft:
    """A job proposed for the rows of a source.

    Args:
        source: file, folder, glob or address of rows, as `data.train` of a job.
        examples: job files of the examples by name.
        options: the flags of `init`.

    Raises:
        InputError: no row can be read, or no task and model fit them.
    """

    def __init__(self, source: str, examples: dict[str, Path], options: Options):
        self.source = source
        self.train, self.validation = (source, options.validation) if options.validation else find_splits(source)
        self.sample = read_sample(find_files([self.train], "DATA"))
        if not self.sample.rows:
            raise InputError(Problem("DATA", f"no row of it can be read ({self.train})", "See README, data formats."))
        self.proposal = _task_of(self.train, self.sample, options.task)
        choice = choose_model(self.proposal, self.sample, examples[self.proposal.type], options.model)
        if choice is None:
            what = "holds chats, which need a tokenizer with a chat template, and the hub cannot be reached"
            raise InputError(
                Problem("DATA", f"{what} ({self.train})", "Name a folder with a chat model: --model FOLDER.")
            )
        self.choice: Choice = choice
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", _stem(self.train)).strip("-._") or "run"

    def summary(self) -> list[str]:
        """Lines for the user: rows, columns, task and model."""
        count = f"{self.sample.rows:,}{'' if self.sample.whole else ' or more'} rows"
        width = max(map(len, self.sample.columns), default=0)
        lines = [f"{self.source}: {count}"]
        for column in self.sample.columns.values():
            of = f"{len(column.values):,} different" if column.values else ", ".join(column.names)
            words = f", {column.words:.0f} words on average" if column.words else ""
            lines.append(f"  {column.name:<{width}}  {column.kind}{f', {of}' if of else ''}{words}")
        lines.append(
            f"task: {self.proposal.type}, model: {self.choice.model.get('name_or_path', 'small, from scratch')}"
        )
        if self.validation is None:
            lines.append(
                "note: no validation data, so nothing will be scored; `--split 0.1` sets a tenth of the rows aside,"
            )
            lines.append("      `--validation FILE` names some")
        return lines

    def render(self, first_line: str, target: Path) -> str:
        """The text of the job file `target`, which begins with `first_line`."""
        seen = f"{self.sample.rows:,}" if self.sample.whole else f"first {self.sample.rows:,}"
        lines = [
            first_line.rstrip("\n"),
            f"# {self.proposal.type} on {self.source}, proposed by `raytrain-nlp init` from its {seen} rows.",
            "#",
            f"#   raytrain-nlp check {target}",
            f"#   raytrain-nlp train {target}",
            "#",
            "# Every key of a job file: raytrain-nlp keys",
            f"name: {_flow(self.name)}",
            "storage_path: runs             # the run lives in storage_path/name",
            "seed: 42",
            "",
            *_section("task", self._task(), self.proposal.remarks),
        ]
        lines += [f"  # not read: {', '.join(self.proposal.left_out)}"] if self.proposal.left_out else []
        lines += ["", *(f"# {remark}" for remark in self.choice.remarks), *_section("model", self._model())]
        lines += ["", *self._data(), "", *_section("training", self._training(), _TRAINING_REMARKS)]
        lines += ["", "# workers: {num_workers: 2}    # default: one for each GPU of this machine, else two on CPUs"]
        lines += ["checkpoint: {save_total_limit: 2}"]
        return "\n".join(lines) + "\n"

    def _task(self) -> dict[str, Any]:
        task = dict(self.proposal.task)
        target = self.proposal.target
        if target is not None:
            task["max_target_length"] = self._tokens(target.p95_tokens)
            if self.choice.model.get("name_or_path", "").startswith("google-t5/"):
                task["source_prefix"] = "summarize: "
        if self.proposal.windows:
            task["doc_stride"] = self.max_length // 4
        if self.proposal.packs:
            task["block_size"] = _BLOCK if self.choice.from_scratch else _LONGEST
        return task

    @property
    def max_length(self) -> int:
        """`data.max_length`: tokens of a row."""
        return self._tokens(sum(column.p95_tokens for column in self.proposal.texts))

    def _tokens(self, expected: int) -> int:
        """A length with room for `expected` tokens and special tokens: a multiple of 32, from 32 to 512."""
        tokens = expected * (_MORE_FROM_SCRATCH if self.choice.from_scratch else 1) + 4
        return min(max(-(-int(tokens) // 32) * 32, 32), _LONGEST)

    def _model(self) -> dict[str, Any]:
        model = dict(self.choice.model)
        if config := model.get("config"):
            longest = max(self.max_length, _BLOCK, *(value for key, value in self._task().items() if "max_t" in key), 0)
            model["config"] = {
                key: max(value, longest) if key in _POSITIONS else value for key, value in config.items()
            }
        return model

    def _data(self) -> list[str]:
        data: dict[str, Any] = {"train": self.train}
        if self.validation:
            data["validation"] = self.validation
        if not self.proposal.packs:
            data["max_length"] = self.max_length
        data["global_batch_size"] = 32 if self.max_length <= 256 and not self.proposal.packs else 16
        remarks = {
            "max_length": "tokens; longer rows are cut, and counted",
            "global_batch_size": "rows of an update, by however many workers",
        }
        lines = _section("data", data, remarks)
        return lines if self.validation else [*lines, "  # validation: FILE             # without it nothing is scored"]

    def _training(self) -> dict[str, Any]:
        rows = self.sample.rows if self.sample.whole else 10 * self.sample.rows
        training = {**self.choice.training, "num_train_epochs": 5 if rows < 2_000 else 3 if rows < 50_000 else 1}
        return {**training, "load_best_model_at_end": True} if self.validation else training


_TRAINING_REMARKS = {
    "learning_rate": "transformers.TrainingArguments, by its own names",
    "warmup_steps": "a share of all steps",
    "load_best_model_at_end": "of the evaluations, one after each epoch",
}


def find_splits(source: str) -> tuple[str, str | None]:
    """The training and validation data of a source: splits of a folder, or a file and the validation file beside it
    with the same name but for the split. None if there are no validation data.
    """
    if Path(source).is_dir():
        for train in (source, f"{source}:train"):
            try:
                find_files([train], "DATA")
            except InputError:
                continue
            others = (f"{source}:{split}" for split in _SPLITS) if train != source else ()
            return train, next(filter(_is_there, others), None)
    folder, _, name = source.rpartition("/")
    if (found := _NAMED.search(name)) and "*" not in name:
        for split in ("validation", "valid", "dev", "val", "test"):
            beside = f"{folder}/" * bool(folder) + name[: found.start()] + split + name[found.end() :]
            if _is_there(beside):
                return source, beside
    return source, None


def _is_there(source: str) -> bool:
    try:
        find_files([source], "DATA")
    except InputError:
        return False
    return True


def _task_of(source: str, sample: Sample, task: str | None) -> Proposal:
    """The proposed task. Raises `InputError` if none fits."""
    if found := propose_task(sample, task):
        return found
    columns = ", ".join(f"{column.name} ({column.kind})" for column in sample.columns.values())
    what = f"has no columns for {task}" if task else "has no columns that a task could read"
    todo = f"Start from an example: raytrain-nlp init {task or 'text-classification'}."
    raise InputError(Problem("DATA", f"{what} ({source}: {columns or 'none'})", todo))


def _stem(source: str) -> str:
    """The name of a source without its folder, its suffixes and the word train."""
    name = source.rstrip("/").rpartition("/")[2].split(":")[0]
    name = re.sub(
        r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|txt|text|conllu?|bio|iob2?|gz))+$", "", name, flags=re.I
    )
    return re.sub(r"[-_. ]*\btrain(ing)?$", "", name, flags=re.I) or name


def _section(name: str, values: dict[str, Any], remarks: dict[str, str] | None = None) -> list[str]:
    """The lines of a section of the job file, with remarks as comments."""
    lines = [f"{name}:"]
    for key, value in values.items():
        line = f"  {key}: {_flow(value)}"
        remark = (remarks or {}).get(key)
        lines.append(f"{line:<31}  # {remark}" if remark else line)
    return lines


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
        .strip()
        .removesuffix("...")
        .strip()
    )
