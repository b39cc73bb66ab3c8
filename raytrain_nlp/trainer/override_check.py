"""Checks a user's `Trainer` class against the table in `trainer/methods.py` before a job starts: each override that
would not be called, or would break the run, is a problem that names what to use instead.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer, TrainingArguments

from raytrain_nlp.compat.transformers import replaced_init
from raytrain_nlp.errors import Problem
from raytrain_nlp.trainer.methods import ARGUMENTS, AROUND, REFUSED, REMOVED, RULES
from raytrain_nlp.trainer.trainer import FeedTrainer
from raytrain_nlp.trainer.training_step import StepMixin, users_classes

_WHERE = "trainer.class"
_MADE_WITH = ("model", "args", "processing_class", "train_dataset", "eval_dataset", "compute_metrics", "callbacks")
"""What every trainer of a run is made with, by name."""


def check_overrides(
    cls: type[Trainer], arguments: dict[str, Any], functions: list[str], deepspeed: bool
) -> list[Problem]:
    """Problems of a user's `Trainer` class: overrides and arguments that would not have the effect in a run that they
    have in transformers alone.

    Args:
        arguments: `trainer.arguments` of the job.
        functions: those of `compute_loss_func` and `preprocess_logits_for_metrics` that the job names; they are
            passed to `__init__` too.
        deepspeed: whether the job uses DeepSpeed, which wraps the optimizer.
    """
    problems = []
    for owner in users_classes(cls):
        for name, value in vars(owner).items():
            if found := _wrong_override(name, value):
                what, instead = found
                problems.append(Problem(_WHERE, f"{owner.__name__}.{name} {what}", instead))
    given = dict.fromkeys((*_MADE_WITH, *functions))
    try:
        inspect.signature(cls).bind(**given, **arguments)
    except TypeError as error:
        what = f"{cls.__name__}.__init__ does not take what it is made with ({error})"
        return [*problems, Problem(_WHERE, what, f"It gets {', '.join(given)} by name, and trainer.arguments.")]
    return problems + _check_init(cls, {**given, **arguments}, deepspeed)


def _wrong_override(name: str, value: Any) -> tuple[str, str] | None:
    """What is wrong with an attribute of the user's class, and what to use instead; None: nothing."""
    rule = RULES.get(name)
    if rule is None:
        if name in REMOVED:
            return "is called by nothing any more", REMOVED[name]
        ours = {*vars(StepMixin), *vars(FeedTrainer), *vars(FeedTrainer.__mro__[1])} - set(dir(Trainer))
        return ("has the name of a method of this package", "Rename it.") if name in ours else None
    if rule.kind == REFUSED:
        return rule.why, rule.instead
    if rule.kind == AROUND and not _calls_base(name, value):
        return (
            f"does not call super().{name}: {rule.why}",
            f"Call super().{name}, and do what is yours before or after it.",
        )
    return None


def _calls_base(name: str, value: Any) -> bool:
    """Does the method's bytecode name the base's method? True for callables without bytecode, such as builtins."""
    code = getattr(inspect.unwrap(getattr(value, "__func__", value)), "__code__", None)
    return code is None or name in _names(code)


def _names(code: Any) -> set[str]:
    """Names of attributes and globals in code, that of functions inside it included."""
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return {*code.co_names, *(name for part in inner for name in _names(part))}


class _Reached(Exception):
    """Raised in place of running `Trainer.__init__`; carries the arguments that it was called with."""

    def __init__(self, given: dict[str, Any]):
        self.given = given


def _check_init(cls: type[Trainer], given: dict[str, Any], deepspeed: bool) -> list[Problem]:
    """Problems with what the user's `__init__` passes to `Trainer.__init__`. It is run up to that call, with a model of
    one weight; where its own code fails on such a model, nothing is reported.
    """
    import torch

    if not any("__init__" in vars(owner) for owner in users_classes(cls)):
        return []
    signature = inspect.signature(Trainer.__init__)

    def reached(self: Any, *args: Any, **kwargs: Any) -> None:
        raise _Reached(dict(signature.bind(self, *args, **kwargs).arguments))

    callback = object()
    made = {
        **given,
        "model": torch.nn.Linear(1, 1),
        "args": TrainingArguments(output_dir="unused", use_cpu=True, report_to=[]),
        "callbacks": [callback],
    }
    made |= {"train_dataset": [{}], "eval_dataset": [{}]}
    try:
        with replaced_init(reached):
            cls(**made)
    except _Reached as found:
        passed = found.given
    except Exception:  # noqa: BLE001 - it needs the real model; `check_made` checks it in the workers
        return []
    else:
        return [Problem(_WHERE, f"{cls.__name__}.__init__ does not call super().__init__", "Call it.")]
    problems = [
        Problem(_WHERE, f"{cls.__name__}.__init__ gives the base a {name} of its own: {rule.why}", rule.instead)
        for name, rule in ARGUMENTS.items()
        if rule.kind == REFUSED and passed.get(name) is not None and passed.get(name) is not made.get(name)
    ]
    if deepspeed and any(part is not None for part in passed.get("optimizers") or ()):
        problems.append(
            Problem(
                _WHERE,
                f"{cls.__name__}.__init__ gives the base `optimizers`, which DeepSpeed makes anew",
                "Override create_optimizer.",
            )
        )
    if callback not in (passed.get("callbacks") or []):
        problems.append(
            Problem(
                _WHERE,
                f"{cls.__name__}.__init__ drops the callbacks it is given",
                "Pass them on to super().__init__, with yours.",
            )
        )
    return problems
