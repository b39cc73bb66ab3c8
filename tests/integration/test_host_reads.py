"""How often a step waits for a value of its device: never more than with plain `Trainer`, under DDP never but for
encoder-decoders. A GPU is played by the CPU (`host_reads.py`); all tasks: cluster/test_host_reads_of_tasks.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from host_reads import DEVICE, HostReads
from step_sides import TASKS, reads_of_both


@pytest.mark.parametrize(("task", "stage"), [("blocks", 0), ("several classes", 0), ("packed", 0), ("blocks", 3)])
def test_a_step_reads_no_more_than_plain_trainers(tmp_path: Path, task: str, stage: int) -> None:
    ours, plain = reads_of_both(tmp_path, TASKS[task], stage)
    assert len(ours) <= len(plain), f"ours: {Counter(ours)}, plain: {Counter(plain)}"
    assert not [read for read in ours if "raytrain_nlp" in read]
    assert len(ours) < len(plain) and (stage or not ours)


def test_what_a_gpus_host_would_wait_for_is_seen() -> None:
    """And what it would not: the host's own values, uploads, what stays on the device."""
    reads, batch = HostReads(), torch.arange(4)
    reads.at_host([batch])
    with reads.active():
        assert int(batch.sum()) == 6 and batch[batch > 1].tolist() == [2, 3] and torch.equal(batch, batch)
        there = batch.to(DEVICE)
        torch.where(there > 1, there, 0).clamp_(min=1).masked_fill_(there == 2, 5)
        assert not reads.found
        there.sum().item(), bool(there.any()), there.tolist(), there.numpy(), np.asarray(there), there.cpu()
        there[there > 1], torch.equal(there, there), there.to("cpu"), batch.copy_(there), there.nonzero()
    assert [read.partition(" at ")[0] for read in reads.found] == [
        "_local_scalar_dense", "_local_scalar_dense", "tolist", "numpy", "__array__", "numpy", "cpu", "index", "equal",
        "to the host", "copy to the host", "nonzero",
    ]  # fmt: skip
    assert all("test_host_reads.py" in read for read in reads.found)
