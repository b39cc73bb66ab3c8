"""What is generated in the repository is what its command writes today."""

from __future__ import annotations

import ast

import pytest

from raytrain_nlp.config.tasks import TASK_TYPES
from tests.generate import COMMAND, GENERATED, ROOT
from tests.support_matrix import FEATURES, MEANING, NO_PACKING, PROVEN


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), f"{name} is of before a change: {COMMAND}"


def test_what_the_matrix_names_is_there() -> None:
    assert {*PROVEN, *NO_PACKING} <= {*TASK_TYPES} and {key for task in PROVEN.values() for key in task} <= {*FEATURES}
    proofs = [proof for task in PROVEN.values() for found in task.values() for proof in found]
    for where, test in proofs:
        file, _, name = test.partition("::")
        name, _, case = name.rstrip("]").partition("[")
        text = (ROOT / file).read_text(encoding="utf-8")
        names = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        assert where in MEANING and name in names, test
        beside = (ROOT / "tests" / "step_sides.py").read_text(encoding="utf-8")
        assert not case or f'"{case}"' in text + beside, test
