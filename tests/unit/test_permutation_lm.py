"""Permutation language models: spans, order and masks are those of transformers' collator for the same draws, hold what
XLNet's paper says, and follow seed, epoch and row alone.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_config import job, problems

from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.language import PermutationLm
from raytrain_nlp.data.plan import Plan, PlanSpec
from raytrain_nlp.data.split import split_batch
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Lengths, Place
from raytrain_nlp.tasks.language.masking import SPECIAL
from raytrain_nlp.tasks.language.permutation_lm import PermutationLmTask

TEXTS = ["the fox runs over two hills", "a cat sleeps", "seven zebras walk home slowly tonight and sing"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    return load_tokenizer(str(train_tokenizer(TEXTS, TokenizerTraining(vocab_size=300), "encoder", "k", folder, None)))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    import transformers

    transformers.set_seed(3)
    config = transformers.XLNetConfig(
        vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.0
    )
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    task_of().apply_to_model(made, tokenizer)
    return made


def task_of(**values: Any) -> Any:
    return build_task(PermutationLm(**{"type": "permutation-lm", "line_by_line": True, **values}))


def context(tokenizer: Any, side: str = "right") -> CollateContext:
    return CollateContext(tokenizer.pad_token_id, 0, side, [], [], tokenizer.mask_token_id, len(tokenizer))


def collated(task: Any, rows: list[list[int]], tokenizer: Any, place: Place, side: str = "right") -> Any:
    special = [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in rows]
    columns = {
        "input_ids": [np.array(row) for row in rows],
        "words": [np.where(np.array(mask) == 1, SPECIAL, 1) for mask in special],
    }
    return task.collate(columns, context(tokenizer, side), place)


@pytest.mark.parametrize(("share", "longest"), [(1 / 6, 5), (0.5, 1), (0.3, 9), (1.0, 2)])
def test_equal_to_the_collator_of_transformers(share: float, longest: int, tokenizer: Any) -> None:
    """Given the draws of (seed, epoch, row), it makes the same inputs, labels and masks: the truth for rows of an even
    number of tokens without padding, all that it takes.
    """
    from transformers import DataCollatorForPermutationLanguageModeling

    task = task_of(plm_probability=share, max_span_length=longest)
    collator = DataCollatorForPermutationLanguageModeling(tokenizer, share, longest)
    for row, length in enumerate((64, 10, 2)):
        ids = [tokenizer.cls_token_id, *range(30, 28 + length), tokenizer.sep_token_id]
        random = np.random.default_rng([5, 2, row])

        def integers(low: int, high: Any, size: Any = None, random: Any = random) -> Any:
            return torch.tensor(random.integers(low, high)) if size else torch.tensor(random.integers(low))

        def permutation(count: int, random: Any = random) -> Any:
            return torch.tensor(random.permutation(count))

        with mock.patch("torch.randint", integers), mock.patch("torch.randperm", permutation):
            expected = collator([{"input_ids": ids}])
        made = collated(task, [ids], tokenizer, Place(5, 2, np.array([row])))
        for name in ("input_ids", "labels", "perm_mask"):
            assert np.array_equal(made[name], expected[name].numpy()), name
        assert torch.equal(expected["target_mapping"][0], torch.eye(length))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_the_masks_hold(side: str, tokenizer: Any) -> None:
    """Whatever a row is padded to: no token that is predicted sees itself; of two in a half, one sees the other and
    not the other way round; the second half sees the first; all see what is not predicted; padding is no label.
    """
    rows = [list(range(20, 20 + count)) for count in (61, 40, 1, 60)]
    batch = collated(task_of(), rows, tokenizer, Place(1, 0, np.arange(4)), side)
    assert batch["perm_mask"].shape == (4, 61, 61) and batch["perm_mask"].dtype == np.int8
    for i, row in enumerate(rows):
        own = slice(61 - len(row), 61) if side == "left" else slice(len(row))
        hidden, labels = batch["perm_mask"][i][own, own] == 1, batch["labels"][i][own]
        chosen = np.flatnonzero(labels != IGNORED)
        assert batch["perm_mask"][i].sum() == hidden.sum() and (batch["labels"][i] != IGNORED).sum() == len(chosen)
        assert not hidden[:, labels == IGNORED].any()
        assert hidden[np.ix_(labels == IGNORED, labels != IGNORED)].all()
        assert (batch["input_ids"][i][own][chosen] == tokenizer.mask_token_id).all()
        assert (labels[chosen] == np.array(row)[chosen]).all()
        among = hidden[np.ix_(chosen, chosen)]
        assert among.diagonal().all() and (among ^ among.T | np.eye(len(chosen), dtype=bool)).all()
        half = (len(row) + 1) // 2
        assert not hidden[np.ix_(chosen[chosen >= half], chosen[chosen < half])].any()


def test_shares_and_spans(tokenizer: Any) -> None:
    """A sixth of the tokens, in spans of one to five, by the algorithm alone; special tokens never."""
    ids = [tokenizer.cls_token_id, *[100] * 498, tokenizer.sep_token_id]
    labels = collated(task_of(), [ids] * 100, tokenizer, Place(3, 0, np.arange(100)))["labels"] != IGNORED
    assert labels.mean() == pytest.approx(1 / 6, abs=0.01) and not labels[:, [0, -1]].any()
    runs = [len(run) for row in labels for run in "".join(map(str, row.astype(int))).split("0") if run]
    assert min(runs) == 1 and 2 < np.mean(runs) < 4  # two spans may touch


def test_the_same_batches_at_any_number_of_workers(tokenizer: Any) -> None:
    """Rows of a plan, dealt out to one, two and three workers: each is hidden alike, in its own epoch."""
    task, random = task_of(), np.random.default_rng(0)
    rows = [list(range(20, 20 + count)) for count in random.integers(5, 40, size=60)]
    plan = Plan(PlanSpec(len(rows), 7, "group_by_length", 16), np.array([len(row) for row in rows]))
    assert plan.steps_per_epoch == 4

    def seen(workers: int) -> dict[tuple[int, int], Any]:
        found = {}
        for step in range(8):
            epoch, _, batch = plan.at(step)
            for part in (part for micro in split_batch(batch, workers, 1) for part in micro if len(part)):
                made = collated(task, [rows[i] for i in part], tokenizer, Place(7, epoch, part))
                for at, row in enumerate(part):
                    size = len(rows[row])
                    found[epoch, int(row)] = [made["labels"][at, :size], made["perm_mask"][at, :size, :size]]
        return found

    first = seen(1)
    assert len(first) == 120
    for workers in (2, 3):
        again = seen(workers)
        assert again.keys() == first.keys()
        assert all(np.array_equal(a, b) for key in first for a, b in zip(first[key], again[key], strict=True))
    assert any(not np.array_equal(first[0, row][0], first[1, row][0]) for row in range(60))


def test_a_row_is_learned_the_same_however_it_is_padded(tokenizer: Any, model: Any) -> None:
    """Logits of the tokens that are predicted, alone and beside a longer row; and the model is given the identity as
    `target_mapping`, without which XLNet would read its own masks.
    """
    task, short, long = task_of(), list(range(20, 41)), list(range(20, 60))

    def logits(rows: list[list[int]]) -> tuple[Any, Any]:
        made = collated(task, rows, tokenizer, Place(1, 0, np.arange(len(rows))))
        tensors = {name: torch.tensor(value).long() for name, value in made.items()}
        mapped = torch.eye(tensors["input_ids"].shape[1]).expand(tensors["perm_mask"].shape)
        with torch.no_grad():
            output = model(**tensors, **task.forward_kwargs())
            given = model(**tensors, **task.forward_kwargs(), target_mapping=mapped)
        assert torch.equal(output.logits, given.logits) and output.loss == given.loss
        chosen = tensors["labels"][0] != IGNORED
        return output.logits[0][chosen], tensors["labels"][0][chosen]

    alone, labels = logits([short])
    beside, same = logits([short, long])
    assert torch.equal(labels, same) and len(labels)
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_masks_of_a_text_are_filled(tokenizer: Any, model: Any) -> None:
    """Each by the likeliest token given all others: what the model says of it alone, without the other masks."""
    task = task_of()
    mask = tokenizer.mask_token
    columns = task.encode_inputs([{"text": f"the {mask} runs {mask} two hills"}], tokenizer, Lengths(32))
    ids = torch.tensor(columns["input_ids"])
    batch = task.collate_inputs({"input_ids": [ids[0].numpy()]}, context(tokenizer))
    tensors = {name: torch.tensor(value).long() for name, value in batch.items()}
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in task.outputs(model, tensors, tokenizer, {}).items()}
    (found,) = task.predictions(outputs, [], tokenizer)
    assert set(found) == {"prediction", "tokens", "scores"} and len(found["tokens"]) == len(found["scores"]) == 2
    masked = (ids[0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    for at, token, score in zip(masked, found["tokens"], found["scores"], strict=True):
        changed = ids.clone()
        changed[0, [other for other in masked if other != at]] = 77  # what stands behind the other masks is not seen
        hidden = torch.zeros(1, ids.shape[1], ids.shape[1])
        hidden[0, :, masked] = 1
        target = torch.zeros(1, 1, ids.shape[1])
        target[0, 0, at] = 1
        with torch.no_grad():
            best = model(changed, perm_mask=hidden, target_mapping=target).logits[0, 0].softmax(-1).max(-1)
        assert tokenizer.decode(int(best.indices)).strip() == token and best.values.item() == pytest.approx(
            score, abs=1e-5
        )


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"plm_probability": 0}, "task.plm_probability: should be"),
        ({"max_span_length": 0}, "task.max_span_length: should be"),
    ],
)
def test_what_is_refused(values: dict[str, Any], line: str) -> None:
    assert any(line in found for found in problems(job(task={"type": "permutation-lm", **values})))


def test_other_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 has a head of the same class, and no two streams."""
    from raytrain_nlp.config import load_job
    from raytrain_nlp.errors import InputError
    from raytrain_nlp.planning.models import check_model

    assert PermutationLmTask.only_models == ("xlnet",)
    for kind, refused in (("gpt2", True), ("xlnet", False)):
        values = job(task={"type": "permutation-lm"}, model={"config": {"model_type": kind}, "tokenizer": "train"})
        if not refused:
            check_model(load_job(values))
            continue
        with pytest.raises(InputError, match="do not learn permutation-lm. Choose a model of type xlnet"):
            check_model(load_job(values))
