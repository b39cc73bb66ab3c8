"""`raytrain-nlp predict RUN`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
import yaml

from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.errors import InputError, Problem

STANDARD = "-"
HELP = (
    "Add a run's predictions to the rows of files: each row once, in their order. Run again after a kill, it continues."
)


def run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or of a sweep (its best trial).")],
    input_: Annotated[
        list[str],
        typer.Option(
            "--input", "-i", metavar="DATA", help="File, glob, folder, s3://, hf://; -: standard input. Repeatable."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write: .parquet, .jsonl or .csv; also s3://; -: standard output.",
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="WHICH", help="best, last or a step. Default: the model the run ended with."
        ),
    ] = None,
    generation: Annotated[
        list[str] | None,
        typer.Option(
            "--generation", metavar="KEY=VALUE", help="Argument of `generate`, e.g. max_new_tokens=64. Repeatable."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Rows of a forward pass at most. Default: on a GPU by tokens; else per_device_eval_batch_size.",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Put this before the names of the added columns.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE, and parts of another prediction.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key of the job; YAML value. Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Ray and the libraries print.")] = False,
) -> None:
    """Predict."""
    options = _options(generation or [])
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint,
        "generation": options,
        "batch_size": batch_size,
        "overrides": set_ or (),
    }
    if STANDARD in (output, *input_):
        _pipe(run, input_, output, prefix, as_json, arguments)
        return
    from raytrain_nlp.cli.terminal import TerminalObserver, print_rows
    from raytrain_nlp.verbs.predict import predict

    with TerminalObserver(verbose) as observer:
        result = predict(
            run, input_, output, prefix=prefix, overwrite=overwrite, verbose=verbose, observer=observer, **arguments
        )
    rows = {
        "written": result.output,
        "rows": f"{result.rows:,}",
        "rows without a prediction": str(result.errors),
        "rows in quarantine": str(result.bad_rows),
    }
    found = {"quarantine": result.quarantine} if result.bad_rows and result.quarantine else {}
    found |= {"rows made before": f"{result.found_rows:,}"} if result.found_rows else {}
    print_rows({**rows, **found, "seconds": f"{result.seconds:.1f}"})
    if as_json:
        print(json.dumps(result.to_dict()))


def _pipe(run: str, sources: list[str], output: str, prefix: str, as_json: bool, arguments: dict[str, Any]) -> None:
    """Predict the rows of standard input or of files in this process, and write them to standard output."""
    if output != STANDARD or (STANDARD in sources and len(sources) > 1) or as_json:
        what = "stands for standard input and output, which go together: rows in, the same rows out"
        raise InputError(Problem(STANDARD, what, "Write e.g. `... --input - --output - < in.jsonl > out.jsonl`."))
    from raytrain_nlp.cli.terminal import TerminalObserver
    from raytrain_nlp.verbs.predict_rows import load_predictor, predict_stream, rows_of_input

    with TerminalObserver(verbose=False) as observer:
        rows = rows_of_input(sources, sys.stdin.buffer, run, prefix)
        predictor = load_predictor(run, observer=observer, **arguments)
        result = predict_stream(predictor, rows, sys.stdout.buffer, prefix, observer)
    if result.errors or result.bad_rows:
        print(f"{result.errors} rows without a prediction, {result.bad_rows} left out", file=sys.stderr)


def _options(given: list[str]) -> dict[str, Any]:
    """A list of `key=value` as a dict; values are YAML. Raises `InputError` for another form."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(Problem("--generation", f"is not KEY=VALUE ({text})", "Write e.g. max_new_tokens=64."))
        try:
            options[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise InputError(Problem(f"--generation {key}", "the value is not YAML", "Quote it.")) from None
    return options
