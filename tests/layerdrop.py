"""Runs of models that skip layers, or run the experts their tokens choose, with a record of what ran on each rank."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import tiny_job

STEPS = 20
SIZES = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.3,
    "decoder_layerdrop": 0.3,
}
MODELS = {
    "m2m_100": {"model_type": "m2m_100", **SIZES},
    "bart": {"model_type": "bart", **SIZES},
    "nllb_moe": {
        "model_type": "nllb-moe",
        **SIZES,
        "num_experts": 8,
        "expert_capacity": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    },
    "switch": {
        "model_type": "switch_transformers",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "num_experts": 8,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 16,
        "dropout_rate": 0.0,
        "router_jitter_noise": 0.0,
    },
}
RECORDER = '''
import json, os
from transformers import TrainerCallback

class Recorder(TrainerCallback):
    """Modules of a rank in the order in which they ran."""
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.ran = []
        for name, module in model.named_modules():
            if name.split(".")[-1].isdigit() or "expert_" in name.split(".")[-1]:
                module.register_forward_hook(lambda module, args, output, name=name: self.ran.append([state.global_step, name]))
    def on_train_end(self, args, state, control, **kwargs):
        with open(os.path.join({folder!r}, f"{run}-" + os.environ["RANK"]), "w") as file:
            json.dump(self.ran, file)
'''  # noqa: E501


def skipping_run(
    train_warm: Callable[..., Any], folder: Path, name: str, workers: int, stage: int
) -> tuple[Path, list[list[list[Any]]]]:
    """20 steps of one of `MODELS`; returns the run's folder and what ran on each rank. The current directory must be
    `folder`.
    """
    draw, run = random.Random(1), f"{name}{workers}{stage}"
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(160):
            digits = draw.choices("0123456789", k=draw.randint(1, 9))
            file.write(
                json.dumps({"translation": {"en": " ".join(digits), "de": " ".join(f"n{digit}" for digit in digits)}})
                + "\n"
            )
    start = write_start(folder, name)
    (folder / f"recorder_{run}.py").write_text(RECORDER.replace("{folder!r}", repr(str(folder))).replace("{run}", run))
    job = tiny_job(
        folder,
        run,
        model={"name_or_path": str(start), "config": None, "tokenizer": None},
        deepspeed={"zero_stage": stage},
        workers={"num_workers": workers},
        training={
            "max_steps": STEPS,
            "save_strategy": "no",
            "per_device_train_batch_size": 8 // workers,
            "optim": "sgd",
            "learning_rate": 0.05,
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
        },
        trainer={"callbacks": [f"recorder_{run}:Recorder"]},
    )
    result = train_warm({**job, "task": {"type": "translation", "source_lang": "en", "target_lang": "de"}})
    return Path(result.run_dir), [json.loads((folder / f"{run}-{rank}").read_text()) for rank in range(workers)]


def write_start(folder: Path, name: str) -> Path:
    """A model with weights of its own, which do not depend on how it is sharded when it is made, and its tokenizer."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    start = folder / f"start-{name}"
    if not start.exists():
        texts = ["0 1 2 3 4 5 6 7 8 9", " ".join(f"n{digit}" for digit in "0123456789")]
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            train_tokenizer(texts, TokenizerTraining(vocab_size=300), "seq2seq", "key", folder / "tokenizers", None)
        )
        ids = {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.pad_token_id,
        }
        transformers.set_seed(3)
        config = transformers.AutoConfig.for_model(**MODELS[name], vocab_size=len(tokenizer), **ids)
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(start)
        tokenizer.save_pretrained(start)
    return start


def layers(ran: list[list[Any]]) -> list[tuple[int, str]]:
    """Step and name of each layer that ran, without experts."""
    return [(step, module) for step, module in ran if "expert" not in module]
