"""A few steps of one process on each side, this package and plain `Trainer`, with the same model and the same batches;
for what is counted in a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from host_reads import DEVICE, HostReads, Watch
from plain_trainer import one_rank, resolved, stream_here
from support import plain_job

STEPS = 3
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 64, **_SIZES}
BART = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}


def _classes(kind: str, column: str) -> dict[str, Any]:
    return {"task": {"type": "text-classification", "problem_type": kind, "label_column": column}}


def _causal(model: dict[str, Any] | None = None, **task: Any) -> dict[str, Any]:
    return {"task": {"type": "causal-lm", **task}, "model": {"config": LLAMA, **(model or {})}}


_BLOCKS = _causal(packing="concat", block_size=16)
TASKS: dict[str, dict[str, Any]] = {
    "classes": {},
    "several classes": _classes("multi_label_classification", "tags"),
    "tagged words": {
        "task": {"type": "token-classification", "text_column": "words", "label_column": "word_tags"}
    },
    "regression": _classes("regression", "number"),
    "blocks": _BLOCKS,
    "rows": _causal(packing="none"),
    "packed": _causal(packing="best_fit", block_size=32),
    "completions": _causal(prompt_column="text", completion_column="target"),
    "choices": {
        "task": {"type": "multiple-choice", "context_column": "text", "ending_columns": ["target", "other"]}
    },
    "masked blocks": {"task": {"type": "masked-lm", "block_size": 16}},
    "masked rows": {"task": {"type": "masked-lm", "line_by_line": True}},
    "summarization": {
        "task": {"type": "summarization", "text_column": "text", "summary_column": "target"},
        "model": {"config": BART},
    },
    "translation": {
        "task": {
            "type": "translation", "source_column": "text", "target_column": "target", "source_lang": "en",
            "target_lang": "de",
        },
        "model": {"config": T5},
    },
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "accumulation": {**_BLOCKS, "training": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}},
    "checkpointing": {**_BLOCKS, "training": {"gradient_checkpointing": True}},
    "LoRA": {**_BLOCKS, "lora": {"r": 2, "target_modules": "all-linear"}},
    "label smoothing": {"training": {"label_smoothing_factor": 0.1}},
    "all logits": {**_causal({"chunked_loss": False}, packing="none")},
    "bf16": {**_BLOCKS, "training": {"bf16": True}},
}
"""Ways to train beside the tasks."""


def write_all_rows(path: Path, count: int = 256) -> Path:
    """Rows with what each task reads."""
    draw, words = random.Random(0), "ada bell curie darwin euler fermi gauss hopper".split()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(2, 9)))
            tags = draw.sample(["a", "b", "c"], draw.randint(1, 2))
            row = {
                "text": text,
                "label": len(text) % 2,
                "tags": tags,
                "words": text.split(),
                "word_tags": [word[0] for word in text.split()],
                "number": draw.random(),
                "target": text[::-1],
                "other": text[3:],
            }
            file.write(json.dumps(row) + "\n")
    return path


def prepared(folder: Path, sections: dict[str, Any], stage: int, use_gpu: bool) -> tuple[Any, Any]:
    """The job of a case, and what the driver finds out about it."""
    training = {
        "max_steps": STEPS, "logging_strategy": "no", "save_strategy": "no", "train_sampling_strategy": "random",
        **sections.get("training", {}),
    }  # fmt: skip
    workers = {"num_workers": 1, "use_gpu": use_gpu}
    values = plain_job(
        folder, "case", **{"workers": workers, "deepspeed": {"zero_stage": stage}, **sections, "training": training}
    )
    if "task" in sections:
        values["task"] = sections["task"]
    return resolved({**values, "data": {**values["data"], "train": str(folder / "train.jsonl")}}, folder / "runs")


@contextlib.contextmanager
def process_group(use_gpu: bool) -> Iterator[None]:
    """The environment in which DeepSpeed makes a group of one process; none is left."""
    from raytrain_nlp.compat.deepspeed import forget_accelerator, import_deepspeed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    with mock.patch.dict(os.environ, environment | ({} if use_gpu else {"DS_ACCELERATOR": "cpu"})):
        deepspeed = import_deepspeed()
        forget_accelerator(use_gpu)
        try:
            yield
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            deepspeed.comm.comm.cdb = None
            kept = vars(deepspeed.utils.groups)  # made of the group that has ended
            kept.update(
                {name: None for name, value in kept.items() if isinstance(value, torch.distributed.ProcessGroup)}
            )


class SyncWarnings:
    """`HostReads` of a real GPU: torch tells where the host waits for it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def at_host(self, tensors: Any) -> None:
        """A tensor's device is known there."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.found += [f"{one.filename}:{one.lineno}" for one in told if "synchronizing" in str(one.message)]


@contextlib.contextmanager
def _played_gpu(reads: HostReads) -> Iterator[None]:
    """Arguments name the device that is played, and what this package does on a GPU it does here."""
    from transformers import TrainingArguments

    from raytrain_nlp.distributed import consensus

    def sent(value: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """A copy that nobody waits for; its event is waited for a step later."""
        there = value.clone()
        reads.at_host([there])
        return there, SimpleNamespace(synchronize=lambda: None)

    real: Any = TrainingArguments.device.fget
    device = property(lambda arguments: DEVICE if real(arguments) else None)
    with (
        mock.patch.object(TrainingArguments, "device", device),
        mock.patch.object(consensus, "_read_later", lambda value: True),
        mock.patch.object(consensus, "to_host", sent),
    ):
        yield


def train_ours(job: Any, spec: Any, folder: Path, reads: Any) -> None:
    """`STEPS` steps of this package's worker, the last of them with `reads` active."""
    from raytrain_nlp.paths import RunPaths
    from raytrain_nlp.trainer import loader
    from raytrain_nlp.worker import extensions
    from raytrain_nlp.worker.loop import run_body

    paths = RunPaths(folder / "counted", job.name)
    paths.run.mkdir(parents=True)
    (folder / "scratch").mkdir(exist_ok=True)
    build, read = extensions.build_trainer, loader.FeedDataset.__getitem__

    def watched(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        trainer.add_callback(Watch(reads, STEPS))
        return trainer

    def from_feed(dataset: Any, index: int) -> Any:
        batch = read(dataset, index)
        reads.at_host(batch.values())
        return batch

    with (
        one_rank(),
        mock.patch.object(extensions, "build_trainer", watched),
        mock.patch.object(loader.FeedDataset, "__getitem__", from_feed),
    ):
        run_body(spec, paths, str(folder / "scratch"))


def train_plain(job: Any, spec: Any, folder: Path, reads: Any) -> None:
    """The same steps of `Trainer`, with the batches of the feed."""
    from transformers import PrinterCallback, Trainer

    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.paths import RunPaths
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.arguments import build_arguments
    from raytrain_nlp.worker.loop import _load_model

    accumulation = job.gradient_accumulation_steps
    parts = stream_here(spec.train, start=0, stop=STEPS, world_size=1, rank=0, accumulation=accumulation)
    batches = [dict(part.tensors) for part in parts]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        reads.at_host(rows[0].values())
        return dict(rows[0])

    task, tokenizer = build_task(job.task), load_tokenizer(spec.tokenizer_dir)
    with one_rank():
        arguments = build_arguments(job, str(folder / "plain"), task.generates)
        arguments.per_device_train_batch_size, arguments.train_sampling_strategy = 1, "sequential"
        trainer = Trainer(
            model=_load_model(spec, job, RunPaths(folder / "plain", job.name), arguments, task, tokenizer),
            args=arguments, train_dataset=batches, data_collator=collate, processing_class=tokenizer,
            callbacks=[Watch(reads, STEPS)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            if trainer.is_deepspeed_enabled:
                trainer.deepspeed.destroy()
            trainer.accelerator.free_memory()


def reads_of_both(
    folder: Path, sections: dict[str, Any], stage: int, use_gpu: bool = False
) -> tuple[list[str], list[str]]:
    """Where the host waits in the last of `STEPS` steps of a case under a ZeRO stage: ours and plain `Trainer`'s."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    write_all_rows(folder / "train.jsonl")
    job, spec = prepared(folder, sections, stage, use_gpu)
    found = []
    with process_group(use_gpu) if stage else contextlib.nullcontext():
        for train in (train_ours, train_plain):
            reads: Any = SyncWarnings() if use_gpu else HostReads()
            try:
                with contextlib.nullcontext() if use_gpu else _played_gpu(reads):
                    train(job, spec, folder, reads)
            finally:
                unset_hf_deepspeed_config()
            found.append(reads.found)
    return found[0], found[1]


def main() -> None:
    """In a process of its own, on a GPU where there is one: what both sides read, for each `TASK:STAGE` given."""
    from raytrain_nlp.distributed.device import settle_device

    use_gpu = torch.cuda.is_available()
    settle_device(use_gpu)
    for case in sys.argv[1:]:
        task, _, stage = case.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            ours, plain = reads_of_both(Path(folder), (TASKS | WAYS)[task], int(stage), use_gpu)
        print("FOUND " + json.dumps({"case": case, "ours": ours, "plain": plain}), flush=True)


if __name__ == "__main__":
    main()
