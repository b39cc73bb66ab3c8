"""Counts rows that were truncated when they were tokenized, from the manifest of their token store."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.modeling.facts import ModelFacts


def cut_rows(manifest: dict[str, Any]) -> int:
    """The number of truncated rows and truncated targets; a row with both counts twice.

    Args:
        manifest: the manifest of a token store (`TokenStore.manifest`).
    """
    return sum(sum(manifest.get(name, {}).values()) for name in ("cut", "cut_targets"))


def cut_lengths(manifest: dict[str, Any]) -> dict[str, float]:
    """Figures of the truncated rows; empty if there are none.

    Returns:
        `cut`: number of rows; `longest_before` and `mean_before`: tokens that they had before.
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
    """Notes for the user on truncated rows and on truncated targets, a line each.

    Args:
        split: `train`, `validation` or `validation.NAME`.
        facts: of the model, whose number of positions may be the reason.
    """
    notes = []
    for name, what, limit in (("cut", "rows", facts.positions), ("cut_targets", "targets", facts.target_positions)):
        counts = {int(length): count for length, count in manifest.get(name, {}).items()}
        if counts:
            most = manifest["limits"]["source" if name == "cut" else "target"]
            why = ", the model's positions," if most == limit else ""
            share = f"{sum(counts.values()):,} of {manifest['rows']:,} {what} of data.{split}"
            notes.append(f"{share} have more than {most} tokens{why} and are cut; the longest has {max(counts):,}.")
    return notes
