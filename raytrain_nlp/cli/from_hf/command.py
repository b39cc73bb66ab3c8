"""A command of transformers' example scripts, read as `HfArgumentParser` reads it: launcher, script, typed values of
its flags.
"""

from __future__ import annotations

import json
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

_NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?", re.I)
_BOOLEAN = TypeAdapter(bool)
_OTHERS = {
    "run_qa_beam_search.py": "question answering",
    "run_plm.py": "permuted language modelling",
    "run_fim.py": "filling in the middle",
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
"""Scripts of transformers that are not read, and what they are for."""
_NEAR = {
    "run_language_modeling.py": "run_clm.py or run_mlm.py",
    "run_plm.py": "run_mlm.py",
    "run_fim.py": "run_clm.py",
    "finetune_trainer.py": "run_summarization.py or run_translation.py",
}
"""What is nearest to them."""


@dataclass
class Command:
    """What a command says, and what is found out while it becomes a job."""

    script: str
    task: str
    values: dict[str, Any] = field(default_factory=dict)
    """Flags by their present names, typed."""
    written: dict[str, str] = field(default_factory=dict)
    """Present name -> the one in the command, where that is another."""
    num_workers: int | list[int] | str = 1
    """Of a range the least and the most; `auto`: one for each GPU."""
    use_gpu: bool = False
    """Does the launcher ask for GPUs?"""
    sharding: dict[str, Any] = field(default_factory=dict)
    """Keys of `deepspeed:` that the launcher sets."""
    workers: dict[str, Any] = field(default_factory=dict)
    """Keys of `workers:` that the launcher sets."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """Keys of `tracking:` that variables set."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def get(self, name: str, default: Any = None) -> Any:
        """A flag's value, or the script's own default."""
        return self.values.get(name, default)

    def note(self, flag: str, reason: str) -> None:
        """Say what of the command is not, or not quite, in the job."""
        self.remark(f"--{self.written.get(flag, flag)}", reason)

    def remark(self, word: str, reason: str) -> None:
        """The same of a word that is no flag."""
        if (line := f"{word}: {reason}") not in self.notes:
            self.notes.append(line)

    def problem(self, flag: str, what: str, todo: str = "") -> None:
        """Say what keeps the command from becoming a job."""
        self.problems.append(Problem(f"--{self.written.get(flag, flag)}", what, todo))


def read_command(argv: Sequence[str]) -> Command:
    """Launcher, script and flags. Raises `InputError` where there is no script; other problems are in the command."""
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
    """The script with `Trainer` that does what another does in a loop of its own."""
    return name.replace(SUFFIX, ".py")


def _module(name: str) -> str:
    """The file of a module that `python -m` starts, where it is a script that is read."""
    file = f"{name.rpartition('.')[2]}.py"
    return file if _sibling(file) in (*SCRIPTS, *_OTHERS) else name


def _no_script(argv: Sequence[str], names: Sequence[str]) -> Problem:
    """What is there instead of a script that is read."""
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
        if flag is None:  # with what follows: it may be a secret
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
    """The flag of a name, of `no_` and the name of a switch, or of the beginning of one name, as argparse takes
    them.
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
    """The typed value of a flag; what is wrong with it goes to the problems."""
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
    if not texts:
        return True
    if flag.many and not (flag.text and len(texts) == 1):
        return flag.type.validate_python(texts)
    if flag.mapping and texts[0].lstrip().startswith("{"):
        return flag.type.validate_python(json.loads(texts[0]))
    if flag.switch and flag.text:  # either a word or a switch
        try:
            return _BOOLEAN.validate_python(texts[0])
        except ValidationError:
            return texts[0]
    return flag.type.validate_python(texts[0])


def _is_flag(token: str) -> bool:
    """As argparse has it: a dash begins a flag, but not a negative number or a text with spaces."""
    return (
        token.startswith("-") and len(token) > 1 and not _NUMBER.fullmatch(token) and " " not in token.partition("=")[0]
    )


def _shown(text: str) -> str:
    """A value as a message may show it: tokens of the hub are masked."""
    return re.sub(r"hf_\w{4,}", "hf_***", text if len(text) <= 80 else f"{text[:80]}...")
