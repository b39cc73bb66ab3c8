"""The peer for causal language models: everything is tokenized and cut into blocks first, in the manner of
transformers' run_clm.

    torchrun --nproc-per-node 2 tests/benchmarks/peer_clm.py --tokenizer DIR --config JSON --train a.jsonl \
        --output_dir OUT ...

Every other flag is a `TrainingArguments` field. The last line of standard output is one JSON object. Nothing of
`raytrain_nlp` is imported: this file is the independent side of the comparison.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psutil
from datasets import load_dataset
from peer import Recorder, join_deepspeed
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


@dataclass
class ClmArguments:
    tokenizer: str = ""
    config: str = ""
    train: str = ""
    block_size: int = 128
    cache_dir: str | None = None


def load_blocks(peer: ClmArguments, tokenizer: Any, args: TrainingArguments) -> Any:
    """The rows as blocks of `block_size` tokens; the first rank makes them, the others read what it has cached."""

    def group(columns: dict[str, list]) -> dict[str, list]:
        stream = list(chain.from_iterable(columns["input_ids"]))
        blocks = [
            stream[i : i + peer.block_size]
            for i in range(0, len(stream) // peer.block_size * peer.block_size, peer.block_size)
        ]
        return {"input_ids": blocks, "labels": blocks}

    with args.main_process_first():
        rows = load_dataset("json", data_files=peer.train, split="train", cache_dir=peer.cache_dir)
        tokens = rows.map(
            lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]},
            batched=True,
            remove_columns=rows.column_names,
        )
        return tokens.map(group, batched=True)


def main() -> None:
    recorder = Recorder()
    recorder.marks["process"] = int(psutil.Process().create_time() * 1000)
    recorder.mark("imports")
    peer, args = HfArgumentParser((ClmArguments, TrainingArguments)).parse_args_into_dataclasses()
    if args.deepspeed:
        join_deepspeed()
    args.report_to, args.disable_tqdm = [], True
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(peer.tokenizer)
    blocks = load_blocks(peer, tokenizer, args)
    recorder.mark("data")
    values = {"vocab_size": len(tokenizer), **json.loads(peer.config)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    trainer = Trainer(
        model=model, args=args, train_dataset=blocks, data_collator=default_data_collator, callbacks=[recorder]
    )
    recorder.mark("model")
    trainer.train()
    recorder.mark("end")
    if trainer.is_world_process_zero():
        print(json.dumps({"blocks": len(blocks), "marks": recorder.marks}), flush=True)


if __name__ == "__main__":
    main()
