"""What is generated in the repository is what its command writes today."""

from __future__ import annotations

import pytest

from tests.generate import COMMAND, GENERATED, ROOT


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), f"{name} is of before a change: {COMMAND}"
