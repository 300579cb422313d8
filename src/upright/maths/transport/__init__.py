"""Optimal transport between classes of points: plans, barycenters, maps, and distances of distributions.

* `plans`: costs;
* `barycenters`: one common target of several classes, as free points;
* `gaussian`: the same between Gaussians, with maps that extend to new points;
* `slices`: random directions to transport along;
* `kernels`: maximum mean discrepancy.

Solvers work in float64 and return the type and device of the points. Randomness comes from a `torch.Generator` that is
passed in.
"""

from upright.maths.transport.barycenters import FreeBarycenter, free_barycenter
from upright.maths.transport.common import Convergence
from upright.maths.transport.gaussian import (
    AffineMap,
    Gaussian,
    GaussianBarycenter,
    affine_map,
    bures_barycenter,
    gaussian_w2,
)
from upright.maths.transport.kernels import median_bandwidths, mmd2
from upright.maths.transport.plans import relative_reg, squared_distances
from upright.maths.transport.slices import random_directions

__all__ = [
    "AffineMap",
    "Convergence",
    "FreeBarycenter",
    "Gaussian",
    "GaussianBarycenter",
    "affine_map",
    "bures_barycenter",
    "free_barycenter",
    "gaussian_w2",
    "median_bandwidths",
    "mmd2",
    "random_directions",
    "relative_reg",
    "squared_distances",
]
