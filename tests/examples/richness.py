"""Sharpness at infinite width against the richness γ0: how far features move, from the kernel regime on."""

import numpy as np

import limits

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 10)), rng.normal(size=40)
for richness in (0.1, 0.3, 1.0, 3.0):
    problem = limits.Problem(X, y, "mup", learning_rate=0.1, richness=richness, num_steps=100, measure_every=50)
    limit = limits.solve(problem)
    print(f"γ0 = {richness:3}: sharpness {limit['sharpness'].round(3)}, loss {limit['loss'].round(3)}")

# γ0 = 0.1: sharpness [0.406 0.407 0.409], loss [0.622 0.493 0.46 ]
# γ0 = 0.3: sharpness [0.409 0.417 0.43 ], loss [0.622 0.492 0.458]
# γ0 = 1.0: sharpness [0.439 0.533 0.656], loss [0.622 0.482 0.448]
# γ0 = 3.0: sharpness [0.663 1.439 1.73 ], loss [0.622 0.448 0.44 ]
