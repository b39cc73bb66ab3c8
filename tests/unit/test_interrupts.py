"""Signals: the first is answered and interrupts, or has the hook end things; the second ends the process and what it
started.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

BEGIN = "import os, signal, sys, time\nfrom raytrain_nlp.host import signals as interrupts\n"


def start(program: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "ready"
    return process


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    # not `communicate`: what `readline` has read ahead would be lost
    with process:
        out, err = process.stdout.read(), process.stderr.read()
    return process.wait(), out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_first_signal_interrupts_the_main_thread(number: int, code: int) -> None:
    process = start(
        "with interrupts.handled():\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        print('tidied', flush=True); sys.exit(interrupts.exit_code())\n"
    )
    process.send_signal(number)
    assert end(process) == (code, "tidied\n", "stopping; Ctrl-C again ends at once.\n")


def test_interrupt_that_a_destructor_threw_away_comes_again() -> None:
    process = start(
        "class Busy:\n    def __del__(self):\n        print('ready', flush=True); time.sleep(60)\n"
        "sys.unraisablehook = lambda *unused: None\n"
        "with interrupts.handled():\n"
        "    try:\n        Busy(); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
    )
    process.send_signal(signal.SIGINT)
    assert end(process)[1] == "interrupted\n"


def test_interrupt_comes_though_the_answer_takes_longer_than_the_main_thread_waits() -> None:
    """As on a machine so busy that the watcher does not run for seconds."""
    process = start(
        "interrupts._DECISION_S = 0.1\n"
        "with interrupts.handled(), interrupts.asking(lambda: time.sleep(1)):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60); time.sleep(60)\n    except KeyboardInterrupt:\n        print('interrupted')\n"  # noqa: E501
    )
    process.send_signal(signal.SIGINT)
    assert end(process)[1] == "interrupted\n"


def test_hook_ends_things_instead() -> None:
    process = start(
        "asked = []\n"
        "def hook():\n    asked.append(1); return 'stopping: a checkpoint is committed first.'\n"
        "with interrupts.handled(), interrupts.asking(hook):\n"
        "    print('ready', flush=True)\n    while not asked:\n        time.sleep(0.01)\n"
        "    time.sleep(0.5); print('went on')\n"
    )
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "went on\n", "stopping: a checkpoint is committed first.\n")


def test_hook_that_has_nothing_to_end_lets_it_interrupt() -> None:
    process = start(
        "with interrupts.handled(), interrupts.asking(lambda: None), interrupts.asking(lambda: 1 / 0):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n    except KeyboardInterrupt:\n        print('interrupted')\n"  # noqa: E501
    )
    process.send_signal(signal.SIGINT)
    assert end(process)[1] == "interrupted\n"


def test_second_signal_ends_everything_though_the_main_thread_does_not_end() -> None:
    process = start(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)'])\n"  # noqa: E501
        "with interrupts.handled(), interrupts.at_once(lambda: os.write(1, b'last word\\n')), interrupts.at_once(lambda: time.sleep(60)):\n"  # noqa: E501
        "    try:\n        print('ready', flush=True); time.sleep(60)\n    except KeyboardInterrupt:\n        time.sleep(60)\n"  # noqa: E501
    )
    child = psutil.Process(process.pid).children()[0]
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping; Ctrl-C again ends at once.\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, out, err) == (130, "last word\n", "ending at once.\n")
    assert time.monotonic() - began < 40  # on an idle machine 2.1: 2 s for last words, one of which would take 60
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_signals_that_were_ignored_stay_so() -> None:
    """Of a background job of a shell without job control, and with nohup."""
    process = start(
        "for number in (signal.SIGINT, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"
        "with interrupts.handled():\n    print('ready', flush=True); time.sleep(0.5); print('undisturbed')\n"
    )
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    assert end(process) == (0, "undisturbed\n", "")


def test_handlers_are_put_back() -> None:
    process = start(
        "before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)\n"
        "print('ready', flush=True)\n"
        "with interrupts.handled(), interrupts.handled():\n    pass\n"
        "print(before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)), signal.set_wakeup_fd(-1))\n"  # noqa: E501
    )
    assert end(process)[1] == "True -1\n"
