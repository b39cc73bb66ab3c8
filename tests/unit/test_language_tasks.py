"""Language models' rows to tensors: what is learned, what is masked, and that chance depends on seed, epoch and row
alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.language import CausalLm, MaskedLm
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Lengths, Place

TEXTS = ["the fox runs over two hills", "a cat sleeps", "seven zebras walk home slowly tonight"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: load_tokenizer(str(train_tokenizer(TEXTS, TokenizerTraining(vocab_size=320), kind, "k", cache, None)))
        for kind in ("encoder", "decoder")
    }


def context_of(tokenizer: Any) -> CollateContext:
    return CollateContext(
        tokenizer.pad_token_id, 0, "right", ["input_ids", "attention_mask"], [], tokenizer.mask_token_id, len(tokenizer)
    )


def collated(task: Any, columns: dict[str, list], tokenizer: Any, place: Place) -> dict[str, np.ndarray]:
    return task.collate(
        {name: [np.array(row) for row in rows] for name, rows in columns.items()}, context_of(tokenizer), place
    )


def causal(**values: Any) -> Any:
    return build_task(CausalLm(type="causal-lm", **values))


def place(epoch: int = 0, count: int = 3, seed: int = 1) -> Place:
    return Place(seed, epoch, np.arange(count))


def test_plain_text_is_learned_whole(tokenizers: dict[str, Any]) -> None:
    """Labels are the tokens; padding is ignored."""
    tokenizer, task = tokenizers["decoder"], causal(packing="none")
    columns = task.encode([{"text": text} for text in TEXTS], tokenizer, Lengths(64))
    assert columns["input_ids"] == tokenizer(TEXTS)["input_ids"]
    batch = collated(task, columns, tokenizer, place())
    for ids, labels, mask, row in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], columns["input_ids"], strict=True
    ):
        assert labels[: len(row)].tolist() == ids[: len(row)].tolist() == row
        assert set(labels[len(row) :]) <= {IGNORED} and mask.sum() == len(row)


def test_only_completions_are_learned(tokenizers: dict[str, Any]) -> None:
    """Prompt ignored, completion and its end learned; with completion_only_loss off the prompt too."""
    tokenizer = tokenizers["decoder"]
    row = {"p": "the fox", "c": " runs home"}
    task = causal(prompt_column="p", completion_column="c")
    columns = task.encode([row], tokenizer, Lengths(64))
    prompt, completion = (
        tokenizer("the fox")["input_ids"],
        tokenizer(" runs home")["input_ids"] + [tokenizer.eos_token_id],
    )
    assert columns["input_ids"] == [prompt + completion]
    labels = collated(task, columns, tokenizer, place(count=1))["labels"][0].tolist()
    assert labels == [IGNORED] * len(prompt) + completion
    everything = causal(prompt_column="p", completion_column="c", completion_only_loss=False)
    assert (
        collated(everything, everything.encode([row], tokenizer, Lengths(64)), tokenizer, place(count=1))["labels"][
            0
        ].tolist()
        == prompt + completion
    )


def test_only_the_assistant_is_learned(tokenizers: dict[str, Any]) -> None:
    """In a chat of two turns: the assistant's words and the end of its turns, found by decoding what is learned."""
    tokenizer = tokenizers["decoder"]
    tokenizer.chat_template = CHAT_TEMPLATE
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello you"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "no"},
    ]
    task = causal(messages_column="messages")
    columns = task.encode([{"messages": messages}], tokenizer, Lengths(512))
    ids, targets = columns["input_ids"][0], columns["targets"][0]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    learned = tokenizer.decode([token for token, target in zip(ids, targets, strict=True) if target])
    assert learned == "hello you<end>\nno<end>\n"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "null"), ([], "empty"), ("hi", "str"), ([1], "message 1 of field 'm' is int"), ([{"role": "user", "content": "x"}], "no message of the"),  # noqa: E501
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None}], "message 2 of field 'm' has a "
                                                                                     "content that is null, not text"),
        ([{"from": "human", "value": "x"}], "has no role (keys: from, value)"), ([{"role": "user", "content": [{"type": "text"}]}], "has a content that is list"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_no_chat(messages: Any, reason: str) -> None:
    assert reason in causal(messages_column="m").check_row({"m": messages})


@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_documents_do_not_meet(side: str, tokenizers: dict[str, Any]) -> None:
    """The first token of a document is no label, and padding is a document of its own, at the end of a row whatever
    side the tokenizer pads on.
    """
    task = causal(packing="best_fit")
    columns = {"input_ids": [[5, 6, 7, 8, 9], [5, 6, 7]], "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2]]}
    rows = {name: [np.array(row) for row in values] for name, values in columns.items()}
    batch = task.collate(rows, replace(context_of(tokenizers["decoder"]), padding_side=side), place(count=2))
    assert batch["input_ids"][:, :3].tolist() == [[5, 6, 7], [5, 6, 7]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED, 6, 7, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert "attention_mask" not in batch


def masked(
    tokenizer: Any, place: Place, rows: list[list[int]], words: list[list[int]] | None = None, **values: Any
) -> dict[str, np.ndarray]:
    task = build_task(MaskedLm(type="masked-lm", **values))
    return collated(task, {"input_ids": rows, "words": words or [[1] * len(row) for row in rows]}, tokenizer, place)


def test_masks_follow_seed_epoch_and_row(tokenizers: dict[str, Any]) -> None:
    """A row is masked alike in any batch it stands in, and otherwise in another epoch or with another seed."""
    tokenizer = tokenizers["encoder"]
    rows = [list(range(10, 60)) for _ in range(8)]
    first = masked(tokenizer, Place(1, 0, np.arange(8)), rows)
    alone = [masked(tokenizer, Place(1, 0, np.array([row])), rows[:1]) for row in range(8)]
    for name in ("input_ids", "labels"):
        assert np.array_equal(first[name], np.concatenate([batch[name] for batch in alone]))
        assert not np.array_equal(first[name][0], first[name][1])
        assert not np.array_equal(first[name], masked(tokenizer, Place(1, 1, np.arange(8)), rows)[name])
        assert not np.array_equal(first[name], masked(tokenizer, Place(2, 0, np.arange(8)), rows)[name])


def test_shares_of_masking(tokenizers: dict[str, Any]) -> None:
    """15 % are predicted; of these 80 % masked, 10 % another token, 10 % as they were. Special tokens never."""
    tokenizer = tokenizers["encoder"]
    rows, words = [[100] * 500] * 200, [[0, *[1] * 498, 0]] * 200
    batch = masked(tokenizer, Place(3, 0, np.arange(200)), rows, words)
    chosen = batch["labels"] != IGNORED
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    assert not chosen[:, [0, -1]].any()
    assert (batch["labels"][chosen] == 100).all() and (batch["input_ids"][~chosen] == 100).all()
    assert (batch["input_ids"][chosen] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.01)
    assert (batch["input_ids"][chosen] == 100).mean() == pytest.approx(0.1, abs=0.01)


def test_whole_words_share_their_fate(tokenizers: dict[str, Any]) -> None:
    """Tokens of a word are all predicted or none, and words are those of the tokenizer."""
    tokenizer = tokenizers["encoder"]
    task = build_task(MaskedLm(type="masked-lm", whole_word_mask=True, line_by_line=True, mlm_probability=0.5))
    columns = task.encode([{"text": "extraordinary zebras tonight"}] * 100, tokenizer, Lengths(64))
    encoded = tokenizer("extraordinary zebras tonight")
    batch = collated(task, columns, tokenizer, Place(0, 0, np.arange(100)))
    chosen = batch["labels"] != IGNORED
    assert chosen.any() and not chosen.all()
    for word in range(3):
        tokens = [i for i, at in enumerate(encoded.word_ids()) if at == word]
        assert (chosen[:, tokens].all(axis=1) == chosen[:, tokens].any(axis=1)).all()
    assert not chosen[:, [i for i, at in enumerate(encoded.word_ids()) if at is None]].any()
