"""Resolve: from a job to what its workers need - files found, tokens prepared, labels known, steps counted.

Everything here runs in the driver, before a worker starts, and tells all problems of one kind at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.data.feed import Split, SplitSpec
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import QUARANTINE, MapPieces, PrepareSpec, find_tokens, prepare_tokens
from raytrain_nlp.data.readers import Row, read_rows
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.sources import split_file
from raytrain_nlp.driver.inputs import Files
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.modeling.tokenizer import cache_tokenizer, load_tokenizer, train_tokenizer
from raytrain_nlp.paths import cache_dir
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext
from raytrain_nlp.tasks.problems import sorted_labels
from raytrain_nlp.worker.spec import WorkerSpec

SMALL_BYTES = 32 << 20
"""Data up to this size are prepared in the driver: starting the cluster's workers for them would take longer."""
_LEGACY_CONFIG_KEYS = ("rope_theta", "rope_scaling", "torch_dtype", "attn_implementation", "output_attentions", "pruned_heads")
"""Keys transformers still takes in a config though its class has other names for them."""
_PACKAGES = ("raytrain-nlp", "torch", "transformers", "deepspeed", "ray", "numpy", "tokenizers")


@dataclass(frozen=True)
class Resolved:
    """What `resolve` found out."""

    spec: WorkerSpec
    rows: dict[str, int]
    """Rows used, for each split."""
    bad_rows: dict[str, int]
    tokenized_rows: int
    """Rows tokenized now, not found in the cache."""
    dropped_rows: int
    majority_accuracy: float | None
    """What always answering the most frequent label would score on the validation rows."""
    quarantine: list[tuple[str, Path | None, list[dict[str, Any]]]]


def resolve(job: TrainJob, files: Files, storage: Path, map_pieces: MapPieces, verbose: bool = False) -> Resolved:
    """Prepare the tokens of a job (or find them prepared) and plan its run. Raises `InputError` for what data and model say."""
    tokenizer_dir = _tokenizer(job, files, storage)
    tokenizer = load_tokenizer(str(tokenizer_dir))
    _check_model(job)
    prepare = PrepareSpec(job.task, str(tokenizer_dir), tokenizer_dir.name, job.data.max_length, job.data.max_bad_rows)
    stores: dict[str, TokenStore] = {}
    tokenized = 0
    for split, split_files in (("train", files.train), ("validation", files.validation)):
        if split_files:
            folder = cache_dir(storage, "tokens") / prepare.key(split_files)
            fresh = find_tokens(folder) is None
            stores[split] = TokenStore(prepare_tokens(split_files, prepare, folder, map_pieces, f"data.{split}"))
            tokenized += stores[split].num_rows if fresh else 0
    labels = _labels(job, stores["train"])
    context = _collate_context(tokenizer, labels)
    train = _split(job, stores["train"], None, context, _train_plan(job, stores["train"].num_rows))
    validation, unseen = None, []
    if "validation" in stores:
        rows_file, unseen = _known_rows(stores["validation"], labels, job.data.max_bad_rows)
        rows = stores["validation"].num_rows - len(unseen)
        validation = _split(job, stores["validation"], rows_file, context, _eval_plan(job, rows))
    plan = Split(train).plan
    if not plan.steps_per_epoch:
        raise InputError(
            Problem("training.dataloader_drop_last", f"drops all {plan.spec.num_rows} rows: less than one global batch", "Lower the batch size or drop it.")
        )
    spec = WorkerSpec(
        job=public_values(job),
        storage_path=str(storage),
        name=job.name,
        tokenizer_dir=str(tokenizer_dir),
        labels=labels,
        train=train,
        validation=validation,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=_total_steps(job, plan.steps_per_epoch),
        eval_steps=Split(validation).plan.steps_per_epoch if validation else 0,
        data_fingerprint=_fingerprint(train, validation),
        versions={name: _version(name) for name in _PACKAGES},
        verbose=verbose,
    )
    return Resolved(
        spec,
        rows={split: part.plan.num_rows for split, part in (("train", train), ("validation", validation)) if part},
        bad_rows={split: found.manifest["bad_rows"] + (len(unseen) if split == "validation" else 0) for split, found in stores.items()},
        tokenized_rows=tokenized,
        dropped_rows=plan.dropped_rows,
        majority_accuracy=_majority(Split(validation)) if validation and build_task(job.task).single_class else None,
        quarantine=[
            (split, found.folder / QUARANTINE if found.manifest["bad_rows"] else None, unseen if split == "validation" else [])
            for split, found in stores.items()
        ],
    )


def write_quarantine(resolved: Resolved, path: Path) -> None:
    """All rows left out of the run, one JSON object a line: split, source, line, reason, row."""
    if not any(resolved.bad_rows.values()):
        return
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:  # a lone surrogate then is a JSON escape
        for split, file, unseen in resolved.quarantine:
            if file is not None:
                with file.open(encoding="utf-8") as lines:
                    out.writelines(json.dumps({"split": split, **json.loads(line)}, ensure_ascii=False) + "\n" for line in lines)
            out.writelines(json.dumps({"split": split, **row}, ensure_ascii=False) + "\n" for row in unseen)


# Tokenizer, model, labels


def _tokenizer(job: TrainJob, files: Files, storage: Path) -> Path:
    cache = cache_dir(storage, "tokenizers")
    if job.model.tokenizer != "train":
        return cache_tokenizer(job.model, cache)
    task = build_task(job.task)

    def texts() -> Iterator[str]:
        for row in itertools.chain.from_iterable(read_rows(piece) for file in files.train for piece in split_file(file)):
            if isinstance(row, Row) and task.check_row(row.values) is None:
                yield from (row.values[column] for column in job.task.text_columns)

    key = hashlib.sha256(json.dumps([file.digest for file in files.train] + [job.task.model_dump(mode="json")]).encode()).hexdigest()
    return train_tokenizer(texts(), job.model.tokenizer_training, key, cache, job.data.max_length)


def _check_model(job: TrainJob) -> None:
    """Does the model exist, and can it do the task? Reads its config only."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    where, name = ("model.config.model_type", job.model.config["model_type"]) if job.model.config else ("model.name_or_path", job.model.name_or_path)
    if job.model.config:
        model_type = name
        if model_type not in CONFIG_MAPPING_NAMES:
            raise InputError(Problem(where, f"unknown model type ({name!r})", nearest(name, CONFIG_MAPPING_NAMES) or "See transformers for the valid types."))
        if problems := _misspelt(job.model.config):
            raise InputError(problems)
    else:
        try:
            model_type = AutoConfig.from_pretrained(name, revision=job.model.revision, trust_remote_code=job.model.trust_remote_code).model_type
        except Exception as error:  # hub client, JSON, remote code refused: each is one line for the user
            raise InputError(Problem(where, f"no model can be loaded ({name}: {str(error).splitlines()[0][:200]})", "Check name, folder and network.")) from None
    if model_type not in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not job.model.trust_remote_code:
        raise InputError(Problem(where, f"models of type '{model_type}' have no head for {job.task.type}", "Choose another model."))


def _misspelt(config: dict[str, Any]) -> list[Problem]:
    """Keys that look like a field of the model's config and are none; transformers would take and ignore them."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[config["model_type"]]
    known = {*cls().to_dict(), *getattr(cls, "attribute_map", {}), *_LEGACY_CONFIG_KEYS}
    return [Problem(f"model.config.{key}", "unknown key", near) for key in config if key not in known and (near := nearest(key, known))]


def _labels(job: TrainJob, train: TokenStore) -> list[str]:
    task = build_task(job.task)
    if task.label_column is None:
        return []
    labels = job.task.label_names or sorted_labels(list(train.manifest["labels"]))
    if not labels:
        raise InputError(Problem("data.train", f"no row has a label in column '{job.task.label_column}'", "Name the column with labels."))
    if len(labels) < 2 and task.single_class:
        raise InputError(Problem("data.train", f"all labels of column '{job.task.label_column}' are equal ({labels[0]!r})", "Classification needs two labels."))
    if len(labels) > max(1000, train.num_rows // 2):
        raise InputError(Problem("task.label_column", f"has {len(labels)} different labels in {train.num_rows} rows", "Name the column with classes."))
    return labels


def _known_rows(store: TokenStore, labels: list[str], max_bad_rows: float) -> tuple[str | None, list[dict[str, Any]]]:
    """Which rows of a validation split have labels that training knows; the others as quarantine entries."""
    names = set(labels)
    if names.issuperset(store.manifest["labels"]):
        return None, []
    column = store.column("label")
    known = np.array([row in names for row in column] if isinstance(column[0], str) else [names.issuperset(row) for row in column])
    unseen = []
    for row in np.flatnonzero(~known):
        source, line = store.locate(int(row))
        label = column[row] if isinstance(column[row], str) else next(name for name in column[row] if name not in names)
        unseen.append({"source": source, "line": line, "reason": f"label '{label}' was never seen in training", "row": ""})
    bad, total = len(unseen) + store.manifest["bad_rows"], store.num_rows + store.manifest["bad_rows"]
    if bad > (max_bad_rows * total if max_bad_rows < 1 else max_bad_rows):
        first = unseen[0]
        what = f"{bad} of {total} rows are bad, more than data.max_bad_rows ({max_bad_rows:g}); e.g. {first['source']}:{first['line']}: {first['reason']}"
        raise InputError(Problem("data.validation", what, "Mend the rows, or raise data.max_bad_rows."))
    path = store.folder / f"rows-{hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]}.npy"
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(temporary, np.flatnonzero(known).astype(np.int64))
    os.replace(temporary, path)
    return str(path), unseen


def _majority(split: Split) -> float:
    """Counted shard by shard: validation data may be large."""
    counts = split.store.value_counts("label", None if split.spec.rows_file else split.plan.spec.num_rows)
    known = [count for label, count in counts.items() if label in split.spec.context.label_ids]
    return max(known) / sum(known)


# Plan


def _collate_context(tokenizer: Any, labels: list[str]) -> CollateContext:
    return CollateContext(tokenizer.pad_token_id, tokenizer.pad_token_type_id, tokenizer.padding_side, list(tokenizer.model_input_names), labels)


def _split(job: TrainJob, store: TokenStore, rows_file: str | None, context: CollateContext, plan: PlanSpec) -> SplitSpec:
    spec = SplitSpec(str(store.folder), rows_file, plan, None, job.task, context)
    if plan.batch_tokens is None:
        return spec
    counts = tuple(int(count) for count in Split(spec).plan.token_counts)
    return SplitSpec(spec.tokens, spec.rows_file, spec.plan, counts, spec.task, spec.context)


def _train_plan(job: TrainJob, rows: int) -> PlanSpec:
    arguments = job.arguments()
    seed = arguments.get("data_seed") or arguments["seed"]
    rows = min(rows, job.data.max_train_rows or rows)
    strategy, drop_last = arguments["train_sampling_strategy"], arguments.get("dataloader_drop_last", False)
    return PlanSpec(rows, seed, strategy, job.global_batch_size, job.data.batch_tokens, drop_last)


def _eval_plan(job: TrainJob, rows: int) -> PlanSpec:
    size = job.arguments().get("per_device_eval_batch_size", 8) * job.workers.num_workers
    return PlanSpec(min(rows, job.data.max_validation_rows or rows), 0, "group_by_length", size)


def _total_steps(job: TrainJob, steps_per_epoch: int) -> int:
    arguments = job.arguments()
    if arguments.get("max_steps", -1) > 0:
        return arguments["max_steps"]
    return int(np.ceil(arguments.get("num_train_epochs", 3.0) * steps_per_epoch))


def _fingerprint(train: SplitSpec, validation: SplitSpec | None) -> str:
    parts: Iterable[Any] = [Path(train.tokens).name, repr(train.plan), train.context.labels, Path(validation.tokens).name if validation else None]
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:  # the package itself may run from a source tree
        return "unknown"
