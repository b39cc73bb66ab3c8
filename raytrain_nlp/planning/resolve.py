"""Resolves a job into what its workers need: tokens are prepared, labels found, batches planned, steps counted.

All of it runs in the driver before workers start. Problems of one kind are reported together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytrain_nlp.config import TrainJob, without_passwords
from raytrain_nlp.data.duplicates import UniqueRows, find_unique_rows
from raytrain_nlp.data.prepare import QUARANTINE, MapPieces, find_tokens, prepare_tokens
from raytrain_nlp.data.reading.sources import SourceFile
from raytrain_nlp.data.shards import MANIFEST, TokenStore
from raytrain_nlp.data.shares import tell_mixture
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
from raytrain_nlp.planning.models import check_attention, check_model, find_tokenizer, model_facts
from raytrain_nlp.planning.resolved import Resolved
from raytrain_nlp.planning.split_plans import (
    build_context,
    build_split,
    build_train_plan,
    count_total_steps,
    duplicates_note,
    store_notes,
)
from raytrain_nlp.planning.truncation import cut_notes, cut_rows
from raytrain_nlp.planning.window_prefetch import WindowPreparer
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext
from raytrain_nlp.tracking.datasets import describe_datasets
from raytrain_nlp.user_code import UserObject
from raytrain_nlp.worker.spec import WorkerSpec

SMALL_BYTES = 32 << 20
"""Bytes of files up to which the driver tokenizes by itself, because starting tasks on the cluster would take
longer.
"""


def resolve(job: TrainJob, files: Files, storage: Path, map_pieces: MapPieces, verbose: bool = False) -> Resolved:
    """Prepare the tokens of a job, or find them in the cache, and plan its run.

    Args:
        files: the files of the job, found.
        storage: local root of the job's storage path.
        map_pieces: maps a function over pieces of files, in this process or on the cluster.
        verbose: see `WorkerSpec.verbose`.

    Raises:
        InputError: the data, the model or the values of the job do not fit each other.
    """
    preprocess = (
        UserObject(job.trainer.preprocess, "trainer.preprocess", os.getcwd()) if job.trainer.preprocess else None
    )
    job, notes = name_labels(job, files, preprocess)
    tokenizer_dir = find_tokenizer(job, files, storage, preprocess)
    tokenizer = load_tokenizer(str(tokenizer_dir))
    _check_tokenizer(job, tokenizer)
    check_model(job)
    facts = model_facts(job, tokenizer)
    check_attention(job, tokenizer)
    tokens = _prepare(job, files, storage, map_pieces, _Reading(tokenizer_dir, tokenizer, facts, preprocess))
    labels, told = find_labels(job, tokens.stores["train"]) if tokens.windows is None else ([], [])
    if problems := check_model_names(job, labels, tokenizer):
        raise InputError(problems)
    splits = _plan_splits(job, tokens, labels, build_context(tokenizer, labels, facts), files.sources)
    for store in tokens.stores.values():  # with the files that planning has added, such as blocks
        storage_of(storage).push_tree(store.folder, last=MANIFEST)
    spec = _spec_of(job, storage, tokenizer_dir, labels, splits, verbose)
    if problems := check_schedule(job, spec.total_steps):
        raise InputError(problems)
    resolved = _resolved(job, spec, tokens, splits, [*notes, *told], facts)
    return replace(
        resolved, datasets=describe_datasets(job.data, {"train": files.train, **files.validations}, resolved.counts())
    )


@dataclass(frozen=True)
class _Reading:
    """What turns rows into tokens, in all splits."""

    tokenizer_dir: Path
    tokenizer: Any
    facts: ModelFacts
    preprocess: UserObject | None


@dataclass
class _Tokens:
    """The prepared tokens of a job."""

    stores: dict[str, TokenStore]
    """Tokens by split: `train`, and `validation` or `validation.NAME` for each of several sets."""
    tokenized_rows: int = 0
    """Rows that were tokenized now and not found in the cache."""
    windows: WindowPreparer | None = None
    """Prepares the training rows if they are streamed; `stores` then has no `train`."""
    unique: UniqueRows | None = None
    """The rows of `train` that are used, with `data.drop_duplicates`."""


@dataclass
class _Splits:
    """The planned splits of a job."""

    train: SplitSpec | WindowedSpec
    validations: dict[str, SplitSpec]
    """Validation splits by the names that `_Tokens.stores` has."""
    unseen: dict[str, list[dict[str, Any]]]
    """By validation split, an entry of quarantine.jsonl for each row whose label no training row has."""
    steps_per_epoch: int
    """Optimizer steps of an epoch; of streamed rows `max_steps`."""
    dropped_rows: int
    """Rows of each epoch that `dataloader_drop_last` leaves out."""


def _check_tokenizer(job: TrainJob, tokenizer: Any) -> None:
    if lacks := build_task(job.task).check_tokenizer(tokenizer):
        where = "model.tokenizer" if job.model.tokenizer else "model.name_or_path"
        raise InputError(Problem(where, f"the tokenizer {lacks}", "Choose another."))


def _prepare(job: TrainJob, files: Files, storage: Path, map_pieces: MapPieces, reading: _Reading) -> _Tokens:
    task, tokens = build_task(job.task), _Tokens({})
    for split, split_files in (("train", files.train), *files.validations.items()):
        lengths = reading.facts.fitted(task.lengths(job.data.max_length, split.partition(".")[0]))
        if problem := task.check_lengths(lengths, reading.tokenizer):
            raise InputError(problem)
        folder = reading.tokenizer_dir
        prepare = PrepareSpec(job.task, str(folder), folder.name, lengths, job.data.max_bad_rows, reading.preprocess)
        if split == "train" and job.data.streaming:
            context = build_context(reading.tokenizer, [], reading.facts)
            tokens.windows = _window_preparer(job, files.train, prepare, storage, context)
            tokens.windows.prepare_first(map)
        elif split_files:
            place = cache_dir(storage, "tokens") / prepare.key(split_files)
            fresh = find_tokens(place) is None
            store = TokenStore(prepare_tokens(split_files, prepare, place, map_pieces, f"data.{split}"))
            tokens.stores[split] = store
            tokens.tokenized_rows += store.num_rows if fresh else 0
    return tokens


def _plan_splits(
    job: TrainJob, tokens: _Tokens, labels: list[str], context: CollateContext, sources: dict[str, list[str]]
) -> _Splits:
    if tokens.windows is not None:
        train: SplitSpec | WindowedSpec = tokens.windows.spec
        steps, dropped = job.arguments()["max_steps"], 0
    else:
        if job.data.drop_duplicates:
            tokens.unique = _unique_rows(job, tokens)
        rows_file = str(tokens.unique.file) if tokens.unique else None
        most = tokens.stores["train"].rows_of(job.data.max_train_rows)
        train = build_split(job, tokens.stores["train"], rows_file, context, "train", most, sources)
        plan = Split(train).plan
        steps, dropped = plan.steps_per_epoch, plan.dropped_rows
        if not steps:
            what = f"drops all {train.plan.num_rows} rows: less than one global batch"
            raise InputError(Problem("training.dataloader_drop_last", what, "Lower the batch size or drop it."))
    splits = _Splits(train, {}, {}, steps, dropped)
    for split, store in tokens.stores.items():
        if split != "train":
            rows_file, splits.unseen[split] = find_known_rows(store, labels, job.data.max_bad_rows)
            rows = min(store.num_rows - len(splits.unseen[split]), store.rows_of(job.data.max_validation_rows))
            splits.validations[split] = build_split(job, store, rows_file, context, split, rows)
    return splits


def _unique_rows(job: TrainJob, tokens: _Tokens) -> UniqueRows:
    if build_task(job.task).joins_rows:
        what = f"is not for {job.task.type}, where a row is several windows"
        raise InputError(Problem("data.drop_duplicates", what, "Remove copies from the files."))
    held = {split: store for split, store in tokens.stores.items() if split != "train"}
    return find_unique_rows(tokens.stores["train"], held)


def _spec_of(
    job: TrainJob, storage: Path, tokenizer_dir: Path, labels: list[str], splits: _Splits, verbose: bool
) -> WorkerSpec:
    validations = splits.validations
    several = (
        {} if "validation" in validations else {name.partition(".")[2]: part for name, part in validations.items()}
    )
    return WorkerSpec(
        job=without_passwords(job),
        storage_path=str(storage),
        name=job.name,
        tokenizer_dir=str(tokenizer_dir),
        labels=labels,
        train=splits.train,
        validation=next(iter(validations.values()), None),
        steps_per_epoch=splits.steps_per_epoch,
        total_steps=count_total_steps(job, splits.steps_per_epoch),
        named_validations=several,
        eval_steps=sum(Split(part).plan.steps_per_epoch for part in validations.values()),
        data_fingerprint=_fingerprint(splits.train, list(validations.values())),
        versions=package_versions(),
        verbose=verbose,
        code_folder=os.getcwd(),
    )


def _resolved(
    job: TrainJob, spec: WorkerSpec, tokens: _Tokens, splits: _Splits, notes: list[str], facts: ModelFacts
) -> Resolved:
    manifests = {split: store.manifest for split, store in tokens.stores.items()}
    train = {"train": splits.train} if isinstance(splits.train, SplitSpec) else {}
    task, used = (
        build_task(job.task),
        {split: part.plan.num_rows for split, part in {**train, **splits.validations}.items()},
    )
    single = spec.validation and len(splits.validations) == 1 and task.single_class
    for split, store in tokens.stores.items():
        notes = [*notes, *store_notes(store, task, f"data.{split}"), *cut_notes(split, store.manifest, facts)]
    mixture = splits.train.plan.mixture if isinstance(splits.train, SplitSpec) else None
    left_out = {split: found["left_out"] for split, found in manifests.items()}
    copies: list[tuple[str, Path | None, list[dict[str, Any]]]] = []
    if tokens.unique:
        left_out["train"] += tokens.unique.copies + tokens.unique.leaked
        copies = [("train", tokens.unique.left_out, [])]
        notes = [*notes, duplicates_note(tokens.unique)]
    return Resolved(
        spec,
        rows={s: tokens.stores[s].data_rows(count) if task.joins_rows else count for s, count in used.items()},
        features=used if task.joins_rows else {},
        left_out=left_out,
        bad_rows={split: found["bad_rows"] + len(splits.unseen.get(split, [])) for split, found in manifests.items()},
        tokenized_rows=tokens.tokenized_rows,
        dropped_rows=splits.dropped_rows,
        majority_accuracy=majority_accuracy(Split(spec.validation)) if single and spec.validation else None,
        quarantine=[
            (
                split,
                store.folder / QUARANTINE if store.manifest["bad_rows"] + store.manifest["unlearned"] else None,
                splits.unseen.get(split, []),
            )
            for split, store in tokens.stores.items()
        ]
        + copies,
        windows=tokens.windows,
        notes=notes,
        shares=list(tell_mixture(mixture, spec.total_steps / spec.steps_per_epoch)) if mixture else [],
        stores=tokens.stores,
        cut_rows={split: cut_rows(found) for split, found in manifests.items()},
    )


def _window_preparer(
    job: TrainJob, files: list[SourceFile], prepare: PrepareSpec, storage: Path, context: CollateContext
) -> WindowPreparer:
    task = build_task(job.task)
    if task.label_column:
        what = f"is not for {job.task.type}: its classes must be known before training"
        raise InputError(Problem("data.streaming", what, "Remove it: all rows are then prepared first."))
    packing = task.packing(job.data.max_length)
    plan = build_train_plan(job, 0, packed=packing is not None)
    split = SplitSpec("", None, None, packing, plan, None, job.task, context)
    windows = split_windows(files)
    folder = cache_dir(storage, "windows") / prepare.key(files)
    return WindowPreparer(
        WindowedSpec(str(folder), len(windows), split), windows, prepare, job.arguments()["max_steps"]
    )


def _fingerprint(train: SplitSpec | WindowedSpec, validations: list[SplitSpec]) -> str:
    if isinstance(train, WindowedSpec):
        tokens, train = [Path(train.folder).name, train.count], train.split
    else:
        tokens = [Path(train.tokens).name]
    tokens += [Path(part.tokens).name for part in validations] or [None]
    parts: Iterable[Any] = [tokens, Path(train.blocks or "").name, repr(train.plan), train.context.labels]
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:24]
