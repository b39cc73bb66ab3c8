"""Which device a process uses: what its job says, whatever the machine has."""

from __future__ import annotations

import ast
import os
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

import raytrain_nlp
from raytrain_nlp.cluster import gpus
from raytrain_nlp.distributed import device
from raytrain_nlp.host import devices

ROOT = Path(raytrain_nlp.__file__).parent


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in an environment and with a device of its own."""
    monkeypatch.setattr(device, "_use_gpu", False)
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize(
    "path",
    sorted(set(ROOT.rglob("*.py")) - {ROOT / "distributed" / "device.py"}),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_the_device_module_asks_a_gpu(path: Path) -> None:
    """Whoever asks torch what the machine has, and not the job what it uses, is wrong on a machine whose GPU the job
    does not use.
    """
    named = {"cuda", "xpu", "hip"}
    asked = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in named
    ]
    assert not asked, f"{path.name}:{asked}"


def test_a_job_without_gpus_asks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question of the module, with a torch that would answer each for a GPU, and none that may be asked."""
    monkeypatch.setattr(torch, "cuda", types.SimpleNamespace())  # any use is an AttributeError
    device.settle_device(False)
    assert {name: os.environ[name] for name in devices.WITHOUT_GPU} == devices.WITHOUT_GPU
    device.reset_peak()
    device.release_cache()
    device.set_rng_state({"cuda": torch.zeros(1)})
    assert device.peak_memory() > 0 and device.free_memory() > 0 and device.held_memory() > 0
    assert device.rng_state() == {} == device.device_figures() and not device.uses_gpu()


def test_free_memory_of_a_gpu_counts_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(
        mem_get_info=lambda: (100, 1000), memory_reserved=lambda: 600, memory_allocated=lambda: 250
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    device.settle_device(True)
    assert device.free_memory() == 100 + 600 - 250


def test_a_process_that_changes_its_device_changes_deepspeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process runs trials of several jobs; a fork has DeepSpeed loaded already, maybe for a GPU."""
    real = types.SimpleNamespace(ds_accelerator=types.SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setitem(sys.modules, "deepspeed.accelerator.real_accelerator", real)
    device.settle_device(True)
    assert real.ds_accelerator is not None and "DS_ACCELERATOR" not in os.environ
    device.settle_device(False)
    assert real.ds_accelerator is None and os.environ["DS_ACCELERATOR"] == "cpu"
    real.ds_accelerator = types.SimpleNamespace(device_name=lambda: "cpu")
    device.settle_device(True)
    assert real.ds_accelerator is None and "DS_ACCELERATOR" not in os.environ


@pytest.mark.parametrize("before", [None, "0,1"])
def test_the_environment_is_given_back(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may train on CPU now and on its GPU next."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before) if before else monkeypatch.delenv(
        "CUDA_VISIBLE_DEVICES", raising=False
    )
    own = dict(os.environ)
    with devices.hidden_gpus(use_gpu=False):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert dict(os.environ) == own
    with devices.hidden_gpus(use_gpu=True):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    assert dict(os.environ) == own


class FakeNvml:
    """NVIDIA's library on a machine with cards of these names, bytes and compute capabilities."""

    class NVMLError(Exception):
        pass

    def __init__(self, *cards: tuple[str, int, tuple[int, int]], driver: bool = True):
        self._cards, self._driver = cards, driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple:
        return self._cards[index]

    def nvmlDeviceGetName(self, handle: tuple) -> bytes:
        return handle[0].encode()

    def nvmlDeviceGetMemoryInfo(self, handle: tuple) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=handle[1], free=handle[1])

    def nvmlDeviceGetCudaComputeCapability(self, handle: tuple) -> tuple[int, int]:
        return handle[2]


CARDS = ("NVIDIA H200", 150, (9, 0)), ("Tesla V100", 32, (7, 0))


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H200", "Tesla V100"]), ("", []), ("1", ["Tesla V100"]), ("1,0", ["Tesla V100", "NVIDIA H200"]), ("0,7,1", ["NVIDIA H200"]),  # noqa: E501
        ("-1", []), ("NoDevFiles", []), ("GPU-8932f937-d72c,GPU-aa", ["NVIDIA H200", "Tesla V100"]), ("GPU-8932f937-d72c", ["NVIDIA H200"]),  # noqa: E501
    ],
)  # fmt: skip
def test_gpus_are_those_a_process_may_see(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_torch_build", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(gpus, "load_nvml", lambda: FakeNvml(*CARDS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible is not None else monkeypatch.delenv(
        "CUDA_VISIBLE_DEVICES", raising=False
    )
    assert [gpu.name for gpu in gpus.local_gpus()] == names
    assert all(gpu.bf16 == (gpu.name == "NVIDIA H200") for gpu in gpus.local_gpus())


def test_gpus_that_torch_cannot_use_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVERS", (tmp_path,))
    monkeypatch.setattr(gpus, "_torch_build", lambda: {"cuda": None, "hip": None})
    monkeypatch.setattr(gpus, "load_nvml", lambda: FakeNvml(*CARDS))
    assert gpus.local_gpus() == [] and gpus.torch_without_gpu()
    monkeypatch.setattr(gpus, "_torch_build", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(gpus, "load_nvml", lambda: FakeNvml(driver=False))
    assert gpus.local_gpus() == []


def test_gpus_of_amds_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_torch_build", lambda: {"cuda": None, "hip": "7.0"})
    monkeypatch.setattr(gpus, "_KFD", tmp_path)
    for node, units in enumerate((0, 440, 440)):  # a CPU and two GPUs
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(f"cpu_cores_count 8\nsimd_count {units}\n")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    assert len(gpus.local_gpus()) == 2
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert len(gpus.local_gpus()) == 1


def test_the_installed_libraries_are_found() -> None:
    """The real files: torch's own word of what it was built for, and a library that answers or says that there is no
    driver.
    """
    import subprocess

    program = (
        "import sys; from raytrain_nlp.cluster import gpus; gpus.local_gpus(); "
        "print(gpus.load_nvml().nvmlInit.__name__, *{'torch', 'ray'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["nvmlInit"], done.stderr
    assert gpus._torch_build()["__version__"] == torch.__version__
