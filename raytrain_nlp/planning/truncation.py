"""Rows that were cut to the tokens they may have: how many, how long they were, and what let them be no longer."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.modeling.facts import ModelFacts


def cut_rows(manifest: dict[str, Any]) -> int:
    """Rows of a token store that were cut, or whose target was; a row of which both were counts once for each."""
    return sum(sum(manifest.get(name, {}).values()) for name in ("cut", "cut_targets"))


def cut_lengths(manifest: dict[str, Any]) -> dict[str, float]:
    """Figures of the rows that were cut, of their tokens before: `cut` rows, the longest, the mean; nothing where none
    was.
    """
    counts = {int(length): count for length, count in manifest.get("cut", {}).items()}
    if not counts:
        return {}
    rows = sum(counts.values())
    return {
        "cut": rows,
        "longest_before": max(counts),
        "mean_before": sum(length * count for length, count in counts.items()) / rows,
    }


def cut_notes(split: str, manifest: dict[str, Any], facts: ModelFacts) -> list[str]:
    """What the user should know of a split, a line for rows and one for targets."""
    notes = []
    for name, what, limit in (("cut", "rows", facts.positions), ("cut_targets", "targets", facts.target_positions)):
        counts = {int(length): count for length, count in manifest.get(name, {}).items()}
        if counts:
            most = manifest["limits"]["source" if name == "cut" else "target"]
            why = ", the model's positions," if most == limit else ""
            share = f"{sum(counts.values()):,} of {manifest['rows']:,} {what} of data.{split}"
            notes.append(f"{share} have more than {most} tokens{why} and are cut; the longest has {max(counts):,}.")
    return notes
