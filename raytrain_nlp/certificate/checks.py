"""What a certificate shows: each comparison of a run with the undisturbed one, with its verdict and its figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raytrain_nlp.certificate.evidence import Evidence
from raytrain_nlp.certificate.states import states_apart, weights_apart

SHOWN, DIFFERS, NOT_SHOWN = "shown", "differs", "not shown"
GPU_TOLERANCE = 0.01
"""On GPUs, whose kernels may add in any order: of a tensor its largest absolute value, of a figure its value."""
SIZE_TOLERANCE = 1e-3
"""Of a loss on another number of workers, where sums are made in another order; the share of its value."""
_MOST = 5
"""Row ids that are named."""


@dataclass(frozen=True)
class Check:
    """One comparison."""

    run: str
    """What is compared with the undisturbed run."""
    what: str
    verdict: str
    """shown, differs, or not shown."""
    figure: float | None = None
    """The largest difference, or the number of what differs."""
    compared: int = 0
    """How many were compared: tensors, figures, rows."""
    note: str = ""
    """Where it differs first; or why it is not shown; or the tolerance."""

    def line(self) -> str:
        """`killed, optimizer state: differs: ...`."""
        return f"{self.run}, {self.what}: {self.verdict}{': ' + self.note if self.note else ''}"


def checks_of_rows(run: str, ours: Evidence, theirs: Evidence) -> Iterator[Check]:
    """The rows of each global batch, what stands in them, and what was counted."""
    steps = sorted(ours.batches.keys() | theirs.batches.keys())
    wrong = [step for step in steps if _rows(ours, step) != _rows(theirs, step)]
    total = sum(len(batch.rows) for batch in theirs.batches.values())
    note = _where_rows_differ(ours, theirs, wrong[0]) if wrong else ""
    yield Check(run, "rows of each global batch", DIFFERS if wrong else SHOWN, len(wrong), total, note)
    yield _check_content(run, ours, theirs)
    other = [key for key in theirs.counts if ours.counts.get(key) != theirs.counts[key]]
    note = f"{other[0]} is {ours.counts.get(other[0])!r}, was {theirs.counts[other[0]]!r}" if other else ""
    yield Check(run, "rows counted", DIFFERS if other else SHOWN, len(other), len(theirs.counts), note)


def check_epochs(run: str, ours: Evidence) -> Check:
    """Without the undisturbed run: no row comes twice in an epoch, and one that was passed whole has them all."""
    what = "each row once an epoch"
    if ours.draws_rows:
        return Check(run, what, NOT_SHOWN, note="rows are drawn by shares, or streamed")
    seen: dict[int, Counter[int]] = {}
    for step, batch in ours.batches.items():
        seen.setdefault((step - 1) // ours.steps_per_epoch, Counter()).update(batch.rows)
    twice = [(epoch, row) for epoch, rows in seen.items() for row, count in rows.items() if count > 1]
    total = sum(rows.total() for rows in seen.values())
    if twice:
        note = f"row {twice[0][1]} came twice in epoch {twice[0][0] + 1}"
        return Check(run, what, DIFFERS, len(twice), total, note)
    whole = [epoch for epoch in seen if (epoch + 1) * ours.steps_per_epoch <= len(ours.batches)]
    wanted = (ours.counts["features"] or ours.counts["rows"]).get("train", 0) - ours.counts["dropped_rows"]
    short = [epoch for epoch in whole if len(seen[epoch]) != wanted]
    if short:
        note = f"epoch {short[0] + 1} had {len(seen[short[0]])} of {wanted} rows"
        return Check(run, what, DIFFERS, len(short), total, note)
    return Check(run, what, SHOWN, 0, total, f"{len(whole)} whole epochs")


def checks_of_states(run: str, ours: Evidence, theirs: Evidence, tolerance: float) -> Iterator[Check]:
    """Bits of weights, of optimizer state, and of what else a checkpoint holds, at each checkpoint of both."""
    found: dict[str, list[tuple[int, int, float, str]]] = {}
    for step in sorted(theirs.checkpoints):
        if step not in ours.checkpoints:
            why = ours.damaged.get(step, "it is missing")
            yield Check(run, f"checkpoint of step {step}", DIFFERS, note=why)
            continue
        pair = ours.checkpoints[step], theirs.checkpoints[step]
        for what, apart in {"weights": weights_apart(*pair, tolerance), **states_apart(*pair, tolerance)}.items():
            where = f"step {step}: {apart.where} ({apart.different} of {apart.tensors})" if apart.where else ""
            found.setdefault(what, []).append((apart.tensors, apart.different, apart.largest, where))
    for step, why in theirs.damaged.items():
        yield Check(run, f"checkpoint of step {step}", DIFFERS, note=f"of the undisturbed run: {why}")
    for what, parts in found.items():
        where = next((where for *_, where in parts if where), "")
        kind = f"within {tolerance:g} of a tensor's largest value" if tolerance else "bit for bit"
        yield Check(
            run,
            f"{what}, {kind}",
            DIFFERS if where else SHOWN,
            max(largest for _, _, largest, _ in parts),
            sum(tensors for tensors, *_ in parts),
            where,
        )


def check_figures(run: str, ours: Evidence, theirs: Evidence, tolerance: float) -> Check:
    """Every loss and evaluation figure of both runs on the same number of workers."""
    apart = {name: _figure_apart(ours, theirs, name) for name in [*theirs.figures, *ours.figures]}
    wrong = [name for name, size in apart.items() if size > tolerance * abs(theirs.figures.get(name, 0))]
    note = f"{wrong[0]} is {ours.figures.get(wrong[0])}, was {theirs.figures.get(wrong[0])}" if wrong else ""
    what = f"losses and evaluation figures, {f'within {tolerance:g}' if tolerance else 'equal'}"
    return Check(run, what, DIFFERS if wrong else SHOWN, max(apart.values(), default=0.0), len(apart), note)


def check_figures_at_size(run: str, ours: Evidence, theirs: Evidence) -> Check:
    """Losses of training and evaluation on another number of workers."""
    what = f"losses, within {SIZE_TOLERANCE:g}"
    apart = {name: _figure_apart(ours, theirs, name) for name in theirs.figures if name.endswith("loss")}
    largest = max(apart.values(), default=0.0)
    if theirs.draws:
        why = f"each rank draws numbers of its own ({theirs.draws}), so another number of ranks draws others"
        return Check(run, what, NOT_SHOWN, largest, len(apart), why)
    wrong = [name for name, size in apart.items() if size > SIZE_TOLERANCE * abs(theirs.figures[name])]
    note = f"{wrong[0]} is {ours.figures.get(wrong[0])}, was {theirs.figures.get(wrong[0])}" if wrong else ""
    return Check(run, what, DIFFERS if wrong else SHOWN, largest, len(apart), note)


def check_weights_at_size(run: str, ours: Evidence, theirs: Evidence) -> Check:
    """How far the last weights are apart; said, not judged."""
    step = max(ours.checkpoints.keys() & theirs.checkpoints.keys(), default=None)
    why = "sums over ranks are made in another order, and so rounded otherwise"
    if step is None:
        return Check(run, "weights", NOT_SHOWN, note=why)
    apart = weights_apart(ours.checkpoints[step], theirs.checkpoints[step], 0)
    if math.isinf(apart.largest):
        return Check(run, "weights", DIFFERS, apart.largest, apart.tensors, f"step {step}: {apart.where}")
    return Check(run, "weights", NOT_SHOWN, apart.largest, apart.tensors, why)


def _rows(run: Evidence, step: int) -> list[int]:
    """In no order: which rank has which row of a global batch differs between sizes."""
    return sorted(run.batches[step].rows) if step in run.batches else []


def _where_rows_differ(ours: Evidence, theirs: Evidence, step: int) -> str:
    mine, wanted = Counter(_rows(ours, step)), Counter(_rows(theirs, step))
    parts = [
        f"{word} {', '.join(map(str, sorted(rows.elements())[:_MOST]))}"
        for word, rows in (("without rows", wanted - mine), ("with rows", mine - wanted))
        if rows
    ]
    return f"step {step}: {'; '.join(parts)}"


def _check_content(run: str, ours: Evidence, theirs: Evidence) -> Check:
    what = "tokens and labels of each row"
    steps = ours.batches.keys() & theirs.batches.keys()
    pairs = [
        (step, row, ours.batches[step].content.get(row), check)
        for step in sorted(steps)
        for row, check in theirs.batches[step].content.items()
    ]
    if not pairs:
        return Check(run, what, NOT_SHOWN, note="the model gets no attention mask that tells tokens from padding")
    wrong = [(step, row) for step, row, mine, check in pairs if mine is not None and mine != check]
    note = f"step {wrong[0][0]}: row {wrong[0][1]}" if wrong else ""
    return Check(run, what, DIFFERS if wrong else SHOWN, len(wrong), len(pairs), note)


def _figure_apart(ours: Evidence, theirs: Evidence, name: str) -> float:
    if name not in ours.figures or name not in theirs.figures:
        return math.inf
    return abs(ours.figures[name] - theirs.figures[name])
