"""Losses, poolings and figures of vectors beside those of sentence-transformers on the same vectors; the loss of a
global batch in parts beside the loss of the whole.
"""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_reads import HostReads
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import cos_sim, dot_score, pairwise_dot_score
from transformers import BertConfig, BertModel

from raytrain_nlp.compat.transformers import rows_with_padding
from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.distributed.first_pass import learn_vectors, restore_draws
from raytrain_nlp.distributed.row_pool import POOL
from raytrain_nlp.tasks.similarity.losses import similarity_loss
from raytrain_nlp.tasks.similarity.retrieval import correlations, number_texts, rank_positives, retrieval_figures
from raytrain_nlp.tasks.similarity.sentence_similarity import SentenceSimilarityTask
from raytrain_nlp.tasks.similarity.vectors import _POOLINGS, apply_vectors
from raytrain_nlp.trainer.training_step import Feed, StepMixin


def config(**keys: Any) -> SentenceSimilarity:
    return SentenceSimilarity(type="sentence-similarity", **keys)


def some_vectors(rows: int, texts: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, texts, 8, generator=torch.Generator().manual_seed(seed))


TRIPLETS = {"text_columns": ["a", "p", "n", "m"]}
SYMMETRIC: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
SCORED = {"score_column": "score"}


@pytest.mark.parametrize(
    ("keys", "theirs"),
    [
        ({}, lambda: losses.MultipleNegativesRankingLoss(None)),
        ({"scale": 7}, lambda: losses.MultipleNegativesRankingLoss(None, scale=7)),
        (TRIPLETS, lambda: losses.MultipleNegativesRankingLoss(None)),
        (
            {**TRIPLETS, "similarity": "dot", "scale": 1},
            lambda: losses.MultipleNegativesRankingLoss(None, scale=1, similarity_fct=dot_score),
        ),
        ({"symmetric": True}, lambda: losses.MultipleNegativesRankingLoss(None, **SYMMETRIC)),
        ({**TRIPLETS, "symmetric": True}, lambda: losses.MultipleNegativesRankingLoss(None, **SYMMETRIC)),
        (SCORED, lambda: losses.CoSENTLoss(None)),
        (
            {**SCORED, "similarity": "dot", "scale": 2},
            lambda: losses.CoSENTLoss(None, scale=2, similarity_fct=pairwise_dot_score),
        ),
        ({**SCORED, "loss": "cosine-similarity"}, lambda: losses.CosineSimilarityLoss(None)),
    ],
)
def test_losses_and_gradients(keys: dict[str, Any], theirs: Any) -> None:
    asked = config(**keys)
    ours = some_vectors(13, len(asked.text_columns)).requires_grad_()
    other = ours.detach().clone().requires_grad_()
    scores = torch.rand(13, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # some are equal
    loss = similarity_loss(asked, ours, scores, None)
    expected = theirs().compute_loss_from_embeddings(list(other.unbind(1)), scores)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_masked_duplicates_are_no_negatives(symmetric: bool) -> None:
    """The loss by hand, a row at a time."""
    asked = config(text_columns=["a", "p", "n"], mask_duplicates=True, symmetric=symmetric, scale=3)
    vectors = some_vectors(6, 3)
    texts = torch.tensor([[0, 10, 20], [1, 11, 21], [0, 12, 22], [3, 10, 23], [4, 14, 11], [5, 15, 25]])
    units = torch.nn.functional.normalize(vectors, dim=-1)
    expected = []
    for i in range(6):
        shown = [(k, place) for place in (1, 2) for k in range(6)]
        kept = [
            (k, place)
            for k, place in shown
            if (k, place) == (i, 1)
            or (texts[k, place] != texts[i, 1] and not (place == 1 and texts[k, 0] == texts[i, 0]))
        ]
        scores = torch.stack([3 * units[i, 0] @ units[k, place] for k, place in kept])
        own = 3 * units[i, 0] @ units[i, 1]
        total = scores.logsumexp(0)
        if symmetric:
            others = [k for k in range(6) if k == i or (texts[k, 1] != texts[i, 1] and texts[k, 0] != texts[i, 0])]
            total = (total + torch.stack([3 * units[k, 0] @ units[i, 1] for k in others]).logsumexp(0)) / 2
        expected.append(total - own)
    torch.testing.assert_close(similarity_loss(asked, vectors, None, texts), torch.stack(expected).mean())
    plain = similarity_loss(asked.model_copy(update={"mask_duplicates": False}), vectors, None, texts)
    assert plain > torch.stack(expected).mean()


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_poolings(mode: Any, side: str) -> None:
    hidden, mask = torch.randn(5, 7, 8), torch.ones(5, 7, dtype=torch.int64)
    for i in range(1, 5):
        mask[i, : i + 1] = 0
    mask = mask if side == "left" else mask.flip(1)
    theirs = Pooling(8, mode)({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(_POOLINGS[mode](hidden, mask), theirs)


class Known:
    """A model of sentence-transformers, as far as evaluators ask it: vectors by text."""

    def __init__(self, known: dict[str, Any], similarity: Any):
        self.known, self.similarity, self.similarity_fn_name = known, similarity, "cosine"
        self.model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *args, **kwargs: None)

    def encode(self, texts: Any, convert_to_numpy: bool = False, **kwargs: Any) -> Any:
        found = torch.stack([self.known[text] for text in texts])
        return found.numpy() if convert_to_numpy else found

    encode_query = encode_document = encode


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_retrieval_figures(columns: int, similarity: str) -> None:
    """300 rows of which anchors and documents stand several times, with equal vectors among them."""
    random = np.random.default_rng(columns)
    numbers = np.stack([random.integers(0, most, 300) for most in (120, 180, 150, 90)[:columns]], axis=1)
    numbers[:, 1:] += 1000
    near = torch.randn(1200, 6, generator=torch.Generator().manual_seed(3))
    near[1000:1180] = near[:180] + 0.7 * near[1000:1180]  # so that anchors find something
    near[1005] = near[1006] = near[1007]
    vectors = near[torch.from_numpy(numbers)].numpy()
    tokens = [np.concatenate([[number // 7, number] for number in row]) for row in numbers]
    texts = number_texts(tokens, [np.full(columns, 2)] * 300)
    places = {int(number): int(text) for number, text in zip(numbers.ravel(), texts.ravel(), strict=True)}
    assert len(places) == len({*places.values()}) == len({*numbers.ravel().tolist()})

    shown = dict.fromkeys(numbers[:, 1:].ravel().tolist())
    corpus = {f"d{place:05d}": str(number) for place, number in enumerate(shown)}
    names = {int(text): name for name, text in corpus.items()}
    queries = {f"q{number}": str(number) for number in {*numbers[:, 0].tolist()}}
    right: dict[str, set[str]] = {}
    for row in numbers.tolist():
        right.setdefault(f"q{row[0]}", set()).add(names[row[1]])
    compare = cos_sim if similarity == "cosine" else dot_score
    evaluator = InformationRetrievalEvaluator(queries, corpus, right, score_functions={similarity: compare})
    expected = evaluator(Known({str(number): near[number] for number in range(1200)}, compare))
    found = retrieval_figures(texts, rank_positives(vectors, texts, similarity), similarity)
    assert found == pytest.approx({name: float(expected[name]) for name in found}, abs=1e-7)
    assert len(found) == 8 and 0.01 < found[f"{similarity}_ndcg@10"] < 0.9


def test_correlations() -> None:
    vectors, scores = some_vectors(50, 2), torch.rand(50).numpy()
    known = {f"{side}{i}": vectors[i, side] for i in range(50) for side in (0, 1)}
    evaluator = EmbeddingSimilarityEvaluator(
        [f"0{i}" for i in range(50)],
        [f"1{i}" for i in range(50)],
        scores.tolist(),
        similarity_fn_names=["cosine", "dot"],
    )
    model: Any = Known(known, cos_sim)
    model.encode = lambda texts, **kwargs: torch.stack([known[text] for text in texts]).numpy()
    expected = evaluator(model)
    for similarity in ("cosine", "dot"):
        found = correlations(vectors.numpy(), scores, similarity)
        assert found == pytest.approx({name: float(expected[name]) for name in found}, abs=1e-6)


def test_vectors_that_are_not_finite_rank_last() -> None:
    vectors = some_vectors(4, 2).numpy()
    vectors[1] = np.nan
    assert rank_positives(vectors, np.array([[0, 4], [1, 5], [2, 6], [3, 7]]), "cosine")[1] == 4


@pytest.mark.parametrize(
    ("accumulation", "keys"), [(1, {}), (2, {}), (5, TRIPLETS), (9, {"symmetric": True}), (3, SCORED)]
)
def test_a_global_batch_in_parts_has_the_gradients_of_the_whole(accumulation: int, keys: dict[str, Any]) -> None:
    """With dropout, and with parts of unequal size and without rows."""
    asked, rows = config(**keys), 7
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=40, **sizes)).train()
    apply_vectors(model, asked)
    whole = copy.deepcopy(model)
    texts = len(asked.text_columns)
    ids, others = torch.randint(1, 40, (rows, 5)), torch.randint(1, 40, (rows, texts - 1, 6))
    scores = torch.rand(rows)

    def part(chosen: Any) -> dict[str, Any]:
        return {"input_ids": ids[chosen], "document_input_ids": others[chosen], "labels": scores[chosen]}

    parts = [found[0] for found in split_batch(np.arange(rows), 1, accumulation)]
    inputs = [part(chosen if len(chosen) else [0]) for chosen in parts]
    micros = [SimpleNamespace(global_rows=rows, micro=micro) for micro in range(accumulation)]

    def embed(inputs: Any, micro: Any) -> Any:
        return {"vectors": model(**{**inputs, "labels": None}).logits, "labels": inputs["labels"]}

    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = learn_vectors(inputs, micros, accumulation, embed) if accumulation > 1 else [{"torch": before}]
    after, values = torch.get_rng_state(), []
    for chosen, given, micro, state in zip(parts, inputs, micros, draws, strict=True):
        restore_draws(state)
        POOL.begin(micro, accumulation)
        loss = model(**given).loss
        (loss * len(chosen) / rows).backward()
        values.append(loss.item())
        POOL.end()
    POOL.forget()
    if accumulation > 1:
        assert torch.equal(after, torch.get_rng_state())  # each number has been drawn for one row

    # the same draws for the same rows, all in one graph
    vectors = []
    for given, state in zip(inputs, draws, strict=True):
        restore_draws(state)
        vectors.append(whole(**{**given, "labels": None}).logits)
    joined = torch.cat([found[: len(chosen)] for found, chosen in zip(vectors, parts, strict=True)])
    expected = similarity_loss(asked, joined, scores, None)
    expected.backward()
    assert values == pytest.approx([expected.item()] * accumulation, abs=1e-5)
    for name, parameter in whole.named_parameters():
        found = model.get_parameter(name).grad
        if parameter.grad is None:
            assert found is None and name.startswith("pooler")
        else:
            torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_model_stays_what_it_is(tmp_path: Any) -> None:
    """Its folder loads as the plain model, and its weights keep their names."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    plain = BertModel(BertConfig(vocab_size=40, **sizes)).eval()
    model = copy.deepcopy(plain)
    apply_vectors(model, config(pooling="cls", normalize=True))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, 40, (3, 5))
    first = torch.nn.functional.normalize(loaded(ids)[0][:, 0], dim=-1)
    torch.testing.assert_close(model(ids).logits[:, 0], first)


@pytest.mark.parametrize(
    "keys", [{**TRIPLETS, "mask_duplicates": True, "symmetric": True}, {**SCORED, "pooling": "lasttoken"}]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_reads_nothing_back_from_its_device(keys: dict[str, Any], accumulation: int) -> None:
    """A device is played, as tests/host_reads.py does it."""
    asked, rows = config(**keys), 6
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=40, **sizes)).train()
    apply_vectors(model, asked)
    texts = len(asked.text_columns)
    mask, others = torch.ones(rows, 5, dtype=torch.int64), torch.ones(rows, texts - 1, 6, dtype=torch.int64)
    mask[1, 3:], others[0, 0, 4:] = 0, 0
    given = {
        "input_ids": torch.randint(1, 40, (rows, 5)),
        "attention_mask": mask,
        "document_input_ids": torch.randint(1, 40, (rows, texts - 1, 6)),
        "document_attention_mask": others,
        "labels": torch.rand(rows),
        "text_ids": torch.randint(0, 4, (rows, texts)),
    }
    parts = [
        {name: value[part] for name, value in given.items()}
        for part in map(torch.as_tensor, np.array_split(np.arange(rows), accumulation))
    ]
    micros = [SimpleNamespace(global_rows=rows, micro=micro) for micro in range(accumulation)]

    def embed(inputs: Any, micro: Any) -> Any:
        beside = {name: inputs[name] for name in ("labels", "text_ids")}
        return {"vectors": model(**{**inputs, "labels": None}).logits, **beside}

    reads = HostReads()
    with rows_with_padding(), reads.active():
        if accumulation > 1:
            learn_vectors(parts, micros, accumulation, embed)
        for inputs, micro in zip(parts, micros, strict=True):
            POOL.begin(micro, accumulation)
            loss = model(**inputs).loss
            loss.backward()
            POOL.end()
    POOL.forget()
    assert reads.found == [] and torch.isfinite(loss)


class _Plain:
    """What `Trainer` does of a step, as far as a first pass asks it."""

    args = SimpleNamespace(gradient_accumulation_steps=2)
    label_smoother = None

    def get_batch_samples(self, iterator: Any, count: int, device: Any) -> Any:
        return list(iterator), None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def compute_loss_context_manager(self) -> Any:
        return contextlib.nullcontext()


def test_a_first_pass_draws_what_a_resumed_run_has_restored() -> None:
    """`Trainer` restores random states after it has taken the batches of a step."""

    class OnFeed(StepMixin, _Plain):  # type: ignore[misc]
        pass

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    trainer: Any = object.__new__(OnFeed)
    trainer.model_wrapped = BertModel(BertConfig(vocab_size=40, **sizes)).eval()  # as an evaluation leaves it
    apply_vectors(trainer.model_wrapped, config())
    quiet, taken = SimpleNamespace(add=lambda *args: None), list[Any]()
    task = SentenceSimilarityTask(config())
    feed = Feed(task, None, None, SimpleNamespace(feed=SimpleNamespace(taken=taken, wait_s=0.0)))  # type: ignore[arg-type]
    feed.meter, feed.cost = quiet, quiet  # type: ignore[assignment]
    trainer._feed = feed

    def stream() -> Any:
        for micro in range(2):
            ids = torch.randint(1, 40, (2, 2, 4), generator=torch.Generator().manual_seed(micro))
            taken.append(SimpleNamespace(global_rows=4, micro=micro, tokens=16, padded_tokens=16))
            yield {"input_ids": ids[:, 0], "document_input_ids": ids[:, 1:], "labels": torch.zeros(2)}

    torch.manual_seed(1)
    before = torch.get_rng_state()
    trainer.get_batch_samples(stream(), 2, "cpu")
    assert torch.equal(torch.get_rng_state(), before) and not feed.draws
    torch.manual_seed(2)
    restored = torch.get_rng_state()
    trainer._feed_compare()
    POOL.forget()
    assert torch.equal(feed.draws[0]["torch"], restored) and len(feed.draws) == 2 and trainer.model_wrapped.training
    assert not torch.equal(feed.draws[1]["torch"], restored) and not feed.compared
