"""The loss without logits under ZeRO-3, whose ranks gather the head and reduce its gradient (`sharded_loss.py`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RANK = Path(__file__).parent / "sharded_loss.py"


def test_two_ranks_of_zero_3_train_as_with_logits() -> None:
    """Losses and weights of a model with a head of its own, one that is tied, and one tied with a bias below other
    modules; the batches of one rank are too small for chunks, those of the other are not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", RANK, str(rank), "2", port],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        texts = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, text in enumerate(texts):
        line = next((line for line in text.splitlines() if line.startswith("FOUND ")), None)
        assert line is not None, text[-3000:]
        for family, found in json.loads(line.removeprefix("FOUND ")).items():
            plain, chunked = found["plain"], found["chunked"]
            assert (plain["chunked"], chunked["chunked"]) == (0, 3 * number), family
            assert chunked["losses"] == pytest.approx(plain["losses"], abs=1e-5), family
            for figure in ("sums", "norms"):
                assert chunked[figure] == pytest.approx(plain[figure], rel=1e-5, abs=1e-5), family
