"""A command of transformers' example scripts, read as `HfArgumentParser` reads it: launcher, script, typed values of its flags."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raytrain_nlp.config.hf_flags import SCRIPTS, SECRETS, Flag, flags_of
from raytrain_nlp.errors import InputError, Problem, nearest

_NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?", re.I)
_BOOLEAN = TypeAdapter(bool)
_PER_NODE = ("nproc_per_node", "num_gpus", "num_cores")
_NODES = ("nnodes", "num_nodes")
_ON_GPU = ("num_gpus", "multi_gpu")


@dataclass
class Command:
    """What a command says, and what is found out while it becomes a job."""

    script: str
    task: str
    values: dict[str, Any] = field(default_factory=dict)
    """Flags by their present names, typed."""
    num_workers: int = 1
    use_gpu: bool = False
    """Does the launcher ask for GPUs?"""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def get(self, name: str, default: Any = None) -> Any:
        """A flag's value, or the script's own default."""
        return self.values.get(name, default)

    def note(self, flag: str, reason: str) -> None:
        """Say what of the command is not, or not quite, in the job."""
        if (line := f"--{flag}: {reason}") not in self.notes:
            self.notes.append(line)

    def problem(self, flag: str, what: str, todo: str = "") -> None:
        """Say what keeps the command from becoming a job."""
        self.problems.append(Problem(f"--{flag}", what, todo))


def read_command(argv: Sequence[str]) -> Command:
    """Launcher, script and flags. Raises `InputError` where there is no script; other problems are in the command."""
    names = [PurePath(token).name for token in argv]
    at = next((i for i, name in enumerate(names) if name in SCRIPTS), None)
    if at is None:
        scripts = f"Known scripts: {', '.join(SCRIPTS)}."
        other = next((token for token in argv if token.endswith(".py")), None)
        if other is None:
            raise InputError(Problem("command", "names no script", f"Write it as in a shell. {scripts}"))
        hint = nearest(PurePath(other).name, SCRIPTS) if PurePath(other).name.startswith("run_") else ""
        raise InputError(Problem(other, "unknown script", hint or scripts))
    command = Command(names[at], SCRIPTS[names[at]])
    _read_flags(command, argv[at + 1 :])
    _read_launcher(command, argv[:at])
    return command


def _read_launcher(command: Command, tokens: Sequence[str]) -> None:
    """`python`, `torchrun`, `accelerate launch`, `deepspeed`: their number of processes is the number of workers."""
    options: dict[str, str] = {}
    for token, following in zip(tokens, [*tokens[1:], ""]):
        if token.startswith("--"):
            name, _, value = token[2:].partition("=")
            options[name.replace("-", "_")] = value or ("" if following.startswith("-") else following)
    counts = {}
    for name in (*_PER_NODE, *_NODES, "num_processes"):
        if name in options:
            if options[name].isdecimal() and int(options[name]) > 0:
                counts[name] = int(options[name])
            else:
                command.note(name, "is no plain number; set workers.num_workers.")
            del options[name]
    per_node, nodes = (next((counts[name] for name in names if name in counts), 1) for names in (_PER_NODE, _NODES))
    command.num_workers = counts.get("num_processes", per_node * nodes)
    command.use_gpu = "num_gpus" in counts or "multi_gpu" in options
    if (precision := options.pop("mixed_precision", "no")) in ("fp16", "bf16"):
        command.values.setdefault(precision, True)
    if (file := options.pop("deepspeed_config_file", None)) is not None:
        command.values.setdefault("deepspeed", file)
    if options.pop("cpu", None) is not None:
        command.values.setdefault("use_cpu", True)
    for name in options:
        if name not in _ON_GPU:
            command.note(name, "A flag of the launcher; Ray places, connects and restarts the workers.")


def _read_flags(command: Command, tokens: Sequence[str]) -> None:
    flags, i = flags_of(command.task), 0
    while i < len(tokens):
        token, end = tokens[i], i + 1
        while end < len(tokens) and not _is_flag(tokens[end]):
            end += 1
        if not _is_flag(token):
            command.problems.append(Problem("command", f"a value without a flag ({_shown(token)})", "Write it after its flag."))
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


def _find_flag(command: Command, flags: dict[str, Flag], name: str, given: str) -> tuple[Flag | None, bool]:
    """The flag of a name, of `no_` and the name of a switch, or of the beginning of one name, as argparse takes them."""
    if name in flags:
        return flags[name], False
    if name.startswith("no_") and name[3:] in flags and flags[name[3:]].switch:
        return flags[name[3:]], True
    begun = {flag.name: flag for known, flag in flags.items() if name and known.startswith(name)}
    if len(begun) == 1 and given.startswith("--"):
        return next(iter(begun.values())), False
    where = given if len(given) <= 60 else f"{given[:60]}..."
    if begun:
        command.problems.append(Problem(where, f"is the beginning of several flags of {command.script}", f"Write one out: {', '.join(f'--{n}' for n in begun)}."))
    else:
        hint = nearest(f"--{name}", [f"--{known}" for known in flags])
        command.problems.append(Problem(where, f"unknown flag of {command.script}", hint or f"See the help of {command.script} for its flags."))
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
    return token.startswith("-") and len(token) > 1 and not _NUMBER.fullmatch(token) and " " not in token.partition("=")[0]


def _shown(text: str) -> str:
    """A value as a message may show it: tokens of the hub are masked."""
    return re.sub(r"hf_\w{4,}", "hf_***", text if len(text) <= 80 else f"{text[:80]}...")
