"""Whose error is it? One that comes through the user's code is the user's, but for what the world outside did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from raytrain_nlp.user_code import fails_in_users_code

GLOO = "[pair.cc:537] Read error [127.0.0.1]:54191: Connection reset by peer. Check the logs of the remote worker (gloo)"


@pytest.fixture
def users_step(tmp_path: Path) -> Callable[[Any], None]:
    """A training step as a user overrides it, in a file of the user's."""
    file = tmp_path / "mine.py"
    file.write_text("def training_step(inner):\n    return inner()\n")
    scope: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    return scope["training_step"]


def raising(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(("error", "is_users"), [
    (KeyError("mine"), True), (RuntimeError("shapes do not fit"), True), (RuntimeError(GLOO), False), (dist.DistNetworkError("lost"), False),
    (RuntimeError("NCCL communicator was aborted on rank 1"), False), (OSError("disk"), False), (KeyboardInterrupt(), False),
])  # fmt: skip
def test_errors_that_come_through_the_users_step(users_step: Callable[[Any], None], error: BaseException, is_users: bool) -> None:
    with pytest.raises(type(error)) as caught:
        users_step(raising(error))
    assert fails_in_users_code(caught.value) is is_users
