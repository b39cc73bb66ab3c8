"""Write what is generated in this repository: `python -m tests.generate`, after a key, a task or a test has changed.

`tests/unit/test_generated.py` fails where a file is not what this would write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from raytrain_nlp.cli.keys import render_page, render_schema  # noqa: E402
from tests.support_matrix import render_matrix  # noqa: E402

COMMAND = "python -m tests.generate"
GENERATED: dict[str, Callable[[], str]] = {
    "jobs/job.schema.json": render_schema,
    "raytrain_nlp/guide/keys.md": render_page,
    "raytrain_nlp/guide/support.md": render_matrix,
}
"""File -> what makes its text."""


def main() -> None:
    for name, render in GENERATED.items():
        path, text = ROOT / name, render()
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"written: {name}")


if __name__ == "__main__":
    main()
