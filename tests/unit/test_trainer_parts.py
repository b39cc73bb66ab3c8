"""Parts of the trainer, each alone: its names in transformers, figures, throughput, whole weights for generation, rows
of the user's own.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import plain_job
from transformers import PreTrainedTokenizerFast

from raytrain_nlp.compat.deepspeed import import_deepspeed
from raytrain_nlp.config import load_job
from raytrain_nlp.config.tasks.seq2seq import Summarization
from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext
from raytrain_nlp.trainer import generation, host, throughput
from raytrain_nlp.trainer.generation import gathered_weights
from raytrain_nlp.trainer.host import TrainerHost
from raytrain_nlp.trainer.loader import FeedDataset
from raytrain_nlp.trainer.metrics import Figures, write_generated
from raytrain_nlp.trainer.throughput import Meter
from raytrain_nlp.trainer.user_rows import RowsLoader, RowsReader


def test_what_is_said_of_transformers_trainer_is_there() -> None:
    """A release that renames a method would never call ours: losses would be divided otherwise, without a word."""
    (said,) = [node for node in ast.walk(ast.parse(inspect.getsource(host))) if isinstance(node, ast.ClassDef)]
    methods = {node.name for node in said.body if isinstance(node, ast.FunctionDef)} - {"loss_is_scaled_for_ga"}
    fields = {node.target.id for node in said.body if isinstance(node, ast.AnnAssign)} - {"_feed"} | {
        "loss_is_scaled_for_ga"
    }
    assert len(methods) > 8 and len(fields) > 12
    source = inspect.getsource(transformers.Trainer)
    assert [name for name in sorted(methods) if not callable(getattr(transformers.Trainer, name, None))] == []
    assert [name for name in sorted(fields) if not re.search(rf"self\.{name}\b", source)] == []
    assert TrainerHost is object, "at run time nothing stands between a mixin and Trainer"


# figures


class Words:
    """A tokenizer whose ids are words of one letter."""

    pad_token_id = 0

    def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(chr(96 + token) for token in row if token) for row in ids.tolist()]


class Scored:
    """A task with one figure."""

    def __init__(self, scores_labels: bool = True):
        self.scores_labels = scores_labels

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Any:
        return lambda prediction: {"accuracy": float(prediction)}


def test_the_users_figures_go_before_the_tasks_own() -> None:
    task: Any = Scored()
    assert Figures(task, [], None)(0.5) == {"accuracy": 0.5}
    heard = []
    figures = Figures(task, [], None, lambda prediction, **more: heard.append((prediction, more)) or {"mine": 1.0})
    assert (
        figures(0.5) == {"mine": 1.0}
        and figures(0.25, compute_result=True) == {"mine": 1.0}
        and figures.own(0.5) == {"accuracy": 0.5}
    )
    assert heard == [(0.5, {}), (0.25, {"compute_result": True})]


def test_of_language_models_the_user_sees_tokens_and_not_the_counts() -> None:
    """As in run_clm.py; of others what the task sees, unless the model gives more than logits."""
    logits = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]])
    language: Any = Scored(scores_labels=False)
    assert (
        Figures(language, [], None).shown(logits, None).tolist()
        == [[1, 0]]
        == Figures(language, [], None).shown((logits, 1), None).tolist()
    )
    task: Any = Scored()
    assert Figures(task, [], None).shown(logits, None) is None and Figures(task, [], None).shown((logits, 1), None) == (
        logits,
        1,
    )


def test_what_was_generated_is_written_beside_its_reference(tmp_path: Path) -> None:
    task = build_task(Summarization(type="summarization"))

    def write(predictions: list[list[int]], labels: list[list[int]]) -> None:
        write_generated(tmp_path / "g.jsonl", task.score_rows(np.array(predictions), np.array(labels), [], Words()))

    write([[1, 2, 0], [3, 0, 0]], [[1, 2, -100], [4, 5, 6]])
    rows = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert rows == [{"prediction": "a b", "reference": "a b"}, {"prediction": "c", "reference": "d e f"}]
    with pytest.raises(ValueError, match="zip"):
        write([[1]], [[1], [2]])
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 2, "what was there stays whole"


def test_rates_are_of_the_whole_job_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def micro(tokens: int, padded: int) -> MicroBatch:
        return MicroBatch(0, 0, np.arange(2), 2, 32, 600, tokens, padded, {})

    meter = Meter()
    meter.add([micro(30, 40), micro(50, 60)], 0.5)  # two micro-batches of one update: its rows count once
    meter.add([micro(10, 20), micro(10, 20)], 1.0)
    clock.now += 4
    rates = meter.read()
    assert rates == {
        "samples_per_second": 16,
        "tokens_per_second": 300,
        "padding_share": pytest.approx(1 - 100 / 140),
        "data_wait_share": 0.25,
    }
    meter.add([micro(10, 10)], 1.5)
    clock.now += 1
    assert meter.read() == {
        "samples_per_second": 32,
        "tokens_per_second": 600,
        "padding_share": 0,
        "data_wait_share": 0.5,
    }
    assert meter.read()["samples_per_second"] == 0, "nothing since, and no time: no error"


# whole weights for generation


def sharded(count: int, available: bool = False) -> Any:
    import_deepspeed()
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    status = ZeroParamStatus.AVAILABLE if available else ZeroParamStatus.NOT_AVAILABLE
    return SimpleNamespace(ds_status=status, ds_numel=count, element_size=lambda: 4)


@pytest.mark.parametrize(
    ("free", "others", "whole"), [(5_000, True, True), (4_900, True, False), (5_001, False, False)]
)
def test_weights_are_gathered_where_every_rank_has_memory_for_them(
    monkeypatch: pytest.MonkeyPatch, free: int, others: bool, whole: bool
) -> None:
    """4,000 bytes are sharded, and four fifths of the free memory may be taken; one rank alone must not gather, for the
    others would not.
    """
    gathered: list[int] = []

    @contextlib.contextmanager
    def gathering(parameters: list[Any]) -> Iterator[None]:
        gathered.extend(parameter.ds_numel for parameter in parameters)
        yield

    monkeypatch.setattr(import_deepspeed().zero, "GatheredParameters", gathering)
    monkeypatch.setattr(generation, "without_zero3_hooks", lambda offload: contextlib.nullcontext())
    monkeypatch.setattr(generation, "free_memory", lambda: free + 1)
    monkeypatch.setattr(generation, "gather_objects", lambda mine: [mine, others])
    module = SimpleNamespace(parameters=lambda: [sharded(600), sharded(400), sharded(9_999, available=True)])
    optimizer = SimpleNamespace(parameter_offload=SimpleNamespace(module=module))
    accelerator = SimpleNamespace(unwrap_model=lambda model: f"plain {model}")
    trainer = SimpleNamespace(
        is_deepspeed_enabled=True,
        deepspeed=SimpleNamespace(optimizer=optimizer),
        accelerator=accelerator,
        model="model",
    )
    with gathered_weights(trainer) as model:
        assert model == ("plain model" if whole else None)
    assert gathered == ([600, 400] if whole else [])


def test_without_zero_3_nothing_is_gathered() -> None:
    for trainer in (
        SimpleNamespace(is_deepspeed_enabled=False),
        SimpleNamespace(is_deepspeed_enabled=True, deepspeed=SimpleNamespace(optimizer=object())),
    ):
        with gathered_weights(trainer) as model:
            assert model is None


# rows of the user's own


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 7, 12])
def test_each_row_is_scored_once_by_one_rank(world_size: int, rows: int) -> None:
    """A rank without rows keeps the others company with one that counts nothing: all make as many forwards."""

    def collate(numbers: np.ndarray) -> tuple[dict[str, Any], int]:
        return {"x": torch.from_numpy(numbers)}, len(numbers)

    loaders = [RowsLoader(None, rows, collate, 2, world_size, rank) for rank in range(world_size)]
    batches = [list(loader) for loader in loaders]
    assert {len(part) for part in batches} == {len(loaders[0])} and len(loaders[0]) == -(-rows // (2 * world_size))
    scored = [batch.micro_batch.rows.tolist() for step in zip(*batches, strict=True) for batch in step]
    assert sum(scored, []) == list(range(rows))
    assert all(
        batch.micro_batch.weight == len(batch.micro_batch.rows) and len(batch["x"])
        for part in batches
        for batch in part
    )


@pytest.fixture
def reader(tmp_path: Path) -> RowsReader:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    context = CollateContext(0, 0, "right", ["input_ids", "attention_mask"], ["no", "yes"])
    arguments = SimpleNamespace(eval_batch_size=2, world_size=1, process_index=0)
    return RowsReader(
        load_job(plain_job(tmp_path, "x")), str(tmp_path / "tokenizer"), tokenizer, context, tmp_path, "", arguments
    )


def test_tokenized_rows_are_padded_as_transformers_pads_them(reader: RowsReader) -> None:
    rows = [
        {"input_ids": [2, 4], "attention_mask": [1, 1], "labels": 1, "text": "good film"},
        {"input_ids": [3], "attention_mask": [1], "labels": 0, "text": "bad"},
    ]
    (batch,) = reader.loader(rows, ["input_ids", "attention_mask", "labels"])
    expected = transformers.DataCollatorWithPadding(reader.tokenizer)(
        [{key: row[key] for key in row if key != "text"} for row in rows]
    )
    assert (
        set(batch) == set(expected)
        and all(torch.equal(batch[key], expected[key]) for key in batch)
        and batch.micro_batch.weight == 2
    )


def test_rows_of_several_sequences_are_padded_as_transformers_pads_them(reader: RowsReader) -> None:
    rows = [
        {"input_ids": [[2, 4, 4], [3]], "attention_mask": [[1, 1, 1], [1]], "labels": 1},
        {"input_ids": [[4], [2, 3]], "attention_mask": [[1], [1, 1]], "labels": 0},
    ]
    (batch,) = reader.loader(rows, ["input_ids", "attention_mask", "labels"])
    assert batch["input_ids"].tolist() == [[[2, 4, 4], [3, 0, 0]], [[4, 0, 0], [2, 3, 0]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]]
    assert batch["labels"].tolist() == [1, 0] and batch.micro_batch.weight == 2


def test_rows_as_in_the_files_become_tokens_as_those_of_the_files_do(reader: RowsReader) -> None:
    rows = [{"text": "good film", "label": "yes"}, {"text": "bad", "label": "no"}, {"text": "film", "label": "yes"}]
    batches = list(reader.loader(rows, []))
    assert [batch["input_ids"].tolist() for batch in batches] == [[[2, 4], [3, 0]], [[4]]] and [
        batch["labels"].tolist() for batch in batches
    ] == [[1, 0], [1]]
    with pytest.raises(ValueError, match="labels that training never saw: maybe"):
        reader.loader([*rows, {"text": "film", "label": "maybe"}], [])


def test_rows_without_labels_are_what_predict_reads(reader: RowsReader) -> None:
    (batch,) = reader.loader([{"text": "good"}, {"text": "bad film"}], [])
    assert batch["input_ids"].tolist() == [[2, 0], [3, 4]] and "labels" not in batch
    with pytest.raises(ValueError, match="row 1 cannot be predicted: field 'text' is empty"):
        list(reader.loader([{"text": "good"}, {"text": " "}], []))


@pytest.mark.parametrize(
    ("rows", "line"),
    [([], "there are no rows to score"), ([7], "rows to score must be dicts, not int"),
     ([{"label": 1}], "row 0 can be neither scored nor predicted: .* 'text' is missing"),
     (iter([]), "there are no rows to score"), (FeedDataset(lambda position: iter([]), 1, 1, 0), "the training rows are a stream")],  # noqa: E501
    ids=["none", "numbers", "other columns", "an iterator", "a stream"],
)  # fmt: skip
def test_rows_that_cannot_be_scored_are_told(reader: RowsReader, rows: Any, line: str) -> None:
    assert build_task(reader.job.task).check_row({"label": 1}) is not None
    with pytest.raises(ValueError, match=line):
        reader.loader(rows, [])


def test_a_mask_of_rows_with_padding_is_not_looked_at() -> None:
    from transformers import masking_utils

    from raytrain_nlp.compat.transformers import rows_with_padding

    padding = torch.ones(2, 4, dtype=torch.bool, device="meta")
    for _ in range(2):
        with rows_with_padding():
            assert masking_utils._ignore_causal_mask_sdpa(padding, 4, 4, 0, 0) is False
            assert masking_utils._ignore_bidirectional_mask_sdpa(padding, 4) is False
            assert masking_utils._ignore_causal_mask_sdpa(None, 4, 4, 0, 0) is True  # none is none
            assert masking_utils._ignore_bidirectional_mask_sdpa(None, 4) is True
    with pytest.raises(RuntimeError, match="meta tensors"):
        masking_utils._ignore_bidirectional_mask_sdpa(padding, 4)


def test_rows_that_are_one_sequence_each_are_not_looked_at() -> None:
    """Neither for SDPA's mask nor by flash attention; a read of a tensor without values would raise."""
    from transformers import masking_utils, modeling_flash_attention_utils

    from raytrain_nlp.compat.transformers import one_sequence_a_row

    positions = torch.arange(4, device="meta").unsqueeze(0)
    with one_sequence_a_row():
        assert masking_utils.find_packed_sequence_indices(positions) is None
        assert modeling_flash_attention_utils._is_packed_sequence(positions, 1) is False
    with pytest.raises(RuntimeError, match="meta tensors"):
        masking_utils.find_packed_sequence_indices(positions)
    assert modeling_flash_attention_utils._is_packed_sequence(torch.tensor([[0, 1, 0, 1]]), 1)


@pytest.mark.parametrize(("made", "passes"), [(11, 1), (12, 0)])
def test_a_run_that_is_resumed_from_its_last_step_makes_no_other(
    made: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain `Trainer` takes one more batch where the last step is in the middle of an epoch; the feed has none."""
    from raytrain_nlp.data.feed import stream
    from raytrain_nlp.trainer.trainer import FeedTrainer

    passed: list[Any] = []
    monkeypatch.setattr(transformers.Trainer, "_run_epoch", lambda self, **given: passed.append(given))
    run: Any = object.__new__(FeedTrainer)
    run.state = SimpleNamespace(global_step=made, max_steps=12)
    run._run_epoch(epoch=0)
    assert len(passed) == passes
    nothing: Any = None
    assert list(stream(nothing, start=12, stop=12, world_size=2, rank=0)) == []
