"""The command."""

from pathlib import Path

from comparisons.audit.options import PROGRAM, Options
from comparisons.audit.study import audit
from finite.networks.from_file import model, optimizer
from limits.command.arguments import stop


def answer(options: Options) -> None:
    """Print the report.  Ends the command: status 1 where the audit does not pass, 2 after one line where it cannot be made."""
    try:
        if options.out:
            refuse_unwritable(options.out)
        report = audit(model(options.model, options.loss, options.batch), optimizer=optimizer(options.optimizer),
                       param=options.param, widths=options.widths, seeds=options.seeds, steps=options.steps)  # fmt: skip
        if options.every:
            print(report.every())
        print(report, flush=True)
        if options.out:
            report.save(options.out)
    except (ValueError, ImportError, OSError, MemoryError) as mistake:
        stop(PROGRAM, str(mistake))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", flush=True)
        raise SystemExit(130) from None
    raise SystemExit(0 if report.ok else 1)


def refuse_unwritable(path: Path) -> None:
    """Makes the folder of a picture.  Raises ValueError, in one line, where none can be written."""
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--out {path}: wanted a picture, .png or .pdf")
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as fault:
        raise ValueError(f"--out {path}: cannot be written: {fault.strerror}") from None
    if new:
        path.unlink()
