"""Compares the states of two runs tensor by tensor: one pair in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain_nlp.checkpoint.consolidate import each_weight
from raytrain_nlp.checkpoint.state import StoredTensor, load_state, open_state
from raytrain_nlp.checkpoint.store import Checkpoint

OPTIMIZER, REST = "optimizer state", "learning rate and random numbers"
_STATES = (".state", ".pt")
_ARRAYS = (StoredTensor, torch.Tensor, np.ndarray)


@dataclass
class Difference:
    """How far two states are apart."""

    tensors: int = 0
    """Tensors and other values that were compared."""
    different: int = 0
    largest: float = 0.0
    """The largest difference of two values; infinite where there is no number for it."""
    where: str = ""
    """Of the first that differs more than is allowed."""

    def add(self, name: str, size: float, allowed: float) -> None:
        """Count a comparison.

        Args:
            size: the largest difference of two values; 0: the same bits.
            allowed: the size up to which it does not count.
        """
        self.tensors += 1
        self.largest = max(self.largest, size)
        if size > allowed:
            self.different += 1
            self.where = self.where or name


def weights_apart(ours: Checkpoint, theirs: Checkpoint, tolerance: float) -> Difference:
    """Of the whole weights, by the names of parameters.

    Args:
        tolerance: as a share of a tensor's largest absolute value; 0: every bit must be the same.
    """
    found = Difference()
    mine = dict(each_weight(ours))
    for name, load in each_weight(theirs):
        if name not in mine:
            found.add(name, math.inf, 0)
            continue
        found.add(name, *_apart(mine.pop(name)(), load(), tolerance))
    for name in mine:
        found.add(name, math.inf, 0)
    return found


def states_apart(ours: Checkpoint, theirs: Checkpoint, tolerance: float) -> dict[str, Difference]:
    """Of all state files of two checkpoints that groups of the same size have written: the optimizer's, and the rest
    without the weights, which `weights_apart` compares. Tensors that hold no real numbers, such as the states of
    random number generators, must be the same whatever the tolerance.
    """
    apart = {OPTIMIZER: Difference(), REST: Difference()}
    mine, wanted = (
        {entry.path for entry in found.manifest.files if entry.path.endswith(_STATES)} for found in (ours, theirs)
    )
    for path in sorted(mine ^ wanted):
        apart[_kind(path)].add(path, math.inf, 0)
    for path in sorted(mine & wanted):
        if path == "model.state":
            continue
        left, right = (
            {name: leaf for name, leaf in _leaves(_read(found.path / path)) if not name.startswith("module.")}
            for found in (ours, theirs)
        )
        difference = apart[_kind(path)]
        for name in [*right, *(left.keys() - right.keys())]:
            there = name in left and name in right
            size = _values_apart(left[name], right[name], tolerance) if there else (math.inf, 0.0)
            difference.add(f"{path}: {name}", *size)
    return apart


def _kind(path: str) -> str:
    return OPTIMIZER if path.endswith("optim_states.pt") or path == "optimizer.state" else REST


def _read(path: Path) -> Any:
    """A state tree; the tensors of a large one are read when they are compared."""
    small = path.suffix == ".state" and _kind(path.name) is REST
    return load_state(path) if small else open_state(path)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and plain values of a state tree, by the keys that lead to them."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = dict(enumerate(tree)).items()
    elif hasattr(tree, "__dict__") and not isinstance(tree, _ARRAYS):
        items = vars(tree).items()
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _values_apart(left: Any, right: Any, tolerance: float) -> tuple[float, float]:
    if isinstance(left, _ARRAYS) and isinstance(right, _ARRAYS):
        return _apart(_tensor(left), _tensor(right), tolerance)
    same = type(left) is type(right) and (left == right or (left != left and right != right))  # NaN is NaN here
    return (0.0 if same else math.inf), 0.0


def _apart(left: torch.Tensor, right: torch.Tensor, tolerance: float) -> tuple[float, float]:
    """The largest difference of two values, and how large it may be. Infinite where shapes or kinds differ."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return math.inf, 0.0
    if _bits(left).equal(_bits(right)):
        return 0.0, 0.0
    if not left.is_floating_point():
        return math.inf, 0.0
    left, right = left.double(), right.double()
    size = float((left - right).abs().max())
    # the bits differ: -0.0 and 0.0, or NaN in one of them
    size = math.inf if math.isnan(size) else size or math.ulp(0.0)
    return size, tolerance * float(right.abs().max())


def _tensor(array: StoredTensor | torch.Tensor | np.ndarray) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array)
    return array.load() if isinstance(array, StoredTensor) else array


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
