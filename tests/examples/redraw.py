"""Load the results of a run and draw them anew: `python tests/examples/redraw.py results/DIR` of a `convergence`."""

import sys

import xarray as xr
from matplotlib.figure import Figure

run = xr.open_dataset(f"{sys.argv[1]}/trajectories.nc", engine="h5netcdf")
off = (run["loss_deviation"] ** 2).mean("seed") ** 0.5  # root mean square of network minus limit: (width, step)
figure = Figure()
off.plot.line(x="width", xscale="log", yscale="log", marker="o", ax=figure.subplots())
figure.savefig("redrawn.png")
print(off.dims, run["loss"].attrs["long_name"])

# ('width', 'step') loss
