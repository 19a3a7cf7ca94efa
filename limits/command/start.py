"""The first moments of a command, `python -m limits.exponents`, `superconsistency exponents` or another: its imports take
seconds, and its surroundings vary.

``limits`` imports this before anything else.  Until the command itself takes over, nothing is computed or written: so an
interruption may end the process where it stands, in one line, and so does a setting in the environment that a library refuses.
"""

import codecs
import os
import signal
import sys
import unicodedata
from pathlib import Path
from typing import NoReturn

SCRIPT = "superconsistency"  # all commands, one behind the other's name; `python -m comparisons` is the same
EQUIVALENTS = {
    "×": "x", "·": "*", "–": "-", "−": "-", "—": "-", "…": "...", "±": "+-", "≈": "~", "∝": "~", "≤": "<=", "≥": ">=",
    "→": "->", "√": "sqrt", "∞": "inf", "∂": "d", "∇": "grad ", "‖": "|", "✓": "yes", "✗": "no", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


def begin() -> str:
    """Where Python is starting a module (-m), or our script: see above.  Elsewhere nothing changes.

    What a person has called, or "" elsewhere.
    """
    if sys.argv[:1] == ["-m"]:  # so it is until that module is found
        program = f"python -m {_module(sys.orig_argv)}"
    elif Path(*sys.argv[:1]).stem == SCRIPT:
        program = SCRIPT
    else:
        return ""
    os.environ.pop("MPLBACKEND", None)  # pictures go into files: no screen is asked for, so none can be refused
    _spell()
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:
            signal.signal(number, lambda number, _: _leave(program, "interrupted", 128 + number))
    sys.excepthook = lambda kind, fault, trace: _hook(program, kind, fault, trace)
    return program


def called(module: str, name: str = "") -> str:
    """How a person calls the command of this module: by its ``name`` (that of the module) where all are called by one."""
    by_name = BEGUN in (SCRIPT, "python -m comparisons")
    return f"{BEGUN} {name or module.rpartition('.')[2]}" if by_name else f"python -m {module}"


def _spell():
    """From here on standard output and error write out what their encoding does not have: η0 as eta0, × as x."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")


def _spelled(fault):
    text = fault.object[fault.start : fault.end]
    return "".join(map(_in_ascii, text)), fault.end


def _in_ascii(character):
    name = unicodedata.name(character, "")
    if name.startswith("GREEK"):
        return name.rpartition(" ")[2].lower()
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return EQUIVALENTS.get(character) or plain or "?"


def _module(words):
    """What follows -m, in one word with it or in two."""
    return next((word[2:] or following for word, following in zip(words, [*words[1:], ""], strict=True)
                 if word.startswith("-m")), "superconsistency")  # fmt: skip


def _hook(program, kind, fault, trace):
    if isinstance(fault, BrokenPipeError):  # `--help | head` has read enough
        os._exit(0)
    if isinstance(fault, ImportError | ValueError | OSError):  # a broken installation, a setting that cannot be
        _leave(program, " ".join(str(fault).split()), 2)
    sys.__excepthook__(kind, fault, trace)


def _leave(program, line, status) -> NoReturn:
    print(f"{program}: {line}", file=sys.stderr, flush=True)
    os._exit(status)


codecs.register_error("spelled", _spelled)
BEGUN = begin()
