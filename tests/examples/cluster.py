"""A sweep on a cluster, here two workers on this machine: pip install -e ".[cluster]".

Elsewhere, with your jobqueue.yaml: superconsistency transfer --cluster slurm --processes 8
"""

import subprocess
import sys

from distributed import LocalCluster

SWEEP = "transfer --samples 8 --inputs 3 --steps 4 --widths 8 16 --seeds 3 --param mup --out swept"

if __name__ == "__main__":  # workers import this file
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        words = [sys.executable, "-m", "comparisons", *SWEEP.split(), "--cluster", cluster.scheduler_address]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout.splitlines()[-1])

# results in swept
