"""Rows on their way through a prediction: into batches within bounds, through the model on halves where memory is not
enough, and back to their places; each text is what the row alone would have given.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from raytrain_nlp.config import load_job
from raytrain_nlp.modeling.load import _keep_head_exact
from raytrain_nlp.prediction.batches import BatchSize, Encoder, batch_size, pack_batch, unpack_batch
from raytrain_nlp.prediction.files import part_name
from raytrain_nlp.prediction.flow import Rate, _items
from raytrain_nlp.prediction.parts import Layout
from raytrain_nlp.prediction.task_model import Batches
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Lengths, TaskDefaults

WORDS = [f"w{i}" for i in range(40)]
SMALL: dict[str, Any] = {"vocab_size": 43, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[EOS]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    )


def job_of(task: dict[str, Any], **sections: Any) -> Any:
    return load_job({"task": task, "model": {"name_or_path": "x"}, "data": {"train": "x"}, **sections})


@pytest.mark.parametrize(
    "size",
    [BatchSize(7), BatchSize(None, 300), BatchSize(None, 10), BatchSize(9, 500, 20, 2), BatchSize(None)],
)
def test_batches_hold_every_row_once_and_keep_their_bounds(size: BatchSize) -> None:
    lengths = np.sort(np.random.default_rng(0).integers(1, 60, 400))[::-1]
    rows = []
    for part in size.slices(lengths):
        count = len(lengths[part])
        rows += list(range(part.start, min(part.stop, len(lengths))))
        assert size.rows is None or count <= size.rows
        cost = count * (int(lengths[part][0]) + size.new_tokens) * size.beams
        assert size.tokens is None or cost <= size.tokens or count == 1
    assert rows == list(range(400))


def test_what_a_batch_is() -> None:
    """What is asked for is kept everywhere; else a GPU gets tokens enough, and a CPU what evaluation takes."""
    classes = {"type": "text-classification"}
    gpu = job_of(classes, workers={"use_gpu": True, "num_workers": 1})
    cpu = job_of(classes, training={"per_device_eval_batch_size": 5}, workers={"use_gpu": False, "num_workers": 1})
    assert batch_size(32, gpu, {}, False) == batch_size(32, cpu, {}, False) == BatchSize(32)
    assert batch_size(None, cpu, {}, False) == BatchSize(5)
    chosen = batch_size(None, gpu, {"max_new_tokens": 64, "num_beams": 4}, True)
    assert (chosen.rows, chosen.new_tokens, chosen.beams) == (None, 64, 4) and chosen.tokens and chosen.tokens > 8192
    assert batch_size(None, gpu, {"max_new_tokens": 64}, False).new_tokens == 0


def test_a_batch_travels_whole() -> None:
    inputs = {"input_ids": np.arange(6, dtype=np.int32).reshape(2, 3), "attention_mask": np.ones((2, 3), np.int8)}
    places, found = unpack_batch(pack_batch(np.array([4, 1]), inputs))
    assert places.tolist() == [4, 1] and list(found) == list(inputs)
    assert all(found[key].dtype == inputs[key].dtype and (found[key] == inputs[key]).all() for key in inputs)


def spec_of(job: Any, size: BatchSize, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> Any:
    monkeypatch.setattr("raytrain_nlp.prediction.batches.load_tokenizer", lambda folder: tokenizer)
    context = CollateContext(0, 0, "right", ["input_ids", "attention_mask"], [])
    return SimpleNamespace(job=job, tokenizer_dir="", preprocess=None, lengths=Lengths(16), batch=size, context=context)


GENERATING = {
    "causal": (
        {"type": "causal-lm"},
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        ),
        "text",
    ),
    "seq2seq": (
        {"type": "summarization", "text_column": "text", "summary_column": "summary"},
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **SMALL, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        ),
        "text",
    ),
}


@pytest.mark.parametrize("kind", sorted(GENERATING))
def test_texts_are_those_of_each_row_alone(kind: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy decoding on CPU: whatever rows stand beside one, and in whatever order they are run."""
    section, build, column = GENERATING[kind]
    torch.manual_seed(3)
    model = build()
    with torch.no_grad():  # a model of random weights says the same word for ever: larger ones make it speak
        for weight in model.parameters():
            weight.mul_(4)
    draw = np.random.default_rng(1)
    rows = [{column: " ".join(draw.choice(WORDS, draw.integers(1, 12)))} for _ in range(12)]
    rows[5] = {column: None}
    options = {"max_new_tokens": 6, "do_sample": False}
    task = build_task(job_of(section).task)
    told, _, batches = Encoder(spec_of(job_of(section), BatchSize(None, 60, 6), monkeypatch, tokenizer))(rows)
    assert told == {5: f"field '{column}' is null"} and len(batches) > 2
    found: dict[int, str] = {}
    for places, outputs in Batches(task, model, tokenizer, options, False)(batches):
        for place, row in zip(places.tolist(), task.predictions(outputs, [], tokenizer), strict=True):
            found[place] = row["prediction"]
    assert sorted(found) == [place for place in range(12) if place != 5]
    assert len(set(found.values())) > 3, "texts that differ tell rows apart"
    for place, text in found.items():
        ids = tokenizer(rows[place][column], return_tensors="pt", return_token_type_ids=False)
        alone = model.generate(**ids, **options, pad_token_id=0)
        alone = alone[0, ids["input_ids"].shape[1] :] if kind == "causal" else alone[0]
        assert text == tokenizer.decode(alone, skip_special_tokens=True).strip()


def test_a_batch_of_several_sequences_a_row_keeps_its_shape() -> None:
    """That of multiple choice: rows, endings, tokens."""
    inputs = {
        "input_ids": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
        "attention_mask": np.ones((2, 3, 4), np.int8),
    }
    places, found = unpack_batch(pack_batch(np.array([1, 0]), inputs))
    assert places.tolist() == [1, 0]
    assert {name: array.tolist() for name, array in found.items()} == {name: a.tolist() for name, a in inputs.items()}


class Cramped(TaskDefaults):
    """A task whose model has memory for `most` rows."""

    def __init__(self, most: int):
        self.most, self.seen, self.inside = most, [], 0

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        self.inside += 1
        assert self.inside == 1, "one chunk after the other"
        rows = len(inputs["input_ids"])
        self.seen.append(rows)
        threading.Event().wait(0.001)
        self.inside -= 1
        if rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"sum": inputs["input_ids"].sum(1)}


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """Every row is there once, in its place; a row that does not fit alone ends the prediction."""
    ids = np.arange(33, dtype=np.int32).reshape(11, 3)
    batches = [pack_batch(np.arange(11)[::-1].copy(), {"input_ids": ids})]
    task = Cramped(4)
    run = Batches(task, torch.nn.Identity(), None, {}, False)
    found = [(place, value) for places, made in run(batches) for place, value in zip(places.tolist(), made["sum"])]
    assert found == [(10 - i, ids[i].sum()) for i in range(11)] and task.seen == [11, 6, 3, 3, 5, 3, 2]
    with pytest.raises(torch.OutOfMemoryError):
        list(Batches(Cramped(0), torch.nn.Identity(), None, {}, False)(batches))


def test_chunks_take_turns_on_the_model() -> None:
    """Ray Data calls an actor from two threads."""
    task = Cramped(100)
    run = Batches(task, torch.nn.Identity(), None, {}, False)
    found: dict[int, list[int]] = {}

    def chunk(number: int) -> None:
        batches = [pack_batch(np.arange(2), {"input_ids": np.full((2, 2), 10 * number + i)}) for i in range(4)]
        found[number] = [int(value) for _, made in run(batches) for value in made["sum"]]

    threads = [threading.Thread(target=chunk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [2 * (10 * number + i) for i in range(4) for _ in range(2)] for number in range(4)}


HEADS = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(HEADS))
def test_scores_of_rows_do_not_fall_on_the_grid_of_bf16(family: str) -> None:
    """A regression of 40 rows close together: bf16 has two to three digits, and would tie them."""
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **HEADS[family]}, num_labels=1)
    torch.manual_seed(0)
    exact = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    half = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    half.load_state_dict(exact.state_dict())
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    _keep_head_exact(half)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 43, (40, 7)))
    ids[:, -1] = 1  # where heads of decoders look
    with torch.inference_mode():
        expected, found = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for model in (exact, half))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, found.to(torch.bfloat16).float())


def test_a_head_over_tokens_stays_as_it_is_loaded() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL, n_embd=32, n_layer=1, n_head=2))
    model.to(torch.bfloat16)
    _keep_head_exact(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_pieces_follow_from_the_input_alone(tmp_path: Path) -> None:
    """So a part's name says the same rows on every machine; each piece is told of its own parts."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 200_000)
    from raytrain_nlp.data.reading.sources import find_files

    files = find_files([str(path)], "")
    layout = Layout.of(files, 512)
    done = [part_name(1, 0), part_name(0, 3), part_name(1, 2)]
    items = _items(files, layout, done)
    assert [item["number"] for item in items] == [0, 1, 2] and Layout.of(files, 512) == layout
    assert [item["done"] for item in items] == [[done[1]], [done[0], done[2]], []]
    big = [SimpleNamespace(size=50 << 30), SimpleNamespace(size=50 << 30)]
    assert len(range(0, 100 << 30, Layout.of(big, 512).piece_bytes)) < 10_000


def test_the_rate_is_that_of_the_predictors_clocks() -> None:
    """Two predictors; the second part of the first one arrives with the others, in a burst."""
    rate = Rate()
    assert rate.per_second is None
    rate.add(100, 4.0)
    assert rate.per_second == 25
    for rows, seconds in ((100, 8.0), (200, 5.0)):
        rate.add(rows, seconds)
    assert (rate.rows, rate.per_second) == (400, 50)
