"""A loss that the task computes: figures since the last log, what rows need of their global batch, what the reference
model says of rows, and how loaders give it with them.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from plain_trainer import resolved, stream_here
from preference_truth import LLAMA, pair_rows, write_lines
from support import plain_job

from raytrain_nlp.config.job.preferences import check_preferences
from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.data.builtin.number_preferences import preference_rows
from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.errors import RunError
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.language.causal_lm import CausalLmTask
from raytrain_nlp.tasks.language.continuation import Continues, encode_text_prompts, last_tokens
from raytrain_nlp.tasks.objective import REFERENCE
from raytrain_nlp.trainer.loader import FeedBatch
from raytrain_nlp.trainer.objective.own_loss import OwnLoss
from raytrain_nlp.trainer.objective.reference import Reference
from raytrain_nlp.worker.losses import build_own_loss, leaves_out_logits, share_of


def micro_batch(rows: list[int], **tensors: Any) -> MicroBatch:
    made = {"input_ids": torch.arange(max(len(rows), 1) * 4).view(-1, 2, 2), **tensors}
    return MicroBatch(0, 0, np.array(rows, dtype=np.int64), len(rows), 6, 24, 4 * len(rows), 4 * len(rows), made)


class Objective:
    """Values are the sums of rows; the loss is their share of those of the global batch."""

    reads_reference, reads_batch = False, True

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        return inputs["input_ids"].sum((1, 2)).float()[:, None]

    def reference(self, plain: Any, inputs: dict[str, Any]) -> Any:
        return inputs["input_ids"][:, :, 0] * plain.factor

    def batch_sums(self, plain: Any, parts: list[tuple[dict[str, Any], int]]) -> Any:
        return sum(inputs["input_ids"][:rows].sum().float()[None] for inputs, rows in parts)

    def sums_of(self, values: Any) -> Any:
        return values.sum()[None]

    def loss(self, values: Any, sums: Any) -> Any:
        return values.mean() / sums[0]

    def figure_sums(self, values: Any, sums: Any) -> Any:
        return torch.stack([torch.tensor(float(len(values))), values.sum()])

    def figures(self, sums: list[float]) -> dict[str, float]:
        return {"mean": sums[1] / sums[0]}


def trainer_of(step: MicroBatch | None, model: Any = None) -> Any:
    return SimpleNamespace(
        _feed=SimpleNamespace(
            step=step and SimpleNamespace(micro_batch=step), without_logits=lambda batch: contextlib.nullcontext()
        ),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        _prepare_inputs=lambda batch: dict(batch),
        model_wrapped=model,
        args=SimpleNamespace(eval_batch_size=4),
        compute_loss_context_manager=contextlib.nullcontext,
    )


def test_what_rows_need_of_their_global_batch_is_found_once() -> None:
    """Before its first micro-batch; of an evaluation from its own values. Rows that a rank repeats are not counted."""
    own, parts = OwnLoss(Objective()), [micro_batch([0, 1]), micro_batch([2]), micro_batch([])]
    with mock.patch.object(own.objective, "batch_sums", wraps=own.objective.batch_sums) as sums:
        own.begin([FeedBatch(part.tensors, part) for part in parts])
        losses = [own.compute(trainer_of(part), None, dict(part.tensors))[0] for part in parts]
    assert sums.call_count == 1
    whole = 28 + 6.0
    assert [loss.item() for loss in losses] == pytest.approx([14 / whole, 6 / whole, 6 / whole])
    own.gather_figures()
    assert own.read() == {"mean": whole / 3} and own.read() == {}
    own.gather_figures()
    assert own.read() == {}
    loss, values = own.compute(trainer_of(None), None, dict(parts[0].tensors))
    assert loss.item() == pytest.approx(0.5) and values.tolist() == [[6.0], [22.0]]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("job")
    write_lines(folder / "train.jsonl", pair_rows(30, 1))
    write_lines(folder / "validation.jsonl", pair_rows(9, 2))
    job = plain_job(
        folder,
        "run",
        model={"config": LLAMA},
        data={"validation": str(folder / "validation.jsonl")},
        workers={"num_workers": 1},
    )
    return resolved({**job, "task": {"type": "preference"}}, folder / "runs")


def test_the_reference_is_asked_once_and_kept(spec: Any, tmp_path: Path) -> None:
    """Its values stand by row id; a resumed run reads them, one without them ends."""
    job, found = spec
    share: Any = {"world_size": 1, "rank": 0, "cpus": 1.0}
    splits, told = {"train": found.train, "validation": found.validation}, []
    trainer = trainer_of(None, SimpleNamespace(factor=2))
    with mock.patch("raytrain_nlp.trainer.loader.stream", stream_here):
        first = Reference(tmp_path, storage_of(tmp_path), splits, share, tell=told.append)
        first.find_or_compute(trainer, Objective(), untrained=True)
        trainer.model_wrapped.factor = 3
        first.find_or_compute(trainer, Objective(), untrained=False)
        again = Reference(tmp_path, storage_of(tmp_path), splits, share)
        again.find_or_compute(trainer, Objective(), untrained=False)
        with pytest.raises(RunError, match="are gone"):
            Reference(tmp_path / "new", storage_of(tmp_path), splits, share).find_or_compute(
                trainer, Objective(), untrained=False
            )
    assert told == [
        "computing log-probabilities of the reference model for 30 rows",
        "computing log-probabilities of the reference model for 9 rows",
    ]
    for batch in stream_here(found.train, start=0, stop=3, world_size=1, rank=0):
        for reference in (first, again):
            beside = reference.beside("train")(batch)[REFERENCE]
            assert beside.dtype == torch.int32
            assert torch.equal(beside.view(torch.float32), batch.tensors["input_ids"][:, :, 0] * 2.0)
    empty = first.beside("train")(micro_batch([]))[REFERENCE]
    assert empty.shape == (1, 2) and not empty.any()


def test_loaders_give_it_with_the_rows(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain_nlp.tasks import build_task

    job, found = spec
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert share_of(job)["world_size"] == 1
    train, validation = SimpleNamespace(feed=SimpleNamespace(beside=None)), SimpleNamespace(beside=None)
    paths: Any = SimpleNamespace(reference=tmp_path, store=storage_of(tmp_path))
    events: Any = SimpleNamespace(write=lambda *args, **kwargs: None)
    own = build_own_loss(found, job, paths, build_task(job.task), events, (train, {"": validation}))
    assert own is not None and own.reference is not None and train.feed.beside and validation.beside
    lora = job.model_copy(update={"lora": {"r": 4}})
    own = build_own_loss(found, lora, paths, build_task(job.task), events, (train, {"": validation}))
    assert own is not None and own.reference is None
    assert build_own_loss(found, job, paths, CausalLmTask(CausalLm(type="causal-lm")), events, (train, {})) is None
    assert check_preferences(job, {}) == []


def test_under_ddp_logits_leave_the_model(spec: Any) -> None:
    """It looks for unused parameters in what the model returns, which stand-ins for logits would hide."""
    from raytrain_nlp.tasks import build_task

    job, _ = spec
    task, of_chats = build_task(job.task), CausalLmTask(CausalLm(type="causal-lm"))
    two = job.model_copy(update={"workers": job.workers.model_copy(update={"num_workers": 2})})
    sharded = two.model_copy(update={"deepspeed": job.deepspeed.model_copy(update={"zero_stage": 3})})
    plain = two.model_copy(update={"deepspeed": job.deepspeed.model_copy(update={"zero_stage": 0})})
    found = [leaves_out_logits(one, task) for one in (plain, sharded, job)]
    assert found == [False, True, True] and leaves_out_logits(plain, of_chats)


def test_prompts_lose_an_end_and_then_their_beginning() -> None:
    made = encode_text_prompts(["a"], Ends())
    assert made == [[1, 2, 3]] and last_tokens(made, Lengths(2)) == {"input_ids": [[2, 3]]}
    assert Continues().forward_kwargs() == {"use_cache": False}


class Ends:
    """A tokenizer that ends each text."""

    eos_token_id = 9

    def __call__(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": [[1, 2, 3, 9] for _ in texts]}


def test_wrong_spellings_are_of_other_numbers() -> None:
    rows = preference_rows()
    assert {split: len(found) for split, found in rows.items()} == {"train": 8_000, "validation": 400}
    assert json.dumps(rows) == json.dumps(preference_rows())
    prompts = {split: {row["prompt"] for row in found if len(row["prompt"]) > 6} for split, found in rows.items()}
    assert prompts["train"] and not prompts["train"] & prompts["validation"]
    assert all(row["chosen"] != row["rejected"] for found in rows.values() for row in found)
