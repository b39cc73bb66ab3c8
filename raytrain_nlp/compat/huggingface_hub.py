"""The clients of the Hugging Face hub."""

from __future__ import annotations

import os
import sys


def apply_offline() -> None:
    """Patch: have all clients read what is on this machine only, those included that have read the variable when they
    were loaded. Without it each tries again for up to a minute for each file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)
