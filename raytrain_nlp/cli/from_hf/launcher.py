"""Reads what comes before the script in a command: variables, `srun`, `python -m`, `torchrun`, `deepspeed`, `accelerate
launch`.

Processes and nodes become workers, and settings that a launcher passes on to the `Trainer` become keys of the job.
Other flags get a note.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from raytrain_nlp.cli.from_hf.variables import Processes, read_count, read_variables

if TYPE_CHECKING:
    from raytrain_nlp.cli.from_hf.command import Command

_LAUNCHERS = {
    "torchrun": "torchrun",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "xla_spawn.py": "torchrun",
    "deepspeed": "deepspeed",
    "deepspeed.launcher.runner": "deepspeed",
    "accelerate": "accelerate",
    "accelerate.commands.launch": "accelerate",
    "accelerate-launch": "accelerate",
    "srun": "srun",
    "mpirun": "srun",
    "mpiexec": "srun",
}
"""Programs and modules -> the launcher whose flags they take; schedulers are read alike, as `srun`."""
_SHORT = {
    "torchrun": {"r": "redirects", "t": "tee", "m": "module"},
    "deepspeed": {"H": "hostfile", "i": "include", "e": "exclude", "m": "module"},
    "accelerate": {"m": "module", "q": "quiet"},
    "srun": {"n": "ntasks", "np": "ntasks", "N": "nodes", "c": "cpus_per_task", "G": "gpus"},
}
"""Launcher -> short flags -> their long names."""
_SAID = ("m", "module", "u", "no_python", "use_env")
"""Flags without a note, as they say only how the script is started."""
_PLACED = "A flag of the launcher; Ray places, connects and restarts the workers."


def read_launcher(command: Command, tokens: Sequence[str]) -> None:
    """Take the settings of the launchers before the script over into `command`.

    Args:
        tokens: the words of the command before the script.
    """
    found = Processes()
    words = list(read_variables(command, tokens, found))
    for launcher, options in _parts(words):
        _READERS[launcher](command, options, found)
    _settle(command, found)


def _parts(words: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each launcher among the words, with its flags in order: names without dashes, and values (empty for switches)."""
    at = [
        i
        for i, word in enumerate(words)
        if PurePath(word).name in _LAUNCHERS
        and not (i and words[i - 1] in ("--launcher", "--deepspeed_multinode_launcher"))
    ]
    for start, end in zip(at, [*at[1:], len(words)]):
        launcher = _LAUNCHERS[PurePath(words[start]).name]
        part, options = words[start + 1 : end], []
        for token, following in zip(part, [*part[1:], ""]):
            if token.startswith("-") and len(token) > 1:
                name, equals, value = token.lstrip("-").partition("=")
                name = _SHORT[launcher].get(name, name.replace("-", "_"))
                options.append((name, value if equals else "" if following.startswith("-") else following))
        yield launcher, options


def _read_torchrun(command: Command, options: list[tuple[str, str]], found: Processes) -> None:
    for name, value in options:
        if name in ("nproc_per_node", "num_cores"):
            if value in ("gpu", "auto"):
                found.all_gpus = True
                command.use_gpu |= value == "gpu"
            else:
                found.per_node = read_count(command, name, value)
        elif name == "nnodes" and re.fullmatch(r"[1-9]\d*:[1-9]\d*", value):
            least, most = map(int, value.split(":"))
            found.nodes = (min(least, most), most)
        elif name == "nnodes":
            count = read_count(command, name, value)
            found.nodes = (count, count) if count else None
        elif name == "max_restarts" and value.isdecimal():
            command.workers["max_failures"] = int(value)
        elif name not in _SAID:
            command.note(name, _PLACED)


def _read_deepspeed(command: Command, options: list[tuple[str, str]], found: Processes) -> None:
    command.use_gpu |= not any(name == "bind_cores_to_rank" for name, _ in options)
    for name, value in options:
        if name in ("num_gpus", "num_accelerators"):
            found.per_node = read_count(command, name, value)
        elif name == "num_nodes":
            count = read_count(command, name, value)
            found.nodes = (count, count) if count else None
        elif name == "include" and value:
            found.total = _included(value) or found.total
            command.note(name, "The number of GPUs became workers.num_workers; Ray chooses which.")
        elif name == "hostfile":
            slots = _slots(value)
            if slots and not {"num_gpus", "num_nodes", "include"} & {other for other, _ in options}:
                found.total = sum(slots)
            command.note(
                name,
                f"{len(slots)} hosts, {sum(slots)} slots; start Ray on them." if slots else "Start Ray on its hosts.",
            )
        elif name == "elastic_training":
            command.note(name, "Write a range: workers.num_workers: [MIN, MAX].")
        elif name not in _SAID:
            command.note(name, _PLACED)
    found.all_gpus = True  # `_settle` reads it only if no number is given


def _included(text: str) -> int:
    """The number of GPUs in `host:0,1@other:2`; 0 if a host has no list of GPUs."""
    parts = [part.partition(":")[2] for part in text.split("@")]
    return sum(len(part.split(",")) for part in parts) if all(parts) else 0


def _slots(file: str) -> list[int]:
    """The slots of each host in a hostfile; empty if it cannot be read."""
    try:
        lines = Path(os.path.expanduser(file)).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [int(match[1]) for line in lines if (match := re.search(r"^\s*[^#\s]\S*\s+slots=(\d+)", line))]


def _read_srun(command: Command, options: list[tuple[str, str]], found: Processes) -> None:
    per_node = None
    for name, value in options:
        if name == "ntasks":
            found.tasks = read_count(command, name, value)
        elif name == "nodes":
            found.task_nodes = read_count(command, name, value)
        elif name == "ntasks_per_node":
            per_node = read_count(command, name, value)
        elif name == "cpus_per_task" and value.isdecimal() and int(value):
            command.workers.setdefault("resources_per_worker", {"CPU": int(value)})
        else:
            gpus = name in ("gres", "gpus", "gpus_per_node", "gpus_per_task") and value.rpartition(":")[2] != "0"
            command.use_gpu |= gpus
            command.note(name, "A flag of the scheduler; a Ray cluster is started there once, for all jobs.")
    if found.tasks is None and per_node is not None:
        found.tasks = per_node * (found.task_nodes or 1)


def _settle(command: Command, found: Processes) -> None:
    """Set the number of workers: what a launcher says, else what a scheduler says, else the number of named GPUs."""
    least, most = found.nodes or (found.task_nodes or 1,) * 2
    if found.total is not None:
        command.num_workers = found.total
    elif found.all_gpus and found.per_node is None and found.devices is None and most == 1:
        command.num_workers = "auto"
    elif found.per_node is not None or found.nodes is not None:
        each = found.per_node or found.devices or 1
        command.num_workers = each * most if least == most else [each * least, each * most]
    else:
        command.num_workers = found.tasks or found.devices or 1


def _read_accelerate(command: Command, options: list[tuple[str, str]], found: Processes) -> None:
    from raytrain_nlp.cli.from_hf.accelerate import read_accelerate

    read_accelerate(command, options, found)


_READERS: dict[str, Callable[[Command, list[tuple[str, str]], Processes], None]] = {
    "torchrun": _read_torchrun, "deepspeed": _read_deepspeed, "srun": _read_srun, "accelerate": _read_accelerate,
}  # fmt: skip
