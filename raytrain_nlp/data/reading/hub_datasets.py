"""`hf://DATASET[/CONFIG][:SPLIT]`: the data files of a dataset on the Hugging Face hub, at a fixed revision.

They are read like any other files, so that no code of a dataset is executed, and no dataset has to be downloaded to one
machine as a whole.
"""

from __future__ import annotations

from raytrain_nlp.errors import InputError, Problem


def find_dataset_files(spec: str, where: str) -> list[str]:
    """The data files of a split, each as `hf://datasets/...@REVISION/FILE`.

    Args:
        where: the job's key that names the dataset, for error messages.

    Raises:
        InputError: the hub cannot be reached, or does not have the dataset, its configuration or the split.
    """
    name, _, split = spec.removeprefix("hf://").partition(":")
    split = split or "train"
    parts = name.split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError(
            Problem(where, f"is not hf://DATASET/CONFIG:SPLIT ({spec})", "Write e.g. hf://nyu-mll/glue/mrpc:train.")
        )
    readings = [("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)]
    if len(parts) == 2:  # OWNER/NAME, or NAME/CONFIG of a dataset without owner
        readings.append((parts[0], parts[1]))
    reason = ""
    for path, config in readings:
        try:
            files = _data_files(path, config)
        except FileNotFoundError as error:  # no dataset of this name: try the other reading
            reason = reason or _one_line(error)
            continue
        except Exception as error:  # the dataset exists, or there is no network; the hub client raises many kinds  # noqa: BLE001
            reason = _one_line(error)
            break
        if split not in files:
            raise InputError(
                Problem(where, f"the dataset has no split '{split}' ({spec})", f"Its splits: {', '.join(files)}.")
            )
        return files[split]
    raise InputError(
        Problem(where, f"cannot be read from the hub ({spec}: {reason})", "Check name, config and network, or log in.")
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _data_files(path: str, config: str | None) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    # by its plain name, a local folder of this name would be preferred
    builder = load_dataset_builder(f"hf://datasets/{path}", config)
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
