"""What a model said of validation rows: figures of each class, the confusion matrix, examples that are right and
wrong, generated texts beside references.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import read_json
from raytrain_nlp.reporting.markup import esc, number, shortened, table
from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.storage.untrusted import parse_json

_MATRIX = 16
"""Classes of a matrix that a page has room for."""
_CLASSES = 60
_TEXTS = 10
_TOLD = (
    "row",
    "source",
    "line",
    "text",
    "right",
    "label",
    "prediction",
    "reference",
    "answers",
    "probabilities",
    "scores",
)


@dataclass(frozen=True)
class Kept:
    """Predictions on the rows of one validation set."""

    name: str
    """Of the set, or of the evaluation; empty for a run's one validation set."""
    labels: list[str]
    report: dict[str, Any]
    examples: list[dict[str, Any]]
    looked_at: int


def read_predictions(run: Run) -> list[Kept]:
    """What the run kept of its last evaluation; of one without, the newest `evaluate` of it. Empty where there is
    neither.
    """
    found = _kept(_read(run.paths.predictions))
    if found:
        return found
    folders = sorted(run.paths.evaluations.glob("*/evaluation.json"), key=lambda path: path.stat().st_mtime)
    for file in reversed(folders):
        result, kept = _read(file), _kept(_read(file.with_name(run.paths.predictions.name)))
        if kept or result.get("report"):
            name = f"evaluate, {result.get('weights', '')} on {result.get('data', '')}"
            rest = kept[0] if kept else Kept("", [], {}, [], 0)
            labels = result.get("labels") or rest.labels
            return [Kept(name, labels, result.get("report") or rest.report, rest.examples, rest.looked_at)]
    return []


def evaluations(run: Run) -> str:
    """A line for each `evaluate` of the run; nothing where there was none."""
    rows = []
    for file in sorted(run.paths.evaluations.glob("*/evaluation.json"), key=lambda path: path.stat().st_mtime):
        result = _read(file)
        figures = ", ".join(
            f"{key.removeprefix('eval_')} {number(value)}"
            for key, value in sorted(result.get("metrics", {}).items())
            if isinstance(value, (int, float)) and "second" not in key and "runtime" not in key and "samples" not in key
        )
        rows.append(
            [str(result.get("weights", "")), str(result.get("data", "")), f"{result.get('rows', 0):,}", figures]
        )
    return table(["weights", "data", "rows", "figures"], rows) if rows else ""


def _kept(values: dict[str, Any]) -> list[Kept]:
    sets = values.get("sets")
    return [
        Kept(
            name,
            values.get("labels") or [],
            part.get("report") or {},
            part.get("examples") or [],
            part.get("looked_at", 0),
        )
        for name, part in (sets.items() if isinstance(sets, dict) else ())
    ]


def _read(path: Any) -> dict[str, Any]:
    try:
        values = read_json(path)
    except InputError:
        return {}
    return values if isinstance(values, dict) else {}


def predictions_html(run: Run) -> str:
    """All of it; where nothing was kept, what would keep it."""
    parts, found = [], read_predictions(run)
    for kept in found:
        if kept.name:
            parts.append(f"<h3>{esc(kept.name)}</h3>")
        parts += [class_table(kept), confusion_matrix(kept), example_table(kept)]
    text = "".join(parts) + ("" if any(kept.examples for kept in found) else generated_texts(run))
    if text:
        return text
    return (
        "<p>This run kept no predictions (it has not ended, has no validation rows, or is of an older version); "
        "<code>raytrain-nlp evaluate RUN</code> leaves them.</p>"
    )


def class_table(kept: Kept) -> str:
    """Precision, recall, F1 and rows of each class."""
    classes = {name: part for name, part in kept.report.get("classes", {}).items() if isinstance(part, dict)}
    if not classes:
        return ""
    columns = ("precision", "recall", "f1-score", "support")
    rows = [
        [name, *(number(float(part[column])) if column in part else "" for column in columns)]
        for name, part in list(classes.items())[:_CLASSES]
    ]
    more = f"<p>{len(classes) - _CLASSES} more classes are left out.</p>" if len(classes) > _CLASSES else ""
    return "<h3>Each class</h3>" + table(["", *columns], rows) + more


def confusion_matrix(kept: Kept) -> str:
    """A row for each true class, shaded by its share of the row; of very many classes the pairs confused most."""
    matrix, labels = kept.report.get("confusion_matrix"), kept.labels
    if matrix and len(labels) == len(matrix) <= _MATRIX:
        head = "".join(f"<th>{esc(shortened(label, 20))}</th>" for label in labels)
        body = ""
        for true, row in enumerate(matrix):
            most = max(sum(row), 1)
            cells = "".join(
                f'<td style="background: rgba(var(--accent), {0.75 * count / most:.2f})" title="{esc(labels[true])} '
                f'taken for {esc(labels[guess])}">{count:,}</td>'
                for guess, count in enumerate(row)
            )
            body += f"<tr><th>{esc(shortened(labels[true], 20))}</th>{cells}</tr>"
        return (
            "<h3>Confusion matrix</h3><p>A row for each true class, a column for each predicted one; the darker, the "
            "larger the share of its row. All that is off the diagonal is wrong.</p>"
            f'<table class="matrix"><thead><tr><th>true \\ predicted</th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )
    pairs = kept.report.get("confused")
    if not pairs:
        return ""
    rows = [[str(true), str(guess), f"{count:,}"] for true, guess, count in pairs]
    return "<h3>Confused most</h3>" + table(["true class", "taken for", "rows"], rows)


def example_table(kept: Kept) -> str:
    """Rows with what was predicted: the wrong ones first, those it was surest of above."""
    if not kept.examples:
        return ""
    wrong = any(example.get("right") is False for example in kept.examples)
    says = (
        f"Of {kept.looked_at:,} rows: those that are wrong, the surest first, then some that are right."
        if wrong or any(example.get("right") for example in kept.examples)
        else f"Of {kept.looked_at:,} rows: those that went worst, then those that went best."
    )
    rows = ""
    for example in kept.examples:
        right = example.get("right")
        mark = (
            {True: ("good", "right"), False: ("bad", "wrong")}.get(right, ("", "")) if right is not None else ("", "")
        )
        truth = example.get("label", example.get("reference", example.get("answers", "")))
        shares = example.get("probabilities")
        sure = ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) if isinstance(shares, dict) else ""
        rest = ", ".join(f"{key} {_shown(value)}" for key, value in example.items() if key not in _TOLD)
        place = f"{str(example.get('source', '')).rpartition('/')[2]}:{example.get('line', '')}"
        cells = [_shown(truth), _shown(example.get("prediction", "")), sure or rest]
        rows += (
            f'<tr><td class="{mark[0]}">{mark[1]}</td><td class="text">{esc(str(example.get("text", "")))}</td>'
            + "".join(f"<td>{esc(cell)}</td>" for cell in cells)
            + f"<td>{esc(place)}</td></tr>"
        )
    head = "".join(f"<th>{title}</th>" for title in ("", "text", "truth", "prediction", "how sure", "row"))
    before = f'<h3>Examples</h3><p>{esc(says)}</p><table class="examples"><thead><tr>{head}</tr></thead>'
    return f"{before}<tbody>{rows}</tbody></table>"


def generated_texts(run: Run) -> str:
    """Texts that were generated for validation rows beside their references."""
    parts = []
    for file in sorted(run.paths.run.glob("generated_predictions*.jsonl")):
        rows: list[list[str]] = []
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if len(rows) == _TEXTS:
                    break
                row = parse_json(line)
                rows.append([shortened(_shown(row.get(key, "")), 400) for key in ("prediction", "reference")])
        if rows:
            parts.append("<h3>Generated texts</h3>" + table(["generated", "reference"], rows))
    return "".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)
