"""Weights of a model folder that are missing, cut off or quantized are told before start, by their headers alone. Truth
is `save_pretrained` and safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError, safe_open

from raytrain_nlp.modeling.weight_files import check_weights

WHERE = "model.name_or_path"


def saved(folder: Path, size: str = "5GB") -> Path:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder, max_shard_size=size)
    return folder


def told(folder: Path, trains: bool = True, adapter: bool = False) -> list[str]:
    return [str(problem) for problem in check_weights(str(folder), WHERE, trains, adapter)]


def test_what_was_saved_is_whole(tmp_path: Path) -> None:
    whole, parts = saved(tmp_path / "a"), saved(tmp_path / "b", "20KB")
    assert (parts / "model.safetensors.index.json").exists() and told(whole) == told(parts) == [] == told(
        Path("bert-base-uncased")
    )
    torch.save({"a": torch.ones(1)}, whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    assert told(whole) == []


@pytest.mark.parametrize("damage", ["half", "no header", "longer", "empty", "not JSON"])
def test_a_damaged_file_is_told_as_safetensors_would(tmp_path: Path, damage: str) -> None:
    file = saved(tmp_path / "a") / "model.safetensors"
    content = file.read_bytes()
    kinds = {
        "half": content[: len(content) // 2],
        "no header": content[:6],
        "longer": content + b"x",
        "empty": b"",
        "not JSON": content[:8] + b"!" * (len(content) - 8),
    }
    file.write_bytes(kinds[damage])
    with pytest.raises((SafetensorError, OSError)), safe_open(str(file), framework="pt"):
        pass
    for trains in (True, False):
        lines = told(tmp_path / "a", trains)
        assert len(lines) == 1 and lines[0].startswith(f"{WHERE}: the weights are damaged ({file}: ")


def test_a_missing_shard_and_missing_weights(tmp_path: Path) -> None:
    """A plan needs no weights."""
    parts = saved(tmp_path / "a", "20KB")
    shards = sorted(parts.glob("*.safetensors"))
    shards[0].unlink()
    assert (
        told(parts)
        == [f"{WHERE}: 1 of {len(shards)} files of weights are missing (the first: {shards[0]}). Restore them."]
        == told(parts, trains=False)
    )
    for file in (*shards[1:], parts / "model.safetensors.index.json"):
        file.unlink()
    assert told(parts, trains=False) == [] and "the folder has no weights" in told(parts)[0]
    (parts / "model.safetensors.index.json").write_text("[]")
    assert "names no weights" in told(parts)[0]


@pytest.mark.parametrize(("quantized", "refused"), [
    ({"quant_method": "gptq", "bits": 4}, True), ({"quant_method": "bitsandbytes", "load_in_4bit": True}, True), ({"quant_method": "mxfp4"}, False), (None, False),  # noqa: E501
])  # fmt: skip
def test_quantized_weights_take_an_adapter(tmp_path: Path, quantized: dict[str, Any] | None, refused: bool) -> None:
    folder = saved(tmp_path / "a")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": quantized}))
    assert bool(told(folder)) is refused and told(folder, adapter=True) == []
