"""An exported folder on the Hugging Face hub, by `huggingface_hub`.

The token comes from the environment (`HF_TOKEN`) or from `hf auth login`; it is never an argument, and stands in no
file or message.
"""

from __future__ import annotations

import re
from pathlib import Path

from raytrain_nlp.deploy.recipe import RECIPE, SERVE, VLLM
from raytrain_nlp.errors import Problem, RunError

_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]{1,96}")


def check_push(name: str) -> list[Problem]:
    """What can be said before anything is exported: the repository's name, and whether there is a token."""
    from huggingface_hub import get_token

    if not _NAME.fullmatch(name):
        return [Problem("--push", f"is no name of a repository ({name})", "Give OWNER/NAME.")]
    if not get_token():
        return [Problem("--push", "needs a token of the hub", "Set HF_TOKEN, or run `hf auth login`.")]
    return []


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload the files of a folder in one commit; a repository that is not there yet is made. What `export --serve` has
    written stays here: it names folders of this machine.

    Args:
        private: whether a new repository is private; that of one that is there stays as it is.

    Returns:
        The address of the commit.

    Raises:
        RunError: the hub refuses, or does not answer. The folder stays.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=get_token())
    try:
        repo = api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=str(folder),
            commit_message="Upload the model with raytrain-nlp",
            ignore_patterns=[RECIPE, SERVE, VLLM],
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"the hub does not take {name}: {reason}. The export itself is in {folder}.") from error
    return str(commit.commit_url)
