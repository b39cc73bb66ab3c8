"""`task:` of preference data: tune a language model on them, or train a reward model. Keys are named as in TRL's
DPOConfig, ORPOConfig, KTOConfig and RewardConfig.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section

PairLoss = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm",
]  # fmt: skip
"""Losses of `DPOTrainer` that are a mean over rows."""
_SMOOTHED = ("robust", "exo_pair")
_UNPAIRED = ("kto", "apo_zero_unpaired")


class Pairs(Section):
    """The columns of rows with a better and a worse completion."""

    prompt_column: str = "prompt"
    """Column with the prompts: texts, or chats as lists of {role, content}. A row may lack it where the other columns
    hold whole texts or chats; what these have in common at the beginning is the prompt then."""
    chosen_column: str = "chosen"
    """Column with the better completions: texts, or lists of messages."""
    rejected_column: str = "rejected"
    """Column with the worse completions."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included."""


class Preference(Pairs):
    """Tune a language model so that it prefers some completions to others: DPO, ORPO or KTO."""

    type: Literal["preference"]
    loss_type: PairLoss | Literal["orpo", "kto", "apo_zero_unpaired"] = "sigmoid"
    """A loss of DPO by TRL's name; orpo, which needs no reference model; kto or apo_zero_unpaired (KTO), which read
    prompt, completion and label instead of pairs."""
    beta: float = Field(0.1, gt=0)
    """How closely the model keeps to the reference model (for ipo: the regularization tau); with orpo the weight of the
    odds ratio."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """With robust and exo_pair: the probability that a preference is the wrong way round."""
    completion_column: str = "completion"
    """With kto and apo_zero_unpaired: column with the completions."""
    label_column: str = "label"
    """With kto and apo_zero_unpaired: column that says whether a completion is desirable, true or false."""
    desirable_weight: float = Field(1.0, gt=0)
    """With kto and apo_zero_unpaired: weight of the loss of desirable completions."""
    undesirable_weight: float = Field(1.0, gt=0)
    """With kto and apo_zero_unpaired: weight of the loss of undesirable ones."""
    kl_group_size: int = Field(8, ge=2)
    """With kto: neighbouring rows of a file whose completions change places for the estimate of the KL divergence. TRL
    takes the rows of a batch."""
    precompute_ref_log_probs: bool | None = None
    """Compute the log-probabilities of the reference model once, before training, instead of in every step. Default:
    true without `lora`, as no second model is held; with it false: the reference is then the model without its
    adapter."""

    @property
    def unpaired(self) -> bool:
        """Are rows completions with a label, not pairs?"""
        return self.loss_type in _UNPAIRED

    @property
    def has_reference(self) -> bool:
        """Is the loss relative to a reference model?"""
        return self.loss_type != "orpo"

    @model_validator(mode="after")
    def _agree(self) -> Preference:
        smoothed = " and ".join(_SMOOTHED)
        if self.label_smoothing and self.loss_type not in _SMOOTHED:
            raise ValueError(
                f"label_smoothing: is read with {smoothed} alone, not with {self.loss_type} || Remove it, or set "
                "loss_type: robust."
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("label_smoothing: exo_pair needs more than 0 || Set label_smoothing: 0.001.")
        kto = ("completion_column", "label_column", "desirable_weight", "undesirable_weight", "kl_group_size")
        pairs = ("chosen_column", "rejected_column")
        for name in pairs if self.unpaired else kto:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: is not read with loss_type {self.loss_type} || Remove it.")
        if self.precompute_ref_log_probs and not self.has_reference:
            raise ValueError("precompute_ref_log_probs: orpo has no reference model || Remove it.")
        return self


class RewardModeling(Pairs):
    """Train a model that scores texts, on pairs of a better and a worse one (Bradley-Terry)."""

    type: Literal["reward-modeling"]
    margin_column: str | None = None
    """Column with numbers by how much the better reward is to exceed the other."""
    center_rewards_coefficient: float | None = Field(None, gt=0)
    """Weight of a term that keeps the mean of rewards near zero; 0.01 is recommended."""
    text_column: str = "text"
    """Column of texts or chats that `predict` scores."""
