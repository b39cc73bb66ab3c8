"""Rows of each task: what is a row, what it is cut to and counted as, what is learned of it, and its figures; against
the tokenizer and by hand.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.config.tasks.language import CausalLm, MaskedLm
from raytrain_nlp.config.tasks.seq2seq import Summarization, Translation
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Lengths, Place
from raytrain_nlp.tasks.language.causal_lm import CausalLmTask
from raytrain_nlp.tasks.language.chat import check_messages, encode_messages, encode_question
from raytrain_nlp.tasks.language.masked_lm import MaskedLmTask
from raytrain_nlp.tasks.seq2seq import SummarizationTask, TranslationTask, decode
from raytrain_nlp.tasks.text_classification import TextClassificationTask
from raytrain_nlp.tasks.truncation import FULL, FULL_TARGET, full_lengths

WORDS = "[PAD] [UNK] [EOS] [MASK] a b c d e user assistant :".split()
ROWS = ["a b c d e", "a", "b c", "a b c d"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", mask_token="[MASK]"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} [EOS] {% endfor %}{% if add_generation_prompt "
        "%}assistant : {% endif %}"
    )
    return made


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


CONTEXT = CollateContext(0, 0, "right", ["input_ids", "attention_mask"], ["no", "yes"], 3, len(WORDS))


def arrays(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [np.array(row) for row in rows] if isinstance(rows[0], list) else rows for name, rows in columns.items()
    }


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, None])
def test_what_a_row_had_before_it_was_cut_is_counted(tokenizer: Any, longest: int | None) -> None:
    """`check` would say that no row is cut, or that all are."""
    made = tokenizer(ROWS, truncation=longest is not None, max_length=longest)
    assert full_lengths(tokenizer, made, (ROWS,), longest) == [5, 1, 2, 4]
    others = ["e", "e e e", "e", "e e"]
    pairs = tokenizer(ROWS, others, truncation=longest is not None and longest > 1, max_length=longest)
    if longest is None or longest > 1:
        assert full_lengths(tokenizer, pairs, (ROWS, others), longest) == [6, 4, 3, 6]


def test_of_completions_the_answer_is_learned(tokenizer: Any) -> None:
    task = CausalLmTask(CausalLm(type="causal-lm", prompt_column="p", completion_column="c"))
    columns = task.encode([{"p": "a b", "c": "c d"}], tokenizer, Lengths(16))
    batch = task.collate(
        arrays({name: rows for name, rows in columns.items() if name != FULL}), CONTEXT, Place(0, 0, np.arange(1))
    )
    assert batch["input_ids"][0].tolist() == ids("a b c d [EOS]") and batch["labels"][0].tolist() == [
        IGNORED,
        IGNORED,
        *ids("c d [EOS]"),
    ]
    assert (
        task.check_row({"p": "a"}) == "field 'c' is missing"
        and task.check_row({"p": "a", "c": "b"}) is None
        and list(task.texts({"p": "a", "c": "b"})) == ["a", "b"]
    )
    assert task.lengths(64, "train") == Lengths(64) and task.packing(64) is None


def test_plain_text_is_packed_and_blank_lines_are_part_of_it() -> None:
    task = CausalLmTask(CausalLm(type="causal-lm", text_column="t"))
    packing = task.packing(64)
    assert (
        packing is not None
        and (packing.kind, packing.block_size) == ("concat", 64)
        and task.check_row({"t": ""}) is None
    )
    alone = CausalLmTask(CausalLm(type="causal-lm", text_column="t", packing="none"))
    assert alone.packing(64) is None and alone.check_row({"t": ""}) == "field 't' is empty"


CHAT = [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
]


def test_of_a_chat_the_turns_of_the_assistant_are_learned(tokenizer: Any) -> None:
    ((row, learned),) = encode_messages(CHAT, tokenizer)
    assert row == ids("user : a b [EOS] assistant : c [EOS] user : d [EOS] assistant : e [EOS]")
    assert [token for token, mark in zip(row, learned, strict=True) if mark] == ids("c [EOS] e [EOS]")
    ((whole, all_of_it),) = encode_messages(CHAT, tokenizer, answers_only=False)
    assert whole == row and set(all_of_it) == {1}
    assert encode_question(CHAT, tokenizer) == ids("user : a b [EOS] assistant : c [EOS] user : d [EOS] assistant :"), (
        "an answer that is there is left out"
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [(CHAT, None), ([], "empty"), ("text", "str, not a list"), (CHAT[:1], "no message of the assistant"), ([{"role": "user"}], "has no content"),  # noqa: E501
     ([{"role": "user", "content": None}], "content that is null"), (None, "null")],
)  # fmt: skip
def test_what_is_no_chat_is_told(messages: Any, reason: str | None) -> None:
    found = check_messages({"m": messages}, "m")
    assert found is None if reason is None else found is not None and reason in found
    assert (
        check_messages({}, "m") == "field 'm' is missing"
        and check_messages({"m": CHAT[1:2]}, "m", answered=False) == "field 'm' has no message to answer"
    )


def test_masked_words_are_learned_and_no_others(tokenizer: Any) -> None:
    task = MaskedLmTask(MaskedLm(type="masked-lm", text_column="t", mlm_probability=0.5))
    assert task.check_row({"t": 7}) == "field 't' is int, not text"
    rows = [ids("a b c d e") * 20]
    encoded = task.encode([{"t": "a b c d e " * 20}], tokenizer, Lengths(None))
    assert encoded["input_ids"] == rows
    columns = arrays({name: encoded[name] for name in ("input_ids", "words")})
    first, again, later = (task.collate(columns, CONTEXT, Place(1, epoch, np.arange(1))) for epoch in (0, 0, 1))
    learned = first["labels"][0] != IGNORED
    assert np.array_equal(first["labels"][0][learned], np.array(rows[0])[learned]) and 20 < learned.sum() < 80
    assert (
        np.array_equal(first["input_ids"][0][~learned], np.array(rows[0])[~learned])
        and (first["input_ids"][0][learned] == 3).mean() > 0.5
    )
    assert np.array_equal(first["input_ids"], again["input_ids"]) and not np.array_equal(
        first["input_ids"], later["input_ids"]
    )


def test_summaries_are_cut_counted_and_padded_with_what_is_ignored(tokenizer: Any) -> None:
    task = SummarizationTask(
        Summarization(type="summarization", source_prefix="e ", max_target_length=3, val_max_target_length=4)
    )
    columns = task.encode(
        [{"text": "a b c d", "summary": "a b c d e"}, {"text": "a", "summary": "b"}],
        tokenizer,
        task.lengths(4, "train"),
    )
    assert columns["input_ids"] == [ids("e a b c"), ids("e a")] and columns["labels"] == [ids("a b c"), ids("b")]
    assert columns[FULL] == [5, 2] and columns[FULL_TARGET] == [5, 1]
    batch = task.collate(
        arrays({name: columns[name] for name in ("input_ids", "labels")}), CONTEXT, Place(0, 0, np.arange(2))
    )
    assert batch["labels"].tolist() == [ids("a b c"), [*ids("b"), IGNORED, IGNORED]] and batch[
        "attention_mask"
    ].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert task.lengths(4, "validation") == Lengths(4, 4) and decode(np.array([[4, 5, IGNORED, 0]]), tokenizer) == [
        "a b"
    ]


def test_a_translation_is_found_in_a_mapping_or_in_columns() -> None:
    task = TranslationTask(Translation(type="translation", source_lang="en", target_lang="de"))
    assert task.check_row({"translation": {"en": "a", "de": "b"}}) is None is task.check_row({"en": "a", "de": "b"})
    assert task.check_row({"translation": {"en": "a"}}) == "field 'de' is missing" and list(
        task.texts({"en": "a", "de": "b"})
    ) == ["a", "b"]
    assert task.check_input({"en": "a"}) is None, "the target is what is asked for"


def test_equal_texts_score_best_and_logits_become_their_likeliest_tokens() -> None:
    translation = TranslationTask(Translation(type="translation", source_lang="en", target_lang="de"))
    texts = ["a b c d e", "b c d e a"]
    assert translation.score(texts, texts)["bleu"] == pytest.approx(100) and set(
        translation.score(texts, texts)
    ) == set(translation.scores)
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 2] = logits[0, 1, 1] = 1
    assert translation.reduce_logits((logits, None), None).tolist() == [[2, 1]] and translation.reduce_logits(
        torch.tensor([[5, 6]]), None
    ).tolist() == [[5, 6]]


def test_accuracy_and_the_row_of_a_class() -> None:
    task = TextClassificationTask(TextClassification(type="text-classification", text_columns=["t"]))
    figures = task.build_metrics(["no", "yes"], None)
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = figures(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 0, 0]), losses=None))
    assert found["accuracy"] == 0.75 and set(found) == set(task.metric_names(["no", "yes"]))
    assert (
        task.model_kwargs(["no", "yes"])["id2label"] == {0: "no", 1: "yes"}
        and task.check_row({"t": "a"}) == "field 'label' is missing"
    )


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    task = CausalLmTask(CausalLm(type="causal-lm", text_column="t"))
    assert task.loss_figures(2.0) == {"perplexity": pytest.approx(math.e**2)}
    assert math.isinf(task.loss_figures(1e6)["perplexity"]) or task.loss_figures(1e6)["perplexity"] > 1e100, (
        "no OverflowError at the end of a run"
    )
