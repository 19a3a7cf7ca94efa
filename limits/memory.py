"""How much memory this machine has, and one line for what does not fit, before it is begun."""

import os


def physical() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require(numbers: float, what: str = "this limit needs", advice: str = "") -> None:
    """Raises MemoryError, in one line, where so many float64 numbers are more than there is room for."""
    needed, there = 8 * numbers, physical()
    if needed > there:
        more = f": {advice}" if advice else ""
        raise MemoryError(f"{what} about {needed / 2**30:.1f} GiB, more than the {there / 2**30:.1f} GiB there are{more}")
