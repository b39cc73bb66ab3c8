"""The model card of an export: what the model was trained on, how, how well, under which licence, how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain_nlp.config import public_values
from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.run.saved_run import Run, Weights
from raytrain_nlp.tracking.registry import PIPELINES

_AUTO = {
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "summarization": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "seq2seq-question-answering": "AutoModelForSeq2SeqLM",
}
"""Class that loads the model of a task without a pipeline in transformers 5."""
_AUTO_OF_PIPELINES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
}
_LIBRARIES = {"sentence-similarity": "sentence-transformers"}
"""Task -> `library_name` of the hub, where another library than transformers loads the model."""
_PROGRAMS = {
    "sentence-similarity": [
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("FOLDER")',
        'vectors = model.encode(["a text", "another"])',
    ],
}
"""Task -> the program that loads its model, whole or an adapter, with that library."""
_WITHOUT_PEFT = ("AutoModelForMaskedLM", "AutoModelForMultipleChoice")
"""Classes without an `AutoPeftModel` of PEFT's."""
_PIPELINE_TAGS = {"seq2seq-question-answering": "question-answering", **PIPELINES}
"""Task -> `pipeline_tag` of the hub, where that is another word."""


def model_card(run: Run, weights: Weights, folder: Path, license: str | None = None) -> str:
    """README.md of an exported model, with the front matter that the hub reads.

    Args:
        folder: the exported model or adapter.
        license: the hub's identifier of a licence, e.g. `apache-2.0`; None: that of a base model in a folder whose own
            card names one, else none.
    """
    import yaml

    job, adapter = run.job, (folder / "adapter_config.json").exists()
    license = license or _license_of(job.model.name_or_path)
    front: dict[str, Any] = {
        "library_name": _LIBRARIES.get(job.task.type, "peft" if adapter else "transformers"),
        "pipeline_tag": _PIPELINE_TAGS.get(job.task.type, job.task.type),
        **({"license": license} if license else {}),
        **({"base_model": job.model.name_or_path} if job.model.name_or_path else {}),
        "tags": ["raytrain-nlp"],
    }
    parts = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {job.name}", ""]
    parts += [
        f"A {job.model.name_or_path or job.model.model_type} model for {job.task.type}, trained with `raytrain-nlp`."
    ]
    parts += [*_load_it(job.task.type, adapter), *_evaluation(run, weights), *_data(run)]
    parts += ["", "## Job", "", "```yaml"]
    parts += [yaml.safe_dump(public_values(job), sort_keys=False, allow_unicode=True).strip(), "```"]
    versions = sorted(run.record.get("versions", {}).items())
    parts += ["", "## Versions", "", *(f"- {name} {version}" for name, version in versions), ""]
    return "\n".join(parts)


def _load_it(task: str, adapter: bool) -> list[str]:
    pipeline = PIPELINES.get(task)
    auto = _AUTO_OF_PIPELINES[pipeline] if pipeline else _AUTO.get(task)
    if auto is None:
        program = _PROGRAMS[task]
    elif adapter and auto in _WITHOUT_PEFT:
        program = [
            "import peft",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f'model = peft.PeftModel.from_pretrained({auto}.from_pretrained("BASE"), "FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        ]
    elif adapter:
        program = [
            "import peft",
            "from transformers import AutoTokenizer",
            "",
            f'model = peft.{auto.replace("AutoModel", "AutoPeftModel")}.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        ]
    elif pipeline:
        program = ["from transformers import pipeline", "", f'model = pipeline("{pipeline}", model="FOLDER")']
    else:
        program = [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f'model = {auto}.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        ]
    return ["", "## Load it", "", "`FOLDER` is this folder, or its name on the hub.", "", "```python", *program, "```"]


def _evaluation(run: Run, weights: Weights) -> list[str]:
    metrics = {key: value for key, value in sorted(run.result.get("metrics", {}).items()) if key.startswith("eval_")}
    if weights.checkpoint:
        return ["", f"Weights of {weights.name}."]
    if not metrics:
        return []
    lines = (f"| {key} | {value:.6g} |" for key, value in metrics.items())
    return ["", "## Evaluation", "", "| figure | value |", "|---|---|", *lines]


def _data(run: Run) -> list[str]:
    named = {key: value for key, value in public_values(run.job)["data"].items() if key in ("train", "validation")}
    rows = "; ".join(f"{split}: {count} rows" for split, count in run.result.get("rows", {}).items())
    return ["", "## Data", "", *(f"- {split}: `{value}`" for split, value in named.items()), rows]


def _license_of(base: str | None) -> str | None:
    """The licence that the card of a base model names, where the model is in a folder."""
    card = Path(base or "") / "README.md"
    if not base or not card.is_file():
        return None
    import yaml

    _, _, text = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    front, found, _ = text.partition("\n---")
    try:
        values = parse_yaml(front) if found else None
    except yaml.YAMLError:
        return None
    name = values.get("license") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None
