"""The peer: plain Hugging Face `Trainer` on the same model, rows and hyper-parameters, in the manner of the public example script.

    torchrun --nproc-per-node 2 tests/benchmarks/peer.py --model DIR --train a.jsonl --validation b.jsonl \
        --text_columns sentence1 sentence2 --output_dir /tmp/peer --learning_rate 1e-4 ...

Every other flag is a `TrainingArguments` field. The last line of standard output is one JSON object. Nothing of
`raytrain_nlp` is imported: this file is the independent side of every comparison.
"""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import dataclass, field

PROCESS_START = time.time()


@dataclass
class PeerArguments:
    model: str = field(default="", metadata={"help": "folder of a pretrained model"})
    config: str | None = field(default=None, metadata={"help": "JSON of a model config: build from scratch, tokenizer from --model"})
    train: str = ""
    validation: str | None = None
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    max_length: int = 128
    padding: str = field(default="longest", metadata={"help": "longest (dynamic) or max_length (the example script's default)"})
    batches: str | None = field(default=None, metadata={"help": "JSON list of global batches (row numbers): train on exactly these"})
    loss_file: str | None = field(default=None, metadata={"help": "write the loss of every step here"})


def main() -> None:
    import numpy as np
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

    peer, args = HfArgumentParser((PeerArguments, TrainingArguments)).parse_args_into_dataclasses()
    if args.deepspeed:
        import deepspeed

        # No g++ run at start, on either side of the comparison.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo")
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(peer.model)

    def load(path: str) -> list[dict]:
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        texts = [[str(row[column]) for row in rows] for column in peer.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=peer.max_length, padding="max_length" if peer.padding == "max_length" else False)
        return [
            {**{key: encoded[key][i] for key in encoded}, "label": names.index(str(row[peer.label_column]))} for i, row in enumerate(rows)
        ]

    with open(peer.train, encoding="utf-8") as lines:
        names = sorted({str(json.loads(line)[peer.label_column]) for line in lines})
    train_rows = load(peer.train)
    eval_rows = load(peer.validation) if peer.validation else None
    if peer.config:
        config = AutoConfig.for_model(**json.loads(peer.config), num_labels=len(names))
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(peer.model, num_labels=len(names))

    if peer.batches:
        # A rank's micro-batches, in order: a sequential sampler over the reordered rows gives exactly the given batches.
        with open(peer.batches, encoding="utf-8") as file:
            order = [row for batch in json.load(file) for row in batch]
        train_rows = [train_rows[row] for row in order]
        args.train_sampling_strategy = "sequential"

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    def compute_metrics(prediction):
        best = np.argmax(prediction.predictions, axis=-1)
        average = "binary" if len(names) == 2 else "macro"
        return {"accuracy": accuracy_score(prediction.label_ids, best), "f1": f1_score(prediction.label_ids, best, average=average)}

    recorder = Recorder()
    args.report_to = []
    args.disable_tqdm = True
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, padding="max_length" if peer.padding == "max_length" else True, max_length=peer.max_length if peer.padding == "max_length" else None),
        compute_metrics=compute_metrics,
        callbacks=[recorder],
    )
    trainer.train()
    metrics = trainer.evaluate() if eval_rows else {}
    if int(os.environ.get("RANK", "0")) == 0:
        warm = min(5, len(recorder.times) - 1)
        steps = len(recorder.times) - 1 - warm
        rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if peer.loss_file:
            with open(peer.loss_file, "w", encoding="utf-8") as file:
                json.dump(recorder.losses, file)
        print(
            json.dumps(
                {
                    "metrics": metrics,
                    "steps": len(recorder.times),
                    "samples_per_second": steps * rows_per_step / (recorder.times[-1] - recorder.times[warm]) if steps > 0 else None,
                    "train_seconds": recorder.times[-1] - recorder.times[0] if recorder.times else None,
                    "process_seconds": time.time() - PROCESS_START,
                    "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    "torch_threads": torch.get_num_threads(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
