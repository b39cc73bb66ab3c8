"""Filling in the middle: documents worked by hand, shares over many rows, and that chance depends on seed and text
alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_config import job, problems

from raytrain_nlp.config.model import ModelConfig, TokenizerTraining
from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.modeling.tokenizer import cache_tokenizer, load_tokenizer, train_tokenizer
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.language.infilling import Infilling, mark_tokens

MARKS = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
NAMES = [f"{name} writes line {number} of a file" for number in range(300) for name in ("ada", "grace", "mary", "joan")]


def section(**values: Any) -> CausalLm:
    return CausalLm(**{"type": "causal-lm", "fim_rate": 0.5, **values})


def trained(cache: Path, added: tuple[str, ...]) -> Any:
    folder = train_tokenizer(NAMES[:9], TokenizerTraining(vocab_size=300), "decoder", "k", cache, None, added)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("cache"), mark_tokens(section()))


@pytest.mark.parametrize(
    ("first", "last", "suffix_first", "keeps_length", "expected"),
    [
        (2, 5, False, True, "P 0 1 S 5 6 M 2 3 4"),
        (2, 5, True, True, "P S 5 6 M 0 1 2 3 4"),
        (2, 5, False, False, "P 0 1 S 5 6 7 8 9 M 2 3 4"),
        (2, 5, True, False, "P S 5 6 7 8 9 M 0 1 2 3 4"),
        (0, 10, False, True, "P S M 0 1 2 3 4 5 6 7 8 9"),
        (4, 4, False, True, "P 0 1 2 3 S 4 5 6 M"),
        (1, 8, True, True, "P S M 0 1 2 3 4 5 6 7"),
    ],
)
def test_a_document_by_hand(
    first: int, last: int, suffix_first: bool, keeps_length: bool, expected: str, tokenizer: Any
) -> None:
    """Prefix, suffix, middle; or suffix, prefix, middle, where the two first tokens stand together. The suffix loses
    three tokens, where it has them, and no other part does.
    """
    marks = dict(zip(("P", "M", "S"), tokenizer.convert_tokens_to_ids(list(MARKS[:3])), strict=True))
    made = Infilling(section(truncate_or_pad=keeps_length), tokenizer).arrange(
        list(range(10)), first, last, suffix_first
    )
    assert made == [marks[word] if word in marks else int(word) for word in expected.split()]


def parts_of(ids: list[int], tokenizer: Any) -> str:
    """`plain`, `PSM` or `SPM`."""
    prefix, middle, suffix = tokenizer.convert_tokens_to_ids(list(MARKS[:3]))
    if prefix not in ids:
        return "plain"
    assert ids[0] == prefix and ids.index(suffix) < ids.index(middle)
    assert [ids.count(mark) for mark in (prefix, middle, suffix)] == [1, 1, 1]
    return "SPM" if ids[1] == suffix else "PSM"


@pytest.mark.parametrize(("rate", "suffix_first"), [(0.5, 0.5), (0.9, 0.2), (1.0, 1.0), (1.0, 0.0)])
def test_shares_and_that_nothing_is_lost(rate: float, suffix_first: float, tokenizer: Any) -> None:
    """Of 1,200 documents; each keeps all its tokens in order, where the suffix is not cut."""
    task = build_task(section(fim_rate=rate, fim_spm_rate=suffix_first, truncate_or_pad=False))
    rows = task.encode([{"text": text} for text in NAMES], tokenizer, Lengths(None))["input_ids"]
    prefix, middle, suffix = tokenizer.convert_tokens_to_ids(list(MARKS[:3]))
    found, shares, bare = [], [], []
    for ids, plain in zip(rows, tokenizer(NAMES)["input_ids"], strict=True):
        found.append(parts_of(ids, tokenizer))
        if found[-1] == "plain":
            assert ids == plain
            continue
        behind, end = ids.index(suffix), ids.index(middle)
        rest = ids[behind + 1 : end]
        assert ids[1:behind] + ids[end + 1 :] + rest == plain
        shares.append(len(rest) / len(plain))
        bare.append(1 - (1 - 1 / (len(plain) + 1)) ** 2)  # an empty prefix: both orders look the same then
    assert np.mean([kind != "plain" for kind in found]) == pytest.approx(rate, abs=0.04)
    seen = suffix_first + (1 - suffix_first) * np.mean(bare)
    assert found.count("SPM") / len(shares) == pytest.approx(seen, abs=0.04)
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.03)  # two borders, drawn evenly


def test_chance_is_of_seed_and_text_alone(tokenizer: Any) -> None:
    """The same rows in other batches and another order; another seed cuts otherwise."""
    task, rows = build_task(section()), [{"text": text} for text in NAMES[:200]]
    made = task.encode(rows, tokenizer, Lengths(None))["input_ids"]
    alone = [task.encode([row], tokenizer, Lengths(None))["input_ids"][0] for row in reversed(rows)]
    assert alone[::-1] == made
    assert build_task(section(fim_seed=1)).encode(rows, tokenizer, Lengths(None))["input_ids"] != made


def test_a_sequence_stays_within_its_length(tokenizer: Any) -> None:
    """Rows that are not packed, the end-of-sequence token among them; each that was cut is told."""
    task = build_task(section(fim_rate=1.0, packing="none", truncate_or_pad=False, append_eos=True))
    text = " ".join(NAMES[:3])
    encoded = task.encode([{"text": text}, {"text": "ada"}, {"text": ""}], tokenizer, Lengths(12))
    long, short, empty = encoded["input_ids"]
    assert len(long) == 12 and tokenizer.eos_token_id not in long
    assert short[-1] == tokenizer.eos_token_id and len(short) == len(tokenizer("ada")["input_ids"]) + 4
    assert empty == [tokenizer.eos_token_id]
    assert encoded["full_length"][0] == len(tokenizer(text)["input_ids"]) + 3


def test_the_tokenizer_learns_the_tokens(tmp_path: Path) -> None:
    """A pretrained one too; one that has them stays as it is. Padding only where run_fim.py adds it."""
    known = trained(tmp_path / "a", ())
    known.save_pretrained(tmp_path / "pretrained")
    added = build_task(section()).added_tokens
    assert added == MARKS and mark_tokens(section(truncate_or_pad=False)) == MARKS[:3]
    assert build_task(CausalLm(type="causal-lm")).added_tokens == ()
    model = ModelConfig(name_or_path=str(tmp_path / "pretrained"))
    made = load_tokenizer(str(cache_tokenizer(model, tmp_path / "b", False, added)))
    assert made.convert_tokens_to_ids(list(MARKS)) == list(range(len(known), len(known) + 4))
    assert len(made("a<fim_middle>b")["input_ids"]) == 3
    made.save_pretrained(tmp_path / "again")
    again = cache_tokenizer(ModelConfig(name_or_path=str(tmp_path / "again")), tmp_path / "b", False, added)
    assert len(load_tokenizer(str(again))) == len(made)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"fim_spm_rate": 1.0}, "task: fim_spm_rate is not read without fim_rate. Set task.fim_rate, or remove it."),
        ({"fim_rate": 2}, "task.fim_rate: should be less than or equal to 1 (2)."),
        ({"fim_rate": 1, "prompt_column": "p", "completion_column": "c"}, "task: fim_rate needs plain text."),
        ({"fim_rate": 1, "fim_prefix_token": "<fim_pad>"}, "task: two of the fim_ tokens are the same."),
    ],
)
def test_what_is_refused(values: dict[str, Any], line: str) -> None:
    assert any(line in problem for problem in problems(job(task={"type": "causal-lm", **values})))
