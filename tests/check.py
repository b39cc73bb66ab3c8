"""What must hold before anything else is asked: style, format, types, unit tests.

    python -m tests.check              all of it, under three minutes on two cores
    python -m tests.check --only NAME  one of: style, format, types, unit

The type checker runs beside the unit tests. Ends with exit code 1 where anything fails; all of it is tried first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKS = {
    "style": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "types": ["-m", "mypy"],
    "unit": ["-m", "pytest", "tests/unit"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CHECKS, action="append")
    chosen = parser.parse_args().only or list(CHECKS)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        said = {name: Path(folder) / name for name in chosen}
        running = {name: _start(name, said[name]) for name in chosen if name != "unit"}
        if "unit" in chosen:
            running["unit"] = _start("unit", None)
        failed = [name for name, process in running.items() if process.wait()]
        for name in chosen:
            if name in failed and name != "unit":
                print(f"--- {name}\n{said[name].read_text()}", flush=True)
    print(
        f"{', '.join(failed)} failed" if failed else f"{', '.join(chosen)}: well",
        f"({time.monotonic() - started:.0f} s)",
    )
    return 1 if failed else 0


def _start(name: str, output: Path | None) -> subprocess.Popen[bytes]:
    """Of unit tests the output is shown while they run; that of the others is kept, for where they fail."""
    with open(output or "/dev/null", "wb") as file:
        return subprocess.Popen(
            [sys.executable, *CHECKS[name]],
            cwd=ROOT,
            stdout=file if output else None,
            stderr=subprocess.STDOUT if output else None,
        )


if __name__ == "__main__":
    sys.exit(main())
