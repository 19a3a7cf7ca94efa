"""patches10: 32×32 colour crops of ten photographs, the label says of which; they come with this package.

It is not CIFAR-10, and no figure of a paper about CIFAR-10: it stands in for it where there is no network, with the same
shape, ten classes and the spectrum of natural images.  Training crops lie in the upper 192 rows of each photograph, test crops
in the lower 64: no pixel is in both, and what is at the bottom of a picture often does not look like its top.
Right on 1000 test crops, after 2000 training crops, mean and standard deviation over five seeds: the nearest of the classes'
mean colours 51 ± 2 %, ridge regression with the kernel exp(−2 |x − x'|² / median) 68 ± 2 % (tests/test_patches.py has both),
a support vector machine (SVC of scikit-learn, C = 10) 84 ± 1 %.

Each photograph is its central square (of the retina 998×998 pixels, within the disc), scaled by area averages to 256×256, from
the data that scikit-image 0.26.0 carries; grey ones have three equal channels.  ``PHOTOGRAPHS`` says whose they are and
which dedication they are under, as scikit-image documents it.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import sliding_window_view

from finite.data.images import Images
from finite.data.synthetic import embedded

PATCHES = Path(__file__).with_name("patches10.npz")
PATCHES_SHA256 = "d5a8e7de2c0dbf120b4d71760892fef2c947cbe5175a2c9302b13182319992c2"

PHOTOGRAPHS = {
    "astronaut": "Eileen Collins, NASA, Great Images in NASA; public domain",
    "chelsea": "Chelsea the cat, Stefan van der Walt; CC0",
    "coffee": "a cup at Pikolo Espresso Bar, Rachel Michetti; CC0",
    "hubble_deep_field": "Hubble eXtreme Deep Field, NASA, HubbleSite 2012; public domain",
    "retina": "fundus of a left eye, Mikael Häggström, WikiJournal of Medicine 2014, doi:10.15347/wjm/2014.008; CC0",
    "rocket": "launch of DSCOVR on a Falcon 9, SpaceX 2015; public domain",
    "camera": "a cameraman, Lav Varshney; CC0",
    "brick": "Bricks25, CC0Textures; CC0",
    "grass": "Grass 01, linolafett on DeviantArt; CC0",
    "gravel": "Gravel04, CC0Textures; CC0",
}
SIDE, TRAIN_ROWS = 32, 192


def patches10(samples: int = 2000, test_samples: int = 1000, seed: int = 0) -> Images:
    """Crops of the ten photographs at random places, all different; the p-th shows photograph p mod 10.

    With the same seed, fewer are the first of more.
    Raises ValueError for more than 362 250 training or 74 250 test samples, for fewer than 1 or 0; DataError where the embedded
    file is damaged.
    """
    photographs = _photographs()
    halves = (
        _crops([photograph[:TRAIN_ROWS] for photograph in photographs], samples, 1, (seed, 0)),
        _crops([photograph[TRAIN_ROWS:] for photograph in photographs], test_samples, 0, (seed, 1)),
    )
    labelled = ((crops, np.arange(len(crops)) % len(PHOTOGRAPHS)) for crops in halves)
    return Images(*(array for half in labelled for array in half), tuple(PHOTOGRAPHS))


@cache
def _photographs() -> list[UInt8[np.ndarray, "256 256 3"]]:
    """The file holds differences to the left neighbour, modulo 256: they compress better."""
    differences = embedded(PATCHES, PATCHES_SHA256)
    photographs = (np.cumsum(differences[name], axis=1, dtype=np.uint8) for name in PHOTOGRAPHS)
    return [np.repeat(p[..., None], 3, axis=-1) if p.ndim == 2 else p for p in photographs]


def _crops(regions, samples, fewest, seed) -> UInt8[np.ndarray, "n 32 32 3"]:
    """``samples`` windows of the regions, which take turns."""
    windows = [sliding_window_view(region, (SIDE, SIDE), axis=(0, 1)) for region in regions]  # (places, 3, 32, 32), no copy
    places = windows[0].shape[0] * windows[0].shape[1]
    if not fewest <= samples <= places * len(regions):
        raise ValueError(f"{samples} crops: wanted from {fewest} to {places * len(regions)}")
    crops = np.empty((samples, SIDE, SIDE, 3), np.uint8)
    for label, view in enumerate(windows):
        count = len(crops[label :: len(regions)])
        drawn = np.random.default_rng((*seed, label)).permutation(places)[:count]
        crops[label :: len(regions)] = np.moveaxis(view[np.unravel_index(drawn, view.shape[:2])], 1, -1)
    return crops
