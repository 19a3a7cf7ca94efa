"""Paper, appendix: two-layer linear networks, final loss against learning rate, μP beside NTP.

    python -m paper_figures.all --only 19_2

The paper has D = 100 and random data; assumed are P = 1000 samples of a
linear teacher, full batches, γ0 = 1, 20 steps, and the widths (the paper's may go to 8192).
"""

from functools import partial
from pathlib import Path

from paper_figures import Options, command
from paper_figures.rows import recipe as recipe_of

NAME = Path(__file__).stem
main = partial(command, NAME)
if __name__ == "__main__":  # before what takes seconds to import
    main()
    raise SystemExit

# isort: split
from comparisons.files import Refused
from comparisons.optima import picture
from comparisons.statistics.minimum import analyse
from paper_figures import read, save

recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where the results are missing, or are not those of both parametrizations."""
    results = options.results or Path("results") / NAME
    dataset = read(results / "transfer.nc", recipe(results))
    missing = {"mup", "ntp"} - set(dataset.param.values.tolist())
    if missing:
        raise Refused(f"{results}: without {' and '.join(sorted(missing))}; make the results with: {recipe(results)}")
    dataset = dataset.sel(param=["mup", "ntp"])
    save(picture(dataset, *analyse(dataset), dataset.attrs["title"]), options.out or results / NAME)
