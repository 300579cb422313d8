r"""Sharpness: how much a loss rises near the weights, and how that rise is shared out over items.

``S(w) = max over ||T^-1 e|| <= rho of L(w + e) - L(w)``; to first order the maximum lies at ``e = rho T^2 g / ||T g||``
with g the gradient and ``T = 1``, or ``T = |w|`` (adaptive). An item has its own loss ``L_i`` and its own ``S_i``.

What moves parameters puts them back by copying, also after an exception; ``w + e - e`` would not be w.

References: Foret et al., Sharpness-aware minimization, ICLR 2021; Kwon et al., ASAM, ICML 2021; Zhou et al., ImbSAM,
ICCV 2023; Li et al., Focal-SAM, ICML 2025; Cui et al., class-balanced loss, CVPR 2019.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor

from upright.contract import InputError
from upright.maths.ranks import head_items

__all__ = [
    "WEIGHTS",
    "ascent",
    "ascent_scale",
    "bound",
    "head_items",
    "item_sharpness",
    "item_weights",
    "kept_weights",
    "rarest_items",
    "shuffled_weights",
    "slice_losses",
]

Array = NDArray[np.float64]
WEIGHTS = ("focal", "relative", "power", "effective", "rank", "tail_only", "constant")
CLIP = 100.0  # largest ratio of a `power` weight to that of the item with the median count
ALIKE = 0.05


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def ascent_scale(grads: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> float:
    """Return ``1 / ||T g||`` over all tensors, summed in float64; 0 where the norm is 0 or not finite."""
    if weights is None:
        norms = list(torch._foreach_norm(list(grads), 2, dtype=torch.float64)) if grads else []
    else:  # one tensor at a time, so that no further copy of all of them is held
        pairs = zip(grads, weights, strict=True)
        norms = [torch.linalg.vector_norm(_wide(g) * _wide(w), dtype=torch.float64) for g, w in pairs]
    if not norms:
        return 0.0
    norm = math.hypot(*torch.stack([one.to(norms[0].device) for one in norms]).tolist())
    return 1.0 / norm if 0.0 < norm < math.inf else 0.0


def ascent(grads: Sequence[Tensor], rho: float, weights: Sequence[Tensor] | None = None) -> list[Tensor]:
    """``e = rho T^2 g / ||T g||``: the perturbation that raises the loss most, to first order.

    Parameters
    ----------
    grads : sequence of Tensor
        g; the norm is that of all of them together.
    rho : float
        Radius, at least 0.
    weights : sequence of Tensor, optional
        w, of the shapes of `grads`; with them ``T = |w|``, without ``T = 1``.

    Returns
    -------
    list of Tensor
        Of the shapes of `grads`; zeros where the norm is 0 or not finite.

    Guarantee
    ---------
    ``||T^-1 e|| = rho`` up to rounding, and no other e of this length has a larger ``g'e``.
    """
    if not 0.0 <= rho < math.inf:
        raise InputError(f"rho = {rho!r}", "a finite radius of at least 0", "take 0.05, or 0 for no perturbation")
    scale = rho * ascent_scale(grads, weights)
    if scale == 0.0:
        return [torch.zeros_like(g) for g in grads]
    if weights is None:
        return [g * scale for g in grads]
    return [(_wide(w).square() * g * scale).to(g.dtype) for g, w in zip(grads, weights, strict=True)]


def item_weights(count: ArrayLike, kind: str, gamma: float = 1.0) -> Array:
    """Return f, a weight for each item that falls with its count, with ``sum_i n_i f_i / sum_i n_i = 1``.

    =============  =================================================================================================
    ``focal``      ``(1 - n / N)^gamma``, N all interactions; nearly constant on a catalogue of many items
    ``relative``   ``(1 - n / n_max)^gamma``
    ``power``      ``(n / n_median)^(-gamma)``, between 1/100 and 100; the median of items with interactions
    ``effective``  ``(1 - beta) / (1 - beta^n)``, ``beta = 1 - 10^(-gamma)``; here the scale of counts matters
    ``rank``       ``r^gamma``, r from 0 (most frequent) to 1 (rarest); ties share their mean
    ``tail_only``  0 for the head (`head_items`), else 1
    ``constant``   1
    =============  =================================================================================================

    Parameters
    ----------
    count : array, shape (I,)
        n, interactions of each item in the training data, at least 0.
    kind : str
        A row of the table.
    gamma : float
        How steeply f falls, at least 0.

    Raises
    ------
    InputError
        For counts that are no counts, an unknown kind, or a weight of 0 for every interaction.

    Warns
    -----
    UserWarning
        Where all counts are equal, or the mean weights of head and tail differ by under 5 %.
    """
    n = _counts(count)
    if kind not in WEIGHTS or not 0.0 <= gamma < math.inf:
        raise InputError(f"weight {kind!r} with gamma = {gamma!r}", f"{', '.join(WEIGHTS)}; gamma >= 0", "choose one")
    even = np.ptp(n[n > 0]) == 0
    if even and kind != "constant":
        warnings.warn("all items have the same count, so all weights are 1: this is plain SAM", stacklevel=2)
    if even or kind == "constant":
        return np.ones(len(n))
    head = head_items(n)
    if kind == "focal":
        f = (1.0 - n / n.sum()) ** gamma
    elif kind == "relative":
        f = (1.0 - n / n.max()) ** gamma
    elif kind == "power":
        f = np.clip((np.maximum(n, 1e-9) / np.median(n[n > 0])) ** -gamma, 1.0 / CLIP, CLIP)
    elif kind == "effective":
        beta = 1.0 - 10.0**-gamma
        f = (1.0 - beta) / (1.0 - beta ** np.maximum(n, 1.0))
    elif kind == "rank":
        f = ((rankdata(-n) - 1.0) / (len(n) - 1.0)) ** gamma
    else:
        f = np.where(head, 0.0, 1.0)
    f = _normalised(f, n)
    inside, outside = (float(f[at].mean()) if at.any() else 1.0 for at in (head, ~head))
    if abs(inside - outside) < ALIKE * max(inside, outside):
        means = f"{inside:.3f} and {outside:.3f}"
        warnings.warn(f"{kind!r} weighs head and tail alike, {means}: this is nearly plain SAM", stacklevel=2)
    return f


def shuffled_weights(weight: ArrayLike, count: ArrayLike, rng: np.random.Generator) -> Array:
    """Return f of other items, for f and n of shape (I,), with interaction-weighted mean 1 again: a placebo."""
    f, n = np.asarray(weight, dtype=np.float64), _counts(count)
    if f.shape != n.shape:
        got = f"weights of shape {f.shape} and counts of shape {n.shape}"
        raise InputError(got, "one weight and one count an item", "take both from the same items")
    return _normalised(f[rng.permutation(len(n))], n)


def rarest_items(weight: ArrayLike, count: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Return the items of the largest weights that hold at most `share` of the interactions; at least one weight."""
    level, place = np.unique(np.asarray(weight), return_inverse=True)
    held = np.bincount(place, _counts(count))[::-1].cumsum() / np.sum(count)  # from the largest weight down
    return np.asarray(place >= len(level) - max(int((held <= share).sum()), 1))


def _counts(count: ArrayLike) -> Array:
    n = np.asarray(count, dtype=np.float64)
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any() or not n.any():
        raise InputError(
            f"counts of shape {n.shape} that are negative, not finite or all 0",
            "interactions of each item, shape (I,), at least 0 and not all 0",
            "count the items of the training data: numpy.bincount(items, minlength=I)",
        )
    return n


def _normalised(f: Array, n: Array) -> Array:
    mean = float(n @ f / n.sum())
    if not mean > 0.0:
        raise InputError("weights of 0 for every item with interactions", "one above 0", "take weight='relative'")
    return np.asarray(f / mean)


@contextmanager
def kept_weights(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give copies of parameters, and put them back bit for bit at the end, also after an exception."""
    weights = [p.detach().clone() for p in params]
    try:
        yield weights
    finally:
        torch._foreach_copy_([p.detach() for p in params], weights)


def slice_losses(
    losses_of: Callable[[], Tensor], params: Sequence[Tensor], direction: Sequence[Tensor], steps: Sequence[float]
) -> Tensor:
    """Return ``L(w + t d)`` for each t of `steps`, in float64, shape (steps, *shape of the losses).

    Parameters
    ----------
    losses_of : callable
        Losses at the present parameters, of any shape.
    params, direction : sequence of Tensor
        w, and d of the same shapes.
    steps : sequence of float
        t, in units of d.
    """
    found = []
    with torch.no_grad(), kept_weights(params) as weights:
        for t in steps:
            for p, w, d in zip(params, weights, direction, strict=True):
                p.copy_(w + t * d)
            found.append(losses_of().double())
    return torch.stack(found)


def item_sharpness(
    losses_of: Callable[[Tensor], Tensor], params: Sequence[Tensor], items: Tensor, rho: float
) -> tuple[Tensor, Tensor]:
    """``L_i(w + e_i) - L_i(w)``, ``e_i = rho grad L_i / ||grad L_i||``, for each distinct item.

    Two forward passes and one backward over the rows of an item; nothing is shared between items.

    Parameters
    ----------
    losses_of : callable
        ``losses_of(rows)``, rows int64 of shape (k,), returns their losses, shape (k,), without randomness.
    params : sequence of Tensor
        That require gradients; their ``.grad`` is not touched.
    items : Tensor of int64, shape (n,)
        Item of each row.
    rho : float
        Radius, at least 0.

    Returns
    -------
    items : Tensor of int64, shape (K,)
        Distinct, ascending.
    sharpness : Tensor of float64, shape (K,)
        At most S_i, and equal to it up to ``O(rho^2)``.
    """
    params, found = list(params), []
    distinct, place = torch.unique(items, return_inverse=True)
    for rows in place.argsort(stable=True).split(place.bincount().tolist()):
        with torch.enable_grad():
            loss = losses_of(rows).mean()
            e = ascent(torch.autograd.grad(loss, params, materialize_grads=True), rho)
        up = slice_losses(lambda rows=rows: losses_of(rows).mean(), params, e, [1.0])  # type: ignore[misc]
        found.append(up[0] - loss.detach().double())
    return distinct, torch.stack(found)


def bound(worst: ArrayLike, count: ArrayLike, n_params: int, norm: float, rho: float, delta: float = 0.05) -> Array:
    """Return a PAC-Bayes bound of the expected loss of each item, shape (I,).

    ``worst_i + sqrt((k log(1 + (||w|| / rho)^2 (1 + sqrt(log(n_i) / k))^2) + 4 log(n_i I / delta)
    + 8 log(6 n_i + 3 k)) / (n_i - 1))``: that of Foret et al. at delta / I for each of I items.

    Parameters
    ----------
    worst : array, shape (I,)
        ``max over ||e|| <= rho of L_i(w + e)`` on the training rows of item i, in [0, 1].
    count : array, shape (I,)
        n_i; below 2 the bound is infinite.
    n_params, norm, rho : int, float, float
        k, ``||w||``, and the radius, above 0.
    delta : float
        Probability that the bound fails for some item, in (0, 1).

    Guarantee
    ---------
    Assumes that the rows of an item are drawn independently, that losses are at most 1, and that Gaussian noise of
    variance ``rho^2`` on w does not lower the expected loss. It then holds for all items together, so for any average
    of them. For large models it is far above 1: it tells how count and sharpness matter, not how large a loss is.
    """
    high, n = np.asarray(worst, dtype=np.float64), _counts(count)
    if high.shape != n.shape or not (rho > 0.0 and 0.0 < delta < 1.0 and n_params >= 1 and norm >= 0.0):
        raise InputError(
            f"losses {high.shape}, counts {n.shape}, k = {n_params}, norm = {norm}, rho = {rho}, delta = {delta}",
            "one loss and one count an item, k >= 1, norm >= 0, rho > 0 and delta in (0, 1)",
            "pass the loss at the worst point of the ball that rho gives",
        )
    k, m = n_params, np.maximum(n, 2.0)
    volume = k * np.log1p((norm / rho) ** 2 * (1.0 + np.sqrt(np.log(m) / k)) ** 2)
    rest = 4.0 * np.log(m * len(n) / delta) + 8.0 * np.log(6.0 * m + 3.0 * k)
    return np.where(n >= 2.0, high + np.sqrt((volume + rest) / (m - 1.0)), np.inf)
