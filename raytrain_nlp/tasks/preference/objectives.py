"""The objectives of preference data (`tasks.objective.Objective`): DPO, ORPO, KTO, and Bradley-Terry for rewards."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from raytrain_nlp.config.tasks.preference import Preference, RewardModeling
from raytrain_nlp.tasks.objective import Objective
from raytrain_nlp.tasks.preference.log_probabilities import (
    counted,
    quiet,
    score_by_reference,
    score_completions,
    score_tokens,
)
from raytrain_nlp.tasks.preference.losses import PAIR_LOSSES, Ratios

_BOTH, _FIRST, _SECOND = slice(0, 2), slice(0, 1), slice(1, 2)
_LOG_HALF = -0.6931471805599453


class _Base:
    """What a loss needs that is a mean over rows, each for itself."""

    reads_reference = True
    reads_batch = False

    def reference(self, plain: Any, inputs: dict[str, Any]) -> Any:
        with quiet(plain):
            return score_completions(plain, inputs, slice(None))

    def batch_sums(self, plain: Any, parts: list[tuple[dict[str, Any], int]]) -> Any:
        return None

    def sums_of(self, values: Any) -> Any:
        return None


class Dpo(_Base):
    """Values: log-probabilities of chosen and rejected, those of the reference, tokens of both."""

    def __init__(self, config: Preference):
        self._config, self._loss = config, PAIR_LOSSES[config.loss_type]

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        reference = score_by_reference(plain, inputs, _BOTH)
        return torch.cat([score_completions(model, inputs, _BOTH), reference, counted(inputs, _BOTH)], dim=1)

    def loss(self, values: Any, sums: Any) -> Any:
        chosen, rejected = values[:, 0] - values[:, 2], values[:, 1] - values[:, 3]
        of = Ratios(chosen, rejected, values[:, 4], values[:, 5], self._config.beta, self._config.label_smoothing)
        return self._loss(of).mean()

    def figure_sums(self, values: Any, sums: Any) -> Any:
        rewards = self._config.beta * (values[:, :2] - values[:, 2:4])
        return _pair_sums(rewards, values[:, :2])

    def figures(self, sums: list[float]) -> dict[str, float]:
        return _pair_figures(sums)


class Orpo(_Base):
    """Hong et al. 2024 (arXiv 2403.07691), equations 4 to 7. Values: mean log-probabilities of the tokens of chosen and
    rejected; the sum of those of the whole chosen text, prompt included, and their number.
    """

    reads_reference = False
    reads_batch = True

    def __init__(self, config: Preference):
        self._config = config

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        tokens = score_tokens(model, inputs, _BOTH, prompts=True)
        learned = inputs["completion_mask"][..., 1:]
        means = (tokens * learned).sum(-1) / learned.sum(-1)
        return torch.cat([means, tokens[:, :1].sum(-1), counted(inputs, _FIRST, prompts=True)], dim=1)

    def batch_sums(self, plain: Any, parts: list[tuple[dict[str, Any], int]]) -> Any:
        """Tokens of the chosen texts, and rows."""
        return sum(
            torch.stack([counted(inputs, _FIRST, prompts=True)[:rows].sum(), _number(rows, inputs)])
            for inputs, rows in parts
        )

    def sums_of(self, values: Any) -> Any:
        return torch.stack([values[:, 3].sum(), torch.full_like(values[0, 3], len(values))])

    def loss(self, values: Any, sums: Any) -> Any:
        """The mean over all predicted tokens of the global batch, and over its rows."""
        likelihood = -values[:, 2].mean() * sums[1] / sums[0]
        return likelihood - self._config.beta * F.logsigmoid(_log_odds(values)).mean()

    def figure_sums(self, values: Any, sums: Any) -> Any:
        odds = _log_odds(values)
        more = [-values[:, 2], values[:, 3], F.logsigmoid(odds), odds]
        pair = _pair_sums(self._config.beta * values[:, :2], values[:, :2])
        return torch.cat([pair, torch.stack(more).sum(1)])

    def figures(self, sums: list[float]) -> dict[str, float]:
        *pair, likelihood, tokens, ratio, odds = sums
        return {
            **_pair_figures(pair),
            "nll_loss": likelihood / tokens,
            "log_odds_ratio": ratio / pair[0],
            "log_odds_chosen": odds / pair[0],
        }


class Kto(_Base):
    """Ethayarajh et al. 2024 (arXiv 2402.01306), equation 8; with `apo_zero_unpaired` D'Oosterlinck et al. 2024 (arXiv
    2408.06266). The second sequence of a row is its prompt with the completion of another row, for the estimate of the
    KL divergence over the global batch.

    Values: the log-probability of the completion, that of the reference; of the other completion the logarithm of how
    much likelier it is for the model than for the reference, in an evaluation; 1 for a desirable row, else 0.
    """

    def __init__(self, config: Preference):
        self._config = config
        self.reads_batch = self._estimates = config.loss_type == "kto"

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        reference = score_by_reference(plain, inputs, _FIRST)
        likelier = self._likelier(plain, inputs) if evaluates and self._estimates else torch.zeros_like(reference)
        label = inputs["labels"][:, None].to(reference.dtype)
        return torch.cat([score_completions(model, inputs, _FIRST), reference, likelier, label], dim=1)

    def _likelier(self, plain: Any, inputs: dict[str, Any]) -> Any:
        with quiet(plain):
            return score_completions(plain, inputs, _SECOND) - score_by_reference(plain, inputs, _SECOND)

    def batch_sums(self, plain: Any, parts: list[tuple[dict[str, Any], int]]) -> Any:
        """Of the other completions how much likelier they are, and rows."""
        return sum(
            torch.stack([self._likelier(plain, inputs)[:rows].sum(), _number(rows, inputs)]) for inputs, rows in parts
        )

    def sums_of(self, values: Any) -> Any:
        if not self._estimates:
            return None
        return torch.stack([values[:, 2].sum(), torch.full_like(values[0, 2], len(values))])

    def loss(self, values: Any, sums: Any) -> Any:
        config, ratio, desirable = self._config, values[:, 0] - values[:, 1], values[:, 3]
        sign = 2 * desirable - 1
        weight = torch.where(desirable > 0, config.desirable_weight, config.undesirable_weight)
        return (weight * (1 - torch.sigmoid(config.beta * sign * (ratio - _divergence(values, sums))))).mean()

    def figure_sums(self, values: Any, sums: Any) -> Any:
        rewards = self._config.beta * (values[:, 0] - values[:, 1])
        columns = []
        for weight in (values[:, 3], 1 - values[:, 3]):
            columns += [weight, weight * rewards, weight * values[:, 0]]
        return torch.stack([*columns, _divergence(values, sums).expand(len(values))]).sum(1)

    def figures(self, sums: list[float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (rows, rewards, logps) in (("chosen", sums[:3]), ("rejected", sums[3:6])):
            if rows:
                found |= {f"rewards/{name}": rewards / rows, f"logps/{name}": logps / rows}
        if sums[0] and sums[3]:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return {**found, "kl": sums[6] / (sums[0] + sums[3])} if self._estimates else found


class BradleyTerry(_Base):
    """The loss of `RewardTrainer`: Ouyang et al. 2022 (arXiv 2203.02155), equation 1. Values: the rewards of chosen and
    rejected, and the margin.
    """

    reads_reference = False

    def __init__(self, config: RewardModeling):
        self._config = config

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        length = ids.shape[-1]
        others = {name: inputs[name] for name in ("use_cache",) if name in inputs}
        logits = model(input_ids=ids.reshape(-1, length), attention_mask=mask.reshape(-1, length), **others).logits
        return torch.cat([logits.float().view(-1, 2), inputs["labels"].float()[:, None]], dim=1)

    def loss(self, values: Any, sums: Any) -> Any:
        chosen, rejected, margin = values.unbind(1)
        loss = -F.logsigmoid(chosen - rejected - margin).mean()
        if self._config.center_rewards_coefficient:
            loss = loss + self._config.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        return loss

    def figure_sums(self, values: Any, sums: Any) -> Any:
        chosen, rejected, _ = values.unbind(1)
        right = (chosen > rejected).to(values.dtype)
        rows = [torch.ones_like(chosen), right, chosen - rejected, chosen + rejected]
        return torch.stack(rows).sum(1)

    def figures(self, sums: list[float]) -> dict[str, float]:
        rows, right, margin, both = sums
        return {"accuracy": right / rows, "margin": margin / rows, "mean_reward": both / rows / 2}


def build_objective(config: Preference | RewardModeling) -> Objective:
    """The objective of a task's section."""
    if isinstance(config, RewardModeling):
        return BradleyTerry(config)
    return Orpo(config) if config.loss_type == "orpo" else Kto(config) if config.unpaired else Dpo(config)


def _number(rows: int, inputs: dict[str, Any]) -> Any:
    return torch.full((), float(rows), device=inputs["input_ids"].device)


def _log_odds(values: Any) -> Any:
    """The logarithm of the odds ratio, of mean log-probabilities."""
    chosen, rejected = values[:, 0], values[:, 1]
    return (chosen - rejected) - (_log_rest(chosen) - _log_rest(rejected))


def _log_rest(value: Any) -> Any:
    """log(1 - exp(x)) of negative numbers: Maechler 2012, "Accurately computing log(1 - exp(-|a|))"."""
    return torch.where(value < _LOG_HALF, torch.log1p(-torch.exp(value)), torch.log(-torch.expm1(value)))


def _divergence(values: Any, sums: Any) -> Any:
    """The estimate of the KL divergence, at least 0; shape []."""
    return torch.zeros_like(values[0, 0]) if sums is None else (sums[0] / sums[1]).clamp(min=0)


def _pair_sums(rewards: Any, logps: Any) -> Any:
    """Rows; of chosen and rejected the rewards; rows where chosen has more; log-probabilities of both."""
    right = (rewards[:, 0] > rewards[:, 1]).to(rewards.dtype)
    columns = [torch.ones_like(right), rewards[:, 0], rewards[:, 1], right, logps[:, 0], logps[:, 1]]
    return torch.stack(columns).sum(1)


def _pair_figures(sums: list[float]) -> dict[str, float]:
    rows, chosen, rejected, right, chosen_logps, rejected_logps = sums
    return {
        "rewards/chosen": chosen / rows,
        "rewards/rejected": rejected / rows,
        "rewards/accuracies": right / rows,
        "rewards/margins": (chosen - rejected) / rows,
        "logps/chosen": chosen_logps / rows,
        "logps/rejected": rejected_logps / rows,
    }
