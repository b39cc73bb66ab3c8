"""Chooses a model that fits this machine and the rows: one of the hub if it can be reached, else one from scratch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.cli.propose.columns import Sample
from raytrain_nlp.cli.propose.tasks import Proposal
from raytrain_nlp.cluster.gpus import local_gpus, smallest_memory
from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.storage.hub import why_unreachable

_LARGE = 20 << 30
"""Bytes of a GPU's memory from which on the larger model is proposed."""
_MOSTLY = 0.9
"""Share of ASCII characters below which a multilingual model is proposed."""
_CHATTING = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct")
_TUNED = ("preference", "reward-modeling")
"""Tasks that start from a model that chats already, whatever their rows are."""
_HUB: dict[str, tuple[str, str, str, float]] = {
    "text-classification": ("distilbert-base-uncased", "bert-base-uncased", "distilbert-base-multilingual-cased", 5e-5),
    "multiple-choice": ("distilbert-base-uncased", "bert-base-uncased", "bert-base-multilingual-cased", 5e-5),
    "question-answering": ("distilbert-base-uncased", "bert-base-uncased", "distilbert-base-multilingual-cased", 3e-5),
    "token-classification": ("distilbert-base-cased", "bert-base-cased", "distilbert-base-multilingual-cased", 5e-5),
    "sentence-similarity": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers/all-mpnet-base-v2",
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        2e-5,
    ),
    "causal-lm": ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-0.5B", 5e-5),
    "chat": (*_CHATTING, 5e-5),
    "masked-lm": ("distilbert-base-uncased", "bert-base-uncased", "distilbert-base-multilingual-cased", 5e-5),
    "preference": (*_CHATTING, 1e-6),
    "reward-modeling": (*_CHATTING, 1e-5),
    "permutation-lm": ("xlnet/xlnet-base-cased", "xlnet/xlnet-base-cased", "xlnet/xlnet-base-cased", 5e-5),
    "summarization": ("google-t5/t5-small", "google-t5/t5-base", "google/mt5-small", 3e-4),
    "translation": (
        "Helsinki-NLP/opus-mt-{0}-{1}",
        "Helsinki-NLP/opus-mt-{0}-{1}",
        "Helsinki-NLP/opus-mt-{0}-{1}",
        2e-5,
    ),
}
"""Task (or `chat`) -> a model for CPUs and small GPUs, one for large GPUs, a multilingual one; and a learning rate."""
_OTHERS = ("bert-base-uncased", "bert-base-uncased", "bert-base-multilingual-cased", 3e-5)
"""The same for other tasks, whose models are encoders."""


@dataclass(frozen=True)
class Choice:
    """The chosen model, and the sections of the job that depend on it."""

    model: dict[str, Any]
    """The section `model`."""
    training: dict[str, Any]
    """Keys of the section `training`."""
    remarks: list[str]
    """Why this model was chosen, as lines of a comment."""
    from_scratch: bool = False


def choose_model(proposal: Proposal, sample: Sample, example: Path, named: str | None) -> Choice | None:
    """Choose a model. None if the hub cannot be reached and no model from scratch could read such rows (chats).

    Args:
        example: the example's job file for the task, whose small model from scratch is taken if the hub cannot be
            reached.
        named: the model that the user names.
    """
    chats = proposal.needs_chat_template and proposal.type not in _TUNED
    small, large, multilingual, rate = _HUB.get("chat" if chats else proposal.type, _OTHERS)
    small, large, multilingual = (_filled(name, proposal) for name in (small, large, multilingual))
    if named:
        return Choice({"name_or_path": named}, {"learning_rate": rate}, ["Named by --model."])
    memory = smallest_memory(local_gpus()) or 0
    fits = multilingual if sample.ascii < _MOSTLY else large if memory >= _LARGE else small
    where = f"a GPU of {memory / (1 << 30):.0f} GB" if memory else "a machine without a GPU"
    if why_unreachable() is None:
        return Choice(
            {"name_or_path": fits}, {"learning_rate": rate}, [f"A name of the Hugging Face hub: fits {where}."]
        )
    if proposal.needs_chat_template:
        return None
    sections = parse_yaml(example.read_text(encoding="utf-8"))
    training = {"learning_rate": sections["training"]["learning_rate"], "warmup_steps": 0.1}
    remarks = [
        "The Hugging Face hub cannot be reached from here: a small model from scratch, to see that all works.",
        f"Pretrained weights learn far more from few rows: name_or_path: {fits} in place of these keys,",
        f"and learning_rate: {rate:.1e} below; or a folder with a model.",
    ]
    return Choice(sections["model"], training, remarks, from_scratch=True)


def _filled(name: str, proposal: Proposal) -> str:
    """The name of a model, with the languages of a translation filled in."""
    languages = (str(proposal.task.get(key, "")) for key in ("source_lang", "target_lang"))
    return name.format(*(re.split("[-_]", language)[0] for language in languages))
