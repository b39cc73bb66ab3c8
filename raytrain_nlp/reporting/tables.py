"""The tables of a report: a line for each figure, a column for each run."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.config import public_values
from raytrain_nlp.reporting.history import History
from raytrain_nlp.reporting.markup import duration, esc, megabytes, number, shortened, table
from raytrain_nlp.reporting.recoveries import read_recoveries, recovery_rows
from raytrain_nlp.run.record import flatten
from raytrain_nlp.run.saved_run import Run

_HOUR = 3600
_NOT_COMPARED = ("name", "storage_path", "kind", "tracking")


def _by_run(names: list[str], columns: list[dict[str, str]]) -> str:
    keys = dict.fromkeys(key for column in columns for key in column)
    return table(["", *names], [[key, *(column.get(key, "") for column in columns)] for key in keys])


def summary(names: list[str], runs: list[Run], histories: list[History]) -> str:
    """How each run ended, and its figures."""
    columns = []
    for run, history in zip(runs, histories, strict=True):
        metrics = {
            key: value
            for key, value in run.result.get("metrics", {}).items()
            if key.startswith("eval_") and "second" not in key and "runtime" not in key
        }
        latest = {name: history.line(name)[1][-1] for name in history.evaluated}
        majority = run.result.get("majority_accuracy")
        best = run.result.get("best_step")
        columns.append(
            {
                "how it ended": str(run.record.get("status", "unknown")),
                "task": run.job.task.type,
                "model": run.job.model.name_or_path or f"{run.job.model.model_type} from scratch",
                "workers": f"{run.job.workers.num_workers}, ZeRO "
                f"{run.job.deepspeed.zero_stage}{', LoRA' if run.job.lora else ''}",
                "steps": f"{history.last_step:,}",
                **({"best step": f"{best:,}"} if best else {}),
                "restarts": f"{len(history.restarts)}"
                + (f", {history.repeated:,} steps done again" if history.repeated else ""),
                **{key: number(value) for key, value in sorted((metrics or latest).items())},
                **(
                    {"accuracy of always answering the most frequent label": number(majority)}
                    if majority is not None
                    else {}
                ),
            }
        )
    return _by_run(names, columns)


def costs(names: list[str], runs: list[Run], histories: list[History], price: float | None) -> str:
    """Time, throughput and money. `price`: of an hour of all workers together."""
    columns = []
    for history in histories:
        rate, gpu, mfu, step, waited = (
            history.mean(name)
            for name in ("tokens_per_second", "tokens_per_second_per_gpu", "mfu", "time/step", "data_wait_share")
        )
        saving = history.checkpoint_seconds
        columns.append(
            {
                "time": duration(history.seconds),
                **({"tokens a second": f"{rate:,.0f}"} if rate is not None else {}),
                **({"tokens a second of a GPU": f"{gpu:,.0f}"} if gpu is not None else {}),
                **({"use of the GPU (MFU)": f"{mfu:.1%}"} if mfu is not None else {}),
                **({"time of a step": f"{step:.3g} s"} if step is not None else {}),
                **({"waiting for data": f"{waited:.1%} of the time"} if waited is not None else {}),
                **(
                    {"checkpoints": f"{len(saving)}, of {sum(saving) / len(saving):.2g} s on average"} if saving else {}
                ),
                **({"cost": f"{history.seconds / _HOUR * price:,.2f}"} if price is not None else {}),
            }
        )
    return _by_run(names, columns)


def restarts(names: list[str], runs: list[Run]) -> str:
    """What restarts took by phase; nothing where there were none."""
    columns = [recovery_rows(read_recoveries(run)) for run in runs]
    return _by_run(names, columns) if any(columns) else ""


def planned(names: list[str], runs: list[Run], histories: list[History]) -> str:
    """What was planned beside what was; nothing where no plan was kept."""
    columns: list[dict[str, str]] = []
    for run, history in zip(runs, histories, strict=True):
        setting, plan = run.record.get("setting") or {}, run.record.get("plan") or {}
        column = {}
        if plan.get("steps"):
            column["steps planned"] = f"{plan['steps']:,}"
            column["steps made"] = f"{history.last_step:,}"
        if plan.get("seconds"):
            column["time planned (check --calibrate)"] = duration(plan["seconds"])
            column["time taken"] = duration(history.seconds)
            if history.last_step >= plan["steps"] and history.seconds:
                column["time taken, of the plan"] = f"{history.seconds / plan['seconds']:.0%}"
        if setting.get("needs"):
            column["memory of a worker, planned"] = (
                f"{megabytes(setting['needs'])} of {megabytes(setting['available'])}"
            )
        if history.peak_memory:
            peak = max(history.peak_memory)
            column["memory of a worker, at most"] = megabytes(peak)
            if setting.get("needs"):
                column["that is, of the plan"] = f"{peak / setting['needs']:.0%}"
        if setting.get("reason"):
            column["why this setting"] = setting["reason"]
        columns.append(column)
    return _by_run(names, columns) if any(columns) else ""


def origin(names: list[str], runs: list[Run]) -> str:
    """When, where and with what."""
    columns = []
    for run in runs:
        record = run.record
        uri = run.result.get("tracking_uri") or run.job.tracking.tracking_uri or ""
        columns.append(
            {
                "begun": _date(record.get("created")),
                **({"ended": _date(record["ended"])} if record.get("ended") else {}),
                **({"driver's host": str(record["host"])} if record.get("host") else {}),
                **({"drivers": str(record["drivers"])} if record.get("drivers", 1) > 1 else {}),
                "folder": run.paths.address,
                **({"MLflow run": run.mlflow_run_id} if run.mlflow_run_id else {}),
                **({"MLflow": uri} if uri and run.mlflow_run_id else {}),
            }
        )
    return _by_run(names, columns)


def tracker_link(runs: list[Run]) -> str:
    """How to see the runs in MLflow: a link to its server, or the command that opens the database."""
    uris = dict.fromkeys(str(run.result.get("tracking_uri") or "") for run in runs if run.mlflow_run_id)
    parts = []
    for uri in filter(None, uris):
        if uri.startswith(("http://", "https://")):
            parts.append(f'<p>In MLflow: <a href="{esc(uri)}" rel="noreferrer">{esc(uri)}</a></p>')
        else:
            parts.append(f"<pre>mlflow ui --backend-store-uri {esc(uri)}</pre>")
    return "".join(parts)


def differing_keys(names: list[str], runs: list[Run]) -> str:
    """The keys of the job in which compared runs differ; nothing of one run."""
    if len(runs) < 2:
        return ""
    jobs = [
        flatten({key: part for key, part in public_values(run.job).items() if key not in _NOT_COMPARED}) for run in runs
    ]
    keys = sorted(key for key in {key for job in jobs for key in job} if len({repr(job.get(key)) for job in jobs}) > 1)
    if not keys:
        return "<p>Their jobs are the same.</p>"
    return table(["key", *names], [[key, *(_told(job, key) for job in jobs)] for key in keys])


def data(names: list[str], runs: list[Run]) -> str:
    """The rows of each split."""
    rows = []
    for name, run in zip(names, runs, strict=True):
        given = public_values(run.job)["data"]
        sets = given.get("validation")
        for split in (
            ("train", *(f"validation.{name}" for name in sets)) if isinstance(sets, dict) else ("train", "validation")
        ):
            counts = [run.result.get(key, {}).get(split) for key in ("rows", "bad_rows", "left_out", "cut_rows")]
            source = sets[split.partition(".")[2]] if "." in split else given.get(split)
            if source:
                cells = ["" if count is None else f"{count:,}" for count in counts]
                rows.append([name, split, str(source), *cells, _tokens(run, split)])
    return table(
        ["run", "split", "source", "rows used", "in quarantine", "left out", "cut", "tokens of a row, median"], rows
    )


def _tokens(run: Run, split: str) -> str:
    features = run.result.get("features", {}).get(split)
    lengths = run.record.get("lengths", {}).get(split, {})
    text = (
        f"{lengths['p50']:.0f} (95 % of rows up to {lengths['p95']:.0f}, longest {lengths['p100']:.0f})"
        if lengths
        else ""
    )
    if lengths.get("cut"):
        text += (
            f"; before cutting, those cut had {lengths['mean_before']:.0f} on average, the longest "
            f"{lengths['longest_before']:.0f}"
        )
    return text + (f"; {features:,} features" if features else "")


def _told(job: dict[str, Any], key: str) -> str:
    return shortened(str(job[key])) if key in job else "default"


def _date(text: object) -> str:
    """`2026-11-27T15:30:00+0100` for people."""
    return str(text or "").replace("T", " ")
