"""Resolve: from a job to what its workers need - files found, tokens prepared, labels known, steps counted.

Everything here runs in the driver, before a worker starts, and tells all problems of one kind at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config import TrainJob, without_passwords
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import QUARANTINE, MapPieces, find_tokens, first_told, prepare_tokens
from raytrain_nlp.data.reading.sources import SourceFile
from raytrain_nlp.data.shards import MANIFEST, TokenStore, open_store
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.data.windows import WindowedSpec, split_windows
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.packages import package_versions
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import load_tokenizer
from raytrain_nlp.paths import cache_dir
from raytrain_nlp.planning.inputs import Files
from raytrain_nlp.planning.label_names import name_labels
from raytrain_nlp.planning.labels import find_known_rows, find_labels, majority_accuracy
from raytrain_nlp.planning.library_checks import check_model_names, check_schedule
from raytrain_nlp.planning.models import check_model, find_tokenizer, model_facts
from raytrain_nlp.planning.truncation import cut_lengths, cut_notes, cut_rows
from raytrain_nlp.planning.window_prefetch import WindowPreparer
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext
from raytrain_nlp.user_code import UserObject
from raytrain_nlp.worker.spec import WorkerSpec

SMALL_BYTES = 32 << 20
"""Data up to this size are prepared in the driver: starting the cluster's workers for them would take longer."""
_SAMPLED_ROWS = 200_000


@dataclass(frozen=True)
class Resolved:
    """What `resolve` found out."""

    spec: WorkerSpec
    rows: dict[str, int]
    """Rows used, for each split; blocks, where the task packs."""
    left_out: dict[str, int]
    """Rows the user's `preprocess` left out, and those of which nothing is learned."""
    bad_rows: dict[str, int]
    tokenized_rows: int
    """Rows tokenized now, not found in the cache."""
    dropped_rows: int
    majority_accuracy: float | None
    """What always answering the most frequent label would score on the validation rows."""
    quarantine: list[tuple[str, Path | None, list[dict[str, Any]]]]
    windows: WindowPreparer | None = None
    """What prepares the training rows, where they are streamed; the counts above then leave them out."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the job before it starts, a line each."""
    cut_rows: dict[str, int] = field(default_factory=dict)
    """Rows of which tokens were left out, as they had more than they may have."""

    def counts(self) -> dict[str, Any]:
        """Rows by what became of them; of streamed ones those of the windows prepared so far."""
        streamed = self.windows.counts if self.windows else {}
        return {
            **{
                name: {**({"train": streamed[name]} if streamed else {}), **getattr(self, name)}
                for name in ("rows", "bad_rows", "left_out", "cut_rows")
            },
            "tokenized_rows": self.tokenized_rows + streamed.get("tokenized_rows", 0),
            "dropped_rows": self.dropped_rows,
            "majority_accuracy": self.majority_accuracy,
        }

    def lengths(self) -> dict[str, dict[str, float]]:
        """Tokens of a row (of a block, where the task packs) in each split, of a sample of a large one; of rows that
        were cut also those before.
        """
        found = {}
        for split, spec in (("train", self.spec.train), *_splits(self.spec).items()):
            if isinstance(spec, SplitSpec):
                lengths = Split(spec).plan.lengths[: spec.plan.num_rows]
                sample = lengths[:: max(len(lengths) // _SAMPLED_ROWS, 1)]
                shares = {f"p{share}": float(np.percentile(sample, share)) for share in (5, 50, 95, 100)}
                found[split] = {**cut_lengths(open_store(spec.tokens).manifest), "mean": float(sample.mean()), **shares}
        return found


def resolve(job: TrainJob, files: Files, storage: Path, map_pieces: MapPieces, verbose: bool = False) -> Resolved:
    """Prepare the tokens of a job (or find them prepared) and plan its run. Raises `InputError` for what data and model
    say.
    """
    preprocess = (
        UserObject(job.trainer.preprocess, "trainer.preprocess", os.getcwd()) if job.trainer.preprocess else None
    )
    job, notes = name_labels(job, files, preprocess)
    tokenizer_dir = find_tokenizer(job, files, storage, preprocess)
    tokenizer, task = load_tokenizer(str(tokenizer_dir)), build_task(job.task)
    if lacks := task.check_tokenizer(tokenizer):
        raise InputError(
            Problem(
                "model.tokenizer" if job.model.tokenizer else "model.name_or_path",
                f"the tokenizer {lacks}",
                "Choose another.",
            )
        )
    check_model(job)
    facts = model_facts(job, tokenizer)
    stores: dict[str, TokenStore] = {}
    tokenized, windows = 0, None
    for split, split_files in (("train", files.train), *files.validations.items()):
        lengths = facts.fitted(task.lengths(job.data.max_length, split.partition(".")[0]))
        prepare = PrepareSpec(
            job.task, str(tokenizer_dir), tokenizer_dir.name, lengths, job.data.max_bad_rows, preprocess
        )
        if split == "train" and job.data.streaming:
            windows = _window_preparer(job, files.train, prepare, storage, build_context(tokenizer, [], facts))
            windows.prepare_first(map)
        elif split_files:
            folder = cache_dir(storage, "tokens") / prepare.key(split_files)
            fresh = find_tokens(folder) is None
            stores[split] = TokenStore(prepare_tokens(split_files, prepare, folder, map_pieces, f"data.{split}"))
            tokenized += stores[split].num_rows if fresh else 0
    labels, told = find_labels(job, stores["train"]) if windows is None else ([], [])
    if problems := check_model_names(job, labels, tokenizer):
        raise InputError(problems)
    context = build_context(tokenizer, labels, facts)
    train = (
        build_split(job, stores["train"], None, context, "train", job.data.max_train_rows)
        if windows is None
        else windows.spec
    )
    validations: dict[str, SplitSpec] = {}
    unseen: dict[str, list[dict[str, Any]]] = {}
    for split in stores.keys() - {"train"}:
        store = stores[split]
        rows_file, unseen[split] = find_known_rows(store, labels, job.data.max_bad_rows)
        rows = min(store.num_rows - len(unseen[split]), job.data.max_validation_rows or store.num_rows)
        validations[split] = build_split(job, store, rows_file, context, split, rows)
    validations = {split: validations[split] for split in stores if split in validations}
    validation = next(iter(validations.values()), None)
    for found in stores.values():  # with what has been made of them besides
        storage_of(storage).push_tree(found.folder, last=MANIFEST)
    steps, dropped = (job.arguments()["max_steps"], 0) if isinstance(train, WindowedSpec) else _count_steps(train)
    if not steps and isinstance(train, SplitSpec):
        raise InputError(
            Problem(
                "training.dataloader_drop_last",
                f"drops all {train.plan.num_rows} rows: less than one global batch",
                "Lower the batch size or drop it.",
            )
        )
    if problems := check_schedule(job, _total_steps(job, steps)):
        raise InputError(problems)
    spec = WorkerSpec(
        job=without_passwords(job),
        storage_path=str(storage),
        name=job.name,
        tokenizer_dir=str(tokenizer_dir),
        labels=labels,
        train=train,
        validation=validation,
        steps_per_epoch=steps,
        total_steps=_total_steps(job, steps),
        named_validations={}
        if "validation" in validations
        else {split.partition(".")[2]: part for split, part in validations.items()},
        eval_steps=sum(Split(part).plan.steps_per_epoch for part in validations.values()),
        data_fingerprint=_fingerprint(train, list(validations.values())),
        versions=package_versions(),
        verbose=verbose,
        code_folder=os.getcwd(),
    )
    parts = {**({"train": train} if isinstance(train, SplitSpec) else {}), **validations}
    return Resolved(
        spec,
        rows={split: part.plan.num_rows for split, part in parts.items()},
        left_out={split: found.manifest["left_out"] for split, found in stores.items()},
        bad_rows={split: found.manifest["bad_rows"] + len(unseen.get(split, [])) for split, found in stores.items()},
        tokenized_rows=tokenized,
        dropped_rows=dropped,
        majority_accuracy=majority_accuracy(Split(validation))
        if validation and len(validations) == 1 and task.single_class
        else None,
        quarantine=[
            (
                split,
                found.folder / QUARANTINE if found.manifest["bad_rows"] + found.manifest["unlearned"] else None,
                unseen.get(split, []),
            )
            for split, found in stores.items()
        ],
        windows=windows,
        notes=[
            *notes,
            *told,
            *(
                note
                for split, found in stores.items()
                for note in (*tell_store(found, f"data.{split}"), *cut_notes(split, found.manifest, facts))
            ),
        ],
        cut_rows={split: cut_rows(found.manifest) for split, found in stores.items()},
    )


def write_quarantine(resolved: Resolved, path: Path) -> None:
    """All rows left out of the run, one JSON object a line: split, source, line, reason, row."""
    path.unlink(missing_ok=True)  # of the driver before this one
    if not any(file or unseen for _, file, unseen in resolved.quarantine):
        return
    with replacing(path, errors="backslashreplace") as out:  # a lone surrogate then is a JSON escape
        for split, file, unseen in resolved.quarantine:
            if file is not None:
                with file.open(encoding="utf-8") as lines:
                    out.writelines(
                        json.dumps({"split": split, **json.loads(line)}, ensure_ascii=False) + "\n" for line in lines
                    )
            out.writelines(json.dumps({"split": split, **row}, ensure_ascii=False) + "\n" for row in unseen)


def _window_preparer(
    job: TrainJob, files: list[SourceFile], prepare: PrepareSpec, storage: Path, context: CollateContext
) -> WindowPreparer:
    task = build_task(job.task)
    if task.label_column:
        what = f"is not for {job.task.type}: its classes must be known before training"
        raise InputError(Problem("data.streaming", what, "Remove it: all rows are then prepared first."))
    packing = task.packing(job.data.max_length)
    plan = _train_plan(job, 0, packed=packing is not None)
    split = SplitSpec("", None, None, packing, plan, None, job.task, context)
    windows = split_windows(files)
    folder = cache_dir(storage, "windows") / prepare.key(files)
    return WindowPreparer(
        WindowedSpec(str(folder), len(windows), split), windows, prepare, job.arguments()["max_steps"]
    )


# Plan


def tell_store(store: TokenStore, where: str) -> list[str]:
    """What the user should know of rows that are left out, or have become several."""
    manifest, notes = store.manifest, []
    if count := manifest["unlearned"]:
        first = first_told(store.folder, left_out=True)
        notes.append(
            f"{where}: {count:,} of {manifest['rows'] + count:,} rows are left out, nothing of them is learned; the "
            f"first: {first}"
        )
    if count := manifest["spread"]:
        what = (
            f"the chat template renders earlier turns of the assistant otherwise than the last one: {count:,} chats "
            f"are a row for each such turn"
        )
        notes.append(f"{where}: {what}, {manifest['rows']:,} rows in all.")
    return notes


def _count_steps(train: SplitSpec) -> tuple[int, int]:
    """Steps of an epoch, and rows it drops."""
    plan = Split(train).plan
    return plan.steps_per_epoch, plan.dropped_rows


def build_context(tokenizer: Any, labels: list[str], facts: ModelFacts) -> CollateContext:
    """What collating needs of tokenizer, labels and model."""
    pad_ids = (tokenizer.pad_token_id, tokenizer.pad_token_type_id)
    inputs = [name for name in tokenizer.model_input_names if facts.token_types or name != "token_type_ids"]
    return CollateContext(*pad_ids, tokenizer.padding_side, inputs, labels, tokenizer.mask_token_id, len(tokenizer))


def build_split(
    job: TrainJob, store: TokenStore, rows_file: str | None, context: CollateContext, split: str, most_rows: int | None
) -> SplitSpec:
    """One split: its rows, packed into blocks where the task packs, in batches."""
    rows = min(store.num_rows, most_rows or store.num_rows)
    packing, blocks = build_task(job.task).packing(job.data.max_length), None
    if packing:
        blocks, _ = build_blocks(store, packing, rows)
        rows = len(Blocks(blocks, packing))
        if not rows:
            raise InputError(Problem(f"data.{split}", "has not two tokens", "Give a file with text."))
    plan = _train_plan(job, rows, packed=packing is not None) if split == "train" else _eval_plan(job, rows)
    spec = SplitSpec(
        str(store.folder), rows_file, str(blocks) if blocks else None, packing, plan, None, job.task, context
    )
    return (
        replace(spec, token_counts=tuple(int(count) for count in Split(spec).plan.token_counts))
        if plan.batch_tokens
        else spec
    )


def _train_plan(job: TrainJob, rows: int, packed: bool) -> PlanSpec:
    arguments = job.arguments()
    seed = arguments.get("data_seed") or arguments["seed"]
    strategy, drop_last = arguments["train_sampling_strategy"], arguments.get("dataloader_drop_last", False)
    if packed and strategy == "group_by_length":
        strategy = "random"  # blocks are of one length
    return PlanSpec(rows, seed, strategy, job.global_batch_size, job.data.batch_tokens, drop_last)


def _eval_plan(job: TrainJob, rows: int) -> PlanSpec:
    size = job.arguments().get("per_device_eval_batch_size", 8) * job.workers.num_workers
    return PlanSpec(rows, 0, "group_by_length", size)


def _total_steps(job: TrainJob, steps_per_epoch: int) -> int:
    arguments = job.arguments()
    if arguments.get("max_steps", -1) > 0:
        return arguments["max_steps"]
    return int(np.ceil(arguments.get("num_train_epochs", 3.0) * steps_per_epoch))


def _splits(spec: WorkerSpec) -> dict[str, SplitSpec]:
    """The validation splits by their names in the job: `validation`, or `validation.NAME` of each of several sets."""
    if spec.named_validations:
        return {f"validation.{name}": part for name, part in spec.named_validations.items()}
    return {"validation": spec.validation} if spec.validation else {}


def _fingerprint(train: SplitSpec | WindowedSpec, validations: list[SplitSpec]) -> str:
    if isinstance(train, WindowedSpec):
        tokens, train = [Path(train.folder).name, train.count], train.split
    else:
        tokens = [Path(train.tokens).name]
    tokens += [Path(part.tokens).name for part in validations] or [None]
    parts: Iterable[Any] = [tokens, Path(train.blocks or "").name, repr(train.plan), train.context.labels]
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:24]
