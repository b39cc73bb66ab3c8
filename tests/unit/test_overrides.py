"""What becomes of the methods a user's `Trainer` overrides: one table, in step with transformers and with what is
written of it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Trainer

import raytrain_nlp
from raytrain_nlp.trainer.methods import ARGUMENTS, AROUND, CALLED, REFUSED, REMOVED, RULES, markdown
from raytrain_nlp.trainer.override_check import check_overrides


def test_every_method_of_both_classes_has_a_rule_and_no_rule_is_of_none() -> None:
    names = {
        name
        for cls in (Trainer, Seq2SeqTrainer)
        for name in vars(cls)
        if name == "__init__" or not name.startswith("__")
    }
    assert set(RULES) == names
    assert {name for cls in (Trainer, Seq2SeqTrainer) for name in inspect.signature(cls.__init__).parameters} - {
        "self"
    } == set(ARGUMENTS)
    assert not [name for name in REMOVED if hasattr(Trainer, name)]
    assert all(rule.why and rule.instead for rule in RULES.values() if rule.kind == REFUSED)


def test_the_readme_has_the_table() -> None:
    readme = (Path(raytrain_nlp.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert markdown() in readme, (
        "write what raytrain_nlp.trainer.methods.markdown() returns into raytrain_nlp/README.md"
    )


def class_of(name: str, value: Any) -> type[Trainer]:
    return type("Mine", (Trainer,), {name: value, "__module__": "mine"})


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.kind == REFUSED] + list(REMOVED))
def test_what_would_never_be_called_is_refused_with_what_to_use(name: str) -> None:
    (problem,) = check_overrides(class_of(name, lambda self, *args, **kwargs: None), {}, [], False)
    assert problem.where == "trainer.class" and f"Mine.{name} " in problem.what and problem.todo


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.kind == CALLED])
def test_what_is_called_may_be_overridden(name: str) -> None:
    assert check_overrides(class_of(name, lambda self, *args, **kwargs: None), {}, [], False) == []


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.kind == AROUND and name != "__init__"])
def test_what_the_run_stands_on_must_call_its_base(name: str) -> None:
    scope: dict[str, Any] = {"Trainer": Trainer}
    exec(f"class Mine(Trainer):\n def {name}(self, *args, **kwargs):\n  return super().{name}(*args, **kwargs)", scope)
    assert check_overrides(scope["Mine"], {}, [], False) == []
    (problem,) = check_overrides(class_of(name, lambda self, *args, **kwargs: None), {}, [], False)
    assert f"does not call super().{name}" in problem.what


def test_methods_of_classes_between_and_beside_are_read_too() -> None:
    class Mixin:
        def get_train_dataloader(self) -> None: ...

    class Between(Trainer):
        def push_to_hub(self) -> None: ...

    class Mine(Mixin, Between):
        def helper(self) -> None: ...

        def release(self) -> None: ...

    wrong = [problem.what.partition(" ")[0] for problem in check_overrides(Mine, {}, [], False)]
    assert sorted(wrong) == ["Between.push_to_hub", "Mine.release", "Mixin.get_train_dataloader"]


class Base(Trainer):
    def __init__(self, *args: Any, extra: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)


def made(**values: Any) -> type[Trainer]:
    """A class whose `__init__` gives the base these arguments."""

    class Mine(Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            made = {name: value(kwargs) if callable(value) else value for name, value in values.items()}
            super().__init__(*args, **{**kwargs, **made})

    return Mine


def an_optimizer(given: dict[str, Any]) -> tuple[Any, None]:
    return torch.optim.SGD(given["model"].parameters(), lr=0.1), None


@pytest.mark.parametrize(("cls", "arguments", "deepspeed", "told"), [
    (Base, {"extra": 2}, True, None),
    (Base, {}, False, None),
    (Trainer, {"extra": 2}, False, "unexpected keyword argument 'extra'"),
    (made(data_collator=lambda _: list), {}, False, "gives the base a data_collator of its own"),
    (made(model_init=lambda _: object), {}, False, "gives the base a model_init of its own"),
    (made(train_dataset=lambda _: [1]), {}, False, "gives the base a train_dataset of its own"),
    (made(callbacks=lambda _: []), {}, False, "drops the callbacks"),
    (made(callbacks=lambda given: [*given["callbacks"], object()]), {}, False, None),
    (made(compute_metrics=lambda _: len, compute_loss_func=lambda _: len), {}, False, None),
    (made(optimizers=an_optimizer), {}, False, None),
    (made(optimizers=an_optimizer), {}, True, "which DeepSpeed makes anew"),
    (type("Mine", (Trainer,), {"__init__": lambda self, **kwargs: None}), {}, False, "does not call super().__init__"),
    (type("Mine", (Trainer,), {"__init__": lambda self, model, args, tokenizer=None: None}), {}, False, "processing_class"),  # noqa: E501
])  # fmt: skip
def test_what_init_takes_and_gives(
    cls: type[Trainer], arguments: dict[str, Any], deepspeed: bool, told: str | None
) -> None:
    problems = check_overrides(cls, arguments, [], deepspeed)
    assert (not problems) if told is None else any(told in problem.what for problem in problems), problems
