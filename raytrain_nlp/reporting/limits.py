"""What limited a run, read from its curves. Each rule is a sentence with its numbers, which the page shows, and the
first that holds is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raytrain_nlp.reporting.history import History, smoothed

_LEAST = 8
"""Logs of the training loss without which nothing is said of it."""
_RISE, _LITTLE, _WORSE, _STILL, _STRAIGHT, _FALLS = 0.25, 0.03, 0.05, 0.02, 0.8, 0.1


@dataclass(frozen=True)
class Limit:
    """What limited a run."""

    name: str
    evidence: str
    """The numbers of this run, as a clause."""
    advice: str


@dataclass(frozen=True)
class _Curves:
    """The lines that the rules read."""

    steps: list[int]
    train: list[float]
    """The training loss, smoothed."""
    eval_steps: list[int]
    evals: list[float]
    """The loss of the first validation set."""

    @property
    def known(self) -> bool:
        return len(self.train) >= _LEAST

    @property
    def lowest(self) -> int:
        """Place of the lowest loss of the evaluations."""
        return min(range(len(self.evals)), key=self.evals.__getitem__)

    def train_at(self, step: int) -> float:
        """The training loss at the last log up to a step."""
        before = [value for at, value in zip(self.steps, self.train, strict=True) if at <= step]
        return before[-1] if before else self.train[0]

    def mean(self, first: float, last: float) -> float:
        """Of the training loss between two parts of its length, each from 0 to 1."""
        part = self.train[int(first * len(self.train)) : max(int(last * len(self.train)), 1)]
        return sum(part) / len(part)


def find_limit(history: History) -> Limit | None:
    """The first rule that holds; None where there are too few figures for any."""
    steps, losses = history.line("loss")
    name = next((name for name in history.evaluated if name.endswith("loss")), "")
    curves = _Curves(steps, smoothed(losses), *history.line(name))
    return next((found for _, rule in RULES if (found := rule(curves))), None)


def _diverged(curves: _Curves) -> Limit | None:
    if not curves.known:
        return None
    first, low, last = curves.train[0], min(curves.train), curves.train[-1]
    if last - low <= max(_RISE * (first - low), _LITTLE * abs(low)):
        return None
    step = curves.steps[curves.train.index(low)]
    return Limit(
        "learning rate too high",
        f"the training loss rose again from {low:.3g} at step {step:,} to {last:.3g}",
        "Lower training.learning_rate, or lengthen its warmup (training.warmup_steps).",
    )


def _overfitted(curves: _Curves) -> Limit | None:
    if len(curves.evals) < 3 or not curves.known or curves.evals[-1] <= (1 + _WORSE) * curves.evals[curves.lowest]:
        return None
    step = curves.eval_steps[curves.lowest]
    if curves.train[-1] >= curves.train_at(step):
        return None
    return Limit(
        "overfitting",
        f"the loss on validation rows rose from {curves.evals[curves.lowest]:.3g} at step {step:,} to "
        f"{curves.evals[-1]:.3g}, while that on training rows went on falling",
        "Stop earlier (early_stopping, load_best_model_at_end), add rows, or regularize (lora, weight_decay, dropout).",
    )


def _learned_little(curves: _Curves) -> Limit | None:
    if not curves.known:
        return None
    first, last = curves.mean(0, 0.1), curves.mean(0.9, 1)
    if first - last >= _LITTLE * abs(first):
        return None
    return Limit(
        "learning rate too low, or nothing in the data to learn",
        f"the training loss hardly fell, from {first:.3g} to {last:.3g}",
        "Raise training.learning_rate tenfold; where that changes nothing, look at the labels.",
    )


def _straight(curves: _Curves) -> Limit | None:
    """A loss that falls by the same in each half has not come near any floor."""
    if not curves.known:
        return None
    first, middle, last = curves.mean(0, 0.1), curves.mean(0.45, 0.55), curves.mean(0.9, 1)
    if not first - middle > 0 or (middle - last) < _STRAIGHT * (first - middle):
        return None
    return Limit(
        "learning rate too low, or too few steps",
        f"the training loss fell as fast at the end as at the beginning, to {last:.3g}",
        "Raise training.learning_rate two- to threefold, or train longer.",
    )


def _few_data(curves: _Curves) -> Limit | None:
    if len(curves.evals) < 3 or not curves.known:
        return None
    half = len(curves.evals) // 2
    before, now = curves.train_at(curves.eval_steps[half]), curves.train[-1]
    if curves.evals[half] - min(curves.evals[half:]) > _STILL * abs(curves.evals[half]):
        return None
    if before - now < _FALLS * abs(before):
        return None
    return Limit(
        "data",
        f"in the second half the loss on training rows fell from {before:.3g} to {now:.3g}, that on validation rows "
        f"stayed at {curves.evals[-1]:.3g}",
        "Add rows, or more varied ones; more steps on these teach it nothing that holds elsewhere.",
    )


def _improving(curves: _Curves) -> Limit | None:
    if len(curves.evals) >= 2:
        before, last = curves.evals[-2:]
        if curves.lowest == len(curves.evals) - 1 and before - last > _STILL * abs(before):
            return Limit(
                "number of steps",
                f"the loss on validation rows still fell at the last evaluation, from {before:.3g} to {last:.3g}",
                "Train longer: more epochs (training.num_train_epochs), or a higher learning rate.",
            )
        return None
    if curves.known and (before := curves.mean(0.5, 0.75)) - (last := curves.mean(0.75, 1)) > _FALLS * abs(before):
        return Limit(
            "number of steps",
            f"the training loss still fell in the last quarter, from {before:.3g} to {last:.3g}",
            "Train longer, and give the job validation rows (data.validation), to see what they gain.",
        )
    return None


def _settled(curves: _Curves) -> Limit | None:
    if not curves.known:
        return None
    return Limit(
        "model and data as they are",
        f"the losses have settled, at {curves.train[-1]:.3g} on training rows"
        f"{f' and {curves.evals[-1]:.3g} on validation rows' if curves.evals else ''}",
        "More steps will change little: look at the examples that are wrong, or take a larger model.",
    )


RULES: tuple[tuple[str, Callable[[_Curves], Limit | None]], ...] = (
    (
        f"Learning rate too high: the training loss ends above its lowest value by more than {_RISE:.0%} of what it "
        f"had fallen, and by more than {_LITTLE:.0%} of that value.",
        _diverged,
    ),
    (
        f"Overfitting: the validation loss ends more than {_WORSE:.0%} above its lowest value, and the training loss "
        f"has fallen since (three evaluations or more).",
        _overfitted,
    ),
    (
        f"Learning rate too low, or nothing to learn: the training loss of the last tenth is less than {_LITTLE:.0%} "
        f"below that of the first tenth.",
        _learned_little,
    ),
    (
        f"Data: since the middle evaluation the validation loss has not fallen by more than {_STILL:.0%}, while the "
        f"training loss fell by {_FALLS:.0%} or more (three evaluations or more).",
        _few_data,
    ),
    (
        f"Learning rate too low, or too few steps: in its second half the training loss fell by {_STRAIGHT:.0%} or "
        f"more of what it fell in the first.",
        _straight,
    ),
    (
        f"Number of steps: the last evaluation is the best, by more than {_STILL:.0%} of the loss before it; without "
        f"evaluations, the training loss of the last quarter is more than {_FALLS:.0%} below that of the third.",
        _improving,
    ),
    (
        "Model and data as they are: none of the above; the losses have settled.",
        _settled,
    ),
)
"""What each rule says, and the rule. The training loss is smoothed; with fewer than `_LEAST` logs of it only what the
evaluations tell is said."""
