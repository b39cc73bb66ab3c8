"""What a report says of a run in one sentence, and which rule of its curves says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_events, write_run, write_sweep

from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.planning.metric_checks import is_lower
from raytrain_nlp.reporting.history import History, Moment, read_history, smoothed
from raytrain_nlp.reporting.limits import RULES, find_limit
from raytrain_nlp.reporting.sweep_story import next_steps, read_sweep
from raytrain_nlp.reporting.verdict import Verdict, best_of, find_figure, judge
from raytrain_nlp.run.saved_run import find_run
from raytrain_nlp.run.trial_records import read_trials

Loss = Callable[[float], float]
"""Of the part of training that is done, from 0 to 1."""


def trained(loss: Loss | None = None, evals: Loss | None = None, steps: int = 100, evaluations: int = 5) -> History:
    history = History()
    if loss:
        history.figures["loss"] = {step: loss(step / steps) for step in range(1, steps + 1)}
    if evals:
        places = [round(steps * (number + 1) / evaluations) for number in range(evaluations)]
        history.figures["eval_loss"] = {step: evals(step / steps) for step in places}
    return history


def settling(part: float) -> float:
    return 0.5 + 2 * math.exp(-12 * part)


@pytest.mark.parametrize(
    ("loss", "evals", "name"),
    [
        (lambda part: 2 - part if part < 0.5 else 1.5 + 2 * (part - 0.5), None, "learning rate too high"),
        (lambda part: 2 - part if part < 0.5 else 9.0, settling, "learning rate too high"),
        (lambda part: 0.1 + 2 * math.exp(-5 * part), lambda part: 1 + (part - 0.4) ** 2, "overfitting"),
        (lambda part: 2 - 0.01 * part, None, "learning rate too low, or nothing in the data to learn"),
        (lambda part: 2 - part, None, "learning rate too low, or too few steps"),
        (lambda part: 2 - part, lambda part: 1.5 if part > 0.3 else 1.6, "data"),
        (lambda part: 0.2 + 2 * math.exp(-4 * part), lambda part: 2 - part, "number of steps"),
        (lambda part: 2 * math.exp(-3 * part), None, "number of steps"),
        (settling, settling, "model and data as they are"),
        (settling, None, "model and data as they are"),
        (None, lambda part: 2 - part, "number of steps"),
    ],
    ids=[
        "rises again", "jumps up", "validation turns", "flat", "straight", "validation stays", "validation falls",
        "falls without evaluations", "settled", "settled without evaluations", "evaluations alone",
    ],
)  # fmt: skip
def test_what_limited_a_run_is_read_from_its_curves(loss: Loss | None, evals: Loss | None, name: str) -> None:
    limit = find_limit(trained(loss, evals))
    assert limit is not None and limit.name == name and limit.advice.endswith(".")


def test_noise_alone_is_no_divergence() -> None:
    import random

    draw = random.Random(1)
    noisy = trained(lambda part: settling(part) * draw.uniform(0.7, 1.3), settling, steps=400)
    assert find_limit(noisy).name == "model and data as they are"  # type: ignore[union-attr]


def test_of_too_few_figures_nothing_is_said() -> None:
    assert find_limit(History()) is None and find_limit(trained(lambda part: part, steps=4)) is None
    assert find_limit(trained(None, settling, evaluations=1)) is None


def test_each_rule_is_a_sentence_with_its_numbers() -> None:
    assert all(rule.endswith(".") and ":" in rule for rule, _ in RULES) and len({rule for rule, _ in RULES}) == 7
    assert sum("%" in rule for rule, _ in RULES) == 6, "the last holds where none of the others does"


def test_the_sentence_measures_against_the_most_frequent_class(tmp_path: Path) -> None:
    final = {"eval_accuracy": 0.875, "eval_loss": 0.4, "eval_samples": 51}
    run = find_run(write_run(tmp_path, "x", result={"metrics": final, "majority_accuracy": 0.625}))
    found = judge(run, read_history(run))
    assert found.sentence.startswith(
        "Accuracy 0.875 on 51 validation rows; 0.25 above always answering the most frequent class (0.625); what "
        "limited it"
    )
    worse = {"metrics": {"eval_accuracy": 0.5}, "majority_accuracy": 0.625}
    run = find_run(write_run(tmp_path, "worse", result=worse))
    assert "no better than always answering the most frequent class (0.625)" in judge(run, read_history(run)).sentence


def log(step: int, **metrics: float) -> dict[str, Any]:
    return {"kind": "log", "time": 1000 * step, "step": step, "metrics": metrics}


def test_without_classes_the_model_before_training_is_the_measure(tmp_path: Path) -> None:
    job = {"task": {"type": "causal-lm"}, "model": {"name_or_path": "gpt2"}, "data": {"train": "a", "validation": "b"}}
    logs = [log(0, eval_perplexity=40.0), log(9, eval_perplexity=16.0), log(18, eval_perplexity=12.0)]
    final = {"metrics": {"eval_perplexity": 12.0}, "global_step": 18}
    run = find_run(write_events(tmp_path, "lm", logs, job=job | {"training": {"metric_for_best_model": "perplexity"}},
                                result=final))  # fmt: skip
    history = read_history(run)
    assert history.line("eval_perplexity") == ([0, 9, 18], [40.0, 16.0, 12.0])
    assert "Perplexity 12; 28 below the model before training (40)" in judge(run, history).sentence
    assert is_lower(run.job, "perplexity") and not is_lower(run.job, "accuracy")
    figure = find_figure(
        find_run(write_events(tmp_path, "on", logs[1:], job=job, status="running", result={})), history
    )
    assert figure is not None and (figure.name, figure.value, figure.step) == ("eval_perplexity", 12.0, 18)


def test_of_compared_runs_the_best_is_named(tmp_path: Path) -> None:
    def verdict(name: str, **metrics: float) -> Any:
        run = find_run(write_run(tmp_path, name, result={"metrics": metrics}))
        return judge(run, read_history(run))

    good, bad, other = (verdict("good", eval_accuracy=0.9), verdict("bad", eval_accuracy=0.7), judge_nothing())
    assert best_of(["a", "b"], [bad, good]) == "b is the best, with accuracy 0.9; a follows with 0.7."
    assert best_of(["a", "b"], [good, good]) == "a and b are alike: accuracy 0.9."
    assert best_of(["a"], [good]) == "" == best_of(["a", "b"], [good, other])


def judge_nothing() -> Verdict:
    return Verdict("Nothing was evaluated.", None, None)


@pytest.mark.parametrize(
    ("status", "begins"),
    [
        ("running", "Still running, at step 30 of 90"),
        ("failed", "Failed at step 30"),
        ("stopped", "Stopped at step 30"),
    ],
)
def test_a_run_that_has_not_ended_well_says_so_first(tmp_path: Path, status: str, begins: str) -> None:
    run = find_run(write_run(tmp_path, "x", status=status, result={}, plan={"steps": 90}))
    sentence = judge(run, read_history(run)).sentence
    assert sentence.startswith(begins) and "accuracy 0.8" in sentence
    assert ("so far: " in sentence) is (status == "running")


def test_a_run_that_was_fed_too_slowly_is_told(tmp_path: Path) -> None:
    logs = [log(step, loss=settling(step / 20), data_wait_share=0.5) for step in range(1, 21)]
    run = find_run(write_events(tmp_path, "x", logs))
    assert "50% of the time went into waiting for data" in judge(run, read_history(run)).sentence


def test_history_tells_restarts_checkpoints_and_what_was_done_again(tmp_path: Path) -> None:
    history = read_history(find_run(write_run(tmp_path, "x", resumed_at=10)))
    assert history.saved == [Moment(10.0, 10)] and history.restarts == [Moment(17.0, 10)] and history.repeated == 6
    assert history.last_step == 30 and history.world_size == 2 and history.mean("tokens_per_second") == 100
    assert [moment.step for moment in history.clock][:18] == [*range(1, 17), 11, 12]
    end = {"kind": "end", "time": 99, "step": 1, "peak_memory": [5, 7]}
    assert read_history(find_run(write_events(tmp_path, "y", [end]))).peak_memory == [5, 7]
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)


# sweeps

SPACE = {
    "training.learning_rate": {"loguniform": [1e-5, 1e-1]},
    "lora.r": {"choice": [4, 8, 16]},
    "training.neftune_noise_alpha": {"uniform": [0, 10]},
}


def trial(rate: float, rank: int, value: float, noise: float = 5.0, **more: Any) -> dict[str, Any]:
    params = {"training.learning_rate": rate, "lora.r": rank, "training.neftune_noise_alpha": noise}
    history = [{"step": 15, "eval_accuracy": value}, {"step": 30, "eval_accuracy": value}]
    return {"params": params, "metrics": {"eval_accuracy": value}, "history": history, **more}


def test_a_sweep_says_which_trial_is_its_result_and_what_it_took(tmp_path: Path) -> None:
    trials = [trial(1e-3, 8, 0.7), trial(9e-2, 8, 0.9), trial(1e-4, 4, 0.5, status="failed", reason="nan"),
              trial(1e-2, 16, 0.8, status="stopped")]  # fmt: skip
    story = read_sweep(SweepPaths(tmp_path / "runs", write_sweep(tmp_path, "s", trials, SPACE).name))
    assert story.best is not None and story.best.number == 1 and (story.seconds, story.trial_seconds) == (360.0, 240.0)
    assert "Trial 1 is the result: accuracy 0.9 with training.learning_rate 0.09" in story.verdict()
    assert "of 4 trials (2 finished, 1 stopped, 1 failed) has 0.8." in story.verdict()
    told = next_steps(story)
    assert (
        told[0].startswith("The best value of training.learning_rate (0.09) is at the edge") and "above 0.1" in told[0]
    )
    assert [line for line in told if "failed" in line] == ["1 of 4 trials failed, the first with: nan"]
    assert not any("lora.r" in line for line in told), "8 is in the middle"
    assert [record.number for record in read_trials(story.paths)] == [0, 1, 2, 3]


def test_what_to_try_next_names_edges_keys_without_effect_and_what_still_gains(tmp_path: Path) -> None:
    rising = [{"step": 15, "eval_accuracy": 0.8}, {"step": 30, "eval_accuracy": 0.9}]
    trials = [trial(1e-3, 16, 0.9, history=rising), *(trial(1e-3, 4, 0.899) for _ in range(8))]
    folder = write_sweep(tmp_path, "s", trials, SPACE)
    (folder / "plots").mkdir()
    (folder / "plots" / "importance.json").write_text('{"training.learning_rate": 0.97, "lora.r": 0.01}')
    told = " ".join(next_steps(read_sweep(SweepPaths(folder.parent, "s"))))
    assert "lora.r (16) is at the edge of what was tried: try values above 16" in told
    assert "lora.r made next to no difference (1% of what varied)" in told and "learning_rate" not in told
    assert "give the trials more steps" in told and "train the best job with other seeds" in told


def test_a_sweep_that_goes_on_or_cannot_be_read_has_a_sentence_too(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, "s", [trial(1e-3, 8, 0.7, status="running")], SPACE, status="running")
    story = read_sweep(SweepPaths(folder.parent, "s"))
    assert story.verdict() == "No trial has finished yet; the sweep is running." and next_steps(story) == []
    (folder / "sweep.json").write_text('{"status": "finished", "sweep": {"of": "another version"}}')
    assert read_sweep(SweepPaths(folder.parent, "s")).config is None
