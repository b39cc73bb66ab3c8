"""`raytrain-nlp export RUN`."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

HELP = (
    "Write a run's model as a plain Hugging Face directory: the final model or a checkpoint, adapter merged on request."
)


def run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or of a sweep (its best trial).")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="WHICH", help="best, last or a step. Default: the model the run ended with."
        ),
    ] = None,
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="Merge the adapter into the base model.")] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="fp32, bf16 or fp16. Default: as trained.")
    ] = None,
    register: Annotated[
        str | None, typer.Option("--register", metavar="NAME", help="Register it in MLflow under this name.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Add files to serve it with Ray Serve, a language model with vLLM too.")
    ] = False,
    gguf: Annotated[
        str | None, typer.Option("--gguf", metavar="TYPE", help="Add a GGUF file: auto, f32, f16, bf16 or q8_0.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a new repository is private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence in the model card, e.g. apache-2.0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Export a run."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_next, print_rows
    from raytrain_nlp.verbs.export import export

    with TerminalObserver(verbose=False) as observer:
        result = export(
            run,
            output,
            checkpoint=checkpoint,
            merge_lora=merge_lora,
            dtype=dtype,
            register=register,
            serve=serve,
            gguf=gguf,
            push=push,
            private=private,
            license=license,
            overwrite=overwrite,
            observer=observer,
        )
    kind = (
        f"{'adapter' if result.adapter else 'model'} of {result.source}, {result.dtype}, "
        f"{result.size_bytes / 1e6:,.1f} MB"
    )
    registered = {"registered": f"{register}, version {result.model_version}"} if result.model_version else {}
    made = {"GGUF": result.gguf_file, "on the hub": result.commit_url}
    print_rows(
        {"written": result.output, "what": kind, **registered, **{key: text for key, text in made.items() if text}}
    )
    if result.serve_file:
        print_next(f"serve run {shlex.quote(result.serve_file)}")
    if as_json:
        print(json.dumps(result.to_dict()))
