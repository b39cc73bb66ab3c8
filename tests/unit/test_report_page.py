"""The pieces of a report's page against what was counted otherwise: predictions, tables, charts; nothing of a user's is
taken for HTML, and nothing is asked of a network.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from typer.testing import CliRunner
from written_runs import write_events, write_run, write_sweep

import raytrain_nlp
from raytrain_nlp.cli.main import app
from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.errors import InputError
from raytrain_nlp.reporting import charts, drawings, interactive, markup, predictions, sweep_panels, tables
from raytrain_nlp.reporting.history import read_history
from raytrain_nlp.reporting.page import Shown, build_page
from raytrain_nlp.reporting.server import served
from raytrain_nlp.run.saved_run import find_run
from raytrain_nlp.tasks import build_task
from raytrain_nlp.trainer.eval_outputs import Joined, Part
from raytrain_nlp.trainer.kept_predictions import bounded, is_right, keep_predictions, text_of, write_predictions
from raytrain_nlp.trainer.training_step import Feed
from raytrain_nlp.verbs.report import report, serve_report

NASTY = '</script><script>alert(1)</script><img src="http://evil.example/x">'


class Reader(HTMLParser):
    """The cells of a page's tables, and what it would load from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag != "a":
            self.loads += [value for name in ("src", "href", "srcset") if (value := given.get(name)) is not None]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


# What a run keeps


class Words:
    """Token 0 stands between parts, the others are words."""

    all_special_ids = [0]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


def split_of(rows: int) -> Any:
    return SimpleNamespace(
        store=SimpleNamespace(firsts=None),
        locate=lambda row: f"/data/v.jsonl:{row + 1}",
        fetch=lambda ids: {"input_ids": [np.array([0, int(row) + 1, 0, 7]) for row in ids]},
    )


def scored(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, classes)).astype(np.float32), draw.integers(0, classes, rows)


@pytest.mark.parametrize("classes", [2, 5])
def test_what_is_kept_is_the_same_at_any_number_of_ranks_and_what_scikit_learn_counts(classes: int) -> None:
    logits, truth = scored(1203, classes)
    task, labels = (
        build_task(TextClassification(type="text-classification", text_columns=["t"])),
        list("abcde")[:classes],
    )
    kept = []
    for ranks in (1, 2, 3):
        parts = [
            Part(rows, len(rows), 0.0, logits[rows], truth[rows])
            for rank in range(ranks)
            for rows in np.array_split(np.arange(rank, len(truth), ranks), 4)
        ]
        joined = Joined(parts)
        kept.append(keep_predictions(task, split_of(1203), joined.of("own"), joined.of("labels"), labels, Words()))
    assert kept[0] == kept[1] == kept[2]
    guess = logits.argmax(-1)
    assert kept[0]["report"]["confusion_matrix"] == confusion_matrix(truth, guess).tolist()
    figures = precision_recall_fscore_support(truth, guess)
    assert [kept[0]["report"]["classes"][label]["recall"] for label in labels] == pytest.approx(figures[1])
    examples = kept[0]["examples"]
    assert kept[0]["looked_at"] == 500 and [example["right"] for example in examples] == [False] * 12 + [True] * 6
    for example in examples:
        row = example["row"]
        assert (example["label"], example["prediction"]) == (labels[truth[row]], labels[guess[row]])
        assert example["text"] == f"w{row + 1} | w7" and example["line"] == row + 1
    sure = [max(example["probabilities"].values()) for example in examples[:12]]
    assert sure == sorted(sure, reverse=True) and all(len(example["probabilities"]) <= 3 for example in examples)
    json.dumps(kept[0])


def test_of_very_many_classes_the_pairs_that_are_confused_most_are_kept() -> None:
    labels = [str(number) for number in range(50)]
    matrix = np.diag([9] * 50)
    matrix[3, 4], matrix[7, 1] = 5, 6
    found = bounded({"classes": {}, "confusion_matrix": matrix.tolist()}, labels)
    assert found == {"classes": {}, "confused": [["7", "1", 6], ["3", "4", 5]]}
    assert "confusion_matrix" in bounded({"confusion_matrix": [[1, 2], [0, 4]]}, ["a", "b"]) and bounded({}, []) == {}


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"label": "a", "prediction": "a"}, True),
        ({"label": ["x", "y"], "prediction": ["x"]}, False),
        ({"label": 1.5, "prediction": 1.5}, None),
        ({"answers": ["The Sea"], "prediction": "sea."}, True),
        ({"answers": [], "prediction": ""}, True),
        ({"answers": ["sea"], "prediction": "land"}, False),
        ({"reference": "a", "prediction": "a"}, None),
        ({"tokens": 3, "accuracy": 0.5}, None),
    ],
)
def test_right_and_wrong_are_said_of_what_can_be_either(row: dict[str, Any], right: bool | None) -> None:
    assert is_right(row) is right


def test_rows_that_are_neither_right_nor_wrong_are_ranked_by_how_far_off_they_are() -> None:
    task = build_task(TextClassification(type="text-classification", text_columns=["t"], problem_type="regression"))
    truth = np.arange(40, dtype=np.float32)
    found = keep_predictions(task, split_of(40), (truth + truth**2 / 100)[:, None], truth, [], Words())
    assert [example["row"] for example in found["examples"]] == [*range(39, 27, -1), 5, 4, 3, 2, 1, 0]
    counts = np.array([[0, 4], [4, 4], [2, 4], [0, 0]])
    lm = build_task(raytrain_nlp.load_job({"task": {"type": "causal-lm"}, "model": {"name_or_path": "m"},
                                           "data": {"train": "a"}}).task)  # fmt: skip
    rows = keep_predictions(lm, split_of(4), counts, None, [], Words())["examples"]
    assert [row["row"] for row in rows] == [0, 2, 1], "a row without tokens is none"
    assert text_of(np.array([0]), Words()) == "" and len(text_of(np.arange(1, 999), Words())) < 700


def test_the_best_steps_predictions_are_kept_while_later_ones_are_scored(tmp_path: Path) -> None:
    feed: Any = SimpleNamespace(scored_step=None, scored={}, scored_best={})
    for step, best in ((10, None), (20, 10), (30, 10), (40, 30)):
        Feed.begin_scoring(feed, step, best)
        feed.scored_step, feed.scored[""] = step, (step, step)
    assert feed.scored_best == {30: {"": (30, 30)}}
    Feed.begin_scoring(feed, 40, 40)
    assert feed.scored_best == {30: {"": (30, 30)}}, "another set of the same step"


def test_no_run_ends_over_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feed: Any = SimpleNamespace(task=None, eval_loaders={})
    write_predictions(tmp_path / "p.json", 3, {"": (None, None)}, feed, [], None)
    assert "Traceback" in capsys.readouterr().err and not (tmp_path / "p.json").exists()
    write_predictions(tmp_path / "p.json", 3, {}, feed, ["a"], None)
    assert json.loads((tmp_path / "p.json").read_text()) == {"step": 3, "labels": ["a"], "sets": {}}


# The page's pieces


def kept(**more: Any) -> predictions.Kept:
    given = {"name": "", "labels": ["no", NASTY], "report": {}, "examples": [], "looked_at": 9}
    return predictions.Kept(**{**given, **more})


def test_a_matrix_and_a_class_table_have_the_counts_in_their_places() -> None:
    text = predictions.confusion_matrix(kept(report={"confusion_matrix": [[5, 1], [2, 1234]]}))
    (table,) = Reader(text).tables
    assert (
        [row[1:] for row in table[1:]] == [["5", "1"], ["2", "1,234"]] and table[1][0] == "no" and "<script" not in text
    )
    classes = {"no": {"precision": 0.5, "recall": 1.0, "f1-score": 2 / 3, "support": 6.0}, "accuracy": 0.9}
    (table,) = Reader(predictions.class_table(kept(report={"classes": classes}))).tables
    assert table[1:] == [["no", "0.5", "1", "0.6667", "6"]]
    (table,) = Reader(predictions.confusion_matrix(kept(report={"confused": [["a", "b", 3]]}))).tables
    assert table[1:] == [["a", "b", "3"]]


def test_examples_are_text_whatever_they_hold() -> None:
    example = {"row": 4, "source": f"/d/{NASTY}", "line": 5, "text": NASTY, "right": False, "label": "no",
               "prediction": NASTY, "probabilities": {NASTY: 0.91, "no": 0.09}}  # fmt: skip
    text = predictions.example_table(kept(examples=[example]))
    assert "script" not in Reader(text).tags and not Reader(text).loads
    row = Reader(text).tables[0][1]
    assert row[0] == "wrong" and row[1] == row[3] == NASTY and row[2] == "no" and row[4].endswith("no 9%")
    told = predictions.example_table(
        kept(examples=[{"row": 0, "text": "t", "right": None, "label": 1.5, "prediction": 2.25}])
    )
    assert "went worst" in told and Reader(told).tables[0][1][2:4] == ["1.5", "2.25"]


def test_predictions_are_the_runs_own_else_those_of_the_newest_evaluate(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "x")
    run = find_run(folder)
    assert "raytrain-nlp evaluate RUN" in predictions.predictions_html(run) and predictions.evaluations(run) == ""
    (folder / "generated_predictions.jsonl").write_text('{"prediction": "a <b>", "reference": "c"}\n')
    assert Reader(predictions.generated_texts(run)).tables[0][1] == ["a <b>", "c"]
    scored_folder = folder / "evaluations" / "model-1"
    scored_folder.mkdir(parents=True)
    result = {"weights": "model", "data": "v.jsonl", "rows": 6, "metrics": {"eval_accuracy": 0.5, "eval_runtime": 2.0},
              "report": {"confusion_matrix": [[1, 2], [3, 0]]}, "labels": ["a", "b"]}  # fmt: skip
    (scored_folder / "evaluation.json").write_text(json.dumps(result))
    assert [found.report for found in predictions.read_predictions(run)] == [result["report"]]
    assert Reader(predictions.evaluations(run)).tables[0][1] == ["model", "v.jsonl", "6", "accuracy 0.5"]
    own = {"labels": ["a", "b"], "sets": {"": {"report": {"confusion_matrix": [[9, 0], [0, 9]]}, "looked_at": 18}}}
    (folder / "predictions.json").write_text(json.dumps(own))
    assert [found.report["confusion_matrix"][0][0] for found in predictions.read_predictions(run)] == [9]
    (folder / "predictions.json").write_text("{ damaged")
    assert len(predictions.read_predictions(run)) == 1


def test_keys_in_which_runs_differ_costs_and_plans(tmp_path: Path) -> None:
    setting = {"needs": 2e9, "available": 4e9, "reason": "fastest setting that fits: ZeRO 1"}
    one = find_run(
        write_run(
            tmp_path,
            "one",
            setting=setting,
            plan={"steps": 40, "seconds": 6000.0},
            host="h1",
            ended="2026-01-02T03:04:05",
        )
    )
    other = find_run(write_run(tmp_path, "two"))
    job = other.job.model_copy(update={"training": {**other.job.training, "learning_rate": 0.5}})
    other = SimpleNamespace(job=job, record=other.record, result={}, paths=other.paths, mlflow_run_id=None)  # type: ignore[assignment]
    assert tables.differing_keys(["a"], [one]) == "" and "are the same" in tables.differing_keys(["a", "b"], [one, one])
    (table,) = Reader(tables.differing_keys(["a", "b"], [one, other])).tables
    assert table == [["key", "a", "b"], ["training.learning_rate", "0.001", "0.5"]]
    from raytrain_nlp.reporting.history import History

    history = History(figures={"tokens_per_second": {1: 100.0, 2: 300.0}, "mfu": {1: 0.25}}, seconds=7200,
                      peak_memory=[10**9, 15 * 10**8], checkpoint_seconds=[1.0, 3.0])  # fmt: skip
    history.figures["loss"] = {40: 1.0}
    costs = dict(Reader(tables.costs(["a"], [one], [history], 3.5)).tables[0][1:])
    assert costs["cost"] == "7.00" and costs["tokens a second"] == "200" and costs["use of the GPU (MFU)"] == "25.0%"
    assert costs["checkpoints"] == "2, of 2 s on average" and costs["time"] == "2 h 0 min"
    plan = dict(Reader(tables.planned(["a"], [one], [history])).tables[0][1:])
    assert plan["memory of a worker, planned"] == "2,000 MB of 4,000 MB" and plan["that is, of the plan"] == "75%"
    assert (plan["steps planned"], plan["steps made"]) == ("40", "40")
    assert plan["time planned (check --calibrate)"] == "1 h 40 min" and plan["time taken, of the plan"] == "120%"
    assert tables.planned(["a"], [other], [History()]) == "", "a run of before has no plan"
    assert dict(Reader(tables.origin(["a"], [one])).tables[0][1:])["driver's host"] == "h1"


def test_a_thinned_line_keeps_its_ends_and_its_peaks() -> None:
    y = [1.0] * 10_000
    y[4321], y[7000] = 50.0, -50.0
    x, kept_y = charts.thinned(range(10_000), y, 100)
    assert len(x) <= 102 and (x[0], x[-1]) == (0, 9999) and {50.0, -50.0} <= set(kept_y) and x == sorted(x)
    assert charts.thinned([1, 2], [3, 4], 2) == ([1, 2], [3, 4])


def test_numbers_and_times_are_for_people() -> None:
    assert [markup.number(value) for value in (0.123456, 12345.0, 7, float("nan"), 1e30)] == [
        "0.1235", "12,345", "7", "nan", "1e+30",
    ]  # fmt: skip
    assert [markup.duration(value) for value in (59, 61, 7260)] == ["59 s", "1 min 1 s", "2 h 1 min"]
    assert (
        markup.cell("0.123456") == "0.1235"
        and markup.cell("y" * 200).endswith("...")
        and markup.cell("1.2.3") == "1.2.3"
    )


# The whole page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not drawn, which takes seconds."""
    monkeypatch.setattr(drawings, "draw_panel", lambda panel: b"png")


def loads(text: str) -> list[str]:
    return [source for source in Reader(text).loads if not source.startswith("data:")]


def test_a_page_is_whole_small_and_in_both_lights(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path, "resumed", resumed_at=10, result={"metrics": {"eval_accuracy": 0.875}, "labels": [NASTY]}
    )
    text = Path(report(folder).page).read_text()
    assert len(text) < 2_000_000 and loads(text) == [] and NASTY not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text and 'http-equiv="refresh"' not in text
    assert re.search(r'<p class="verdict">Accuracy 0.875', text) and "How this is judged" in text
    assert text.count('<figure class="still">') == len(list(folder.glob("report-*.png"))) == 6
    if interactive.available():
        assert 'class="charts live"' in text and "Bokeh" in text


def test_without_bokeh_a_page_has_its_pictures_and_no_script(
    tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactive, "available", lambda: False)
    text = Path(report(write_run(tmp_path, "x")).page).read_text()
    assert "script" not in Reader(text).tags and text.count("data:image/png;base64,") == 5


def test_sections_stand_in_the_order_in_which_one_reads_them(tmp_path: Path, undrawn: None) -> None:
    run = find_run(write_run(tmp_path, "x", resumed_at=10))
    text = build_page(Shown(["x"], [run], [read_history(run)], {}, 2.0), refresh_s=7, stills=False).html
    assert 'http-equiv="refresh" content="7"' in text
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    wanted = ["Result", "Training loss", "Evaluation", "Predictions", "Steps over time", "Time and cost",
              "The plan, and what was", "Data", "Where it comes from", "x"]  # fmt: skip
    assert [title for title in titles if title in wanted] == [title for title in wanted if "plan" not in title]
    assert text.index('class="verdict"') < text.index("<h2>")


def test_a_page_of_many_runs_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures that would make it too large it says where they are; their names stay, and what moves."""
    pytest.importorskip("bokeh")
    monkeypatch.setattr(drawings, "draw_panel", lambda panel: bytes(90_000))
    runs = [write_run(tmp_path, f"run-{number}", steps=200) for number in range(8)]
    result = report(runs, tmp_path / "many.html")
    text = Path(result.page).read_text()
    assert len(text.encode()) < 2_000_000 and 0 < text.count('class="still"') < len(result.pictures)
    assert "beside this page (-learning-rate.png)" in text and (tmp_path / "many-learning-rate.png").exists()


def test_figures_move_where_bokeh_is(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    chart = charts.Chart("t", "step", "loss", [charts.Line(NASTY, [1, 2], [3, 4], "#123456")],
                         [charts.Mark(1, "#123456", NASTY)], [charts.Mark(2, "#123456", "saved")])  # fmt: skip
    parallel = charts.Parallel("", [charts.Axis("a", [0, 1], ("0", "1")), charts.Axis("b", [1, 0], ("0", "1"))],
                               ["one", NASTY], 1)  # fmt: skip
    panels = [charts.Panel("p", "t", "s", [chart, charts.Bars("", "share", ["k"], [0.5]), parallel])]
    elements, script = interactive.charts_html(panels)
    assert len(elements["p"]) == 3 and "alert(1)</script>" not in script and loads("".join(elements["p"])) == []
    figure = interactive.build_figure(parallel, None)
    assert figure.renderers[0].data_source.data["color"] == [charts.COLORS[0], charts.BEST], "the best one above all"
    assert figure.renderers[0].data_source.data["ys"] == [[0, 1], [1, 0]]
    assert interactive.plain("$$x$$ \\[y\\]").replace("\u2060", "") == "$$x$$ \\[y\\]", "TeX would be fetched for"
    assert not re.search(r"\$\$|\\[\[(]", interactive.plain("$$x$$ \\[y\\] \\(z\\)"))


SPACE = {"training.learning_rate": {"loguniform": [1e-5, 1e-1]}, "lora.r": {"choice": [4, 8, 16]}}


def trials(*statuses: str) -> list[dict[str, Any]]:
    return [
        {
            "params": {"training.learning_rate": 10.0 ** -(number + 1), "lora.r": 8},
            "status": status,
            "metrics": {"eval_accuracy": 0.5 + number / 10},
            "history": [{"step": 15, "eval_accuracy": 0.4}, {"step": 30, "eval_accuracy": 0.5 + number / 10}],
        }
        for number, status in enumerate(statuses)
    ]


def test_a_sweeps_page_marks_the_best_trial_everywhere(tmp_path: Path, undrawn: None) -> None:
    folder = write_sweep(tmp_path, "tuned", trials("finished", "finished", "failed"), SPACE, result={"best_trial": 1})
    result = report(folder)
    text = Path(result.page).read_text()
    rows = next(found for found in Reader(text).tables if found[0][0] == "trial")
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"] and "<tr class=best><td>1</td>" in text
    assert "The sweep took 4 min 20 s, its trials 3 min 0 s together" in text and "What to try next" in text
    names = {Path(picture).name for picture in result.pictures}
    assert {"report-parallel-coordinates.png", "report-metric-over-steps.png", "report-loss.png"} <= names
    from raytrain_nlp.paths import SweepPaths
    from raytrain_nlp.reporting.sweep_story import read_sweep

    story = read_sweep(SweepPaths(folder.parent, "tuned"))
    assert story.config is not None
    found = {panel.name: panel for panel in sweep_panels.sweep_panels(story.config, story.trials, 1, {"lora.r": 0.2})}
    for chart in (*found["metric-over-steps"].charts, *found["metric-against-keys"].charts):
        best = [line for line in chart.lines if line.color == charts.BEST]  # type: ignore[union-attr]
        assert len(best) == 1 and best[0].y[-1] == 0.6
    assert found["importance"].charts[0].names == ["lora.r"]  # type: ignore[union-attr]


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path: Path, undrawn: None) -> None:
    folder = write_sweep(tmp_path, "new", trials("running"), SPACE, status="running")
    text = Path(report(folder).page).read_text()
    assert "No trial has finished yet" in text and loads(text) == []


# --serve, --open


def fetch(address: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_served_page_follows_its_run_and_ends_with_the_block(
    tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactive, "available", lambda: False)
    folder = write_run(tmp_path, "x", status="running", result={})
    before = set(threading.enumerate())
    with serve_report(folder) as address:
        assert address.startswith("http://127.0.0.1:")
        status, text = fetch(address)
        assert status == 200 and "Still running, at step 30" in text and 'http-equiv="refresh" content="10"' in text
        with (folder / "events.jsonl").open("a") as events:
            events.write(json.dumps({"kind": "log", "time": 99_000, "step": 31, "metrics": {"loss": 0.1}}) + "\n")
        assert "Still running, at step 31" in fetch(address)[1]
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "status": "finished"}))
        os.utime(folder / "run.json", ns=(1, 1))
        assert "refresh" not in fetch(address)[1]
        assert fetch(address, "elsewhere.example")[0] == 404 and fetch(address + "run.json")[0] == 404
        with (
            pytest.raises(InputError, match="--port: cannot be listened on"),
            serve_report(folder, int(address.rpartition(":")[2].strip("/"))),
        ):
            pass
    assert not {thread for thread in set(threading.enumerate()) - before if not thread.daemon}
    with pytest.raises(OSError):
        fetch(address)


def test_a_page_that_cannot_be_made_now_is_said_and_asked_for_again() -> None:
    pages = iter([ValueError(NASTY), "whole"])

    def make() -> str:
        found = next(pages)
        if isinstance(found, Exception):
            raise found
        return found

    with served(make, lambda: 1, 0) as address:
        status, text = fetch(address)
        assert status == 503 and "Not yet" in text and "<script>alert" not in text
        assert fetch(address) == (200, "whole") == fetch(address)


def test_options_of_the_command(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    folder, command = str(write_run(tmp_path, "x")), CliRunner()
    done = command.invoke(app, ["report", folder, "--open", "--price", "2"])
    assert done.exit_code == 0 and opened == [(Path(folder) / "report.html").as_uri()]
    for options, where in (
        (["--port", "1"], "--port"),
        (["--serve", "-o", "x"], "--serve"),
        (["--price", "-1"], "--price"),
    ):
        done = command.invoke(app, ["report", folder, *options])
        assert isinstance(done.exception, InputError) and done.exception.problems[0].where == where
    waited = threading.Event()

    def interrupted() -> None:
        waited.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "raytrain_nlp.cli.report.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupted))
    )
    done = command.invoke(app, ["report", folder, "--serve", "--open", "--json"])
    assert done.exit_code == 0 and waited.is_set() and opened[-1].startswith("http://127.0.0.1:")
    assert json.loads(done.stdout.splitlines()[-1]) == {"address": opened[-1]}


def test_a_run_of_before_has_a_page(tmp_path: Path, undrawn: None) -> None:
    """Without a plan, a host, predictions; and one that has left nothing but its record."""
    folder = write_events(tmp_path, "old", [], result=None, status="failed")
    assert "Failed at step 0" in Path(report(folder).page).read_text()
