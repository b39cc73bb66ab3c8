"""State trees as safetensors: tensors as they are, everything else as JSON in the file's header. No pickle is written
or read.

Optimizer states, RNG states and DeepSpeed's shards are nested dicts, lists and tuples of tensors and plain values. A
tree is walked once; each tensor is replaced by its number, each value JSON lacks by a tag. What has no tag is refused
when saving, so loading never has to guess and never runs code.
"""

from __future__ import annotations

import enum
import json
import math
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.storage.atomic import apply_umask
from raytrain_nlp.storage.disk import patiently
from raytrain_nlp.storage.untrusted import parse_json

_KEY = "state"


def save_state(path: str | Path, state: Any) -> None:
    """Write a state tree to one file and fsync it.

    Raises:
        CheckpointError: a value cannot be stored.
        DiskError: the disk does not take the file.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    tree = json.dumps(_encode(state, tensors, seen))

    def write() -> None:
        save_file(tensors, str(path), metadata={_KEY: tree})
        apply_umask(Path(path))
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    patiently(write, Path(path))


def load_state(path: str | Path) -> Any:
    """Read a state tree; tensors on CPU. Raises `CheckpointError` where the file is not one `save_state` wrote."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tree = (file.metadata() or {}).get(_KEY)
            if tree is None:
                raise CheckpointError(f"{path}: holds no state tree. It was not written by this package.")
            loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return _decode(parse_json(tree), loaded)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and json raise their own kinds for a damaged file  # noqa: BLE001
        raise CheckpointError(f"{path}: cannot be read ({error}).") from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open safetensors file, not read yet."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def load(self) -> torch.Tensor:
        return self.file.get_tensor(self.name)

    def part(self, start: int, stop: int) -> torch.Tensor:
        """The values from `start` to `stop` of a tensor of one dimension, shape [stop - start], on CPU."""
        return self.file.get_slice(self.name)[start:stop]


def open_state(path: str | Path, *keys: str) -> Any:
    """A state tree, or what is at `keys` in it, whose tensors stay in the file until they are asked for.

    Raises `CheckpointError` as `load_state` does.
    """
    try:
        file = safe_open(str(path), framework="pt", device="cpu")
        tree: Any = (file.metadata() or {}).get(_KEY)
        if tree is None:
            raise CheckpointError(f"{path}: holds no state tree. It was not written by this package.")
        tree = parse_json(tree)
        for key in keys:
            tree = next((item for name, item in next(iter(tree.values())) if name == key), None)
        return _decode(tree, {name: StoredTensor(file, name) for name in file.keys()})  # noqa: SIM118 - not a dict
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and json raise their own kinds for a damaged file  # noqa: BLE001
        raise CheckpointError(f"{path}: cannot be read ({error}).") from None


def read_tree(tree: Any) -> Any:
    """A tree of `open_state` with each `StoredTensor` replaced by its tensor, on CPU."""
    if isinstance(tree, StoredTensor):
        return tree.load()
    if isinstance(tree, dict):
        return type(tree)((key, read_tree(item)) for key, item in tree.items())
    return type(tree)(read_tree(item) for item in tree) if type(tree) in (list, tuple) else tree


def _encode(value: Any, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    if (
        value is None
        or isinstance(value, (bool, str))
        or (isinstance(value, (int, float)) and not isinstance(value, enum.Enum))
    ):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": _store(value, tensors, seen)}
    if isinstance(value, np.ndarray):
        return {
            "ndarray": _store(
                torch.from_numpy(value.astype(np.int64) if value.dtype == np.uint32 else value), tensors, seen
            ),
            "dtype": str(value.dtype),
        }
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors, seen)
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, torch.dtype):
        return {"dtype_of_torch": str(value).removeprefix("torch.")}
    if isinstance(value, enum.Enum):
        return _encode(value.value, tensors, seen)
    if isinstance(value, dict):
        kind = "ordered" if isinstance(value, OrderedDict) else "dict"
        return {kind: [[_encode(key, tensors, seen), _encode(item, tensors, seen)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_encode(item, tensors, seen) for item in value]}
    if is_dataclass(value) and not isinstance(value, type):
        return _encode(asdict(value), tensors, seen)
    scaler = _loss_scalers().get(type(value).__name__)
    if scaler is type(value):
        return {"loss_scaler": type(value).__name__, "fields": _encode(vars(value), tensors, seen)}
    raise CheckpointError(
        f"the optimizer's state holds a {type(value).__name__}, which cannot be stored without pickle."
    )


def _store(tensor: torch.Tensor, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str]) -> str:
    """Put a tensor into the file once, however often the tree refers to it."""
    tensor = tensor.detach()
    identity = (tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
    if tensor.numel() and identity in seen:
        return seen[identity]
    name = str(len(tensors))
    shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    kept = tensor.cpu().contiguous()
    if tensor.numel():
        memory = ("memory", kept.data_ptr())
        kept = kept.clone() if shares or memory in seen else kept
        seen[memory] = seen[identity] = name
    tensors[name] = kept
    return name


def _decode(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "ndarray":
        return tensors[content].numpy().astype(tree["dtype"])
    if kind == "size":
        return torch.Size(content)
    if kind == "dtype_of_torch":
        return getattr(torch, content)
    if kind in ("dict", "ordered"):
        pairs = [(_decode(key, tensors), _decode(item, tensors)) for key, item in content]
        return OrderedDict(pairs) if kind == "ordered" else dict(pairs)
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "loss_scaler" and content in _loss_scalers():
        scaler: Any = object.__new__(_loss_scalers()[content])
        vars(scaler).update(_decode(tree["fields"], tensors))
        return scaler
    raise CheckpointError(f"unknown kind of value '{kind}' in a state file.")


def _loss_scalers() -> dict[str, type]:
    """The two classes DeepSpeed keeps as objects in its optimizer state; nothing else is ever instantiated."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    except ImportError:
        return {}
    return {"LossScaler": LossScaler, "DynamicLossScaler": DynamicLossScaler}
