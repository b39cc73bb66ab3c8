"""What is read from the source text of transformers is what it has when it is imported."""

from __future__ import annotations

import dataclasses

from raytrain_nlp.config.training import RENAMED, training_fields


def test_names_are_those_of_the_installed_library() -> None:
    """The names read from the source text are the fields of both classes of arguments; no removed name is among them,
    each new one is real.
    """
    from transformers import Seq2SeqTrainingArguments

    real = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert set(training_fields()) == real
    assert not set(RENAMED) & real
    new = {hint.split(":")[0].split(" ")[0] for hint in RENAMED.values()}
    assert {name for name in new if name not in real} == {"workers.use_gpu"}
