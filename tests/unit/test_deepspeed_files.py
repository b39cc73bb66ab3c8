"""DeepSpeed JSON files as transformers, LLaMA-Factory, Axolotl and DeepSpeedExamples publish them, by their keys: each
is taken whole and passes DeepSpeed's own validation, or is refused by the name of what is not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_config import job, problems

from raytrain_nlp.config import load_job
from raytrain_nlp.config.deepspeed_keys import canonical_config, without_effect, zero_names
from raytrain_nlp.planning.deepspeed_checks import check_deepspeed
from raytrain_nlp.planning.deepspeed_zero import FILLED, check_autos
from raytrain_nlp.worker.arguments import build_deepspeed

AUTO = "auto"
BATCH = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), AUTO
)
FP16 = {
    "enabled": AUTO,
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
BF16 = {"enabled": AUTO}
ADAMW = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO)}
WARMUP = {"type": "WarmupLR", "params": dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), AUTO)}
CPU = {"device": "cpu", "pin_memory": True}
BUCKETS = {
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "reduce_scatter": True,
    "reduce_bucket_size": 2e8,
    "contiguous_gradients": True,
}
LONG = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": AUTO,
    "stage3_prefetch_bucket_size": AUTO,
    "stage3_param_persistence_threshold": AUTO,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
SHORT = {key.removeprefix("stage3_"): value for key, value in LONG.items()} | {
    "sub_group_size": 0,
    "max_live_parameters": 0,
    "max_reuse_distance": 0,
}
MONITORED = {
    "comms_config": {"verbose": False},
    "monitor_config": {"enabled": True, "tag": "DeepSpeedMonitor", "csv_monitor": {"enabled": False}},
}
PLAIN = {**BATCH, "fp16": FP16, "bf16": BF16}

TAKEN: dict[str, dict[str, Any]] = {
    "transformers zero2": {
        **PLAIN,
        "optimizer": ADAMW,
        "scheduler": WARMUP,
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
        "zero_optimization": {"stage": 2, "offload_optimizer": CPU, "overlap_comm": True, **BUCKETS},
    },
    "transformers zero3": {
        **PLAIN,
        "optimizer": ADAMW,
        "scheduler": WARMUP,
        "steps_per_print": 2000,
        "zero_optimization": {**LONG, "offload_optimizer": CPU, "offload_param": CPU},
    },
    "transformers zero3 of 2021": {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
        },
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 500},
        },
        "zero_optimization": {
            "stage": 3,
            "cpu_offload": True,
            "stage3_prefetch_bucket_size": 0,
            "stage3_gather_fp16_weights_on_model_save": True,
        },
    },
    "llama-factory z0": {
        **PLAIN,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 0, "round_robin_gradients": True, **BUCKETS},
        **MONITORED,
    },
    "llama-factory z2": {
        **PLAIN,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "round_robin_gradients": True, **BUCKETS},
        **MONITORED,
    },
    "llama-factory z2 offload": {
        **PLAIN,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "offload_optimizer": CPU, **BUCKETS},
    },
    "llama-factory z3": {**PLAIN, "zero_allow_untested_optimizer": True, "zero_optimization": LONG, **MONITORED},
    "llama-factory z3 offload": {
        **PLAIN,
        "zero_optimization": {**LONG, "offload_optimizer": CPU, "offload_param": CPU},
    },
    "axolotl zero1": {
        **BATCH,
        "bf16": BF16,
        "fp16": {**FP16, "auto_cast": False},
        "optimizer": ADAMW,
        "zero_optimization": {"stage": 1, "overlap_comm": True},
    },
    "axolotl zero2": {
        **BATCH,
        "bf16": BF16,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "contiguous_gradients": True},
    },
    "axolotl zero3": {
        **PLAIN,
        "zero_optimization": {**LONG, "sub_group_size": 0, "stage3_max_live_parameters": 0},
        "wall_clock_breakdown": False,
    },
    "axolotl zero3_bf16": {**BATCH, "bf16": {"enabled": True}, "zero_optimization": SHORT},
    "axolotl zero3_bf16_cpuoffload_all": {
        **BATCH,
        "bf16": {"enabled": True},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**SHORT, "offload_optimizer": CPU, "offload_param": CPU},
    },
    "deepspeedexamples cifar": {
        "train_batch_size": 16,
        "steps_per_print": 2000,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
        },
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
        },
        "wall_clock_breakdown": False,
    },
    "deepspeedexamples with all that is off": {
        "train_batch_size": 16,
        "zero_optimization": True,
        "curriculum_learning": {"enabled": False},
        "amp": {"enabled": False},
        "sparse_gradients": False,
        "elasticity": {"enabled": False},
        "tensor_parallel": {"autotp_size": 1},
        "tensorboard": {"enabled": False},
        "bfloat16": {"enabled": False},
        "activation_checkpointing": {"partition_activations": True},
        "flops_profiler": {"enabled": False},
        "pipeline": {},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "llama-factory z2 autotp": (
        {"_comment": "models", **PLAIN, "zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}},
        "tensor_parallel",
    ),
    "llama-factory z3 fp8": ({"fp8": {"enabled": True}, "zero_optimization": LONG}, "fp8"),
    "llama-factory z3 alst": (
        {"zero_optimization": LONG, "sequence_parallel": {"enabled": True, "size": 4}},
        "sequence_parallel",
    ),
    "axolotl zero1_torch_compile": (
        {"zero_optimization": {"stage": 1}, "compile": {"disable": False, "backend": "inductor"}},
        "compile",
    ),
    "sparse attention": ({"sparse_attention": {"mode": "fixed", "block": 16}}, "sparse_attention"),
    "curriculum": ({"curriculum_learning": {"enabled": True, "curriculum_type": "seqlen"}}, "curriculum_learning"),
    "data efficiency": ({"data_efficiency": {"enabled": True}}, "data_efficiency"),
    "elasticity": ({"elasticity": {"enabled": True, "max_train_batch_size": 2000}}, "elasticity"),
    "autotuning": ({"autotuning": {"enabled": True, "fast": False}}, "autotuning"),
    "compression": (
        {"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True}}}},
        "compression_training",
    ),
    "pipeline": ({"pipeline": {"stages": 2}}, "pipeline"),
    "hybrid engine": ({"hybrid_engine": {"enabled": True}}, "hybrid_engine"),
    "amp": ({"amp": {"enabled": True, "opt_level": "O1"}}, "amp"),
    "monitor": ({"tensorboard": {"enabled": True, "output_path": "x"}}, "tensorboard"),
    "sum of gradients": ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
    "a misspelt key": ({"gradient_acumulation_steps": 2}, "gradient_acumulation_steps"),
    "a misspelt key of ZeRO": (
        {"zero_optimization": {"stage": 2, "overlap_com": True}},
        "zero_optimization.overlap_com",
    ),
    "MiCS": ({"zero_optimization": {"stage": 3, "mics_shard_size": 8}}, "zero_optimization.mics_shard_size"),
    "one thing twice": (
        {"zero_optimization": {**LONG, "gather_16bit_weights_on_model_save": True}},
        "zero_optimization.gather_16bit_weights_on_model_save",
    ),
    "one thing under two old names": (
        {
            "zero_optimization": {
                "stage": 3,
                "gather_16bit_weights_on_model_save": True,
                "stage3_gather_fp16_weights_on_model_save": True,
            }
        },
        "zero_optimization.stage3_gather_fp16_weights_on_model_save",
    ),
}
SAID_BY_DEEPSPEED: dict[str, tuple[dict[str, Any], str]] = {
    "an optimizer of older releases": (
        {"optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-3}}},
        "optimizer.type: is no optimizer",
    ),
    "an optimizer for GPUs": ({"optimizer": {"type": "Lamb", "params": {"lr": 1e-3}}}, "optimizer.type: needs a GPU"),
    "a parameter of another optimizer": (
        {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "freeze_step": 9}}},
        "optimizer.params.freeze_step: unknown key",
    ),
    "a value out of range": (
        {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [2, 0.9]}}},
        "optimizer.params: AdamW refuses them",
    ),
    "an unknown scheduler": ({"scheduler": {"type": "WarmupCosLR", "params": {}}}, "scheduler.type: is no scheduler"),
    "no warm-up steps": (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}},
        "scheduler.params: WarmupLR refuses them",
    ),
    "a missing parameter": (
        {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0}}},
        "scheduler.params: OneCycle refuses them",
    ),
    "a key of no precision": ({"bf16": {"enabled": True, "auto_cast": False}}, "bf16.auto_cast: DeepSpeed refuses it"),
    "a size below 0": (
        {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": -1}},
        "zero_optimization.stage3_max_live_parameters: DeepSpeed refuses it",
    ),
    "auto that nothing fills": (
        {"zero_optimization": {**LONG, "stage3_max_live_parameters": AUTO}},
        'zero_optimization.stage3_max_live_parameters: nothing fills "auto" there',
    ),
    "auto that nothing fills in parameters": (
        {"optimizer": {"type": "AdamW", "params": {"lr": AUTO, "bias_correction": AUTO}}},
        'optimizer.params.bias_correction: nothing fills "auto" there',
    ),
    "quantized weights of ZeRO++": (
        {"zero_optimization": {**LONG, "zero_quantized_weights": True}},
        "zero_optimization.zero_quantized_weights: needs a GPU",
    ),
    "more parts than workers": (
        {"zero_optimization": {**LONG, "zero_hpz_partition_size": 16}},
        "zero_optimization.zero_hpz_partition_size: does not divide the workers (16 and 2)",
    ),
    "super offload": (
        {"zero_optimization": {**LONG, "offload_optimizer": {"device": "cpu", "super_offload": True}}},
        "zero_optimization.offload_optimizer.super_offload: needs a GPU",
    ),
    "an unknown device": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
        "zero_optimization.offload_param.device: DeepSpeed refuses it",
    ),
}
WORKERS = {"num_workers": 2}


@pytest.mark.parametrize("name", TAKEN)
def test_published_file_is_taken_and_deepspeed_agrees(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(TAKEN[name]))
    loaded = load_job(job(workers=WORKERS, deepspeed={"config_file": str(path)}))
    assert check_deepspeed(loaded, total_steps=9) == []
    zero = build_deepspeed(loaded.deepspeed, use_gpu=False).get("zero_optimization", {})
    assert all(zero_names()[key] == key for key in zero)  # each thing under one name, the one Hugging Face fills
    assert zero.get("stage") != 3 or zero["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    config, key = REFUSED[name]
    lines = problems(job(workers=WORKERS, deepspeed={"config": config}))
    assert [line for line in lines if line.startswith(f"deepspeed.config.{key}: ")] == lines and len(lines) == 1


@pytest.mark.parametrize("name", SAID_BY_DEEPSPEED)
def test_deepspeeds_own_answer_is_one_line_with_the_key(name: str) -> None:
    config, line = SAID_BY_DEEPSPEED[name]
    loaded = load_job(job(workers=WORKERS, deepspeed={"config": config}))
    found = [str(problem) for problem in check_deepspeed(loaded)]
    assert len(found) == 1 and found[0].startswith(f"deepspeed.config.{line}") and "\n" not in found[0]


def test_nvme_needs_what_deepspeed_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nvme = {
        "zero_optimization": {**LONG, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}},
        "aio": {"block_size": 262144, "queue_depth": 32},
    }
    for there, told in ((False, ["deepspeed.config.zero_optimization.offload_param.device: nvme needs"]), (True, [])):
        monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False, there=there: there)
        lines = [
            str(problem) for problem in check_deepspeed(load_job(job(workers=WORKERS, deepspeed={"config": nvme})))
        ]
        assert len(lines) == len(told) and all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def test_hugging_face_fills_every_auto_that_is_taken(tmp_path: Path) -> None:
    """But one, which is always true here."""
    from types import SimpleNamespace

    import transformers
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    nested: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    for name in FILLED:
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = AUTO
    arguments, filled = transformers.TrainingArguments(str(tmp_path), use_cpu=True), HfTrainerDeepSpeedConfig(nested)
    filled.trainer_config_process(arguments)
    filled.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=8)), 9)
    left = [str(problem).partition(":")[0] for problem in check_autos({"x": filled.config})]
    assert left == ["deepspeed.config.x.zero_optimization.stage3_gather_16bit_weights_on_model_save"]
    assert list(check_autos(nested)) == []


def test_steps_of_a_scheduler_must_be_those_of_the_job() -> None:
    config = {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 100, "warmup_num_steps": 10}}}
    loaded = load_job(job(workers=WORKERS, deepspeed={"config": config}))
    assert check_deepspeed(loaded) == [] and check_deepspeed(loaded, 100) == []
    assert "contradicts the steps of the job (100 and 7)" in str(check_deepspeed(loaded, 7)[0])


def test_names_are_those_of_the_installed_deepspeed() -> None:
    """Read as text; DeepSpeed's own model knows the same."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    names = zero_names()
    for field, info in DeepSpeedZeroConfig.model_fields.items():
        if not (info.json_schema_extra or {}).get("deprecated"):
            assert names[field] == (info.alias or field)
    assert (
        names["stage3_gather_fp16_weights_on_model_save"]
        == names["gather_16bit_weights_on_model_save"]
        == "stage3_gather_16bit_weights_on_model_save"
    )
    assert names["cpu_offload"] == "offload_optimizer" and names["cpu_offload_param"] == "offload_param"


def test_canonical_form_is_stable_and_values_stay() -> None:
    for config in TAKEN.values():
        once = canonical_config(config)
        assert canonical_config(once) == once
    short, long = (canonical_config({"zero_optimization": zero})["zero_optimization"] for zero in (SHORT, LONG))
    assert short.keys() == long.keys() and short["stage3_max_live_parameters"] == 0
    offloaded = canonical_config(
        {"zero_optimization": {"stage": 2, "cpu_offload": True, "cpu_offload_use_pin_memory": True}}
    )
    assert offloaded["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def test_what_does_nothing_is_told() -> None:
    assert len(without_effect({"activation_checkpointing": {}, "comms_config": {}, "fp16": {}})) == 2


def test_a_key_twice_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2, "stage": 3}}')
    assert "the key 'stage' stands there twice" in problems(job(deepspeed={"config_file": str(path)}))[0]
