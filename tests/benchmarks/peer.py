"""The peer: plain Hugging Face `Trainer` on the same model, rows and hyper-parameters, in the manner of the public
example script.

    torchrun --nproc-per-node 2 tests/benchmarks/peer.py --model DIR --train a.jsonl --validation b.jsonl \
        --text_columns sentence1 sentence2 --output_dir OUT --learning_rate 1e-4 ...

Every other flag is a `TrainingArguments` field. The last line of standard output is one JSON object. Nothing of
`raytrain_nlp` is imported: this file is the independent side of every comparison.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


@dataclass
class PeerArguments:
    model: str = field(default="", metadata={"help": "folder of a pretrained model"})
    config: str | None = field(
        default=None, metadata={"help": "JSON of a model config: build from scratch, tokenizer from --model"}
    )
    train: str = ""
    validation: str | None = None
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    max_length: int = 128
    padding: str = field(
        default="longest", metadata={"help": "longest (dynamic) or max_length (the example script's default)"}
    )
    batches: str | None = field(
        default=None, metadata={"help": "JSON list of global batches (row numbers): train on exactly these"}
    )
    loss_file: str | None = field(
        default=None, metadata={"help": "write the logged losses here; with --logging_steps 1 that of every step"}
    )


class Recorder(TrainerCallback):
    """When what happened, in milliseconds since 1970; every logged loss with its step and time."""

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.logs: list[dict[str, Any]] = []
        self.steps = 0

    def mark(self, name: str) -> None:
        self.marks[name] = time.time_ns() // 1_000_000

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mark("train")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.mark("last step")
        if self.steps == 1:
            self.mark("first step")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mark("checkpoint")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append({"step": state.global_step, "time": time.time_ns() // 1_000_000, "loss": logs["loss"]})


class CountingCollator(DataCollatorWithPadding):
    """The stock collator; also counts tokens, with padding and without."""

    padded = tokens = 0

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        self.padded += batch["attention_mask"].numel()
        self.tokens += int(batch["attention_mask"].sum())
        return batch


def join_deepspeed() -> None:
    """What any run of DeepSpeed on CPU needs; without the first two lines it would run g++ for over a minute, on either
    side.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


def load_rows(path: str, peer: PeerArguments, tokenizer: Any, names: list[str]) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [[str(row[column]) for row in rows] for column in peer.text_columns]
    encoded = tokenizer(
        *texts,
        truncation=True,
        max_length=peer.max_length,
        padding="max_length" if peer.padding == "max_length" else False,
    )
    return [
        {**{key: encoded[key][i] for key in encoded}, "label": names.index(str(row[peer.label_column]))}
        for i, row in enumerate(rows)
    ]


def label_names(peer: PeerArguments) -> list[str]:
    with open(peer.train, encoding="utf-8") as lines:
        return sorted({str(json.loads(line)[peer.label_column]) for line in lines})


def reorder(rows: list[dict[str, Any]], file: str) -> list[dict[str, Any]]:
    """Rows in the order of the given global batches: a sequential sampler then gives exactly these, each rank its
    slice.
    """
    with open(file, encoding="utf-8") as batches:
        return [rows[row] for batch in json.load(batches) for row in batch]


def build_model(peer: PeerArguments, tokenizer: Any, num_labels: int) -> Any:
    if not peer.config:
        return AutoModelForSequenceClassification.from_pretrained(peer.model, num_labels=num_labels)
    values = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **json.loads(peer.config),
        "num_labels": num_labels,
    }
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def compute_metrics(prediction: Any) -> dict[str, float]:
    best = np.argmax(prediction.predictions, axis=-1)
    average = "binary" if prediction.predictions.shape[-1] == 2 else "macro"
    return {
        "accuracy": accuracy_score(prediction.label_ids, best),
        "f1": f1_score(prediction.label_ids, best, average=average),
    }


def report(trainer: Trainer, recorder: Recorder, collator: CountingCollator) -> dict[str, Any]:
    return {
        "steps": recorder.steps,
        "logs": recorder.logs,
        "rows_per_step": trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        "world_size": trainer.args.world_size,
        "padding_share": 1 - collator.tokens / max(collator.padded, 1),
        "marks": recorder.marks,
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch_threads": torch.get_num_threads(),
    }


def main() -> None:
    recorder = Recorder()
    recorder.marks["process"] = int(psutil.Process().create_time() * 1000)
    recorder.mark("imports")
    peer, args = HfArgumentParser((PeerArguments, TrainingArguments)).parse_args_into_dataclasses()
    if args.deepspeed:
        join_deepspeed()
    args.report_to, args.disable_tqdm = [], True
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(peer.model)
    names = label_names(peer)
    train_rows = load_rows(peer.train, peer, tokenizer, names)
    eval_rows = load_rows(peer.validation, peer, tokenizer, names) if peer.validation else None
    if peer.batches:
        train_rows = reorder(train_rows, peer.batches)
        args.train_sampling_strategy = "sequential"
    recorder.mark("data")
    whole = {"padding": "max_length", "max_length": peer.max_length} if peer.padding == "max_length" else {}
    collator = CountingCollator(tokenizer, **whole)
    trainer = Trainer(
        model=build_model(peer, tokenizer, len(names)),
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=compute_metrics,
        callbacks=[recorder],
    )
    recorder.mark("model")
    trainer.train()
    result = report(trainer, recorder, collator)  # before an evaluation adds to the counts
    metrics = trainer.evaluate() if eval_rows else {}
    recorder.mark("end")
    if trainer.is_world_process_zero():
        if peer.loss_file:
            with open(peer.loss_file, "w", encoding="utf-8") as file:
                json.dump([log["loss"] for log in recorder.logs], file)
        print(json.dumps({**result, "metrics": metrics}), flush=True)


if __name__ == "__main__":
    main()
