"""What the command `raytrain-nlp` starts: ready for a Ctrl-C before anything that takes time is imported."""

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
