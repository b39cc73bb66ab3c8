"""What `training.verify_every` costs a step, and which of seeded bit flips it finds.

    python tests/benchmarks/silent_errors.py                    two ranks, DDP: time of a step at 1, 10, 100; 40 flips
    python tests/benchmarks/silent_errors.py --zero-stage 3 --every 1 10 --flips 20

Two processes without Ray train a small BERT. Flips come in five places in turn, each in a training of its own, in a
step, rank, tensor, element and bit drawn from the seed. A flip counts as found where the run ends with the error before
its last step, and as without effect where the run ends with the bits of the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from silent_flips import run_cases  # noqa: E402 - found by the line above
from support import TINY, write_rows  # noqa: E402

PLACES = ("gradient", "reduced gradient", "weight", "moment", "tokens")
SIZES = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def sections_of(every: int, steps: int, stage: int, model: dict[str, Any]) -> dict[str, Any]:
    training = {
        "max_steps": steps, "per_device_train_batch_size": 8, "verify_every": every, "logging_steps": 50,
        "lr_scheduler_type": "constant", "train_sampling_strategy": "random",
    }  # fmt: skip
    return {
        "training": training, "deepspeed": {"zero_stage": stage}, "model": {"config": model},
        "checkpoint": {"save_strategy": "no"}, "workers": {"num_workers": 2},
    }  # fmt: skip


def flips_of(every: int, count: int, stage: int, seed: int) -> list[dict[str, Any]]:
    """Cases that are long enough for a flip to be found within `every` steps, and one verified step more."""
    draw = random.Random(seed)
    places = [place for place in PLACES if stage == 0 or place != "reduced gradient"]
    cases = []
    for number in range(count):
        step = draw.randint(2, 2 + every)
        flip = {"place": places[number % len(places)], "step": step, "rank": draw.randrange(2), "seed": seed + number}
        steps = -(-step // every) * every + every + 1
        cases.append(
            {"name": f"flip-{every}-{number}", "sections": sections_of(every, steps, stage, TINY), "flip": flip}
        )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--flips", type=int, default=40)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100, help="of each run that is timed")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=7200)
    options = parser.parse_args()
    found: dict[str, Any] = {"stage": options.zero_stage, "step": {}, "flips": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "train.jsonl", 4000)
        if options.steps:
            found["step"] = step_times(Path(folder), options)
            print("seconds of a mean step: " + json.dumps(found["step"]), flush=True)
        for every in options.every if options.flips else ():
            cases = flips_of(every, options.flips, options.zero_stage, options.seed)
            said = run_cases(Path(folder), cases, 2, options.timeout)
            found["flips"][every] = counted(cases, said)
            print(f"verify_every {every}: " + json.dumps(found["flips"][every]), flush=True)
    print(json.dumps(found))


def step_times(folder: Path, options: Any) -> dict[str, float]:
    """Seconds of a mean step without verification and at each distance; medians over runs that alternate."""

    def case(every: int, turn: int) -> dict[str, Any]:
        sections = sections_of(every, options.steps, options.zero_stage, SIZES)
        return {"name": f"time-{every}-{turn}", "sections": sections, "flip": None}

    cases = [case(every, turn) for turn in range(options.repeat) for every in (0, *options.every)]
    said = run_cases(folder, cases, 2, options.timeout)[0]
    found: dict[str, list[float]] = {}
    for given, one in zip(cases, said, strict=True):
        assert not one["errors"], one["errors"]
        every = given["sections"]["training"]["verify_every"]
        found.setdefault(str(every or "without"), []).append(statistics.mean(one["seconds"][3:]))
    return {every: round(statistics.median(means), 4) for every, means in found.items()}


def counted(cases: list[dict[str, Any]], said: list[list[Any]]) -> dict[str, Any]:
    """Of each place how many flips there were, and how many were found; and how many steps later at most."""
    counts: dict[str, Any] = {}
    for case, *ranks in zip(cases, *said, strict=True):
        place, step = case["flip"]["place"], case["flip"]["step"]
        kept = counts.setdefault(place, {"flips": 0, "found": 0, "steps later": 0})
        kept["flips"] += 1
        errors = [error for rank in ranks for error in rank["errors"]]
        if errors:
            kept["found"] += 1
            kept["steps later"] = max(kept["steps later"], ranks[0].get("ended", step) - step)
    return counts


if __name__ == "__main__":
    main()
