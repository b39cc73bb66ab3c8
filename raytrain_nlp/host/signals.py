"""Answers Ctrl-C, SIGTERM and a closed terminal. The first signal ends the run in good order; the second ends
everything now.

    signal --wakeup fd--> watcher thread: shows a line, then asks for a checkpoint where training runs, or kills
           --Python's handler, in the main thread--> KeyboardInterrupt, where nothing has to be waited for

The watcher answers while the main thread is inside C code too, which delays Python's own handlers. It imports nothing
except for psutil at the very end, and calls only the hooks that are registered here. An exception in a hook is ignored,
because the process is ending. The thread ends with `handled`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from raytrain_nlp.errors import Stopped

P = ParamSpec("P")
T = TypeVar("T")
_Handler = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.signal` takes and returns."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S = 0.5
_DECISION_S = 5.0
_LAST_WORDS_S = 2.0
"""Seconds that all functions registered with `at_once` may take together."""
_FIRST = "stopping; Ctrl-C again ends at once."
_SECOND = "ending at once."


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""


class _Watch:
    def __init__(self) -> None:
        self.first: int | None = None
        """The first signal that was received, or None."""
        self._raises = False
        self._decided = threading.Event()
        self._raised: weakref.ref[BaseException] | None = None
        self._own = 0
        """Number of signals that the watcher has sent to the main thread and not received back yet."""
        self.hooks: list[Callable[[], str | None]] = []
        self.last_words: list[Callable[[], object]] = []
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._over = threading.Event()
        self._before: dict[int, _Handler] = {}

    def install(self) -> None:
        """Install the handlers and start the watcher. Signals that this process ignores stay ignored."""
        taken = [
            number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
        ]  # ignored under nohup, and in background jobs of a shell
        self._before = {number: signal.signal(number, self._handle) for number in taken}
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()

    def keep(self) -> None:
        """Install the handlers again."""
        for number in self._before:
            signal.signal(number, self._handle)

    def remove(self, to_the_end: bool) -> None:
        """Stop watching, and restore the handlers of before.

        Args:
            to_the_end: the process ends now; where it was stopped, further signals are ignored.
        """
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if to_the_end and self.first is not None else handler)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _handle(self, number: int, frame: object) -> None:
        self._decided.wait(_DECISION_S)
        if not self._raises or (self._raised is not None and self._raised() is not None):
            return
        error = Interrupted()
        self._raised = weakref.ref(error)
        try:
            raise error
        finally:
            del error

    # In the watcher's thread

    def _watch(self) -> None:
        while not self._over.is_set():
            ready = select.select([self._read], [], [], _LOOK_S)[0]
            for number in self._read.recv(64) if ready else b"":
                self._heard(number)
            if not ready and self._is_deaf() and not self._over.is_set():
                self._own += 1
                main = threading.main_thread().ident
                assert self.first is not None and main is not None, "a signal was heard, and its thread runs"
                signal.pthread_kill(main, self.first)

    def _is_deaf(self) -> bool:
        """Should the main thread have been interrupted, and was not? Either it no longer waited for the watcher's
        answer, on a machine so busy that this thread did not run, or the exception was raised where exceptions are
        ignored, as in a destructor. Only one signal is sent at a time, because the kernel does not queue equal ones.
        """
        return self._raises and not self._own and (self._raised is None or self._raised() is None)

    def _heard(self, number: int) -> None:
        if self._own:
            self._own -= 1
        elif self.first is None:
            self.first = number
            line = next(filter(None, map(_quietly, reversed(self.hooks))), None)
            self._raises = line is None
            _say(line or _FIRST)
            self._decided.set()
        else:
            _say(_SECOND)
            end_now(128 + self.first)


_active: _Watch | None = None


@contextlib.contextmanager
def handled(to_the_end: bool = False) -> Iterator[None]:
    """While inside, signals are answered as this module describes. Inside another such block, or outside the main
    thread, it changes nothing.

    Args:
        to_the_end: the process ends after the block; where it was stopped, further signals are ignored.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _active = _Watch()
    watch.install()
    try:
        yield
    finally:
        _active = None
        watch.remove(to_the_end)


def stoppable(line: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function to run while signals are `handled`, and to raise `Stopped` with this line where it was
    interrupted.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with handled():
                try:
                    return function(*args, **kwargs)
                except KeyboardInterrupt:
                    raise Stopped(line) from None

        return run

    return decorate


def keep_handlers() -> None:
    """Install the handlers of this module again after a library has replaced them (`ray.init()` replaces that of
    SIGTERM).
    """
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.keep()


def exit_code() -> int:
    """Exit code of a process that a signal has ended in good order; 130 for Ctrl-C."""
    return 128 + ((_active and _active.first) or signal.SIGINT)


@contextlib.contextmanager
def asking(hook: Callable[[], str | None]) -> Iterator[None]:
    """While inside, the first signal calls `hook` in the watcher's thread. A line that it returns is shown, and the
    main thread, which is not interrupted, comes to an end by itself. Where it returns None, the main thread is
    interrupted.
    """
    yield from _registered(hook, "hooks")


@contextlib.contextmanager
def at_once(last_word: Callable[[], object]) -> Iterator[None]:
    """While inside, the second signal calls `last_word` before the process ends: for short actions that must not be
    left out.
    """
    yield from _registered(last_word, "last_words")


def _registered(function: Callable[[], object], where: str) -> Iterator[None]:
    hooks: list[Callable[[], object]] = getattr(_active, where) if _active is not None else []
    hooks.append(function)
    try:
        yield
    finally:
        hooks.remove(function)


def end_now(code: int, last_words: bool = True) -> None:
    """End this process and all of its descendants, without running any `finally`.

    Args:
        last_words: first call the functions registered with `at_once`.
    """
    started = list(_active.last_words) if _active is not None and last_words else []
    threads = [threading.Thread(target=_quietly, args=(last_word,), daemon=True) for last_word in reversed(started)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LAST_WORDS_S / len(threads))
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(code)


def _quietly(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except Exception:  # noqa: BLE001 - the process is ending anyway
        return None


def _say(line: str) -> None:
    """Print a line in place of the live line, if there is one. It bypasses Python's buffers, whose locks the main
    thread may hold.
    """
    start = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{start}{line}\n".encode())
