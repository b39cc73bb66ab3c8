"""Reads a command of transformers' example scripts as `HfArgumentParser` does: launcher, script, and typed values of
its flags.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raytrain_nlp.cli.from_hf.flags import SCRIPTS, SECRETS, Flag, flags_of
from raytrain_nlp.cli.from_hf.launcher import read_launcher
from raytrain_nlp.cli.from_hf.own_loop import SUFFIX, own_loop_flags, settle_own_loop
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.storage.untrusted import parse_json

_NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?", re.I)
_BOOLEAN = TypeAdapter(bool)
_OTHERS = {
    "run_qa_beam_search.py": "question answering",
    "run_generation.py": "generation; `raytrain-nlp predict` generates with a run's model",
    "run_image_classification.py": "images",
    "run_mae.py": "images",
    "run_mim.py": "images",
    "run_clip.py": "images and text",
    "run_speech_recognition_ctc.py": "speech",
    "run_speech_recognition_seq2seq.py": "speech",
    "run_audio_classification.py": "audio",
    "run_language_modeling.py": "language modelling of older releases",
    "finetune_trainer.py": "sequence to sequence of older releases",
    "run_semantic_segmentation.py": "images",
    "run_object_detection.py": "images",
    "run_instance_segmentation.py": "images",
}
"""Scripts of transformers that are not supported -> what they are for."""
_NEAR = {
    "run_language_modeling.py": "run_clm.py or run_mlm.py",
    "finetune_trainer.py": "run_summarization.py or run_translation.py",
}
"""Scripts that are not supported -> the nearest supported ones."""


@dataclass
class Command:
    """A command that has been read, and what is noted while it is turned into a job."""

    script: str
    """File name of the script, e.g. run_glue.py."""
    task: str
    """The script's entry in `flags.SCRIPTS`."""
    values: dict[str, Any] = field(default_factory=dict)
    """Name of a flag -> its typed value; for flags of earlier releases the name that they have now."""
    written: dict[str, str] = field(default_factory=dict)
    """Name of a flag -> its name in the command, for scripts without `Trainer` that name it differently."""
    num_workers: int | list[int] | str = 1
    """Number of workers; a list is the least and the most; `auto` is one for each GPU."""
    use_gpu: bool = False
    """Does the launcher ask for GPUs?"""
    sharding: dict[str, Any] = field(default_factory=dict)
    """Keys of `deepspeed:` that the launcher sets."""
    workers: dict[str, Any] = field(default_factory=dict)
    """Keys of `workers:` that the launcher sets."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """Keys of `tracking:` that environment variables set."""
    notes: list[str] = field(default_factory=list)
    """What the job does not have, or not in quite the same way, a line each."""
    problems: list[Problem] = field(default_factory=list)
    """What keeps the command from becoming a job."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag; `default`, the script's own, if it is not given."""
        return self.values.get(name, default)

    def note(self, flag: str, reason: str) -> None:
        """Note that the job does not have a flag, or not in quite the same way."""
        self.remark(f"--{self.written.get(flag, flag)}", reason)

    def remark(self, word: str, reason: str) -> None:
        """`note` for a word of the command that is not a flag, such as an environment variable."""
        if (line := f"{word}: {reason}") not in self.notes:
            self.notes.append(line)

    def problem(self, flag: str, what: str, todo: str = "") -> None:
        """Add a problem of a flag, which keeps the command from becoming a job."""
        self.problems.append(Problem(f"--{self.written.get(flag, flag)}", what, todo))


def read_command(argv: Sequence[str]) -> Command:
    """Read the launcher, the script and its flags.

    Args:
        argv: the words of the command.

    Raises:
        InputError: there is no supported script. Other problems are collected in `Command.problems`.
    """
    names = [
        _module(token) if before in ("-m", "--module") else PurePath(token).name
        for token, before in zip(argv, ["", *argv])
    ]
    at = next((i for i, name in enumerate(names) if _sibling(name) in SCRIPTS), None)
    if at is None:
        raise InputError(_no_script(argv, names))
    command = Command(names[at], SCRIPTS[_sibling(names[at])])
    own_loop = names[at] not in SCRIPTS
    _read_flags(command, own_loop_flags(command.task) if own_loop else flags_of(command.task), argv[at + 1 :])
    if own_loop:
        settle_own_loop(command)
    read_launcher(command, argv[:at])
    return command


def _sibling(name: str) -> str:
    """The script with `Trainer` that does the same as a `_no_trainer.py` script; any other name unchanged."""
    return name.replace(SUFFIX, ".py")


def _module(name: str) -> str:
    """The file name of a module given to `python -m`, if it is one of transformers' scripts; else `name`."""
    file = f"{name.rpartition('.')[2]}.py"
    return file if _sibling(file) in (*SCRIPTS, *_OTHERS) else name


def _no_script(argv: Sequence[str], names: Sequence[str]) -> Problem:
    """The problem of a command without a supported script."""
    scripts = f"Known scripts: {', '.join(SCRIPTS)}."
    other = next((name for name in names if name in _OTHERS), None) or next(
        (token for token in argv if token.endswith(".py") and "xla_spawn" not in token), None
    )
    if other is None:
        return Problem("command", "names no script", f"Write it as in a shell. {scripts}")
    name = _sibling(PurePath(other).name)
    if name in _OTHERS or name in _NEAR:
        near = f"Nearest: {_NEAR[name]}. " if name in _NEAR else ""
        return Problem(other, f"is not supported ({_OTHERS.get(name, 'text classification')})", f"{near}{scripts}")
    return Problem(other, "unknown script", (nearest(name, SCRIPTS) if name.startswith("run_") else "") or scripts)


def _read_flags(command: Command, flags: dict[str, Flag], tokens: Sequence[str]) -> None:
    i = 0
    while i < len(tokens):
        token, end = tokens[i], i + 1
        while end < len(tokens) and not _is_flag(tokens[end]):
            end += 1
        if not _is_flag(token):
            command.problems.append(
                Problem("command", f"a value without a flag ({_shown(token)})", "Write it after its flag.")
            )
            i += 1
            continue
        given, equals, inline = token.partition("=")
        name = given.lstrip("-").replace("-", "_")
        flag, negated = _find_flag(command, flags, name, given)
        if flag is None:  # skip its values as well; they may be secrets that no message should show
            i = end
            continue
        limit = 0 if equals or negated else len(tokens) if flag.many else 1
        texts = [inline] if equals else list(tokens[i + 1 : min(end, i + 1 + limit)])
        i += 1 + (0 if equals else len(texts))
        if negated:
            command.values[flag.name] = False
        else:
            _set_value(command, flag, given.removeprefix("--"), texts)
            if SUFFIX in command.script and name != flag.name:
                command.written[flag.name] = name


def _find_flag(command: Command, flags: dict[str, Flag], name: str, given: str) -> tuple[Flag | None, bool]:
    """The flag that a word of the command names, and whether it is negated. As with argparse, a word may be a name,
    `no_` and the name of a switch, or an unambiguous beginning of a name. None if there is no such flag, which is added
    to the problems.

    Args:
        name: the word without dashes, with underscores.
        given: the word as it is written.
    """
    if name in flags:
        return flags[name], False
    if name.startswith("no_") and name[3:] in flags and flags[name[3:]].switch:
        return flags[name[3:]], True
    begun = {flag.name: flag for known, flag in flags.items() if name and known.startswith(name)}
    if len(begun) == 1 and given.startswith("--"):
        return next(iter(begun.values())), False
    where = given if len(given) <= 60 else f"{given[:60]}..."
    if begun:
        command.problems.append(
            Problem(
                where,
                f"is the beginning of several flags of {command.script}",
                f"Write one out: {', '.join(f'--{n}' for n in begun)}.",
            )
        )
    else:
        hint = nearest(f"--{name}", [f"--{known}" for known in flags])
        command.problems.append(
            Problem(
                where, f"unknown flag of {command.script}", hint or f"See the help of {command.script} for its flags."
            )
        )
    return None, False


def _set_value(command: Command, flag: Flag, given: str, texts: list[str]) -> None:
    """Put the typed value of a flag into `command.values`; a wrong value is added to the problems."""
    if not texts and not flag.switch:
        command.problem(given, "has no value", "Write one after it.")
        return
    try:
        value = _typed(flag, texts)
    except ValidationError as error:
        shown = "" if flag.name in SECRETS else f" ({_shown(' '.join(texts))!r})"
        command.problem(given, f"is wrong{shown}: {error.errors(include_input=False)[0]['msg']}", "Correct the value.")
    except ValueError as error:
        command.problem(given, f"is not JSON ({error})", "Correct the value.")
    else:
        if flag.constant is None or value is True:
            command.values[flag.name] = value if flag.constant is None else flag.constant


def _typed(flag: Flag, texts: list[str]) -> Any:
    """The value of a flag from its words. Raises `ValueError` (or pydantic's `ValidationError`)."""
    if not texts:
        return True
    if flag.many and not (flag.text and len(texts) == 1):
        return flag.type.validate_python(texts)
    if flag.mapping and texts[0].lstrip().startswith("{"):
        return flag.type.validate_python(parse_json(texts[0]))
    if flag.switch and flag.text:  # its value may be a boolean or another word
        try:
            return _BOOLEAN.validate_python(texts[0])
        except ValidationError:
            return texts[0]
    return flag.type.validate_python(texts[0])


def _is_flag(token: str) -> bool:
    """Does a word begin a flag for argparse? It begins with a dash and is no negative number and no text with
    spaces.
    """
    return (
        token.startswith("-") and len(token) > 1 and not _NUMBER.fullmatch(token) and " " not in token.partition("=")[0]
    )


def _shown(text: str) -> str:
    """A value for a message: cut if it is long, with tokens of the hub masked."""
    return re.sub(r"hf_\w{4,}", "hf_***", text if len(text) <= 80 else f"{text[:80]}...")
