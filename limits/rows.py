"""Tables of rows.  One new thing is one row of a table; choices, help and error texts are made of these.

    ACTIVATIONS.add(Activation("leaky", leaky, slopes=(0.1, 1.0)))        from anywhere, before options are read

Tables import nothing heavy: what a row computes with is imported when it is called.
"""

from collections.abc import Iterable
from typing import Any


class Unknown(KeyError):
    """A name that no row has.  (The text of a KeyError is the repr of its key.)"""

    def __str__(self) -> str:
        return str(self.args[0])


class Table(dict[str, Any]):
    """Rows of one kind by their ``name``, in their order."""

    def __init__(self, kind: str, rows: Iterable[Any]):
        super().__init__({row.name: row for row in rows})
        self.kind = kind

    def add(self, row: Any, *, first: bool = False) -> None:
        """One more, behind all others or before them.  Raises ValueError where there is one of this name: what is compiled and
        what is stored goes by names."""
        if row.name in self:
            raise ValueError(f"the {self.kind} {row.name!r} is there already")
        others = dict(self) if first else {}
        for name in others:
            del self[name]
        self |= {row.name: row} | others

    def find(self, name: str) -> Any:
        """Raises ValueError, in one line, for a name that no row has."""
        if name not in self:
            raise ValueError(self._unknown(name))
        return self[name]

    def __missing__(self, name: str) -> Any:
        """Raises Unknown, in the same line: a worker, say, may lack a row that was added in another process."""
        raise Unknown(self._unknown(name))

    def _unknown(self, name):
        return f"unknown {self.kind} {name!r}; known: {', '.join(self)}"
