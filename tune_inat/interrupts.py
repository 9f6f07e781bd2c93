"""Ctrl-C and SIGTERM: the first asks what runs to come to an end, the second ends it at once."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

EXIT_CODE = 130
IMPORTER = "<frozen importlib._bootstrap>"  # Python's file of the code that imports
OWN_FOLDER = os.path.dirname(__file__) + os.sep  # noqa: PTH120  # as it stands in code objects
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEAVE_SECONDS = 1.5  # for all that ends in the background, when everything is written
ANSWER_SECONDS = 1.0  # the most that an end waits for the answer to be out
LOOK_SECONDS = 0.1
IMPORT_SECONDS = 10.0  # the most that an import is waited for; a program may import what runs a search


_Result = TypeVar("_Result")


class Interruption:
    """Whether the user has asked for the end, and how that reaches what runs.

    It is raised as `KeyboardInterrupt` in the main thread, or told as `gently` says.

    Args:
        ends_process: whether the second signal ends the process; a notebook lives on.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        self.is_requested = False
        self._ends_process = ends_process
        self._say: Callable[[], None] | None = None
        self._is_answering = _thread.allocate_lock()
        self._end: Callable[[], None] | None = None
        self._within_seconds = 0.0

    def request(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        is_second, self.is_requested = self.is_requested, True
        if is_second and self._ends_process:
            end_at_once()
        self.settle()  # the alarm that Ray's own handler has set, where that came first
        if self._say is not None and not is_second:
            # In a thread, since this one may be in the middle of printing; `threading` itself would lock.
            self._is_answering.acquire(blocking=False)
            _thread.start_new_thread(self._answer, (self._say,))
        if self._end is not None and not is_second:
            signal.setitimer(signal.ITIMER_REAL, self._within_seconds)
            self._end()
            return
        importer = None if is_second else _importer(frame)
        if importer is None or sys.gettrace() is not None:
            raise KeyboardInterrupt
        self._raise_in(importer)

    def _raise_in(self, importer: FrameType) -> None:
        """Raise it when what this frame imports is whole: it could not be imported anew for the results."""

        def interrupt(*_: Any) -> NoReturn:
            sys.settrace(None)
            importer.f_trace = None
            self.settle()
            raise KeyboardInterrupt

        importer.f_trace = interrupt  # called when the frame comes to its next line
        sys.settrace(lambda *_: None)  # only then are frames traced at all
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)

    def _answer(self, say: Callable[[], None]) -> None:
        try:
            say()
        finally:
            self._is_answering.release()

    @contextmanager
    def gently(self, end: Callable[[], None], *, within_seconds: float) -> Iterator[None]:
        """Within it, the first signal calls `end`, which lets the block come to its own end.

        If it has not done so in `within_seconds`, nor called `settle`, `KeyboardInterrupt` is raised.
        """
        if threading.current_thread() is not threading.main_thread():  # where signals do not come
            yield
            return
        before = signal.signal(signal.SIGALRM, _raise)
        self._end, self._within_seconds = end, within_seconds
        try:
            yield
        finally:
            self._end = None
            self.settle()
            signal.signal(signal.SIGALRM, before)

    @contextmanager
    def announced(self, say: Callable[[], None]) -> Iterator[None]:
        """Within it, the first signal calls `say` at once, in another thread, which the end waits for."""
        before, self._say = self._say, say
        try:
            yield
        finally:
            self._say = before
            if self._is_answering.acquire(timeout=ANSWER_SECONDS):
                self._is_answering.release()

    def settle(self) -> None:
        """The end is near: `KeyboardInterrupt` need not come any more."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)


_listening: Interruption | None = None  # of this process
_heard: list[signal.Signals] = []
_has_left_thread = False  # that waits for a network, and with which the end of the process would wait


@contextmanager
def interruptible(*, ends_process: bool = False) -> Iterator[Interruption]:
    """Listen to the signals, unless that is done already: then it is the same interruption.

    Signals that are ignored, as in a shell's background jobs, stay ignored. Other threads than the main one
    cannot listen.

    Args:
        ends_process: whether the second signal ends the process, and is not raised like the first one.
    """
    global _listening
    listen_again()
    if _listening is not None or threading.current_thread() is not threading.main_thread():
        yield _listening or Interruption()
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _heard[:] = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    _listening = interruption = Interruption(ends_process=ends_process)
    listen_again()
    try:
        yield interruption
    finally:
        _listening = None
        for number in _heard:
            signal.signal(number, before[number])


def listen_again() -> None:
    """Take the signals back from Ray, which prints a stack on SIGTERM and aborts three seconds later."""
    if _listening is not None and threading.current_thread() is threading.main_thread():
        for number in _heard:
            signal.signal(number, _listening.request)


def is_ending() -> bool:
    """Whether the user has asked for the end of what this process does."""
    return _listening is not None and _listening.is_requested


def run_apart(work: Callable[[], None], *, is_stuck: Callable[[], bool]) -> bool:
    """Do it in a thread and wait: Ctrl-C comes through, as it does not while a library waits for a network.

    Args:
        is_stuck: whether it is left behind, once the user has asked for the end.

    Returns:
        Whether it is done. What it raises is raised here.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where it is waited for
            done.set_exception(error)

    global _has_left_thread
    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.done():
            if is_ending() and is_stuck():
                return False
            wait([done], LOOK_SECONDS)
    finally:
        _has_left_thread |= not done.done()
    done.result()
    return True


def call_apart(work: Callable[[], _Result]) -> _Result:
    """What it returns or raises, from another thread: Ctrl-C comes through, and leaves that thread behind."""
    if _listening is None or threading.current_thread() is not threading.main_thread():
        return work()
    results: list[_Result] = []
    run_apart(lambda: results.append(work()), is_stuck=lambda: False)
    return results[0]


@contextmanager
def worker_threads(n: int, name: str, *, may_be_left: bool = False) -> Iterator[Executor]:
    """Threads for the work of a block. If that ends by an exception, what has not begun never does.

    Args:
        may_be_left: after Ctrl-C, what is in progress is not waited for, as what waits for a network.
    """
    global _has_left_thread
    pool = ThreadPoolExecutor(n, thread_name_prefix=name)
    try:
        yield pool
    except BaseException as error:
        is_left = may_be_left and isinstance(error, KeyboardInterrupt)
        _has_left_thread |= is_left
        pool.shutdown(wait=not is_left, cancel_futures=True)
        raise
    pool.shutdown()


def leave_soon(*, is_requested: bool, last_words: str = "") -> None:
    """All is written: one more signal ends the process at once.

    Args:
        is_requested: whether a signal came. Then the process ends in any case, soon; here and now if a thread
            was left behind, for libraries wait for their network where no Python runs.
        last_words: for stderr.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: end_at_once())
    with suppress(OSError):
        sys.stderr.write(last_words)
    if is_requested and _has_left_thread:
        _leave()
    if is_requested:
        timer = threading.Timer(LEAVE_SECONDS, _leave)
        timer.daemon = True
        timer.start()


def end_at_once() -> None:
    """End the process here and now. A terminal is left with its cursor, and on a line of its own."""
    if sys.stdout.isatty():
        with suppress(OSError):
            os.write(sys.stdout.fileno(), b"\x1b[?25h\n")
    os._exit(EXIT_CODE)


def _leave() -> None:
    flush_what_is_read()
    os._exit(EXIT_CODE)


def flush_what_is_read() -> None:
    """Write out what was printed. Where nobody reads it any more, Python is not to fail because of that."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame of a stack that imports others' code, if one does; what is ours can be imported anew."""
    importer, is_import = None, False
    while frame is not None:
        file = frame.f_code.co_filename
        if is_import and file != IMPORTER:
            importer = frame
        is_import = file == IMPORTER
        if file.startswith(OWN_FOLDER):
            break
        frame = frame.f_back
    return importer


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
