"""Under ZeRO-3 parts of a weight are of one size; what the last ranks have too much of is zero, not what memory held
before.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from raytrain_nlp.modeling import model as modeling


@pytest.mark.parametrize(("numel", "parts"), [(10, [4, 4, 2]), (12, [4, 4, 4]), (4, [2, 2, 0]), (1, [1, 0, 0])])
def test_only_what_is_beyond_the_weight_is_cleared(
    monkeypatch: pytest.MonkeyPatch, numel: int, parts: list[int]
) -> None:
    for rank, own in enumerate(parts):
        part = torch.full((-(-numel // 3),), 7e31)
        part.ds_numel = part.numel()
        sharded = SimpleNamespace(ds_tensor=part, ds_numel=numel, ds_process_group=None)
        monkeypatch.setattr(modeling, "_rank_in", lambda group, rank=rank: rank)
        modeling.clear_padding(SimpleNamespace(parameters=lambda: [torch.nn.Parameter(torch.ones(3)), sharded]))  # noqa: B023
        assert part.tolist() == pytest.approx([7e31] * own + [0.0] * (part.numel() - own))
