"""huggingface_hub and datasets: the clients of the Hugging Face hub."""

from __future__ import annotations

import os
import sys


def apply_offline() -> None:
    """Patch: all clients of the hub read only what is on this machine, including those that read the environment
    variable when they were imported. Otherwise each of them retries for up to a minute for every file.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)
