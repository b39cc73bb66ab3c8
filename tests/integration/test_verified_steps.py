"""`training.verify_every` in whole trainings of one rank in this process, and of two without Ray: an undisturbed run
has the same bits with it and without, a bit that flips ends the run, and the run that goes on from the checkpoint ends
with those same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import silent_flips
from step_sides import process_group
from support import TINY, write_rows

DROPOUT = {"config": {**TINY, "hidden_dropout_prob": 0.1}}
STEPS, EVERY, SAVE = 6, 2, 3


def sections_of(stage: int, every: int, **more: Any) -> dict[str, Any]:
    training = {"max_steps": STEPS, "per_device_train_batch_size": 4, "verify_every": every, **more.pop("training", {})}
    return {
        "deepspeed": {"zero_stage": stage}, "training": training, "checkpoint": {"save_steps": SAVE},
        "workers": {"num_workers": 1}, "model": DROPOUT, **more,
    }  # fmt: skip


def run(folder: Path, name: str, sections: dict[str, Any], place: str | None = None, step: int = 5) -> dict[str, Any]:
    flip = {"place": place, "step": step, "rank": 0, "seed": 3} if place else None
    return silent_flips.run_case(0, folder, {"name": name, "sections": sections, "flip": flip, "resume": True})


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    write_rows(tmp_path / "train.jsonl", 48)
    with mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "2"}):
        yield tmp_path


@pytest.mark.parametrize(
    ("stage", "more", "places"),
    [
        (0, {"training": {"gradient_accumulation_steps": 2}}, ["gradient", "moment"]),
        (3, {"lora": {"r": 2, "target_modules": "all-linear"}, "training": {"bf16": True}}, ["gradient", "frozen"]),
    ],
)  # fmt: skip
def test_a_bit_that_flips_is_found_and_the_run_ends_with_the_bits_of_an_undisturbed_one(
    alone: Path, stage: int, more: dict[str, Any], places: list[str]
) -> None:
    def sections(every: int) -> dict[str, Any]:
        return sections_of(stage, every, **{key: dict(value) for key, value in more.items()})

    with process_group(False) if stage else contextlib.nullcontext():
        plain = run(alone, "plain", sections(0))
        assert plain["errors"] == [] and plain["sums"]
        verified = run(alone, "verified", sections(EVERY))
        assert verified["errors"] == [] and verified["sums"] == plain["sums"]
        for place in places:
            # gradients are computed twice in every second step
            step = 4 if place == "gradient" else 5
            name = place.replace(" ", "-")
            found = run(alone, name, sections(EVERY), place, step)
            step += place == "frozen"  # which is looked at in verified steps only
            assert found["flipped"][0], "a bit has flipped"
            (error,) = found["errors"]
            assert f"SilentError: step {step}: " in error, error
            assert found["sums"] == plain["sums"]
            told = [json.loads(line) for line in (alone / "runs" / name / "events.jsonl").read_text().splitlines()]
            (event,) = [event for event in told if event["kind"] == "silent_error"]
            assert event["step"] == step and event["place"] in (place, "weight")
            assert [event["step"] for event in told if event["kind"] == "resume"] == [SAVE]


def test_two_ranks_that_share_weights_verify_each_other(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 96)
    sections = {every: {**sections_of(3, every), "workers": {"num_workers": 2}} for every in (0, EVERY)}
    flip = {"place": "gradient", "step": 4, "rank": 1, "seed": 3}
    cases: list[dict[str, Any]] = [
        {"name": "plain", "sections": sections[0], "flip": None},
        {"name": "verified", "sections": sections[EVERY], "flip": None},
        {"name": "flipped", "sections": sections[EVERY], "flip": flip, "resume": True},
    ]
    for rank, (plain, verified, flipped) in enumerate(silent_flips.run_cases(tmp_path, cases, 2)):
        assert plain["errors"] == verified["errors"] == []
        assert flipped["flipped"][1] and "SilentError: step 4: rank 1 has computed wrong" in flipped["errors"][0], rank
        assert plain["sums"] == verified["sums"] == flipped["sums"]
