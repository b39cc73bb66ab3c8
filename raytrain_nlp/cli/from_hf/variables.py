"""Reads environment variables before a command, and helps to read numbers of processes and precision."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raytrain_nlp.cli.from_hf.command import Command

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_ENVIRONMENT = "Set it in the environment of `raytrain-nlp`."


@dataclass
class Processes:
    """What the parts of a command say about the number of processes; None: nothing."""

    total: int | None = None
    """Processes on all nodes together."""
    per_node: int | None = None
    """Processes on each node."""
    nodes: tuple[int, int] | None = None
    """The least and the most nodes."""
    tasks: int | None = None
    """Tasks that a scheduler (`srun`) starts: the processes themselves, or a launcher on each node."""
    task_nodes: int | None = None
    """Nodes on which a scheduler starts tasks."""
    devices: int | None = None
    """GPUs that `CUDA_VISIBLE_DEVICES` names."""
    all_gpus: bool = False
    """Is there one process for each GPU of a node?"""


def read_variables(command: Command, tokens: Sequence[str], found: Processes) -> Iterator[str]:
    """Take over the variables (`NAME=value`) before the first program of a command, and yield all other words."""
    started = False
    for token in tokens:
        match = None if started else _VARIABLE.fullmatch(token)
        if match:
            _read_variable(command, match[1], match[2], found)
            continue
        started = started or (
            PurePath(token).name not in ("env", "nohup", "time", "exec") and not token.startswith("-")
        )
        yield token


def _read_variable(command: Command, name: str, value: str, found: Processes) -> None:
    if name == "CUDA_VISIBLE_DEVICES":
        devices = [part for part in value.split(",") if part.strip() and part.strip() != "-1"]
        found.devices = len(devices)
        command.use_gpu = bool(devices)
        if devices:
            command.remark(name, f"{len(devices)} named; Ray chooses which, one for each worker.")
        else:
            command.values.setdefault("use_cpu", True)
    elif name == "OMP_NUM_THREADS" and value.isdecimal() and int(value):
        command.workers["resources_per_worker"] = {"CPU": int(value)}
    elif name == "MLFLOW_TRACKING_URI":
        command.tracking["tracking_uri"] = value
    elif name == "MLFLOW_EXPERIMENT_NAME":
        command.tracking["experiment_name"] = value
    elif name == "ACCELERATE_MIXED_PRECISION":
        take_precision(command, value)
    elif name in ("WORLD_SIZE", "NPROC_PER_NODE", "NNODES") and value.isdecimal():
        found.total = found.total or int(value) if name == "WORLD_SIZE" else found.total
        command.remark(name, "Ray tells the workers; see workers.num_workers.")
    elif name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        command.remark(name, "Ray tells the workers.")
    else:
        command.remark(name, _ENVIRONMENT)


def take_precision(command: Command, value: str) -> None:
    """Take over a launcher's mixed precision; the script's own flags take precedence."""
    if value in ("fp16", "bf16"):
        command.values.setdefault(value, True)
    elif value not in ("no", ""):
        command.note("mixed_precision", f"{value} is not supported; use training.bf16 or training.fp16.")


def read_count(command: Command, name: str, value: str) -> int | None:
    """A number of processes or nodes, from 1 on; for any other value None, and a note."""
    if value.isdecimal() and int(value):
        return int(value)
    command.note(name, "is no plain number; set workers.num_workers.")
    return None
