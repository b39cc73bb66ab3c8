"""What the command `raytrain-nlp` starts: ready for a Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

import sys

from raytrain_nlp.driver import interrupts


def main() -> None:
    with interrupts.handled(to_the_end=True):
        try:
            from raytrain_nlp.cli.main import main as run
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            sys.exit(interrupts.exit_code())
        run()
