"""From a dataclass to the options of a command: `--help`, `--version`, and one line for what cannot be read."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from inspect import cleandoc
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

import limits
from limits.rows import Table

Options = TypeVar("Options")
COMPLAINTS = {  # about a value, and what is wanted instead
    r"invalid literal for int\(\) with base 10: '(.*)'": "an integer",
    "could not convert string to float: '(.*)'": "a number",
    r"(?:no type matching .* instantiated from|Could not find valid parse for arguments:) \[(.*?)\].*": "what --help says",
}


@dataclass(frozen=True, eq=False)
class OneOf:
    """Marks the type of an option whose values are the rows of a table: ``Annotated[str, OneOf(ACTIVATIONS)]``.

    only     whether it can be nothing else
    where    of which rows; all if it is not told
    """

    table: Table
    only: bool = True
    where: Callable[[Any], bool] = lambda row: True

    def described(self) -> str:
        """The rows in one sentence, by their names and, where they have them, descriptions."""
        rows = [row for row in self.table.values() if self.where(row)]
        if any(hasattr(row, "description") for row in rows):
            return "; ".join(f"{row.name}: {row.description}" for row in rows) + "."
        return "" if self.only else ", ".join(row.name for row in rows) + "."


def choices(kind: Any) -> Any:
    """The type with the names that there are now in place of every mark."""
    if get_origin(kind) is tuple:
        return tuple[choices(get_args(kind)[0]), ...]
    named = next((Literal[tuple(mark.table)] for mark in _marks(kind) if mark.only), kind)
    return named | None if get_origin(kind) in (Union, UnionType) and named is not kind else named


def _marks(kind) -> list[OneOf]:
    if get_origin(kind) in (tuple, Union, UnionType):
        return _marks(get_args(kind)[0])
    return [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, OneOf)]


def read(options: type[Options], program: str, arguments: Sequence[str] | None = None) -> Options:
    """The options that the arguments, by default the command's own, say.

    Ends the command, with status 0, after `--help` and `--version`, and with status 2, after one line on standard error, where
    they cannot be read.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "--version" in arguments:
        print(f"superconsistency {limits.__version__}")
        raise SystemExit(0)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(described(options), prog=program, args=arguments, description=_description(options))
            return options(**{field.name: getattr(parsed, field.name) for field in fields(options)})
    except SystemExit as end:
        if not end.code:
            raise
    statement = _plainly(_first_statement(complaint.getvalue()))
    stop(program, f"{statement}{_meant(options, statement)}; see {program} --help")


def described(options):
    """The same options with help that flows and says no default of None, or of nothing, beside the real one: tyro keeps the
    line breaks of indented docstrings.
    """
    texts = {
        member.arg_name: " ".join(member.description.split())
        for kind in reversed(options.__mro__[:-1])
        for member in docstring_parser.parse_from_object(kind).params
    }
    types = get_type_hints(options, include_extras=True)

    def annotated(field):
        told = {"help_behavior_hint": ""} if field.default in (None, ()) else {}
        words = [texts.get(field.name), *(mark.described() for mark in _marks(types[field.name]))]
        return Annotated[choices(types[field.name]), tyro.conf.arg(help=" ".join(filter(None, words)) or None, **told)]

    members = [(field.name, annotated(field), field) for field in fields(options)]
    return make_dataclass(options.__name__, members, frozen=True, kw_only=True)


def _description(options):
    """What the command does; below it, what its options need more room for: ``notes``, if it has some."""
    return "\n\n".join(filter(None, (cleandoc(options.__doc__), getattr(options, "notes", ""))))


class Stopped(SystemExit):
    """With status 2, after a ``line`` on standard error."""

    def __init__(self, line: str):
        super().__init__(2)
        self.line = line


def stop(program: str, line: str) -> NoReturn:
    """Ends a command after a mistake of its user's."""
    line = " ".join(line.split())
    print(f"{program}: {line}", file=sys.stderr, flush=True)
    raise Stopped(line)


def _first_statement(box: str) -> str:
    """What a framed message says below its title and before its first rule, whatever the frame is drawn with."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rules = [number for number, line in enumerate(lines) if re.fullmatch("[─╰╯-]{5,}", line)]
    first = rules[0] == 0  # without box characters the title has a line of its own, and a rule below
    return " ".join(" ".join(lines[first : rules[first]]).split()).rstrip(".")


def _plainly(statement: str) -> str:
    """What cannot be read, and what would be, in place of what Python and tyro say of it."""
    for complaint, wanted in COMPLAINTS.items():
        statement = re.sub(rf"^Error parsing (--\S+): {complaint}$", rf"\1 \2: wanted {wanted}", statement)
    return statement


def _meant(options, statement):
    """The option that is nearest to the unknown one, if one is near."""
    known = [field.name.replace("_", "-") for field in fields(options)]
    unknown = re.match(r"Unrecognized options: --([^\s=,]+)", statement)
    near = difflib.get_close_matches(unknown[1].replace("_", "-"), known, 1) if unknown else []
    return f": did you mean --{near[0]}?" if near else ""
