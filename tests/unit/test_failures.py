"""Who failed: real tracebacks inside DeepSpeed, transformers, torch and the user's own file; what comes again; what is
told of it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raytrain_nlp.errors import FeedError
from raytrain_nlp.failures import find_failure, raised_in

GLOO = (
    "[pair.cc:537] Read error [127.0.0.1]:54191: Connection reset by peer. Check the logs of the remote worker (gloo)"
)


def installed(name: str, file: str) -> ModuleType:
    """One module of an installed library without the package above it, whose import takes seconds."""
    root = Path(importlib.util.find_spec(name).submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(Path(file).stem, root / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def users(tmp_path: Path) -> ModuleType:
    """A file of the user's: a step that calls what is inside it, and one that is wrong itself."""
    file = tmp_path / "mine.py"
    file.write_text("def compute_loss(inner):\n    return inner()\n\ndef wrong():\n    return {}['loss']\n")
    spec = importlib.util.spec_from_file_location("mine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failing(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # this function is no user's
    while "test_failures" in error.__traceback__.tb_frame.f_code.co_filename:
        error.__traceback__ = error.__traceback__.tb_next
    return error


def told(call: Callable[[], Any]) -> str:
    return find_failure(failing(call)).error


def compile_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.cpp_extension

    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", None)
    installed("deepspeed", "ops/op_builder/builder.py").installed_cuda_version()


LOOK_UP = functools.partial(torch.nn.functional.embedding, torch.tensor([7]), torch.zeros(4, 2))
"""Beyond the table; without a frame of this file."""


def test_deepspeed_is_named_with_what_it_needs_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    line = told(lambda: compile_without_cuda(monkeypatch))
    assert line.startswith(
        "DeepSpeed failed: MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s) at "
        "deepspeed/ops/op_builder/builder.py:"
    )
    assert all(word in line for word in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "g++", "ninja"))


def test_torch_is_named_and_what_an_id_beyond_a_table_means() -> None:
    line = told(LOOK_UP)
    assert (
        line.startswith("PyTorch failed: IndexError: index out of range in self at torch/nn/functional.py:")
        and "vocab_size" in line
    )


def test_transformers_is_named() -> None:
    line = told(lambda: installed("transformers", "utils/versions.py").require_version("numpy>=999"))
    assert (
        line.startswith("transformers failed: ImportError: numpy>=999 is required")
        and " at transformers/utils/versions.py:" in line
    )


def test_the_users_file_is_named_where_it_raises(users: ModuleType) -> None:
    assert told(users.wrong) == f"the user's code failed: KeyError: 'loss' at {users.__file__}:5 in wrong."


def test_both_are_named_where_the_users_code_called_the_library(users: ModuleType) -> None:
    line = told(lambda: users.compute_loss(LOOK_UP))
    assert line.startswith(
        "the user's code failed: IndexError: index out of range in self, raised in PyTorch (torch/nn/functional.py:"
    )
    assert f"called at {users.__file__}:2 in compute_loss" in line


def test_a_step_of_the_users_above_our_frames_is_not_to_blame(
    users: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's training step calls `super()`, which comes back to ours, which calls the library."""
    from raytrain_nlp import failures

    ours = tmp_path / "package" / "trainer.py"
    ours.parent.mkdir()
    ours.write_text("def compute_loss(inner):\n    return inner()\n")
    monkeypatch.setattr(failures, "_OURS", f"{ours.parent}/")
    spec = importlib.util.spec_from_file_location("trainer_of_ours", ours)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    error = failing(lambda: users.compute_loss(functools.partial(module.compute_loss, LOOK_UP)))
    failure = find_failure(error)
    assert failure.who == "PyTorch" and "the user's" not in failure.error


@pytest.mark.parametrize("error", [
    RuntimeError(GLOO), dist.DistNetworkError("lost"), RuntimeError("NCCL communicator was aborted on rank 1"), KeyboardInterrupt(), FeedError("says it"),  # noqa: E501
])  # fmt: skip
def test_what_is_no_failure_of_this_process(users: ModuleType, error: BaseException) -> None:
    assert find_failure(error) is None


def raising(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(("error", "again"), [
    (TypeError("forward() got an unexpected keyword argument 'x'"), True), (ImportError("no module named flash_attn"), True),  # noqa: E501
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x2)"), True), (RuntimeError("The size of tensor a (5) must match the size of tensor b (4)"), True),  # noqa: E501
    (RuntimeError("CUDA error: unspecified launch failure"), False), (OSError("disk"), False),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
])  # fmt: skip
def test_what_the_same_step_brings_again(error: Exception, again: bool) -> None:
    """Of a library; what passes is tried again."""
    scope: dict[str, Any] = {}
    exec(
        compile(
            "def forward(call):\n    call()\n", "/env/lib/python3.11/site-packages/transformers/models/x.py", "exec"
        ),
        scope,
    )
    error = failing(lambda: scope["forward"](exec_raiser(error)))
    assert find_failure(error).again is again


def exec_raiser(error: BaseException) -> Callable[[], None]:
    scope: dict[str, Any] = {"error": error}
    exec(
        compile(
            "def raiser():\n    raise error\n", "/env/lib/python3.11/site-packages/transformers/models/y.py", "exec"
        ),
        scope,
    )
    return scope["raiser"]


def test_errors_of_the_feed_may_pass_though_they_are_of_the_class_that_was_raised_remotely() -> None:
    kind = type("RayTaskError(KeyError)", (KeyError,), {"__module__": "ray.exceptions"})
    text = 'ray::map()\n  File "/env/lib/python3.11/site-packages/pyarrow/ipc.py", line 5, in open\nKeyError: 1'
    scope: dict[str, Any] = {"error": kind(text)}
    exec(
        compile("def get():\n    raise error\n", "/env/lib/python3.11/site-packages/ray/_private/worker.py", "exec"),
        scope,
    )
    assert not find_failure(failing(scope["get"])).again


def test_code_that_came_with_a_model_is_neither_the_users_nor_a_librarys() -> None:
    scope: dict[str, Any] = {}
    exec(
        compile(
            "def forward():\n    raise ValueError('no')\n",
            "/home/u/.cache/huggingface/modules/transformers_modules/org/m/modeling.py",
            "exec",
        ),
        scope,
    )
    failure = find_failure(failing(scope["forward"]))
    assert failure.who == "the model's own code" and "org/m/modeling.py:2 in forward" in failure.error


def test_where_an_error_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.modules.get("deepspeed")
    error = failing(lambda: compile_without_cuda(monkeypatch))
    assert (
        raised_in(error, "deepspeed")
        and not raised_in(error, "transformers")
        and sys.modules.get("deepspeed") is before
    )


# What becomes of it


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., Any]:
    from raytrain_nlp.failures import Failure
    from raytrain_nlp.paths import RunPaths
    from raytrain_nlp.worker import loop

    paths = RunPaths(tmp_path, "run")

    def tell(line: str, again: bool, rank: int = 0, step: int = 3) -> bool:
        """The workers that are started next: do they end at once?"""
        loop.CLOCK.step = step
        loop._tell(Failure("PyTorch", line, again), paths, rank)
        return json.loads(paths.failure.read_text())["again"]

    return tell


def test_a_failure_is_tried_again_until_it_comes_twice_at_the_same_step(tell: Callable[..., bool]) -> None:
    assert not tell("PyTorch failed: CUDA error", False, rank=0)
    assert not tell("PyTorch failed: CUDA error", False, rank=1), "two ranks of one attempt"
    assert not tell("PyTorch failed: CUDA error", False, step=9), "another step"
    assert not tell("PyTorch failed: something else", False, step=9)
    assert tell("PyTorch failed: something else", False, step=9)


def test_one_that_would_come_again_is_not_tried_at_all_and_no_other_rank_takes_it_back(
    tell: Callable[..., bool],
) -> None:
    assert tell("the user's code failed: KeyError", True)
    assert tell("PyTorch failed: lost a rank", False, rank=1)


def explained(tmp_path: Path, failures: dict[int, str], monkeypatch: pytest.MonkeyPatch, advice: str = "") -> str:
    from raytrain_nlp.launch.group_errors import explain
    from raytrain_nlp.paths import RunPaths

    kind = type("TrainingFailedError", (RuntimeError,), {})
    for name, module in {"ray": types.ModuleType("ray"), "ray.train": types.ModuleType("ray.train")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["ray"].train, sys.modules["ray.train"].TrainingFailedError = sys.modules["ray.train"], kind
    error = kind("failed")
    error.worker_failures = failures
    return str(explain(error, RunPaths(tmp_path, "run"), " Continue with --resume.", lambda: advice))


def test_resume_is_advised_only_where_it_can_help(
    tell: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, shape = (
        f"Traceback\nRuntimeError: {GLOO}",
        "Traceback\nraytrain_nlp.errors.RunError: PyTorch failed: RuntimeError: CUDA error at torch/x.py:1 in f.",
    )
    line = explained(tmp_path, {0: lost, 1: shape}, monkeypatch)
    assert line.startswith(
        "rank 1: PyTorch failed: RuntimeError: CUDA error at torch/x.py:1 in f. Logs"
    ) and line.endswith("Continue with --resume.")
    tell("transformers failed: TypeError: f() got x.", True)
    line = explained(tmp_path, {0: lost}, monkeypatch)
    assert line.startswith("transformers failed: TypeError: f() got x. Logs") and line.endswith(
        "It would come again: mend it first."
    )


def test_memory_that_was_not_enough_is_told_with_the_planners_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "raytrain_nlp.errors.RunError: PyTorch failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB "
        "at torch/x.py:1 in f."
    )
    line = explained(tmp_path, {0: text}, monkeypatch, "It fits with --set deepspeed.zero_stage=3.")
    assert "in f. It fits with --set deepspeed.zero_stage=3. Logs" in line
