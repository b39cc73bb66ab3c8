"""The sentence at the top of a report: the best figure, what it is to be measured against, and what limited it."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain_nlp.planning.metric_checks import is_lower
from raytrain_nlp.reporting.history import History
from raytrain_nlp.reporting.limits import Limit, find_limit
from raytrain_nlp.reporting.markup import number
from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.tasks import build_task

_WAITING = 0.2
"""Of the time: a worker that waits more for its data is held up by them."""


@dataclass(frozen=True)
class Figure:
    """The figure that a run is judged by."""

    name: str
    """With `eval_`."""
    value: float
    step: int | None
    """Of the evaluation; None where that is not known."""
    lower: bool
    """Is lower better?"""

    @property
    def shown(self) -> str:
        return self.name.removeprefix("eval_").replace("_", " ")

    def better(self, other: float) -> bool:
        return self.value < other if self.lower else self.value > other


@dataclass(frozen=True)
class Verdict:
    """What is said of a run."""

    sentence: str
    figure: Figure | None
    limit: Limit | None
    """What limited the run; None where nothing was evaluated or logged."""


def judge(run: Run, history: History) -> Verdict:
    """The verdict on a run that has ended, or goes on."""
    figure, limit = find_figure(run, history), find_limit(history)
    said = [_state(run, history)]
    if figure:
        rows = run.result.get("metrics", {}).get("eval_samples")
        said.append(f"{figure.shown} {number(figure.value)}{f' on {rows:,.0f} validation rows' if rows else ''}")
        said.append(_against(run, history, figure))
    else:
        said.append("nothing was evaluated, so nothing is known of rows it did not learn from")
    if limit:
        said.append(f"{'so far' if _goes_on(run) else 'what limited it'}: {limit.name} ({limit.evidence})")
    waited = history.mean("data_wait_share") or 0.0
    if waited > _WAITING:
        said.append(f"{waited:.0%} of the time went into waiting for data")
    text = "; ".join(part for part in said if part)
    return Verdict(f"{text[:1].upper()}{text[1:]}.", figure, limit)


def find_figure(run: Run, history: History) -> Figure | None:
    """What the job chooses its best model by, else the first figure of its task, else the loss, of the weights that
    were exported; of a run without them its best evaluation so far.
    """
    found, final = history.evaluated, run.result.get("metrics", {})
    wanted = [
        run.job.arguments().get("metric_for_best_model"),
        *build_task(run.job.task).metric_names(run.labels),
        "loss",
    ]
    for name in (str(name).removeprefix("eval_") for name in wanted if name):
        here = [key for key in found if key == f"eval_{name}"] or [key for key in found if key.endswith(f"_{name}")]
        if not here and f"eval_{name}" in final:
            here = [f"eval_{name}"]
        if not here:
            continue
        key, lower = here[0], is_lower(run.job, here[0].removeprefix("eval_"))
        if key in final:
            return Figure(key, float(final[key]), run.result.get("best_step") or run.result.get("global_step"), lower)
        steps, values = history.line(key)
        best = (min if lower else max)(range(len(values)), key=values.__getitem__)
        return Figure(key, values[best], steps[best], lower)
    return None


def best_of(names: list[str], verdicts: list[Verdict]) -> str:
    """Which of compared runs is the best, by how much; empty of one run, and of runs without a figure in common."""
    figures = [(verdict.figure, name) for verdict, name in zip(verdicts, names, strict=True) if verdict.figure]
    if len(figures) < 2 or len({figure.name for figure, _ in figures}) > 1:
        return ""
    ranked = sorted(figures, key=lambda pair: pair[0].value * (1 if pair[0].lower else -1))
    (first, name), (second, other) = ranked[:2]
    if first.value == second.value:
        return f"{name} and {other} are alike: {first.shown} {number(first.value)}."
    return f"{name} is the best, with {first.shown} {number(first.value)}; {other} follows with {number(second.value)}."


def _goes_on(run: Run) -> bool:
    return run.record.get("status") == "running"


def _state(run: Run, history: History) -> str:
    """How it ended, where that was not well."""
    status = str(run.record.get("status", "unknown"))
    if status == "finished":
        return ""
    planned = (run.record.get("plan") or {}).get("steps")
    where = f"at step {history.last_step:,}{f' of {planned:,}' if planned else ''}"
    return {"running": f"still running, {where}", "failed": f"failed {where}"}.get(status, f"{status} {where}")


def _against(run: Run, history: History, figure: Figure) -> str:
    """Measured against always answering the most frequent class; else the weights before training; else the first
    evaluation.
    """
    majority = run.result.get("majority_accuracy")
    if majority is not None and figure.name.endswith("accuracy"):
        return _compared(figure, majority, "always answering the most frequent class")
    steps, values = history.line(figure.name)
    if not steps or (len(steps) == 1 and steps[0] != 0):
        return ""
    what = "the model before training" if steps[0] == 0 else f"the first evaluation, at step {steps[0]:,}"
    return _compared(figure, values[0], what)


def _compared(figure: Figure, other: float, what: str) -> str:
    if not figure.better(other):
        return f"no better than {what} ({number(other)})"
    return f"{number(abs(figure.value - other))} {'below' if figure.lower else 'above'} {what} ({number(other)})"
