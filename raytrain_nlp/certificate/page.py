"""A certificate as `certificate.json`, signed by a hash, and as `certificate.md` for people."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raytrain_nlp.certificate.checks import DIFFERS, NOT_SHOWN, SHOWN, Check
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.paths import write_json
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.storage.untrusted import read_json_file

JSON, PAGE, HASH = "certificate.json", "certificate.md", "sha256"
FORMAT = 1
_SIGNED = (
    "The SHA-256 is that of the JSON without its key `sha256`: keys sorted, no spaces, UTF-8. "
    "`raytrain-nlp certify --check certificate.json` computes it again."
)


def hash_of(certificate: Mapping[str, Any]) -> str:
    """SHA-256 of a certificate without its hash: 64 hexadecimal digits."""
    bare = {key: value for key, value in certificate.items() if key != HASH}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def as_values(check: Check) -> dict[str, Any]:
    """A check for JSON, which has no infinity."""
    figure = check.figure
    return {**asdict(check), "figure": None if figure is None or math.isinf(figure) else figure}


def verdict_of(checks: list[Check]) -> str:
    """`all shown`, or how many differ; and how many are not shown."""
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in (SHOWN, DIFFERS, NOT_SHOWN)}
    parts = [f"{counts[DIFFERS]} differ" if counts[DIFFERS] else "nothing differs", f"{counts[SHOWN]} shown"]
    return ", ".join([*parts, f"{counts[NOT_SHOWN]} not shown"] if counts[NOT_SHOWN] else parts)


def write_certificate(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sign a certificate and write both files; the certificate with its hash."""
    signed = {"format": FORMAT, **values}
    signed[HASH] = hash_of(signed)
    write_json(folder / JSON, signed)
    with replacing(folder / PAGE, errors="backslashreplace") as file:
        file.write(page_of(signed))
    return signed


def check_certificate(path: Path) -> dict[str, Any]:
    """Read a certificate whose hash is right.

    Raises:
        InputError: there is no such file, or it is no certificate.
        RunError: it has been changed since it was signed.
    """
    try:
        values = read_json_file(path)
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})", f"Name a {JSON}.")) from None
    except (ValueError, RecursionError):
        raise InputError(Problem(str(path), "is no JSON", f"Name a {JSON}.")) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get(HASH), str):
        raise InputError(Problem(str(path), "is no certificate of this version", f"Name a {JSON}."))
    try:
        found = hash_of(values)
    except ValueError:  # NaN, which was never written
        found = "none: it holds what no certificate holds"
    if found != values[HASH]:
        raise RunError(f"{path}: was changed after it was signed: its SHA-256 is {found}, it says {values[HASH]:.64}.")
    return values


def page_of(signed: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    runs, kills, machine = signed["runs"], signed["kills"], signed["machine"]
    head = [
        f"# Certificate: {signed['name']}",
        "",
        f"**{signed['verdict']}**, {signed['date']}, {signed['steps']} steps, seed {signed['seed']}, "
        f"{signed['seconds']:.0f} s.",
        "",
        f"Not as in the job: {signed['changed']}.",
    ]
    shown = [
        [
            check["run"],
            check["what"],
            check["verdict"],
            _figure(check["figure"]),
            f"{check['compared']:,}",
            check["note"],
        ]
        for check in signed["checks"]
    ]
    killed = [
        [
            kill["what"] if kill["rank"] is None else f"{kill['what']} {kill['rank']}",
            str(kill["planned"]),
            "not killed: " + kill["why_not"] if kill["step"] is None else str(kill["step"]),
            "" if kill["resumed"] is None else str(kill["resumed"]),
        ]
        for kill in kills
    ]
    ran = [
        [name, str(run["workers"]), str(run["steps"]), str(run["made_again"]), f"{run['seconds']:.0f}"]
        for name, run in runs.items()
    ]
    blocks = [
        ["## What was shown", "", *_table(["run", "what", "verdict", "largest difference or count", "of", ""], shown)],
        ["## Killed by SIGKILL", "", *_table(["what", "planned in step", "in step", "went on from step"], killed)],
        ["## Runs", "", *_table(["run", "workers", "steps", "steps made again", "seconds"], ran)],
        ["## Versions", "", *_table(["", ""], [[name, text] for name, text in signed["versions"].items()])],
        ["## Machine", "", *_table(["", ""], [[name, str(text)] for name, text in machine.items()])],
        ["## Job", "", "```json", json.dumps(signed["job"], indent=1, ensure_ascii=False), "```"],
        ["## Signed", "", f"`{signed[HASH]}`", "", _SIGNED],
    ]
    return "\n".join([*head, *(line for block in blocks for line in ("", *block))]) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(head), f"|{'---|' * len(head)}", *map(line, rows)]
