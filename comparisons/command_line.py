"""From a dataclass to a command that ends, whatever happens, in one line: a user's mistake, an interruption, a full disk."""

import contextlib
import gc
import logging
import os
import pkgutil
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, NoReturn, TypeVar

from tqdm import tqdm

from comparisons import compiled
from limits.command.arguments import read, stop

Options = TypeVar("Options")
OBJECTS = 50_000  # made between two searches for garbage: what compiling makes, by the million, nearly all stays
PATIENCE = 4.0  # seconds from an interruption until the process ends, whatever it is computing


def run(options: type[Options], command: Callable[[Options], None] | str, prog: str, arguments: Sequence[str] | None = None):
    """Parse the arguments and run the command, or "module:function", which is imported when they are parsed: it takes seconds.

    A mistake (bad option, ValueError, a folder that cannot be used, a package that is not there) ends with one line on
    standard error and status 2; a disk that takes no more too, at once; an interruption with one line and the status of the
    signal.
    """
    parsed = read(options, prog, arguments)
    gc.set_threshold(OBJECTS)
    compiled.keep(getattr(parsed, "compilation_cache", True))
    from comparisons.files import Damaged, Refused, Unwritten  # (with xarray)
    from comparisons.results import provenance

    command = pkgutil.resolve_name(command) if isinstance(command, str) else command
    _say_once(prog)
    try:
        with _interruptible(prog):
            provenance()  # raises where JAX has no device, before anything asks for it
            command(parsed)
            sys.stdout.flush()
    except BrokenPipeError:  # `… | head` has read enough
        _give_up_output()
    except Unwritten as refusal:
        _leave(prog, str(refusal), 2)
    except (ValueError, ImportError, MemoryError, OSError, Refused, Damaged) as mistake:
        _give_up_output()
        stop(prog, _told(mistake))
    except KeyboardInterrupt as interruption:
        _leave_interrupted(prog, interruption.args[0] if interruption.args else signal.SIGINT)


def _say_once(prog):
    """What training tells of itself (``finite.training.side_by_side``), a line each, on standard error, past a progress bar."""

    class Once(logging.Handler):
        said: ClassVar[set[str]] = set()

        def emit(self, record):
            line = record.getMessage()
            if line not in self.said:
                tqdm.write(f"{prog}: {line}", file=sys.stderr)
            self.said.add(line)

    log = logging.getLogger("finite")
    log.handlers = [Once()]
    log.setLevel(logging.INFO)


@contextlib.contextmanager
def _interruptible(prog):
    """SIGINT and SIGTERM raise KeyboardInterrupt, and where that does not help, end the process after ``PATIENCE``.

    Python hears of signals between two steps of its main thread only, and XLA's may take minutes.  Signals that are ignored
    (nohup) stay so.
    """
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in heard}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing)  # the system's own handler writes there at once
    threading.Thread(target=_watch, args=(prog, reading), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)  # the thread stands down
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number, _) -> NoReturn:
    raise KeyboardInterrupt(number)


def _watch(prog, reading):
    with open(reading, "rb", buffering=0) as pipe:
        number = pipe.read(1)
        if number and (not select.select([pipe], [], [], PATIENCE)[0] or pipe.read(1)):  # a second one does not wait
            _leave_interrupted(prog, number[0])


def _told(mistake):
    if isinstance(mistake, OSError) and mistake.strerror:
        return f"{mistake.filename}: {mistake.strerror}" if mistake.filename else mistake.strerror
    return str(mistake) or type(mistake).__name__


def _give_up_output():
    """What standard output does not take (a full disk, a reader that has gone) is not tried, and complained of, once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_interrupted(prog, number) -> NoReturn:
    _leave(prog, "interrupted; the same command goes on from here", 128 + number)


def _leave(prog, line, status) -> NoReturn:
    """Without waiting for threads that are still computing: what they have not finished is not on disk."""
    print(f"{prog}: {line}", file=sys.stderr, flush=True)
    _give_up_output()
    os._exit(status)
