"""25 model families and more, each with its tasks: a step, an evaluation, an export, and the same loss by transformers
alone.

All in this process: the job is resolved as the driver resolves it, the trainer is built as a worker builds it, and the
plan's batches come from the plan itself. Sizes are tiny; what a family needs beyond its sizes stands beside it,
exceptions below.
"""

from __future__ import annotations

import gc
import json
import math
import random
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_nlp.config import load_job
from raytrain_nlp.data.split import Split
from raytrain_nlp.distributed.consensus import Agreement
from raytrain_nlp.modeling.export import export_model
from raytrain_nlp.modeling.facts import find_positions
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.planning.resolve import resolve
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.trainer import loader
from raytrain_nlp.worker import loop

_BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
_LLAMA = {**_BASE, "num_key_value_heads": 2, "head_dim": 16}
_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
_MOE = {**_LLAMA, "num_experts_per_tok": 2, "output_router_logits": True}

FAMILIES: dict[str, dict[str, Any]] = {
    # encoders
    "bert": _BASE,
    "roberta": _BASE,
    "xlm-roberta": _BASE,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 40},
    "electra": {**_BASE, "embedding_size": 16},
    "albert": {**_BASE, "embedding_size": 16},
    "deberta-v2": {**_BASE, "pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "mpnet": _BASE,
    "modernbert": {**_BASE, "global_attn_every_n_layers": 2, "local_attention": 8},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40, "layerdrop": 0.2},
    # decoders
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "gpt_neox": _BASE,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 40,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "phi3": _LLAMA,
    # encoder-decoders
    "t5": _T5,
    "bart": _SEQ2SEQ,
    "mbart": _SEQ2SEQ,
    "pegasus": _SEQ2SEQ,
    "marian": _SEQ2SEQ,
    "m2m_100": _SEQ2SEQ,
    # mixtures of experts
    "mixtral": {**_MOE, "num_local_experts": 4},
    "qwen3_moe": {**_MOE, "num_experts": 4, "moe_intermediate_size": 32},
    "switch_transformers": {
        **_T5,
        "num_experts": 4,
        "expert_capacity": 64,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    # state spaces, and one of them with attention
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "head_dim": 16,
        "num_heads": 4,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "falcon_h1": {
        **_LLAMA,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
}
TASKS = {
    "masked-lm": {"type": "masked-lm", "line_by_line": True},
    "causal-lm": {"type": "causal-lm", "packing": "none"},
    "translation": {"type": "translation", "source_lang": "en", "target_lang": "de", "max_target_length": 16},
    "text-classification": {"type": "text-classification", "text_columns": ["text", "other"]},
}
LEFT_OUT = {
    ("distilbert", "causal-lm"),
    ("flaubert", "causal-lm"),
    *(
        (name, "causal-lm")
        for name in ("bert", "roberta", "xlm-roberta", "electra", "bart", "mbart", "pegasus", "marian")
    ),  # decoders of encoders: not what they are for
    *((name, "masked-lm") for name in ("bart", "mbart")),
}


def combinations() -> Iterator[tuple[str, str]]:
    from transformers.models.auto import modeling_auto

    for name in FAMILIES:
        for kind, task in TASKS.items():
            config = load_job(
                {
                    "name": "x",
                    "task": task,
                    "model": {"config": {"model_type": name}, "tokenizer": "train"},
                    "data": {"train": "x"},
                }
            ).task
            if name in getattr(modeling_auto, build_task(config).auto_mapping) and (name, kind) not in LEFT_OUT:
                yield name, kind


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that all tasks can read; some are longer than the positions of the models."""
    folder, draw = tmp_path_factory.mktemp("families"), random.Random(0)
    words = "ada bell curie darwin euler fermi gauss hopper ising joule kepler lovelace".split()
    for split, count in (("train", 16), ("validation", 11)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(count):
                text = " ".join(draw.choices(words, k=60 if number % 5 == 4 else draw.randint(3, 12)))
                pair = {"en": text, "de": " ".join(draw.choices(words, k=draw.randint(2, 20)))}
                file.write(
                    json.dumps({"text": text, "other": pair["de"], "label": number % 3, "translation": pair}) + "\n"
                )
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other over a few numbers cost more than the numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


class _Nowhere:
    """Where checkpoints would go."""

    root = Path("nowhere")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize(("family", "kind"), list(combinations()))
def test_family(family: str, kind: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "stream", _plain_stream)
    gc.freeze()  # accelerate collects garbage twice a run, among all that is loaded
    job = load_job(
        {
            "name": "run",
            "storage_path": str(rows / "runs"),
            "seed": 3,
            "task": TASKS[kind],
            "model": {
                "config": {"model_type": family, **FAMILIES[family]},
                "tokenizer": "train",
                "tokenizer_training": {"vocab_size": 300},
            },
            "data": {
                "train": str(rows / "train.jsonl"),
                "validation": str(rows / "validation.jsonl"),
                "max_length": 48,
            },
            "training": {
                "max_steps": 1,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 4,
                "save_strategy": "no",
                "eval_strategy": "no",
                "learning_rate": 1e-3,
            },
            "workers": {"num_workers": 1},
        }
    )
    resolved = resolve(job, find_job_files(job, rows / "runs"), rows / "runs", map)
    spec, paths = resolved.spec, RunPaths(tmp_path, "run")
    paths.run.mkdir()
    loaders = loop._build_loaders(spec, job, 0, 1, 0, 1)
    agreement = Agreement(lambda row: str(row), lambda: False, lambda: False)
    trainer = loop._build_trainer(
        spec, job, paths, EventLog(None), loaders, str(tmp_path / "scratch"), agreement, _Nowhere()
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if value.is_floating_point()}
    trainer.train()
    assert any(
        not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items() if name in before
    )
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"]) and metrics["eval_samples"] == 11
    predictions = next(iter(trainer._feed.scored.values()))[0]
    assert not isinstance(predictions, tuple) and len(predictions) == 11, (
        "logits, and nothing that stands before or behind them"
    )
    _check_positions(trainer.model)
    export_model(trainer, paths.model)
    assert _loss_by_transformers(paths.model, job, spec) == pytest.approx(metrics["eval_loss"], abs=1e-4)
    trainer.release()


def _plain_stream(
    spec: Any, *, start: int, stop: int, world_size: int, rank: int, accumulation: int, cpus: float
) -> Iterator[Any]:
    """The plan's batches, without Ray."""
    split = Split(spec)
    for step in range(start, stop):
        for batch in split.micro_batches(step, world_size, rank, accumulation):
            yield types.SimpleNamespace(**{**vars(batch), "tensors": _tensors(batch)})


def _tensors(batch: Any) -> dict[str, torch.Tensor]:
    made = {name: torch.from_numpy(value) for name, value in batch.tensors.items()}
    return {name: value if value.is_floating_point() else value.long() for name, value in made.items()}


def _loss_by_transformers(folder: Path, job: Any, spec: Any) -> float:
    """The mean over rows, or over predicted tokens, of an exported folder that only transformers has read."""
    import transformers

    task = build_task(job.task)
    model = getattr(transformers, task.auto_model).from_pretrained(folder).eval()
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) <= model.get_input_embeddings().num_embeddings
    total = weight = 0.0
    with torch.no_grad():
        for batch in _plain_stream(
            spec.validation, start=0, stop=spec.eval_steps, world_size=1, rank=0, accumulation=1, cpus=1
        ):
            total += batch.weight * float(model(**batch.tensors).loss)
            weight += batch.weight
    return total / weight


def _check_positions(model: Any) -> None:
    """What the family's source says of its positions is what its tables hold."""
    names = ("wpe", "embed_positions", "position_embeddings")
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.split(".")[-1] in names
    ]
    rows = [
        table.num_embeddings - getattr(table, "offset", 0) - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
    ]
    positions, _ = find_positions(model.config)
    assert positions == (min(rows) if rows else None)


def test_the_list_holds_25_families_of_every_kind() -> None:
    assert len(FAMILIES) >= 25 and {kind for _, kind in combinations()} == set(TASKS)
