"""Trainings of a few ranks in processes of their own, without Ray, in each of which one bit flips.

    python silent_flips.py RANK WORLD_SIZE PORT FOLDER      a rank: the cases of FOLDER/cases.json, one after another

`run_cases` starts the ranks. Each prints a JSON line of what became of each case.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import TrainerCallback

TOKENS = "tokens"
PLACES = ("gradient", "reduced gradient", "weight", "moment")


def run_cases(folder: Path, cases: list[dict[str, Any]], world_size: int, timeout_s: float = 560) -> list[list[Any]]:
    """Run cases on ranks; what each rank says of each case, by rank.

    Args:
        cases: each with `name`, `sections` of its job, `flip` (place, step, rank, seed) or None, `resume`.
    """
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__]
    logs = [folder / f"rank-{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            arguments = [*command, str(rank), str(world_size), port, str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ranks.append(subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        ended = [rank.wait(timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    said = [log.read_text() for log in logs]
    assert not any(ended), "\n".join(text[-3000:] for text in said)
    return [[json.loads(line[6:]) for line in text.splitlines() if line.startswith("FOUND ")] for text in said]


class Flip(TrainerCallback):
    """Flips one bit of this rank in one step."""

    def __init__(self, trainer: Any, place: str, step: int, seed: int, bits: tuple[int, int] | None = None):
        self._trainer, self._place, self._step = trainer, place, step
        self._draw, self._bits = random.Random(seed), bits
        self.done: str | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 != self._step or self.done or self._place == "reduced gradient":
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if self._place == "gradient":
            weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
            name, weight = self._draw.choice(weights)
            weight.register_hook(lambda gradient: self._flipped(gradient, name))
            return
        from raytrain_nlp.trainer.verify import resting

        tensors = resting.learned_state(model, self._trainer.optimizer)
        wanted = self._place == "moment"
        if self._place == "frozen":
            tensors, wanted = resting.frozen_weights(model), False
        names = [name for name in tensors if name.startswith("exp_avg") == wanted and not name.startswith("step of")]
        self._flip(tensors, self._draw.choice(names))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self._step and self._place == "reduced gradient" and not self.done:
            model = self._trainer.accelerator.unwrap_model(self._trainer.model)
            found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            self._flip(found, self._draw.choice(list(found)))

    def _flipped(self, gradient: torch.Tensor, name: str) -> torch.Tensor | None:
        if self.done:
            return None
        gradient = gradient.clone()
        self._flip({name: gradient}, name)
        return gradient

    def _flip(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        tensor = tensors[name].detach()
        whole = tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16).view(-1)
        bit = self._draw.randrange(*self._bits or (8 * whole.element_size(),))
        place = self._draw.randrange(whole.numel())
        mask = torch.tensor(1 << bit, dtype=torch.int64).to(whole.dtype)
        whole[place] ^= mask
        self.done = f"{name}[{place}] bit {bit}"


def main(rank: int, world_size: int, port: str, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    from raytrain_nlp.compat.deepspeed import import_deepspeed
    from raytrain_nlp.distributed.device import settle_device

    settle_device(use_gpu=False)
    torch.set_num_threads(1)
    deepspeed = import_deepspeed()
    deepspeed.init_distributed("gloo", verbose=False)
    for case in json.loads((folder / "cases.json").read_text()):
        print("FOUND " + json.dumps(run_case(rank, folder, case)), flush=True)


def run_case(rank: int, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What this rank saw of a case: the error, what was flipped, and the bits of the state at the end."""
    from support import plain_job
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from raytrain_nlp.distributed.collectives import gather_objects

    job = plain_job(folder, case["name"], **case["sections"])
    found: dict[str, Any] = {"name": case["name"], "errors": []}
    with no_ray():
        for attempt in range(1 + bool(case.get("resume"))):
            kept: dict[str, Any] = {}
            try:
                flip = case["flip"] if attempt == 0 else None
                with flipping(flip, rank, kept):
                    train(job, folder, flip if flip and flip["place"] == TOKENS else None)
            except Exception as error:
                found["errors"].append(f"{type(error).__name__}: {error}")
            finally:
                unset_hf_deepspeed_config()
            if attempt == 0:
                found["flipped"] = gather_objects(kept["flip"].done if "flip" in kept else None)
            if "trainer" in kept and (not found["errors"] or attempt):
                found |= state_of(kept["trainer"])
                break
    return found


def state_of(trainer: Any) -> dict[str, Any]:
    from raytrain_nlp.trainer.verify.resting import Resting, learned_state

    resting = Resting()
    resting.take(learned_state(trainer.accelerator.unwrap_model(trainer.model), trainer.optimizer))
    return {"sums": resting.sums(), "seconds": KEPT.pop("seconds", [])}


KEPT: dict[str, Any] = {}


def read_flipped_tokens(spec: Any, flip: dict[str, Any]) -> None:
    """Read the rows of each step up to the flip's, in which one bit of a row has flipped in the file of its shard."""
    from raytrain_nlp.data.shards import DAMAGED, TokenStore
    from raytrain_nlp.data.split import Split

    split, store, draw = Split(spec.train), TokenStore(spec.train.tokens), random.Random(flip["seed"])
    path = Path(spec.train.tokens) / store.manifest["shards"][0]["file"]
    whole, rows = path.read_bytes(), np.concatenate([split.micro_batches(flip["step"], 2, 0, 1)[0].rows])
    row = store.fetch(split.store_rows(rows))["input_ids"][draw.randrange(len(rows))]
    place = whole.index(row.tobytes()) + draw.randrange(row.nbytes)
    changed = bytearray(whole)
    changed[place] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    try:
        for step in range(flip["step"] + 1):
            split.micro_batches(step, 2, 0, 1)
    finally:
        path.write_bytes(whole)
        (path.parent / DAMAGED).unlink(missing_ok=True)


def train(job: dict[str, Any], folder: Path, flip: dict[str, Any] | None = None) -> None:
    from plain_trainer import resolved

    from raytrain_nlp.distributed.collectives import gather_objects
    from raytrain_nlp.paths import RunPaths
    from raytrain_nlp.worker.loop import run_body

    first = int(os.environ["RANK"]) == 0
    if first:  # prepares the tokens
        resolved(job, folder / "runs")
    gather_objects(None)
    made, spec = resolved(job, folder / "runs")
    paths = RunPaths(folder / "runs", made.name)
    paths.run.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"scratch-{os.environ['RANK']}"
    scratch.mkdir(exist_ok=True)
    if flip is None:
        run_body(spec, paths, str(scratch))
    elif flip["rank"] == int(os.environ["RANK"]):  # the rank that reads the row finds it out alone
        read_flipped_tokens(spec, flip)


@contextlib.contextmanager
def no_ray() -> Iterator[None]:
    from plain_trainer import stream_here

    with mock.patch("raytrain_nlp.trainer.loader.stream", stream_here):
        yield


@contextlib.contextmanager
def flipping(flip: dict[str, Any] | None, rank: int, kept: dict[str, Any]) -> Iterator[None]:
    """While inside, the trainer that is built is kept, and the flip's rank flips its bit."""
    import time

    from raytrain_nlp.worker import extensions

    build: Callable[..., Any] = extensions.build_trainer

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                KEPT["seconds"] = []
            KEPT.setdefault("seconds", []).append(time.perf_counter() - getattr(self, "last", self.began))
            self.last = time.perf_counter()

    def built(*args: Any, **kwargs: Any) -> Any:
        trainer = kept["trainer"] = build(*args, **kwargs)
        trainer.add_callback(Clock())
        if flip and flip["rank"] == rank and flip["place"] != TOKENS:
            kept["flip"] = Flip(trainer, flip["place"], flip["step"], flip["seed"], flip.get("bits"))
            trainer.add_callback(kept["flip"])
        return trainer

    with mock.patch.object(extensions, "build_trainer", built):
        yield


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
