"""The verbs of the command line and their exit codes. Errors are printed here and nowhere else."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from raytrain_nlp.cli import certify, check, doctor, evaluate, export, init, keys, predict, report, submit, train
from raytrain_nlp.cli.from_hf import verb
from raytrain_nlp.cli.sweep import verb as sweep
from raytrain_nlp.errors import InputError, RunError, Stopped
from raytrain_nlp.host import signals
from raytrain_nlp.redaction import masked
from raytrain_nlp.storage.disk import of_disk

GROUPS = {
    "To begin": ("init", "from-hf", "keys", "doctor"),
    "To train": ("check", "train", "sweep", "certify"),
    "After training": ("evaluate", "predict", "export", "report"),
    "On a cluster": ("submit", "status", "logs", "stop"),
}
"""Heading -> verbs, as `--help` lists them."""


class Verbs(typer.core.TyperGroup):
    """Typer's group of verbs; `--help` lists them under the headings of `GROUPS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading, names in GROUPS.items():
            rows = [(name, self.commands[name].get_short_help_str(formatter.width)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)


app = typer.Typer(
    name="raytrain-nlp",
    cls=Verbs,
    help="Fine-tune and pre-train Hugging Face NLP models on a Ray cluster from one job file.",
    epilog="A command's own help: raytrain-nlp COMMAND --help. Guides and figures: README.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("check", help=check.HELP)(check.run)
app.command("train", help=train.HELP)(train.run)
app.command("sweep", help=sweep.HELP)(sweep.run)
app.command("certify", help=certify.HELP)(certify.run)
app.command("evaluate", help=evaluate.HELP)(evaluate.run)
app.command("predict", help=predict.HELP)(predict.run)
app.command("export", help=export.HELP)(export.run)
app.command("report", help=report.HELP)(report.run)
app.command("submit", help=submit.HELP)(submit.run)
app.command("status", help=submit.STATUS_HELP)(submit.status)
app.command("logs", help=submit.LOGS_HELP)(submit.logs)
app.command("stop", help=submit.STOP_HELP)(submit.stop)
app.command("init", help=init.HELP)(init.run)
app.command("keys", help=keys.HELP)(keys.run)
app.command("doctor", help=doctor.HELP)(doctor.run)
app.command("from-hf", help=verb.HELP, context_settings=verb.SETTINGS)(verb.run)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(version("raytrain-nlp"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before the verb."""


def main() -> None:
    """Run the command line and exit with a code: 0 = done, 1 = the run failed, 2 = the user's input is wrong, 130 =
    stopped by Ctrl-C (by another signal: 128 + its number).
    """
    with signals.handled(to_the_end=True):
        try:
            code = app(standalone_mode=False)
        except InputError as error:
            code = _print_errors(2, *error.problems)
        except Stopped as error:
            code = _print_errors(signals.exit_code(), error)
        except RunError as error:
            code = _print_errors(1, error)
        except (KeyboardInterrupt, typer.Abort):
            code = _print_errors(signals.exit_code(), "stopped.")
        except Exception as error:  # a bug, or a fault of the machine: the traceback is for the report  # noqa: BLE001
            if hasattr(error, "format_message"):  # a usage error of typer's
                _exit_usage(error)
            if isinstance(error, OSError) and (told := of_disk(error)):
                code = _print_errors(1, told)
            else:
                print(masked(traceback.format_exc()), file=sys.stderr)
                code = _print_errors(1, f"unexpected {type(error).__name__}: {error}")
        sys.exit(code)


def _print_errors(code: int, *problems: object) -> int:
    """Print each problem as a line to standard error, and return `code`. A stop by the user has no `error:` before
    it.
    """
    for problem in problems:
        print(f"{'error: ' if code < 128 else ''}{_one_line(problem)}", file=sys.stderr)
    return code


def _exit_usage(error: Any) -> NoReturn:
    """Print a wrong verb, flag or argument as one line like other errors, and exit with 2. Without any arguments, print
    the help.
    """
    if "NoArgs" in type(error).__name__:
        error.show()
    else:
        text = _one_line(error.format_message())
        print(f"error: {text}{'' if text.endswith(('?', '.')) else '.'} Try --help.", file=sys.stderr)
    sys.exit(2)


def _one_line(value: object) -> str:
    return masked(" ".join(str(value).split()))


if __name__ == "__main__":
    main()
