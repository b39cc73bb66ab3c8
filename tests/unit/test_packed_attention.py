"""Documents that share a row see nothing of each other, whatever attention the model has: their logits are those of
each document alone. On a GPU, with a kernel of its own: tests/gpu/test_packing_on_gpu.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    masking_utils,
)
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from raytrain_nlp.compat.transformers import documents_in_rows, replaced_flash
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.modeling import flash_kernels
from raytrain_nlp.modeling import model as model_module
from raytrain_nlp.modeling.document_lengths import LENGTHS, document_lengths, with_lengths
from raytrain_nlp.modeling.flash_kernels import plain_attend as attend
from raytrain_nlp.modeling.flash_kernels import plain_attend_documents as attend_documents
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Place
from raytrain_nlp.trainer.metrics import Figures
from raytrain_nlp.trainer.trainer import build_trainer_class
from raytrain_nlp.trainer.training_step import Feed

FLASH = ["flash_attention_2", "flash_attention_3", "flash_attention_4"]
ROWS = [[9, 5, 6], [11, 7], [1, 1, 3]]
"""Documents of each row of a batch, in tokens."""


@contextlib.contextmanager
def kernels_noted(called: list[str]) -> Iterator[None]:
    """The kernels of flash attention, computed on CPU; each call is noted."""

    def plain(*args: Any, **kwargs: Any) -> torch.Tensor:
        called.append("plain")
        return attend(*args, **kwargs)

    def varlen(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: int,
        max_seqlen_k: int,
        **kwargs: Any,
    ) -> torch.Tensor:
        called.append("varlen")
        assert cu_seqlens_q.dtype is torch.int32 and type(max_seqlen_q) is int is type(max_seqlen_k)
        return attend_documents(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **kwargs)

    with (
        torch.compiler.set_stance("force_eager"),
        replaced_flash(plain, varlen),
    ):  # flex attention takes long to compile
        yield


def small_model(attention: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of such small products wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TASK = build_task(CausalLm(type="causal-lm", packing="best_fit"))


def trainer_of(model: Any, folder: Path, base: type[Trainer] = Trainer) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="p")
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True)
    feed = Feed(TASK, Figures(TASK, [], tokenizer), None)  # type: ignore[arg-type]  # no rows of a user
    return build_trainer_class(base)(model=model, args=arguments, processing_class=tokenizer, feed=feed)


def packed_batch() -> tuple[dict[str, torch.Tensor], list[list[torch.Tensor]]]:
    """A batch as the feed makes it, and the documents of its rows."""
    random = np.random.default_rng(0)
    rows = [[random.integers(3, 64, size=length) for length in row] for row in ROWS]
    columns = {
        "input_ids": [np.concatenate(row) for row in rows],
        "position_ids": [np.concatenate([np.arange(len(document)) for document in row]) for row in rows],
    }
    context = CollateContext(0, 0, "right", ["input_ids"], [])
    tensors = TASK.collate(columns, context, Place(0, 0, np.arange(len(rows))))
    return (
        {name: torch.from_numpy(value).long() for name, value in tensors.items()},
        [[torch.from_numpy(document) for document in row] for row in rows],
    )


def alone(documents: list[list[torch.Tensor]]) -> tuple[list[torch.Tensor], float]:
    """The truth: the logits of each row's documents, each computed alone by eager attention, and the mean loss."""
    model, total, count = small_model("eager"), 0.0, 0
    found = []
    with torch.no_grad():
        for row in documents:
            logits = [model(input_ids=document[None]).logits[0] for document in row]
            for part, document in zip(logits, row, strict=True):
                total += torch.nn.functional.cross_entropy(part[:-1], document[1:], reduction="sum").item()
                count += len(document) - 1
            found.append(torch.cat(logits))
    return found, total / count


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", *FLASH])
def test_packed_documents_are_alone_in_training_and_evaluation(attention: str, tmp_path: Path) -> None:
    batch, documents = packed_batch()
    truth, mean = alone(documents)
    called: list[str] = []
    with kernels_noted(called):
        model = small_model(attention)
        trainer = trainer_of(model, tmp_path)
        loss, logits, _ = trainer.prediction_step(model, dict(batch), False)
        with torch.no_grad():  # there is no gradient of flex attention on CPU
            trained = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
    for found, row in zip(logits, truth, strict=True):
        torch.testing.assert_close(found[: len(row)], row, atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(mean, abs=1e-5) and trained.item() == pytest.approx(mean, abs=1e-5)
    assert set(called) == ({"varlen"} if attention in FLASH else set())


def test_a_method_of_the_users_that_passes_named_inputs_on(tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            asked = {name: inputs[name] for name in ("input_ids", "position_ids", "labels")}
            outputs = model(**asked)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    batch, documents = packed_batch()
    _, mean = alone(documents)
    with kernels_noted([]):
        model = small_model("flash_attention_2")
        loss = trainer_of(model, tmp_path, Own).compute_loss(model, batch)
    assert loss.item() == pytest.approx(mean, abs=1e-5)


def test_gradients_do_not_cross_a_border(tmp_path: Path) -> None:
    """By attention of each kind, the gradients of a packed batch's loss are equal."""
    batch, _ = packed_batch()
    found = []
    with kernels_noted([]):
        for attention in ("eager", "sdpa", "flash_attention_2"):
            model = small_model(attention)
            trainer = trainer_of(model, tmp_path)
            trainer.compute_loss(model, trainer._prepare_inputs(dict(batch))).backward()
            found.append([parameter.grad for parameter in model.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("first", [0, 2])
def test_lengths_are_those_that_transformers_finds_in_one_row(first: int) -> None:
    """Also where positions start behind the number of the padding token."""
    positions = torch.cat([torch.arange(length) + first for length in (9, 5, 1, 1, 7)])[None]
    (queries, keys), (longest, _) = prepare_fa_kwargs_from_position_ids(positions)
    found = document_lengths(positions)
    assert tuple(found) == LENGTHS
    assert torch.equal(found["cu_seq_lens_q"], queries) and torch.equal(found["cu_seq_lens_k"], keys)
    assert (found["max_length_q"], found["max_length_k"]) == (int(longest), int(longest))


@pytest.mark.parametrize("positions", [[[0, 1, 2, 3], [0, 1, 0, 1]], [[2, 3, 2, 2], [2, 2, 2, 3]]])
def test_the_mask_between_documents_is_transformers_own(positions: list[list[int]]) -> None:
    """Without asking whether there is a row that needs it."""
    found = torch.tensor(positions)
    truth = masking_utils.find_packed_sequence_indices(found)
    with documents_in_rows():
        assert torch.equal(masking_utils.find_packed_sequence_indices(found), truth)
        assert masking_utils.find_packed_sequence_indices(found[:1, :2]).tolist() == [[0, 0]]
    assert masking_utils.find_packed_sequence_indices(found[:1, :2]) is None


def test_documents_end_with_their_row() -> None:
    """Also where the positions of the next row go on from those of the last."""
    found = document_lengths(torch.tensor([[0, 1, 2], [3, 4, 0]]))
    assert found["cu_seq_lens_q"].tolist() == [0, 3, 5, 6] and found["max_length_q"] == 3


# Torch's own kernels, of which there are none on CPU: how they are called


class Varlen:
    """`torch.nn.attention.varlen.varlen_attn`, computed on CPU."""

    def new(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert query.shape[-1] % 8 == 0 and enable_gqa is (query.shape[1] != key.shape[1])
        return self.old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    def old(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:  # fmt: skip
        lengths = cu_seq_q, cu_seq_k, max_q, max_k
        return attend_documents(query, key, value, *lengths, softmax_scale=scale, window_size=window_size)


@pytest.mark.parametrize("version", ["old", "new"])
@pytest.mark.parametrize("window", [-1, 2])
@pytest.mark.parametrize(("size", "scale"), [(16, None), (12, 0.3)])
def test_torchs_kernels_are_called_as_those_of_the_package(
    version: str, window: int, size: int, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_kernels, "_kernel", lambda: getattr(Varlen(), version))
    flash_kernels._parameters.cache_clear()
    torch.manual_seed(0)
    parts = [torch.randn(2, 10, heads, size) for heads in (4, 2, 2)]
    options: dict[str, Any] = {"causal": True, "window_size": (window, window), "softmax_scale": scale}
    torch.testing.assert_close(flash_kernels.torch_attend(*parts, **options), attend(*parts, **options))
    ends = torch.tensor([0, 3, 4, 20], dtype=torch.int32)
    flat = [part.flatten(0, 1) for part in parts]
    torch.testing.assert_close(
        flash_kernels.torch_attend_documents(*flat, ends, ends, 16, 16, **options),
        attend_documents(*flat, ends, ends, 16, 16, **options),
    )
    flash_kernels._parameters.cache_clear()
    with pytest.raises(ValueError, match="no dropout"):
        flash_kernels.torch_attend(*parts, dropout_p=0.1)


def test_what_computes_on_cpu_is_attention() -> None:
    """Against torch's own, with a window and several heads of a key."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 10, heads, 16) for heads in (4, 2, 2))
    behind = torch.arange(10)[:, None] - torch.arange(10)
    truth = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (query, key, value)),
        attn_mask=(behind >= 0) & (behind <= 3),
        enable_gqa=True,
    )
    torch.testing.assert_close(attend(query, key, value, causal=True, window_size=(3, 3)), truth.transpose(1, 2))


def test_a_worker_has_torchs_kernels_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_kernels, "_kernel", lambda: Varlen().new)
    flash_kernels._parameters.cache_clear()
    applied = []
    monkeypatch.setattr(model_module, "apply_flash", lambda *kernels: applied.append(kernels))
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModelConfig(config={"model_type": "llama", **sizes}, tokenizer="train", attn_implementation="eager")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="p")
    model_module.load_model(config, TASK, [], tokenizer)
    assert applied == []
    with replaced_flash(flash_kernels.torch_attend, flash_kernels.torch_attend_documents):
        flash = config.model_copy(update={"attn_implementation": "flash_attention_2"})
        model = model_module.load_model(flash, TASK, [], tokenizer).eval()
        assert applied == [(flash_kernels.torch_attend, flash_kernels.torch_attend_documents)]
        batch = {
            "input_ids": torch.arange(3, 15)[None],
            "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]),
        }
        with torch.no_grad():
            packed = model(**with_lengths(batch), use_cache=False).logits[0, 5:]
            alone = model(input_ids=batch["input_ids"][:, 5:], use_cache=False).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
