"""All commands by one name: `superconsistency convergence …` is `python -m comparisons.convergence …`.

    superconsistency                    the commands
    superconsistency COMMAND --help     the options of one
    superconsistency --tyro-print-completion bash|zsh
"""

import difflib
import pkgutil
import re
import runpy
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, NoReturn, Union

import limits
from limits.command.arguments import described, stop
from limits.command.start import BEGUN, SCRIPT
from limits.rows import Table


@dataclass(frozen=True)
class Command:
    """module     is run as the main one
    answers    its question, for the list of commands
    options    the module of its ``Options``
    scripts    what the word behind it may be the name of, one of the module's own: a regular expression, "" for nothing
    """

    name: str
    module: str
    answers: str
    options: str
    scripts: str = ""


def _of(module: str, answers: str) -> Command:
    return Command(module.rpartition(".")[2], module, answers, f"{module}.options")


COMMANDS = Table("command", [
    _of("comparisons.convergence", "how fast do networks of growing width approach their limit?"),
    _of("comparisons.transfer", "does the best learning rate stay where it is?"),
    _of("comparisons.landscape", "is the curvature of the loss the same at all sizes?"),
    _of("comparisons.coord_check", "do networks do what their scaling exponents say?"),
    _of("comparisons.audit", "is the parametrization of your own network right, and if not, which weight is wrong?"),
    _of("comparisons.optimum", "does the best learning rate of your own sweep transfer?"),
    _of("limits.exponents", "which power of width and depth goes where?"),
    Command("figures", "paper_figures", "the paper's figures, one script each", "paper_figures", scripts="all|figure_.*"),
])  # fmt: skip


def main() -> None:
    """The command that the first word names, with the others; or the list of commands."""
    program, (word, *words) = BEGUN or SCRIPT, sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print(overview(program))
    elif word == "--version":
        print(f"superconsistency {limits.__version__}")
    elif word in ("--tyro-print-completion", "--tyro-write-completion"):
        _complete(program, [word, *words])
    elif word not in COMMANDS:
        _unknown(program, word, COMMANDS)
    else:
        module = _script(program, COMMANDS[word], words)
        sys.argv[1:] = words
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def overview(program: str) -> str:
    """The commands, a line each."""
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", "Infinite-width limits, finite networks, and what is between them.", ""]
    lines += [f"  {row.name:<13}{row.answers}" for row in COMMANDS.values()]
    lines += ["", f"{program} COMMAND --help has the options of one; {program} --version",
              f"completion of commands and options on Tab: {program} --tyro-print-completion bash (or zsh)"]  # fmt: skip
    return "\n".join(lines)


def _script(program, command, words):
    """The module that is run; of its scripts the one that is named, which then is no option any more."""
    if not (command.scripts and words and not words[0].startswith("-")):
        return command.module
    name = words.pop(0)
    known = [script.name for script in pkgutil.iter_modules(import_module(command.module).__path__)
             if re.fullmatch(command.scripts, script.name)]  # fmt: skip
    return f"{command.module}.{name}" if name in known else _unknown(f"{program} {command.name}", name, known)


def _unknown(program, word, known) -> NoReturn:
    near = difflib.get_close_matches(word, known, 1)
    meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    stop(program, f"unknown command {word!r}: {meant}; see {program} --help")


def _complete(program, words):
    """What a shell reads for completion, by tyro."""
    import tyro

    options = [Annotated[described(import_module(row.options).Options), tyro.conf.subcommand(row.name)]
               for row in COMMANDS.values()]  # fmt: skip
    tyro.cli(Union[tuple(options)], prog=program, args=words)  # noqa: UP007  (of as many as there are)


if __name__ == "__main__":
    main()
