"""LoRA of a classifier in mixed precision under ZeRO-3: its head is trained beside adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import support
from safetensors import safe_open


def test_a_classifier_s_adapter_and_head_train_in_bf16(shared_ray: Any, train_warm: Any, tmp_path: Path) -> None:
    """DeepSpeed takes trained parameters of one type only; PEFT makes adapters in fp32 and keeps the head in the base's
    type.
    """
    support.write_rows(tmp_path / "train.jsonl", 64)
    job = support.tiny_job(
        tmp_path, "bf16", deepspeed={"zero_stage": 3}, lora={"r": 4, "target_modules": "all-linear"},
        training={"max_steps": 3, "bf16": True}, checkpoint={"save_steps": 2},
    )  # fmt: skip
    result = train_warm(job)
    losses = support.losses(tmp_path / "runs" / "bf16")
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    with safe_open(Path(result.model_dir) / "adapter_model.safetensors", "pt") as file:
        # no mapping
        assert any("classifier" in name for name in file.keys()) and any("lora_B" in name for name in file.keys())  # noqa: SIM118
