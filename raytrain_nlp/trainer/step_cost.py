"""What a step costs, for the log: where its time goes, tokens a second of each GPU, and MFU."""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.distributed.device import peak_flops_here, uses_gpu
from raytrain_nlp.distributed.timeline import TIMELINE
from raytrain_nlp.modeling.document_lengths import document_ends
from raytrain_nlp.modeling.flops import ModelFlops, count_flops
from raytrain_nlp.tasks.base import IGNORED


class StepCost:
    """Figures of this rank since they were last read. MFU is model FLOPs utilization as `modeling.flops` counts it,
    over the time of steps (without checkpoints and evaluations) and the dense peak of this GPU in the precision of the
    training; where one of these is not known there is none.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, int, int | None]] = []
        self._steps = 0
        self._known: tuple[ModelFlops | None, float | None] | None = None

    def add(self, micro_batches: list[MicroBatch], rows_weigh: bool) -> None:
        """Count the micro-batches of one optimizer step of this rank. `rows_weigh`: as `Task.rows_weigh`."""
        self._parts += [
            (len(part.rows), part.tokens, 0 if rows_weigh else part.weight, _pairs(part.tensors))
            for part in micro_batches
            if len(part.rows)
        ]
        self._steps += 1

    def read(self, trainer: Any, tokens_per_second: float) -> dict[str, float]:
        """Figures since the last call. `tokens_per_second`: of all ranks."""
        found, parts, steps = TIMELINE.read(), self._parts, self._steps
        self._parts, self._steps = [], 0
        if uses_gpu():
            found["tokens_per_second_per_gpu"] = tokens_per_second / trainer.args.world_size
        if self._known is None:  # by now the user's code has frozen what it freezes
            model = trainer.accelerator.unwrap_model(trainer.model)
            self._known = count_flops(model), peak_flops_here(_precision(trainer.args, model))
        flops, peak = self._known
        seconds = found.get("time/step", 0.0)
        if flops and peak and steps and seconds:
            found["mfu"] = sum(flops.of_step(*part) for part in parts) / steps / seconds / peak
        return found


def _pairs(tensors: dict[str, Any]) -> int | None:
    """Pairs of tokens of the same document, in rows that have several; None elsewhere. Of a document without a label,
    as padding is one, none.
    """
    if "position_ids" not in tensors or "labels" not in tensors:
        return None
    ends = document_ends(tensors["position_ids"].numpy())
    learned = np.add.reduceat(tensors["labels"].numpy().reshape(-1) != IGNORED, ends[:-1], dtype=np.int64) > 0
    return int((np.diff(ends).astype(np.int64)[learned] ** 2).sum())


def _precision(args: Any, model: Any) -> str:
    """bf16 or fp16 where the training computes in it, else fp32, which may be done in TF32."""
    if args.bf16 or args.fp16:
        return "bf16" if args.bf16 else "fp16"
    kind = str(getattr(next(model.parameters(), None), "dtype", ""))
    return {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(kind, "fp32")
