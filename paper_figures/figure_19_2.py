"""Paper, appendix: two-layer linear networks, final loss against learning rate, μP beside NTP.

    python -m comparisons.transfer --inputs 100 --samples 1000 --widths 64 128 256 512 1024 2048 --learning-rates 0.5 0.75 1.1 1.6 2.4 3.5 5 7.5 11 16 24 35 50 75 --seeds 4 --steps 20 --richness 1 --sharpness-seeds 0 --out results/figure_19_2
    python -m paper_figures.figure_19_2

The first command took 1.5 minutes on two cores.  The paper has D = 100 and random data; assumed are P = 1000 samples of a
linear teacher, full batches, γ0 = 1, 20 steps, and the widths (the paper's may go to 8192).
"""  # noqa: E501  (a command that is to be copied)

from functools import partial
from pathlib import Path

from paper_figures import Options, command

NAME = Path(__file__).stem
main = partial(command, NAME)
if __name__ == "__main__":  # before what takes seconds to import
    main()
    raise SystemExit

# isort: split
from comparisons.files import Refused
from comparisons.optimum.minimum import analyse
from comparisons.optimum.picture import picture
from paper_figures.results import quoted, read, save


def recipe(results: Path) -> str:
    """The shell command that makes the results."""
    return (
        "python -m comparisons.transfer --inputs 100 --samples 1000 --widths 64 128 256 512 1024 2048"
        " --learning-rates 0.5 0.75 1.1 1.6 2.4 3.5 5 7.5 11 16 24 35 50 75 --seeds 4 --steps 20 --richness 1"
        f" --sharpness-seeds 0 --out {quoted(results)}"
    )


def draw(options: Options) -> None:
    """Raises Refused where the results are missing, or are not those of both parametrizations."""
    results = options.results or Path("results") / NAME
    dataset = read(results / "transfer.nc", recipe(results))
    missing = {"mup", "ntp"} - set(dataset.param.values.tolist())
    if missing:
        raise Refused(f"{results}: without {' and '.join(sorted(missing))}; make the results with: {recipe(results)}")
    dataset = dataset.sel(param=["mup", "ntp"])
    save(picture(dataset, *analyse(dataset), dataset.attrs["title"]), options.out or results / NAME)
