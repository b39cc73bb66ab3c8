"""From a split's tokens to the plan of its batches: which rows are used, whether they are packed, and how many make a
global batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.duplicates import UniqueRows
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import first_told
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.shares import build_mixture, find_ends
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Task


def build_context(tokenizer: Any, labels: list[str], facts: ModelFacts) -> CollateContext:
    """What the collators need to know of the tokenizer, the labels and the model."""
    pad_ids = (tokenizer.pad_token_id, tokenizer.pad_token_type_id)
    inputs = [name for name in tokenizer.model_input_names if facts.token_types or name != "token_type_ids"]
    return CollateContext(*pad_ids, tokenizer.padding_side, inputs, labels, tokenizer.mask_token_id, len(tokenizer))


def build_split(
    job: TrainJob,
    store: TokenStore,
    rows_file: str | None,
    context: CollateContext,
    split: str,
    most_rows: int | None,
    sources: dict[str, list[str]] | None = None,
) -> SplitSpec:
    """The spec of one split: its rows (packed into blocks if the task packs) and the plan of its batches.

    Args:
        store: the tokens of the split.
        rows_file: .npy file with the numbers of the rows that are used; None: all rows.
        split: `train`, `validation` or `validation.NAME`.
        most_rows: rows that are used at most; None: no limit. A mixture ignores it.
        sources: name of a source -> its files, for a training split that mixes several.

    Raises:
        InputError: the split has too few tokens for a block.
    """
    chosen = np.load(rows_file) if rows_file else None
    number = store.num_rows if chosen is None else len(chosen)
    ends = find_ends(store, sources, chosen) if sources else [min(number, most_rows or number)]
    packing, blocks = build_task(job.task).packing(job.data.max_length), None
    if packing:
        blocks, _ = build_blocks(store, packing, ends, chosen)
        ends = Blocks(blocks, packing, chosen).ends.tolist()
        if not ends[-1]:
            raise InputError(Problem(f"data.{split}", "has not two tokens", "Give a file with text."))
    rows, packed = ends[-1], packing is not None
    plan = build_train_plan(job, rows, packed) if split == "train" else _eval_plan(job, rows)
    if sources:
        plan = replace(plan, mixture=build_mixture(job, list(sources), ends))
    spec = SplitSpec(
        str(store.folder), rows_file, str(blocks) if blocks else None, packing, plan, None, job.task, context
    )
    return (
        replace(spec, token_counts=tuple(int(count) for count in Split(spec).plan.token_counts))
        if plan.batch_tokens
        else spec
    )


def build_train_plan(job: TrainJob, rows: int, packed: bool) -> PlanSpec:
    """The plan of the training batches, for `rows` rows, or blocks if they are packed."""
    arguments = job.arguments()
    seed = arguments.get("data_seed") or arguments["seed"]
    strategy, drop_last = arguments["train_sampling_strategy"], arguments.get("dataloader_drop_last", False)
    if packed and strategy == "group_by_length":
        strategy = "random"  # blocks have equal lengths
    return PlanSpec(rows, seed, strategy, job.global_batch_size, job.data.batch_tokens, drop_last)


def _eval_plan(job: TrainJob, rows: int) -> PlanSpec:
    """The plan of an evaluation: batches of rows of similar length, which saves padding."""
    size = job.arguments().get("per_device_eval_batch_size", 8) * job.workers.num_workers
    return PlanSpec(rows, 0, "group_by_length", size)


def count_total_steps(job: TrainJob, steps_per_epoch: int) -> int:
    """Optimizer steps of the run: `max_steps`, or else those of `num_train_epochs`."""
    arguments = job.arguments()
    if arguments.get("max_steps", -1) > 0:
        return arguments["max_steps"]
    return int(np.ceil(arguments.get("num_train_epochs", 3.0) * steps_per_epoch))


def store_notes(store: TokenStore, task: Task, where: str) -> list[str]:
    """Notes for the user on rows of a split that are left out because nothing is learned from them, or that have become
    several rows of tokens.

    Args:
        where: the key or option that names the split's files.
    """
    manifest, notes = store.manifest, []
    if count := manifest["unlearned"]:
        first = first_told(store.folder, left_out=True)
        notes.append(
            f"{where}: {count:,} of {manifest['rows'] + count:,} rows are left out, nothing of them is learned; the "
            f"first: {first}"
        )
    if count := manifest["spread"]:
        notes.append(f"{where}: {task.spread_note(count, store.data_rows(manifest['rows']), manifest['rows'])}")
    return notes


def duplicates_note(found: UniqueRows) -> str:
    """A note for the user on training rows that are left out as copies (`data.drop_duplicates`)."""
    return (
        f"data.train: {found.copies + found.leaked:,} rows are left out: {found.copies:,} copies of others, "
        f"{found.leaked:,} with the text of a validation row. They are in quarantine.jsonl"
    )
