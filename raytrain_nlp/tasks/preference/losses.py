"""The losses of DPO by TRL's names: each of a row, from how much likelier than for the reference model its two
completions are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Ratios:
    """Tensors of shape [rows]."""

    chosen: Any
    """Log of how much likelier the better completion is for the model than for the reference."""
    rejected: Any
    chosen_tokens: Any
    """Tokens of the better completion."""
    rejected_tokens: Any
    beta: float
    smoothing: float
    """`label_smoothing`."""

    @property
    def logits(self) -> Any:
        return self.beta * (self.chosen - self.rejected)

    @property
    def mean_difference(self) -> Any:
        """The difference of the means over tokens."""
        return self.chosen / self.chosen_tokens.clamp(min=1) - self.rejected / self.rejected_tokens.clamp(min=1)


def sigmoid(of: Ratios) -> Any:
    """Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""
    return -F.logsigmoid(of.logits)


def hinge(of: Ratios) -> Any:
    """Zhao et al. 2023 (arXiv 2305.10425), section 2."""
    return torch.relu(1 - of.logits)


def ipo(of: Ratios) -> Any:
    """Azar et al. 2023 (arXiv 2310.12036), equation 17, with means over tokens; beta is its tau."""
    return (of.mean_difference - 1 / (2 * of.beta)) ** 2


def robust(of: Ratios) -> Any:
    """Chowdhury et al. 2024 (arXiv 2403.00409): unbiased where a share of the preferences is the wrong way round."""
    kept, flipped = F.logsigmoid(of.logits), F.logsigmoid(-of.logits)
    return -((1 - of.smoothing) * kept - of.smoothing * flipped) / (1 - 2 * of.smoothing)


def exo_pair(of: Ratios) -> Any:
    """Ji et al. 2024 (arXiv 2402.00856), equation 16."""
    logits = of.logits
    kept = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-of.smoothing))
    return kept + torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(of.smoothing))


def nca_pair(of: Ratios) -> Any:
    """Chen et al. 2024 (arXiv 2402.05369), of pairs."""
    chosen, rejected = of.beta * of.chosen, of.beta * of.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(of: Ratios) -> Any:
    """Jung et al. 2024 (arXiv 2404.04656), without a shift of the rewards."""
    return -F.logsigmoid(of.beta * of.chosen) - F.logsigmoid(-of.beta * of.rejected)


def sppo_hard(of: Ratios) -> Any:
    """Wu et al. 2024 (arXiv 2405.00675), with a probability of 1 for the better completion."""
    return (of.chosen - 0.5 / of.beta) ** 2 + (of.rejected + 0.5 / of.beta) ** 2


def apo_zero(of: Ratios) -> Any:
    """D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7."""
    return 1 - torch.sigmoid(of.beta * of.chosen) + torch.sigmoid(of.beta * of.rejected)


def apo_down(of: Ratios) -> Any:
    """The same, equation 8."""
    return torch.sigmoid(of.beta * of.chosen) + 1 - torch.sigmoid(of.logits)


def sigmoid_norm(of: Ratios) -> Any:
    """As `sigmoid`, with means over tokens."""
    return -F.logsigmoid(of.beta * of.mean_difference)


PAIR_LOSSES: dict[str, Callable[[Ratios], Any]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, sigmoid_norm,
    )
}  # fmt: skip
