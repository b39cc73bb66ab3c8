"""`raytrain-nlp init DATA [PATH]`: proposes a job for rows, and writes its file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from raytrain_nlp.cli.job_files import find_examples, refuse_taken, schema_line, target_of, write_texts
from raytrain_nlp.cli.propose.holdout import split_paths, write_splits
from raytrain_nlp.cli.propose.job import Draft
from raytrain_nlp.cli.propose.options import Options


def propose(data: str, path: str | None, options: Options, force: bool, as_json: bool) -> None:
    """Print what the rows are, and write the job file that is proposed for them.

    Args:
        data: file, folder, glob or address of rows.
        path: file or folder to write; `-`: standard output; None: NAME.yaml.
        force: replace files that exist.

    Raises:
        InputError: the flags are wrong, files exist, or no task and model fit the rows.
    """
    options.check()
    draft, shown = Draft(os.path.expanduser(data), find_examples(), options), path == "-"
    target = Path(f"{draft.name}.yaml") if shown else target_of(path, draft.name)
    splits = split_paths(target.parent, draft.name) if options.split is not None else []
    refuse_taken([*splits, *([] if shown else [target])], force)
    lines = []
    if options.split is not None:
        kept, aside, bad = write_splits(draft.train, options.split, splits)
        draft.train, draft.validation = map(str, splits)
        left = f", {bad:,} that cannot be read left out" if bad else ""
        lines = [f"rows: {kept:,} for training, {aside:,} for validation{left}"]
    print("\n".join([*draft.summary(), *lines]), file=sys.stderr if shown else sys.stdout)
    text = draft.render(schema_line(target), target)
    if shown:
        return print(text, end="")
    write_texts({target: text}, force)
    print(f"Written: {', '.join(map(str, [target, *splits]))}. Next: raytrain-nlp check {target}")
    if as_json:
        found = {"files": [str(file) for file in [target, *splits]], "task": draft.proposal.task}
        print(json.dumps({**found, "model": draft.choice.model}))
