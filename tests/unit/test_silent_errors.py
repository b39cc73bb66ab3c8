"""Single bits that flip: sums that show them, gradients computed twice, ranks that differ, rows of prepared tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytrain_nlp.config import load_job
from raytrain_nlp.config.job import verified
from raytrain_nlp.data.shards import CHECKSUMS, DAMAGED, TokenStore, checksums_of, open_store, write_shard
from raytrain_nlp.distributed.bit_sums import bit_sum, bit_sums, minority
from raytrain_nlp.distributed.random_state import random_state, set_random_state
from raytrain_nlp.errors import DamagedTokensError, InputError, SilentError
from raytrain_nlp.failures import damaged_tokens
from raytrain_nlp.paths import RunPaths, write_json
from raytrain_nlp.reporting.history import read_history
from raytrain_nlp.run.faults import faults_of
from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.trainer.verify.resting import Resting, frozen_weights, learned_state
from raytrain_nlp.trainer.verify.twice import Twice, who_was_wrong
from raytrain_nlp.trainer.verify.verifier import Verifier, check_alike

KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool)


def flip(tensor: torch.Tensor, byte: int, bit: int) -> None:
    tensor.detach().view(-1).view(torch.uint8)[byte] ^= 1 << bit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (64, 33)])
def test_each_single_bit_changes_the_sum(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    draw = random.Random(0)
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100).to(kind)
    before = int(bit_sum(tensor))
    assert int(bit_sum(tensor.clone())) == before
    places = [(byte, bit) for byte in range(tensor.nbytes) for bit in range(1 if kind == torch.bool else 8)]
    for byte, bit in draw.sample(places, min(len(places), 64)):
        flip(tensor, byte, bit)
        assert int(bit_sum(tensor)) != before
        flip(tensor, byte, bit)
    assert int(bit_sum(tensor)) == before


def test_a_sum_is_that_of_the_words_also_of_parts_and_of_tensors_across_memory() -> None:
    whole = torch.arange(40, dtype=torch.float32)
    words = np.arange(40, dtype=np.float32).view(np.int64)
    assert int(bit_sum(whole)) == int(words.sum())
    assert int(bit_sum(whole[1:])) == int(np.arange(1, 40, dtype=np.float32).view(np.int32).astype(np.int64).sum())
    turned = np.arange(40, dtype=np.float32).reshape(5, 8).T.reshape(-1)
    assert int(bit_sum(whole.view(5, 8).t())) == int(turned.view(np.int64).sum())
    assert int(bit_sum(torch.zeros(0))) == 0 and bit_sums([], torch.device("cpu")).shape == (0,)


@pytest.mark.parametrize(
    ("values", "ranks"), [([1, 1, 2], [2]), ([1, 2], [0, 1]), ([1, 2, 3], [0, 1, 2]), ([1, 1, 2, 2], [0, 1, 2, 3])]
)
def test_who_is_not_like_most(values: list[object], ranks: list[int]) -> None:
    assert minority(values) == ranks


@pytest.mark.parametrize(
    ("sums", "kind"),
    [
        ("aaaa", None), ("abaa", None), ("abbb", "run"), ("aaba", "check"), ("aabb", "apart"), ("abcd", "unsteady"),
        ("abcc", "unsteady"), ("aabc", "unsteady"), ("abba", "unsteady"),
    ],
)  # fmt: skip
def test_four_sums_tell_who_was_wrong(sums: str, kind: str | None) -> None:
    assert who_was_wrong(*sums) == kind


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_what_changes_between_updates_is_named_with_its_step() -> None:
    model, optimizer = trained()
    resting = Resting()
    assert not resting.taken
    resting.take(learned_state(model, optimizer))
    resting.compare(learned_state(model, optimizer), 2)
    assert resting.read() == {}
    flip(optimizer.state[model[2].weight]["exp_avg_sq"], 5, 0)
    resting.compare(learned_state(model, optimizer), 3)
    resting.take(learned_state(model, optimizer))
    flip(model[0].weight, 0, 7)
    resting.compare(learned_state(model, optimizer), 4)
    assert resting.read() == {"exp_avg_sq of 2.weight": 3, "0.weight": 4}


def test_all_that_an_update_changes_is_looked_at_and_nothing_else() -> None:
    model, optimizer = trained()
    names = {
        f"{kind} of {name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in ("0.weight", "2.weight", "2.bias")
    }
    assert learned_state(model, optimizer).keys() == names | {"0.weight", "2.weight", "2.bias"}
    assert frozen_weights(model).keys() == {"0.bias"}


def test_moments_that_come_with_the_first_update_are_taken_up_then() -> None:
    model, optimizer = trained()
    resting = Resting()
    resting.take({"0.weight": model[0].weight.detach()})
    resting.compare(learned_state(model, optimizer), 1)
    resting.take(learned_state(model, optimizer))
    flip(optimizer.state[model[2].bias]["exp_avg"], 0, 3)
    resting.compare(learned_state(model, optimizer), 2)
    assert resting.read() == {"exp_avg of 2.bias": 2}
    del optimizer.state[model[2].bias]  # what is no longer there is not compared
    resting.compare(learned_state(model, optimizer), 3)
    assert resting.read() == {"exp_avg of 2.bias": 2}


class Passes:
    """A model of one rank whose gradients are computed twice."""

    def __init__(self) -> None:
        self.model, _ = trained()
        self.model.zero_grad()
        self.model.register_buffer("seen", torch.zeros(()))
        self.twice = Twice(self.model)
        self.inputs = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(1))}
        self.runs = 0

    def loss(self, given: Any) -> torch.Tensor:
        self.runs += 1
        self.model.seen += 1
        return self.model(given["x"] if isinstance(given, dict) else given.inputs["x"]).pow(2).mean()

    def differences(self, factor: float = 1.0) -> list[Any]:
        self.twice.begin(self.inputs, None, None)
        loss = self.loss(self.inputs)
        self.twice.saw(loss)
        (loss * factor).backward()
        return self.twice.compare(self.loss)


@pytest.mark.parametrize("factor", [1.0, 0.3, 3e-5])
def test_gradients_are_the_same_again_and_the_second_pass_leaves_nothing_behind(factor: float) -> None:
    passes = Passes()
    torch.manual_seed(5)
    assert passes.differences(factor) == [] and passes.runs == 2
    state, gradients = random_state(), [weight.grad for weight in passes.model.parameters()]
    alone = Passes()
    torch.manual_seed(5)
    (alone.loss(alone.inputs) * factor).backward()
    assert torch.equal(random_state()["torch"], state["torch"]) and int(passes.model.seen) == int(alone.model.seen) == 1
    for ours, theirs in zip(gradients, alone.model.parameters(), strict=True):
        assert (ours is None and theirs.grad is None) or torch.equal(ours, theirs.grad)
    assert not passes.model[0].weight._backward_hooks


def test_a_bit_that_flips_in_a_gradient_is_found_and_its_weight_named() -> None:
    for seed in range(12):
        passes, draw, done = Passes(), random.Random(seed), []
        name, weight = draw.choice([(n, w) for n, w in passes.model.named_parameters() if w.requires_grad])

        def flipped(gradient: torch.Tensor, draw: Any = draw, done: Any = done) -> torch.Tensor | None:
            if done:
                return None
            done.append(True)
            gradient = gradient.clone()
            flip(gradient, draw.randrange(gradient.nbytes), draw.randrange(8))
            return gradient

        weight.register_hook(flipped)
        (found,) = passes.differences()
        assert (found.kind, found.names, found.rank) == ("run", [name], 0)


def test_a_check_that_was_wrong_and_gradients_that_are_never_the_same() -> None:
    passes = Passes()
    wrong = {2: 0.5}
    loss = passes.loss
    passes.loss = lambda given: loss(given) * wrong.get(passes.runs, 1)  # type: ignore[method-assign]
    assert [found.kind for found in passes.differences()] == ["check"]
    wrong |= {run: float(run) for run in range(5, 10)}
    assert [found.kind for found in passes.differences()] == ["unsteady"]


def test_the_random_state_comes_back_as_it_was() -> None:
    state = random_state()
    drawn = [random.random(), np.random.rand(), float(torch.rand(()))]
    set_random_state(state)
    assert drawn == [random.random(), np.random.rand(), float(torch.rand(()))]


def test_ranks_that_hold_different_bits_are_named() -> None:
    told: list[tuple[Any, ...]] = []
    fail = lambda *said: told.append(said)  # noqa: E731
    same = {"a": 1, "exp_avg of a": 2}
    check_alike([same, dict(same), dict(same)], fail, 9)
    assert told == []
    check_alike([same, {**same, "exp_avg of a": 3}, same], fail, 9)
    assert told[0][:4] == (9, 1, "moment", ["exp_avg of a"]) and "rank 1 has other bits" in told[0][4]
    check_alike([same, {**same, "a": 3}], fail, 9)
    assert told[1][:3] == (9, 0, "weight") and "ranks 0, 1 have different bits in a" in told[1][4]


class TrainerOf:
    """As much of a trainer as a `Verifier` reads."""

    def __init__(self) -> None:
        self.model, self.optimizer = trained()
        self.accelerator = self
        self.state = type("State", (), {"global_step": 0})()

    def unwrap_model(self, model: Any) -> Any:
        return model


def steps_of(verifier: Verifier, trainer: TrainerOf, flips: dict[int, Any], steps: int) -> Iterator[int]:
    """Steps without gradients; a flip comes in the middle of its step."""
    for step in range(1, steps + 1):
        verifier.begin_step(trainer)
        if step in flips:
            flips[step]()
        verifier.before_update(trainer, True, lambda given: None)
        trainer.state.global_step = step
        verifier.end_step(trainer)
        yield step


@pytest.mark.parametrize(("every", "flipped"), [(1, 4), (3, 4), (10, 4), (10, 10), (10, 11)])
def test_a_flip_between_updates_ends_the_run_within_the_steps_asked_for(every: int, flipped: int) -> None:
    trainer, told = TrainerOf(), []
    verifier = Verifier(every, False, lambda kind, **fields: told.append((kind, fields)))
    moment = trainer.optimizer.state[trainer.model[2].weight]["exp_avg"]
    made: list[int] = []
    with pytest.raises(SilentError, match=rf"step {flipped}: bits have changed in the memory of rank 0 .*exp_avg of 2"):
        made.extend(steps_of(verifier, trainer, {flipped: lambda: flip(moment, 3, 1)}, 40))
    assert trainer.state.global_step < flipped + every
    ((kind, fields),) = told
    assert kind == "silent_error" and (fields["step"], fields["rank"], fields["place"]) == (flipped, 0, "moment")


def test_a_frozen_weight_is_verified_too_and_a_checkpoint_in_between() -> None:
    trainer = TrainerOf()
    verifier = Verifier(1000, False, lambda kind, **fields: None)
    for step in steps_of(verifier, trainer, {2: lambda: flip(trainer.model[0].bias, 1, 1)}, 3):
        if step == 1:
            verifier.check(trainer, step)
    with pytest.raises(SilentError, match="0.bias"):
        verifier.check(trainer, 3)


# Rows of prepared tokens


def store_of(folder: Path) -> TokenStore:
    rows = [[1, 2, 3], [4, 5], [], [6, 7, 8, 9]]
    columns = {
        "input_ids": rows,
        "targets": [[0] * len(row) for row in rows],
        "label": ["a", "b", "a", "b"],
        "line": [0, 1, 2, 3],
    }
    write_shard(folder / "shard.arrow", columns)
    np.save(folder / "lengths.npy", np.array([len(row) for row in rows], dtype=np.int32))
    np.save(folder / CHECKSUMS, checksums_of(folder / "shard.arrow"))
    shards = [{"file": "shard.arrow", "rows": 4, "source": "rows.jsonl", "first_line": 1}]
    write_json(folder / "manifest.json", {"rows": 4, "spread": 0, "shards": shards})
    return TokenStore(folder)


def test_every_bit_of_a_row_that_flips_in_its_file_is_found_when_the_row_is_read(tmp_path: Path) -> None:
    store_of(tmp_path)
    path, rows = tmp_path / "shard.arrow", np.arange(4)
    whole, found = path.read_bytes(), 0
    truth = TokenStore(tmp_path).fetch(rows)
    for byte in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[byte] ^= 1 << byte % 8
        path.write_bytes(changed)
        try:
            got = TokenStore(tmp_path).fetch(rows)
        except DamagedTokensError as error:
            found += 1
            assert "rows.jsonl" in str(error) and error.folder == str(tmp_path)
        else:
            same = [[np.array_equal(a, b) for a, b in zip(got[name], truth[name], strict=True)] for name in truth]
            assert got.keys() == truth.keys() and all(map(all, same)), "a flip that changes nothing that is read"
    assert found > 10 and (tmp_path / DAMAGED).exists()


def test_damaged_tokens_are_not_there_and_are_opened_anew_when_they_are_made_again(tmp_path: Path) -> None:
    from raytrain_nlp.data.prepare import find_tokens

    store_of(tmp_path)
    before = open_store(str(tmp_path))
    assert find_tokens(tmp_path) == tmp_path and open_store(str(tmp_path)) is before
    (tmp_path / DAMAGED).touch()
    assert find_tokens(tmp_path) is None
    (tmp_path / DAMAGED).unlink()
    store_of(tmp_path)
    assert open_store(str(tmp_path)) is not before


def test_folders_of_earlier_versions_have_no_checksums(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / CHECKSUMS).unlink()
    assert TokenStore(tmp_path).fetch(np.array([0]))["label"] == ["a"]


def test_an_error_of_a_remote_function_is_recognized_by_its_text() -> None:
    remote = RuntimeError(
        "ray::_make_blocks()\nraytrain_nlp.errors.DamagedTokensError: x.arrow is damaged: row 3.\n  more"
    )
    assert damaged_tokens(remote) == damaged_tokens(DamagedTokensError("x.arrow is damaged: row 3.", "x"))
    assert damaged_tokens(RuntimeError("something else")) is None


def test_faults_are_in_the_record_of_a_run_and_in_its_history(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    events = EventLog(paths.events)
    events.write("log", step=1, metrics={"loss": 1.0})
    events.write("silent_error", step=4, rank=1, place="weight", names=["a"], text="step 4: bits have changed.")
    events.write("notice", text="something else")
    (found,) = faults_of(paths)
    assert (found["kind"], found["step"], found["rank"], found["place"]) == ("silent_error", 4, 1, "weight")
    run = Run(paths, load_job(job_with()), [], tmp_path, {}, tmp_path, None)
    assert read_history(run).notices == ["step 4: bits have changed.", "something else"]


# The job


def job_with(**sections: Any) -> dict[str, Any]:
    return {
        "task": {"type": "causal-lm"}, "model": {"name_or_path": "x"}, "data": {"train": "x.jsonl"},
        "workers": {"use_gpu": False, "num_workers": 1}, **sections,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"torch_compile": True}}, "excludes training.torch_compile"),
        ({"training": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}}, "reentrant"),  # noqa: E501
        ({"training": {"gradient_checkpointing": True}, "lora": {"r": 4}, "deepspeed": {"zero_stage": 3}}, "reentrant"),
        ({"training": {"optim": "lomo"}}, "in the backward pass"),
        ({"workers": {"use_gpu": True, "num_workers": 1}}, "full_determinism: true"),
        ({"deepspeed": {"config": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}}}, "nvme"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused_with_the_reason(sections: dict[str, Any], says: str) -> None:
    asked = {**sections, "training": {**sections.get("training", {}), "verify_every": 5}}
    with pytest.raises(InputError, match=f"training.verify_every: .*{says}"):
        load_job(job_with(**asked))


def test_what_can_be_verified_is_not_refused() -> None:
    training = {"gradient_checkpointing": True, "bf16": True, "gradient_accumulation_steps": 2, "verify_every": 5}
    for stage in range(4):
        assert load_job(job_with(training=training, deepspeed={"zero_stage": stage})).verify_every == 5
    assert verified.check_verified(load_job(job_with()), {"torch_compile": True}) == []
    assert (
        load_job(job_with()).verify_every == 0
        and "verify_every" not in load_job(job_with(training=training)).arguments()
    )
