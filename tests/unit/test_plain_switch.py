"""RAYTRAIN_NLP_PLAIN=1: a run without forked processes, huge pages and shared memory. Whole runs that way: the end of
.ci/run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedDataParallelKwargs
from transformers import Trainer

from raytrain_nlp.cluster import ray_head
from raytrain_nlp.cpu import PLAIN, fork_server, is_plain, switch
from raytrain_nlp.cpu.gradient_mean import SharedMeanKwargs
from raytrain_nlp.cpu.huge_pages import huge_pages
from raytrain_nlp.trainer.trainer import FeedTrainer


@pytest.fixture(params=[False, True], ids=["fast", "plain"])
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.delenv(PLAIN, raising=False)
    if request.param:
        monkeypatch.setenv(PLAIN, "1")
    return request.param


def test_workers_are_told(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert is_plain() is plain and switch() == ({PLAIN: "1"} if plain else {})
    assert bool(huge_pages()) is not plain


def test_processes_are_forked_or_started(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[tuple[Any, ...]] = []

    @contextmanager
    def forked_processes(*modules: str, use_gpu: bool) -> Iterator[None]:
        forked.append((*modules, use_gpu))
        yield

    monkeypatch.setattr(fork_server, "forked_processes", forked_processes)
    monkeypatch.setattr(ray_head, "start_head", lambda settings: None)
    monkeypatch.setattr(ray_head.signal, "signal", lambda *_: None)
    monkeypatch.setattr(ray_head.os, "dup", lambda _: -1)
    monkeypatch.setattr(ray_head.os, "dup2", lambda *_: None)
    monkeypatch.setattr(ray_head, "_tell", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["ray_head", ray_head.HeadSettings(2, ["peft"], True).to_json()])
    ray_head.main()
    assert forked == ([] if plain else [("peft", True)])
    assert json.loads(sys.argv[1])["forked"] == ["peft"]


def test_gradients_are_averaged_in_shared_memory_or_by_gloo(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", lambda self: None)
    trainer: Any = object.__new__(FeedTrainer)
    trainer.args = SimpleNamespace(use_cpu=True)
    trainer.accelerator = SimpleNamespace(ddp_handler=DistributedDataParallelKwargs())
    trainer.create_accelerator_and_postprocess()
    assert isinstance(trainer.accelerator.ddp_handler, SharedMeanKwargs) is not plain
