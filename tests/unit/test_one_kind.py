"""What LoRA trains beside weights that ZeRO-3 has sharded: one device and one type, or a line that names the odd
ones.
"""

from __future__ import annotations

import types

import pytest
import torch

from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.lora import apply_one_kind, check_one_kind


def adapted(base: torch.dtype) -> torch.nn.Module:
    """As PEFT leaves a classifier: adapters in fp32 on the CPU, the head a copy in the base's type. The base is
    sharded.
    """
    model = torch.nn.Module()
    model.base = torch.nn.Linear(2, 2, dtype=base)
    for parameter in model.base.parameters():
        parameter.requires_grad_(False).ds_id = 0
    model.lora_A, model.lora_B = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False)
    model.head = torch.nn.Linear(2, 2, dtype=base)
    return model


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_and_modules_to_save_are_of_the_sharded_base_s_kind(base: torch.dtype) -> None:
    model = adapted(base)
    apply_one_kind(model)
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
    assert kinds == {("cpu", base)}
    check_one_kind(model)


def test_what_was_made_beside_a_gpu_is_moved_to_it() -> None:
    """PEFT makes on the CPU what it copies from nowhere."""
    moved = []
    data = types.SimpleNamespace(to=lambda *where: moved.append(where))
    sharded = types.SimpleNamespace(
        ds_id=0, device="cuda:0", dtype=torch.bfloat16, requires_grad=False, is_floating_point=lambda: True
    )
    adapter = types.SimpleNamespace(requires_grad=True, data=data)
    frozen = types.SimpleNamespace(requires_grad=False, data=data)
    apply_one_kind(types.SimpleNamespace(parameters=lambda: iter([frozen, sharded, adapter])))
    assert moved == [("cuda:0", torch.bfloat16)]


def test_the_odd_ones_are_named() -> None:
    model = adapted(torch.bfloat16)
    with pytest.raises(
        InputError, match=r"most are torch.float32 on cpu, but not head.weight \(torch.bfloat16 on cpu\), head.bias"
    ):
        del model.base
        check_one_kind(model)
    model.lora_B.to("meta")
    with pytest.raises(InputError, match=r"lora_B.weight \(torch.float32 on meta\)"):
        check_one_kind(model)


def test_what_is_not_sharded_stays_as_it_is() -> None:
    """DDP and ZeRO 1 and 2 take types as they come: DeepSpeed casts those itself."""
    model = adapted(torch.bfloat16)
    for parameter in model.base.parameters():
        del parameter.ds_id
    apply_one_kind(model)
    assert model.lora_A.weight.dtype == torch.float32 and model.head.weight.dtype == torch.bfloat16
