"""Parts of the host: what is said once, versions, signals in this process, a thread that looks at something."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest

from raytrain_nlp.errors import Stopped
from raytrain_nlp.host.once import once
from raytrain_nlp.host.packages import package_folder, package_versions
from raytrain_nlp.host.signals import asking, exit_code, handled, stoppable
from raytrain_nlp.host.threads import looking, reason_of


def test_what_happens_often_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    text, key = uuid.uuid4().hex, uuid.uuid4().hex
    for number in range(5):
        once(text)
        once(f"row {number}", key=key)
    assert capsys.readouterr().err.splitlines() == [f"warning: {text}", "warning: row 0"]


def test_of_threads_that_say_the_same_at_once_one_does() -> None:
    said: list[str] = []
    text = uuid.uuid4().hex
    threads = [threading.Thread(target=once, args=(text, said.append)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [text]


def test_versions_are_those_of_the_installed_packages() -> None:
    found = package_versions()
    assert {name: found[name] for name in ("torch", "ray", "numpy")} == {
        name: version(name) for name in ("torch", "ray", "numpy")
    }
    assert set(found) >= {"transformers", "deepspeed", "tokenizers", "raytrain-nlp"} and all(found.values())


def test_a_package_is_found_where_python_loads_it_from() -> None:
    assert package_folder("numpy") == Path(numpy.__file__).parent
    for name in ("no_such_package_here", "this"):  # the second is a module, no folder
        with pytest.raises(ImportError, match=f"{name} is not installed"):
            package_folder(name)


def send(number: int) -> None:
    """A signal to this process; Python's handler runs before this returns."""
    os.kill(os.getpid(), number)


def test_a_signal_ends_a_verb_with_its_own_line_and_the_handlers_of_before_are_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    @stoppable("stopped. Nothing was started.")
    def verb(argument: int) -> int:
        if argument:
            send(signal.SIGTERM)
            for _ in iter(int, 1):  # the handler runs at one of its next instructions
                pass
        return 5

    assert verb(0) == 5
    with pytest.raises(Stopped, match="stopped. Nothing was started."):
        verb(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_who_is_asked_and_has_an_answer_is_not_interrupted() -> None:
    """Training goes on to its checkpoint; the line says what is waited for, and the exit code says which signal it
    was.
    """
    asked = threading.Event()

    def hook() -> str:
        asked.set()
        return "a checkpoint is committed first"

    with handled():
        assert exit_code() == 130
        with asking(hook):
            send(signal.SIGTERM)
            assert asked.wait(20)
        assert exit_code() == 128 + signal.SIGTERM
    assert exit_code() == 130


def test_a_look_that_fails_is_told_once_and_tried_again() -> None:
    told: list[str] = []
    looks: list[int] = []
    done = threading.Event()

    def look() -> bool:
        looks.append(1)
        if len(looks) in (1, 2, 3, 5):
            raise OSError(f"no answer {len(looks)}\nand more")
        if len(looks) == 6:
            done.set()
        return len(looks) == 6

    with looking("looker", look, 0.001, told.append):
        assert done.wait(20)
    assert told == ["OSError: no answer 1", "OSError: no answer 5"] and len(looks) == 6


def test_the_last_look_is_taken_when_the_block_ends() -> None:
    """What was written just before the end would be left out of the copies."""
    looks: list[int] = []
    with looking("looker", lambda: looks.append(1), 3_600, lambda reason: None, at_end=True) as over:
        assert not looks and not over.is_set()
    assert looks == [1] and over.is_set()
    with looking("looker", lambda: looks.append(2), 3_600, lambda reason: None):
        pass
    assert looks == [1]


def test_an_error_becomes_part_of_a_line() -> None:
    assert reason_of(ValueError("bad\nworse")) == "ValueError: bad" and reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 5_000))) < 250
