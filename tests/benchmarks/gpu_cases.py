"""What the GPU benchmark trains: texts, tokenizers, models and the settings that both sides get.

Everything is made here or lies on any machine with Python: texts are the standard library's source files, tokenizers
are trained on them, models come from their configs. Not a script.
"""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

CAUSAL, CLASSIFIER, TRANSLATION = "causal-lm", "text-classification", "translation"
LLAMA_1B = {
    "model_type": "llama", "vocab_size": 50257, "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 16,
    "num_key_value_heads": 4, "intermediate_size": 5632, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_TINY = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_BASE = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, **NO_DROPOUT,
}  # fmt: skip
BERT_TINY = {**BERT_BASE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
T5_SMALL = {
    "model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "dropout_rate": 0.0,
}  # fmt: skip
T5_TINY = {**T5_SMALL, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@dataclass(frozen=True)
class Case:
    """One comparison. Both sides get these settings, but where a stage is our own choice or the peer's."""

    name: str
    kind: str
    model: dict[str, Any]
    zero_stage: int | None
    """None: our job names none; the peer gets stage 3."""
    batch: int
    """Rows of a micro-batch; of the peer where ours is chosen by the product."""
    accumulation: int = 1
    steps: int = 30
    logging_steps: int = 10
    length: int = 128
    """Tokens of a block, or most tokens of a row."""
    lora: dict[str, Any] | None = None
    evaluation_rows: int = 0
    own_batch: str | int | None = None
    """`per_device_train_batch_size` of our side, where it is not the peer's; the global batch is the same."""
    gpu: bool = True
    sources: dict[str, str] = field(default_factory=dict)
    """Paths: train, validation, tokenizer, and `pretrained`, a folder of weights, where there is one."""

    @property
    def global_batch(self) -> int:
        return self.batch * self.accumulation

    @property
    def strategy(self) -> str:
        """How the plan makes batches; the peer is given its batches."""
        return "random" if self.kind == CAUSAL else "group_by_length"


def build_cases(small: bool, own_batch: str | int) -> dict[str, Case]:
    """All comparisons, the most wanted first. `small`: tiny models on CPU, which rehearse the program."""
    llama, bert, t5 = (LLAMA_TINY, BERT_TINY, T5_TINY) if small else (LLAMA_1B, BERT_BASE, T5_SMALL)
    full = Case("zero3", CAUSAL, llama, 3, 4, length=2048)
    cases = [
        full,
        replace(full, name="own", zero_stage=None, accumulation=8, steps=9, logging_steps=3, own_batch=own_batch),
        Case("bert", CLASSIFIER, bert, 0, 64, steps=200, logging_steps=20),
        Case(
            "lora", CAUSAL, LLAMA_TINY if small else LLAMA_7B, 0, 2, steps=15, logging_steps=5, length=2048, lora=LORA
        ),
        Case("t5", TRANSLATION, t5, 0, 64, steps=60, length=48, evaluation_rows=256),
        replace(full, name="zero0", zero_stage=0),
        replace(full, name="zero2", zero_stage=2),
    ]
    return {case.name: _tiny(case) if small else case for case in cases}


def _tiny(case: Case) -> Case:
    batch, own = (2, 2) if case.own_batch else (4, None)
    return replace(
        case, steps=6, logging_steps=2, length=min(case.length, 64), batch=batch,
        accumulation=min(case.accumulation, 2),
        evaluation_rows=min(case.evaluation_rows, 8), own_batch=own, gpu=False,
    )  # fmt: skip


# Our job and the peer's flags


def build_job(case: Case, folder: Path) -> dict[str, Any]:
    """The job of our side; its run lies in `folder/CASE`."""
    training: dict[str, Any] = {
        "learning_rate": 1e-4, "max_steps": case.steps, "logging_steps": case.logging_steps,
        "logging_first_step": False, "train_sampling_strategy": case.strategy, **precision(case),
    }  # fmt: skip
    data: dict[str, Any] = {"train": case.sources["train"], "max_length": case.length}
    if case.own_batch is None:
        training |= {"per_device_train_batch_size": case.batch, "gradient_accumulation_steps": case.accumulation}
    else:
        training["per_device_train_batch_size"] = case.own_batch
        data["global_batch_size"] = case.global_batch
        if isinstance(case.own_batch, int):
            training["gradient_accumulation_steps"] = case.global_batch // case.own_batch
    if case.evaluation_rows:
        data["validation"] = case.sources["validation"]
        training |= {"predict_with_generate": True, "per_device_eval_batch_size": case.batch}
    pretrained = case.sources.get("pretrained")
    model = (
        {"name_or_path": pretrained, "dtype": "bfloat16" if case.gpu else "float32"}
        if pretrained
        else {"config": case.model, "tokenizer": case.sources["tokenizer"]}
    )
    return {
        "name": case.name, "storage_path": str(folder), "seed": 42, "task": _task(case), "model": model, "data": data,
        "training": training,
        "workers": {"num_workers": 1, "use_gpu": case.gpu, "resources_per_worker": {"CPU": 1}, "max_failures": 0},
        "checkpoint": {"save_strategy": "no"},
        **({"deepspeed": {"zero_stage": case.zero_stage}} if case.zero_stage is not None else {}),
        **({"lora": case.lora} if case.lora else {}),
    }  # fmt: skip


def _task(case: Case) -> dict[str, Any]:
    if case.kind == CAUSAL:
        return {"type": CAUSAL, "text_column": "text", "block_size": case.length}
    if case.kind == CLASSIFIER:
        return {"type": CLASSIFIER, "text_columns": ["text"], "label_column": "label"}
    return {"type": TRANSLATION, "source_lang": "en", "target_lang": "de", "max_target_length": case.length}


def peer_flags(case: Case, folder: Path, batches: Path) -> dict[str, Any]:
    """What `peer_tasks.py` is told, but for DeepSpeed's file."""
    pretrained = case.sources.get("pretrained")
    return {
        "kind": case.kind,
        "columns": ["en", "de"] if case.kind == TRANSLATION else ["text"],
        "train": case.sources["train"],
        "max_length": case.length,
        "max_target_length": case.length,
        "batches": batches,
        "output_dir": folder,
        "save_model": 0,
        "seed": 42,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": case.batch,
        "per_device_eval_batch_size": case.batch,
        "gradient_accumulation_steps": case.accumulation,
        "max_steps": case.steps,
        "logging_steps": case.logging_steps,
        "save_strategy": "no",
        "use_cpu": not case.gpu,
        "dtype": "bfloat16" if pretrained and case.gpu else "float32",
        "tokenizer": case.sources["tokenizer"],
        **({"model": pretrained} if pretrained else {"config": json.dumps(case.model)}),
        **({"validation": case.sources["validation"]} if case.evaluation_rows else {}),
        **({"lora": json.dumps(case.lora)} if case.lora else {}),
        **precision(case),
    }


def precision(case: Case) -> dict[str, bool]:
    return {"bf16": True} if case.gpu else {}


# Texts and tokenizers


def write_sources(folder: Path, small: bool, tokenizer: Path | None) -> dict[str, dict[str, str]]:
    """Rows and tokenizers of each kind of task; `tokenizer` takes the place of those that are made here."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = _texts(200_000 if small else 4_000_000)
    draw, words = random.Random(0), sorted(set(re.findall(r"[a-z]{3,}", " ".join(texts[:40]))))

    def phrase(median: float) -> str:
        return " ".join(draw.choices(words, k=max(int(draw.lognormvariate(0, 0.6) * median), 1)))

    rows = {
        CAUSAL: [{"text": text} for text in texts],
        CLASSIFIER: [{"text": phrase(12), "label": number % 2} for number in range(200 if small else 20_000)],
        TRANSLATION: [{"en": phrase(10), "de": phrase(10)} for _ in range(200 if small else 6_000)],
        "validation": [{"en": phrase(10), "de": phrase(10)} for _ in range(8 if small else 256)],
        "predict": [{"text": phrase(24)} for _ in range(200 if small else 30_000)],
    }
    paths = {}
    for name, kind_rows in rows.items():
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in kind_rows), encoding="utf-8")
    open_ended, closed = (
        (str(tokenizer.resolve()),) * 2
        if tokenizer
        else (_tokenizer(folder / name, texts, small, end) for name, end in (("tokens", False), ("tokens-end", True)))
    )
    return {
        CAUSAL: {"train": paths[CAUSAL], "tokenizer": open_ended},
        CLASSIFIER: {"train": paths[CLASSIFIER], "tokenizer": closed, "predict": paths["predict"]},
        TRANSLATION: {"train": paths[TRANSLATION], "validation": paths["validation"], "tokenizer": closed},
    }


def write_pretrained(case: Case, folder: Path) -> Case:
    """The case with a folder of random weights of its model, as if it had been trained before: bf16 on a GPU. The
    same numbers come again and again: drawing 7 billion would take longer than training.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.sources["tokenizer"])
    values = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **case.model}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.dtype = torch.bfloat16 if case.gpu else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    drawn = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(config.dtype)
    files: dict[str, str] = {}
    shards: dict[str, dict[str, Any]] = {}
    for name, value in model.state_dict().items():
        layer = re.search(r"\.(\d+)\.", name)
        files[name] = f"model-{int(layer[1]) if layer else 'outside'}.safetensors"
        shards.setdefault(files[name], {})[name] = value
    for file, empty in shards.items():
        tensors = {name: _filled(value.shape, drawn) for name, value in empty.items()}
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return replace(case, sources={**case.sources, "pretrained": str(folder)})


def _filled(shape: Any, drawn: Any) -> Any:
    """A norm's weights are ones."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=drawn.dtype)
    return drawn.repeat(-(-shape.numel() // drawn.numel()))[: shape.numel()].view(shape).contiguous()


def _texts(size: int) -> list[str]:
    """About so many bytes of the standard library's source, in pieces of at most 20,000 characters."""
    pieces: list[str] = []
    for file in sorted(Path(os.__file__).parent.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test"} & set(file.parts):
            text = file.read_text(encoding="utf-8", errors="replace")
            pieces += [text[start : start + 20_000] for start in range(0, len(text), 20_000)]
            size -= len(text)
        if size < 0:
            break
    random.Random(0).shuffle(pieces)
    return pieces


def _tokenizer(folder: Path, texts: list[str], small: bool, end: bool) -> str:
    """A byte-level BPE in a folder; `end`: each row ends with `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600 if small else 8192,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts[:100], trainer)
    if end:
        bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return str(folder)
