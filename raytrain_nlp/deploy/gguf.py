"""GGUF, the format of llama.cpp, Ollama and LM Studio: made by llama.cpp's own converter, which is run as a program.

The converter is `convert_hf_to_gguf.py` of a checkout of llama.cpp. No package on PyPI carries it; it needs the package
`gguf` beside transformers and torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from raytrain_nlp.errors import InputError, Problem, RunError

TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""Values of the converter's `--outtype` that need no second step."""
_NAME = "convert_hf_to_gguf.py"
_FOLDER = "LLAMA_CPP_DIR"
_LONGEST = 300


def check_gguf(dtype: str, decoder: bool, adapter: bool) -> list[Problem]:
    """What keeps a model from becoming a GGUF file.

    Args:
        decoder: the task's model is a causal language model.
        adapter: the export will be an adapter without its base model.
    """
    problems = []
    if dtype not in TYPES:
        problems.append(Problem("--gguf", f"is unknown ({dtype})", f"Give one of {', '.join(TYPES)}."))
    if not decoder:
        problems.append(Problem("--gguf", "is for causal language models", "Remove it."))
    if adapter:
        problems.append(Problem("--gguf", "takes a whole model, and this is an adapter", "Add --merge-lora."))
    if not problems and find_converter() is None:
        problems.append(
            Problem(
                "--gguf",
                f"needs llama.cpp's converter, and {_NAME} is not on PATH",
                f"Clone llama.cpp, set {_FOLDER} to its folder, and `pip install gguf`.",
            )
        )
    return problems


def find_converter() -> str | None:
    """The path of llama.cpp's converter: in the folder that LLAMA_CPP_DIR names, else on PATH."""
    folder = os.environ.get(_FOLDER)
    if folder and (Path(folder).expanduser() / _NAME).is_file():
        return str(Path(folder).expanduser() / _NAME)
    return shutil.which(_NAME)


def write_gguf(folder: Path, dtype: str) -> Path:
    """Convert the model of a folder; the file lies in the same folder.

    Raises:
        RunError: the converter has failed, e.g. because it does not know the model's tokenizer.
    """
    converter = find_converter()
    if converter is None:
        raise InputError(check_gguf(dtype, decoder=True, adapter=False))
    target = folder / f"model-{dtype}.gguf"
    command = [sys.executable, converter, str(folder), "--outfile", str(target), "--outtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = (lines or [f"exit code {done.returncode}"])[-1][:_LONGEST]
        raise RunError(f"llama.cpp's converter has failed: {reason}. The rest of the export is not written either.")
    return target
