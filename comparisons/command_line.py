"""From a dataclass to a command: typed options, a help line each, and one line of error for a user's mistake."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import ClassVar, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from comparisons.records import Damaged, Refused

Options = TypeVar("Options")


def run(options: type[Options], command: Callable[[Options], None], prog: str, arguments: Sequence[str] | None = None):
    """Parse the arguments and run the command.

    A mistake (bad option, ValueError, a folder that cannot be used) ends with one line on standard error and status 2;
    an interruption with one line and the status of the signal.
    """
    parsed = _parse(options, prog, arguments)
    _say_once(prog)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command(parsed)
    except (ValueError, MemoryError, OSError, Refused, Damaged) as mistake:
        _stop(prog, str(mistake) or type(mistake).__name__, 2)
    except KeyboardInterrupt as interruption:
        status = 128 + (interruption.args[0] if interruption.args else signal.SIGINT)
        _leave(prog, "interrupted; the same command goes on from here", status)


def _say_once(prog):
    """What training tells of itself (``finite.side_by_side``), a line each, on standard error, not through a progress bar."""

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


def _parse(options, prog, arguments):
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, prog=prog, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
    _stop(prog, _first_statement(complaint.getvalue()) + f"; see {prog} --help", 2)


def _first_statement(box: str) -> str:
    """What a framed message says, without its frame and what follows its first rule."""
    statement = re.split(r"│\s*─{5,}", box)[0]
    body = [line.strip("│╭╮╰╯─ ") for line in statement.splitlines() if not line.startswith(("╭", "╰"))]
    return " ".join(" ".join(body).split()).rstrip(".")


def _interrupt(number, _) -> NoReturn:
    raise KeyboardInterrupt(number)


def _stop(prog, line, status) -> NoReturn:
    print(f"{prog}: {' '.join(line.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _leave(prog, line, status) -> NoReturn:
    """As ``_stop``, without waiting for threads that are still computing: what they have not finished is not on disk."""
    print(f"{prog}: {line}", file=sys.stderr, flush=True)
    os._exit(status)
