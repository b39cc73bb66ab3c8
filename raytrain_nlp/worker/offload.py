"""An optimizer on the CPU beside a model on a GPU: DeepSpeed's own Adam where it can be compiled, and all the CPUs
there are.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.device import uses_gpu

_ADAM = ("adamw_torch", "adamw_torch_fused")
"""Of `TrainingArguments.optim`, what DeepSpeed's Adam stands for."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def offloads_optimizer(arguments: Any) -> bool:
    """Is the optimizer's state on the CPU, and the model on a GPU? `arguments`: the worker's `TrainingArguments`."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    return (
        uses_gpu()
        and config is not None
        and config.get_value("zero_optimization.offload_optimizer.device", "none") == "cpu"
    )


def find_cpu_adam(trainer: Any, say: Callable[[str], None]) -> tuple[type, dict[str, Any]] | None:
    """DeepSpeed's `DeepSpeedCPUAdam` and its arguments; None where the job or the user's `Trainer` has another
    optimizer, or some rank cannot compile it.

    Every rank must call it. `say` is given a line while it compiles, and one where it cannot.
    """
    arguments = trainer.args
    if (
        not offloads_optimizer(arguments)
        or str(getattr(arguments.optim, "value", arguments.optim)) not in _ADAM
        or arguments.optim_args
    ):
        return None
    from transformers import Trainer

    own = getattr(type(trainer), "get_optimizer_cls_and_kwargs", None) not in (
        None,
        Trainer.get_optimizer_cls_and_kwargs,
    )
    if own or "optimizer" in arguments.hf_deepspeed_config.config:  # which DeepSpeed makes
        return None
    lacks = [text for text in gather_objects(missing_compiler()) if text]
    if not lacks:
        say("DeepSpeed's Adam for the CPU is compiled, which takes about a minute; once on each machine.")
        lacks = [text for text in gather_objects(_load()) if text]
    if lacks:
        say(f"the optimizer on the CPU is torch's Adam, which is slower than DeepSpeed's: {lacks[0]}.")
        return None
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return DeepSpeedCPUAdam, {
        "lr": arguments.learning_rate,
        "betas": betas,
        "eps": arguments.adam_epsilon,
        "adamw_mode": True,
    }


def missing_compiler() -> str | None:
    """What this machine lacks to compile with."""
    if not shutil.which(os.environ.get("CXX") or "g++"):
        return f"there is no C++ compiler ({os.environ.get('CXX') or 'g++'})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "there are no headers of Python (python3-dev)"
    if not shutil.which("ninja"):
        if find_spec("ninja") is None:
            return "there is no ninja"
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])  # where torch looks for it
    return None


def _load() -> str | None:
    """Compile and load it, or find it compiled; why that fails."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a compiler says what it likes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"it cannot be compiled ({lines[0][:200].rstrip('.')})"
    return None


def optimizer_threads() -> int:
    """CPUs of this machine for each of its ranks: while the optimizer works, its GPU waits."""
    return max(_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _cpus() -> int:
    """Those this process may use; a container may be given less of them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(min(count, int(quota) // int(period)), 1)
    except (OSError, ValueError):  # no such file; no limit ("max")
        return count
