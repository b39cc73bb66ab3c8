"""An optimizer on the CPU beside a model on a GPU; and the figures of a GPU's memory and of waiting for other ranks."""

from __future__ import annotations

import os
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_nlp.distributed import device
from raytrain_nlp.host import devices
from raytrain_nlp.worker import offload


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_use_gpu", True)


def arguments(config: dict[str, Any] | None, optim: str = "adamw_torch_fused") -> Any:
    def get_value(path: str, default: str) -> Any:
        found: Any = config
        for part in path.split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        return found or default

    deepspeed = types.SimpleNamespace(config=config, get_value=get_value) if config is not None else None
    return types.SimpleNamespace(
        hf_deepspeed_config=deepspeed,
        optim=optim,
        optim_args=None,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_epsilon=1e-7,
        learning_rate=0.1,
    )


OFFLOADED = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("given", "lacks", "fails", "found", "lines"),
    [
        (arguments(OFFLOADED), None, None, True, ["is compiled"]),
        (
            arguments(OFFLOADED),
            "there is no ninja",
            None,
            False,
            ["torch's Adam, which is slower than DeepSpeed's: there is no ninja."],
        ),
        (arguments(OFFLOADED), None, "it cannot be compiled (x)", False, ["is compiled", "torch's Adam"]),
        (arguments(OFFLOADED, "adafactor"), None, None, False, []),
        (arguments({**OFFLOADED, "optimizer": {"type": "AdamW"}}), None, None, False, []),  # DeepSpeed's own affair
        (arguments({"zero_optimization": {"stage": 3}}), None, None, False, []),
        (arguments(None), None, None, False, []),
    ],
)
def test_deepspeeds_adam_where_it_compiles(
    given: Any, lacks: Any, fails: Any, found: bool, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(
        transformers, "Trainer", types.SimpleNamespace(get_optimizer_cls_and_kwargs=None), raising=False
    )
    adam = types.ModuleType("deepspeed.ops.adam")
    adam.DeepSpeedCPUAdam = torch.optim.AdamW  # type: ignore[attr-defined] - loading DeepSpeed takes seconds
    for name in ("deepspeed", "deepspeed.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", adam)
    monkeypatch.setattr(offload, "missing_compiler", lambda: lacks)
    monkeypatch.setattr(offload, "_load", lambda: fails)
    said: list[str] = []
    result = offload.find_cpu_adam(types.SimpleNamespace(args=given), said.append)
    assert (
        (result is not None) is found
        and len(said) == len(lines)
        and all(part in line for part, line in zip(lines, said))
    )
    if result:
        assert result[1] == {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-7, "adamw_mode": True}


def test_the_users_own_choice_of_an_optimizer_stays() -> None:
    class Own:
        args = arguments(OFFLOADED)

        @staticmethod
        def get_optimizer_cls_and_kwargs(*_: Any) -> Any:
            return torch.optim.SGD, {}

    assert offload.find_cpu_adam(Own(), print) is None


def test_a_job_on_cpus_keeps_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_use_gpu", False)
    assert (
        not offload.offloads_optimizer(arguments(OFFLOADED))
        and offload.find_cpu_adam(types.SimpleNamespace(args=arguments(OFFLOADED)), print) is None
    )


@pytest.mark.parametrize(
    ("quota", "ranks", "threads"),
    [("max 100000", 1, 16), ("800000 100000", 1, 8), ("50000 100000", 1, 1), (None, 4, 4), ("max 100000", 99, 1)],
)
def test_the_optimizer_gets_the_cpus_that_are_there(
    quota: str | None, ranks: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(offload, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    assert offload.optimizer_threads() == threads


def test_what_a_compiler_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert offload.missing_compiler() == "there is no C++ compiler (no-such-compiler)"
    monkeypatch.setattr(offload.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(offload.sysconfig, "get_path", lambda name: "/nowhere")
    assert offload.missing_compiler() == "there are no headers of Python (python3-dev)"


def test_groups_wait_as_long_as_the_job_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import distributed_c10d

    from raytrain_nlp.compat.torch import set_group_timeout

    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, timedelta(minutes=10), raising=False)
    set_group_timeout(77)
    assert {distributed_c10d._get_default_timeout(backend) for backend in ("gloo", "nccl")} == {timedelta(seconds=77)}


class Nvml:
    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, *processes: tuple[int, int]):
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
        self.nvmlDeviceGetComputeRunningProcesses = lambda handle: [
            types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes
        ]


@pytest.mark.parametrize(
    ("processes", "context"),
    [
        ([(os.getpid(), 700), (1, 9)], 700 - 500),  # the driver knows this process
        ([(1, 0)], 1000 - 100 - 500),  # it knows one, by another number
        ([(1, 0), (2, 0)], devices.CONTEXT_BYTES),
    ],
)
def test_the_peak_of_a_gpu_counts_what_the_plan_counts(
    processes: list, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the tensors alone: the process itself is one of the plan's parts."""
    cuda = types.SimpleNamespace(
        memory_reserved=lambda: 500,
        max_memory_reserved=lambda: 600,
        mem_get_info=lambda: (100, 1000),
        current_device=lambda: 0,
        get_device_properties=lambda index: types.SimpleNamespace(uuid="1-2"),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(device, "load_nvml", lambda: Nvml(*processes))
    assert device.peak_memory() == 600 + context
