"""Pieces of HTML. Whatever comes from a run, its data or its user is text, and is escaped here."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #4a5565; --paper: #fff; --rule: #e3e7ec; --box: #f5f7f9;
  --warn: #8a4b00; --good: #1f7a45; --bad: #b3372f; --accent: 31, 111, 180 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #a3adba; --paper: #14181d; --rule: #2f3742;
  --box: #1c2229; --warn: #e5a75a; --good: #63c58d; --bad: #f0857d; --accent: 96, 165, 226 }
  img.plot { filter: invert(.92) hue-rotate(180deg) } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2rem auto; padding: 0 1.2rem; overflow-wrap: break-word }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { max-width: 46rem; margin: .3rem 0 .8rem; color: var(--soft) } ul { color: var(--soft); max-width: 46rem }
.verdict { font-size: 1.15rem; color: var(--ink); padding: .2rem 0 .2rem .9rem;
  border-left: .3rem solid rgb(var(--accent)) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; display: block;
  overflow-x: auto }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
td { white-space: nowrap } .examples td { white-space: normal; min-width: 5rem }
.examples td:first-child { min-width: 0 }
td.text, .examples td.text { white-space: normal; min-width: 14rem; max-width: 34rem }
th { font-weight: 600; color: var(--soft) } tr.best td { font-weight: 600 } td.num { text-align: right }
table.matrix td, table.matrix th { padding: .3rem .7rem; text-align: right }
figure { margin: .6rem 0 } img { max-width: 100%; height: auto }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .4rem 1rem }
.charts > div { min-width: 0 } .charts.live { display: none }
.scripts .charts.live { display: grid } .scripts .still { display: none }
pre { background: var(--box); padding: .8rem; overflow-x: auto; font-size: .85rem }
summary { cursor: pointer; font-weight: 600 } .warn { color: var(--warn) }
.good { color: var(--good) } .bad { color: var(--bad) }
a { color: rgb(var(--accent)) }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem } h1 { font-size: 1.4rem } }
"""

_LONG, _LARGE = 36, 1e9
esc = html.escape
"""Text as HTML, also between quotation marks."""


def heading(title: str, says: str = "") -> str:
    return f"<h2>{esc(title)}</h2>" + (f"<p>{esc(says)}</p>" if says else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """A table of texts; the row `best` stands out."""
    head = "".join(f"<th>{esc(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=best' if number == best else ''}>{''.join(map(_cell, row))}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    """A field of a table: only long ones break into lines."""
    return f"<td{' class=text' if len(text) > _LONG else ''}>{esc(text)}</td>"


def folded(title: str, inside: str) -> str:
    """What opens on a click; `inside` is HTML."""
    return f"<details><summary>{esc(title)}</summary>{inside}</details>"


def still(png: bytes, title: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(png).decode()
    return f'<img class="plot" alt="{esc(title)}" src="data:image/png;base64,{data}">'


def number(value: float) -> str:
    """Four digits that count; whole numbers whole, but for very large floats."""
    if not math.isfinite(value):
        return str(value)
    short = isinstance(value, float) and (not value.is_integer() or abs(value) >= _LARGE)
    return f"{value:.4g}" if short else f"{value:,.0f}"


def shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def cell(text: str) -> str:
    """A field of a table of texts: numbers with the digits that count."""
    try:
        return number(float(text)) if "." in text or "e" in text else shortened(text)
    except ValueError:
        return shortened(text)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
