"""The entry point of the command `raytrain-nlp`. It handles Ctrl-C from the beginning, also during slow imports."""

from __future__ import annotations

import sys

from raytrain_nlp.host import signals


def main() -> None:
    with signals.handled(to_the_end=True):
        try:
            from raytrain_nlp.cli.main import main as run
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            sys.exit(signals.exit_code())
        run()
