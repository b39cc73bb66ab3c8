"""The load of each node, in figures that the first rank logs: MLflow's names for system metrics.

    RUN/nodes/rank-N.json       of the first rank of each other node, renewed whenever the trainer logs

Those of the first rank's node are `system/cpu_utilization_percentage`, those of another `system/HOST/...`. Where ranks
do not share the run's folder, as in object storage, there are those of the first node alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

from raytrain_nlp.distributed.device import device_figures
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.storage.untrusted import read_json_file

_OLD_S = 120.0
"""A file of a node that has left the group is older."""


class NodeLoad:
    """Percent and megabytes of this node and this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        psutil.cpu_percent()  # the next one is of the time since

    def figures(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
            **{name.removeprefix("system/"): value for name, value in device_figures().items()},
        }


class LoadOfNode(TrainerCallback):
    """On the first rank of a node that is not the first node's: its load, for the first rank."""

    def __init__(self, folder: Path, rank: int):
        self._load, self._file = NodeLoad(), folder / f"rank-{rank}.json"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return
        with contextlib.suppress(OSError):  # a full disk: it is a figure, not the run
            self._file.parent.mkdir(exist_ok=True)
            with replacing(self._file, durable=False) as file:
                json.dump({"host": socket.gethostname(), "time": time.time(), "figures": self._load.figures()}, file)


def loads_of_others(folder: Path) -> dict[str, float]:
    """What the other nodes have written, by `HOST/NAME`; a host that has several is told apart by their ranks."""
    found: dict[str, float] = {}
    hosts = {socket.gethostname()}
    for path in sorted(folder.glob("rank-*.json")) if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = read_json_file(path)
            if time.time() - written["time"] > _OLD_S:
                continue
            host = written["host"] if written["host"] not in hosts else f"{written['host']}-{path.stem}"
            hosts.add(host)
            found |= {f"{host}/{name}": float(value) for name, value in written["figures"].items()}
    return found
