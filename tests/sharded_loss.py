"""The loss without logits under ZeRO-3, whose ranks gather the head and reduce its gradient, on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from object_store import free_port

RANK = Path(__file__).parent / "sharded_loss_rank.py"


def check_two_ranks(*families: str) -> None:
    """Losses and weights of models are those with logits; the batches of one rank are too small for chunks, those of
    the other are not.
    """
    port, environment = str(free_port()), {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", RANK, str(rank), "2", port, *families],
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
        found = json.loads(line.removeprefix("FOUND "))
        assert found.keys() == set(families)
        for family, sides in found.items():
            plain, chunked = sides["plain"], sides["chunked"]
            assert (plain["chunked"], chunked["chunked"]) == (0, 3 * number), family
            assert chunked["losses"] == pytest.approx(plain["losses"], abs=1e-5), family
            for figure in ("sums", "norms"):
                assert chunked[figure] == pytest.approx(plain[figure], rel=1e-5, abs=1e-5), family
