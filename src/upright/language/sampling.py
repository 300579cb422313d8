r"""Which record is drawn next: weights from difficulty, draws that depend on names alone, and a sampler for training.

    p_i = (1 - floor) d_i^tau / sum_j d_j^tau + floor / n

A draw is a pure function of (weights, seed, epoch, place in the epoch). No global generator is read, so workers, ranks
and a resumed run see the same stream. The same uniform numbers serve all weights (common random numbers): weights that
differ little give nearly the same indices.

Published is ``tau = 1``, ``floor = 0`` with replacement, as many draws an epoch as there are records (*MRD*, arXiv
2504.06658). Temperature and floor are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from upright.contract import InputError, stream

__all__ = ["MRDSampler", "PairSampler", "draws", "effective_sample_size", "partners", "sampling_weights",
           "shuffle_order"]  # fmt: skip

_LEAST = 1e-12  # of the largest difficulty: what is below counts as this much


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return finite numbers of at least 0, float64 of shape (n,), n at least 1."""
    x = np.asarray(values, dtype=np.float64)
    bad = 0 if x.ndim != 1 else int((~np.isfinite(x) | (x < 0)).sum())
    if x.ndim != 1 or not x.size or bad:
        raise InputError(
            f"{name} of shape {x.shape}, {bad} of them negative or not finite",
            "one finite number of at least 0 a record, shape (n,)", "score the records again, or leave these out",
        )  # fmt: skip
    return x


def _whole(name: str, value: int, low: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < low:
        raise InputError(f"{name} = {value!r}", f"an integer of at least {low}", f"change {name}")
    return int(value)


def sampling_weights(difficulty: ArrayLike, *, tau: float = 1.0, floor: float = 0.0) -> NDArray[np.float64]:
    r"""``p_i = (1 - floor) r_i^tau / sum_j r_j^tau + floor / n`` with ``r_i = max(d_i / max_j d_j, 1e-12)``.

    Parameters
    ----------
    difficulty : array of float, shape (n,)
        MRD, at least 0: small is hard. When all are 0, none differs from another and the weights are uniform.
    tau : float
        1 draws easy records more often, as published; 0 is uniform by the same formula; below 0 hard ones come first.
    floor : float
        Share of uniform draws, in [0, 1]; 1 is uniform.

    Returns
    -------
    ndarray of float64, shape (n,)
        Sums to 1.

    Raises
    ------
    InputError
        For difficulty that is negative or not finite, tau that is not finite, floor outside [0, 1].

    Guarantee
    ---------
    ``p_i >= floor / n``; a factor on all difficulties changes nothing; ``tau = 0`` gives exactly ``1 / n`` each when
    ``floor`` is 0.
    """
    d = _vector(difficulty, "difficulty")
    if not np.isfinite(tau):
        raise InputError(f"tau = {tau}", "a finite number", "0 is uniform, 1 is proportional to difficulty")
    if not 0.0 <= floor <= 1.0:
        raise InputError(f"floor = {floor}", "a share between 0 and 1", "0.1 makes one draw in ten uniform")
    top = float(d.max())
    relative = np.maximum(d / top, _LEAST) if top > 0 else np.ones_like(d)
    exponent = tau * np.log(relative)
    power = np.exp(exponent - exponent.max())  # no overflow for any tau
    p: NDArray[np.float64] = (1.0 - floor) * (power / power.sum()) + floor / d.size
    return p


def effective_sample_size(p: ArrayLike) -> float:
    """``(sum_i p_i)^2 / sum_i p_i^2``, in [1, n]: how many records are drawn as if equally often; n when uniform."""
    w = _weights(p)
    share = w / w.sum()
    return float(1.0 / np.square(share).sum())


def _weights(weights: ArrayLike) -> NDArray[np.float64]:
    """Return weights after checking that one at least can be drawn."""
    w = _vector(weights, "weights")
    if not 0.0 < float(w.sum()) < np.inf:
        raise InputError(f"weights that sum to {w.sum()}", "a finite sum above 0", "keep one record at least")
    return w


def draws(weights: ArrayLike, seed: int, epoch: int, n: int) -> torch.Tensor:
    """``i_k = min {i : F_i > u_k}`` with F the cumulated weights and u_k uniform: n draws with replacement.

    Parameters
    ----------
    weights : array of float, shape (N,)
        At least 0, not all 0; they need not sum to 1. A record of weight 0 is never drawn.
    seed, epoch : int
        Name the stream ``("draws", epoch)``.
    n : int
        How many.

    Returns
    -------
    Tensor of int64, shape (n,)
        In [0, N). The first k of n draws are the k draws.
    """
    w = _weights(weights)
    cumulated = np.cumsum(w)
    u = np.random.default_rng(stream(seed, "draws", epoch)).random(_whole("n", n, 0))
    # Divided by its last entry the sum ends at 1 exactly, above every u.
    return torch.from_numpy(np.searchsorted(cumulated / cumulated[-1], u, side="right").astype(np.int64))


def shuffle_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """Return a permutation of ``range(n)``, int64 of shape (n,), from the stream ``("shuffle", epoch)``."""
    order = np.random.default_rng(stream(seed, "shuffle", epoch)).permutation(_whole("n", n, 1))
    return torch.from_numpy(order.astype(np.int64))


class MRDSampler(Sampler[int]):
    """Draws indices with replacement in proportion to weights; the same on every rank.

    Accelerate deals whole batches to ranks, so together they see the stream of one process. Call `set_epoch` before
    each epoch, as with `DistributedSampler`: the same epoch gives the same indices.

    Parameters
    ----------
    weights : array of float, shape (n,)
        Of `sampling_weights`.
    seed : int
    num_samples : int, optional
        Draws an epoch; n when left out.
    """

    def __init__(self, weights: ArrayLike, seed: int = 0, num_samples: int | None = None) -> None:
        self.weights = _weights(weights)
        self.seed = int(seed)
        self.num_samples = _whole("num_samples", len(self.weights) if num_samples is None else num_samples, 1)
        self.epoch = 0
        self._next = self.weights
        self._place = self._resume_at = 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        self._place, self._resume_at = self._resume_at, 0  # an iterator that was given up leaves no trace
        for index in draws(self.weights, self.seed, self.epoch, self.num_samples)[self._place :].tolist():
            self._place += 1
            yield index
        self._place = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the stream of an epoch; another epoch starts at its first draw, with the weights set last."""
        epoch = _whole("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self.weights = epoch, self._next
            self._place = self._resume_at = 0

    def set_weights(self, weights: ArrayLike) -> None:
        """Take other weights from the next call of `set_epoch` on; the running epoch keeps its own.

        Raises
        ------
        InputError
            When their number differs.
        """
        w = _weights(weights)
        if len(w) != len(self.weights):
            got = f"{len(w)} weights for {len(self.weights)} records"
            raise InputError(got, "one weight a record", "score the same records")
        self._next = w

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the stream: weights of this and the next epoch, seed, epoch and place."""
        return {
            "weights": self.weights.copy(), "next_weights": self._next.copy(), "seed": self.seed, "epoch": self.epoch,
            "num_samples": self.num_samples, "place": self._place,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken: the next iterator starts there, later ones at the start.

        Raises
        ------
        InputError
            When the state is of another number of records.
        """
        w, after = _weights(state["weights"]), _weights(state["next_weights"])
        if len(w) != len(self.weights) or len(after) != len(w):
            got = f"a state of {len(w)} records for a sampler of {len(self.weights)}"
            raise InputError(got, "the state of the same records", "load the state that belongs to this forget set")
        self.weights, self._next = w, after
        self.seed, self.epoch = int(state["seed"]), _whole("epoch", state["epoch"], 0)
        self.num_samples = _whole("num_samples", state["num_samples"], 1)
        self._place = self._resume_at = _whole("place", state["place"], 0)


def partners(m: int, seed: int, epoch: int, n: int) -> torch.Tensor:
    """Return a retain record for each place of an epoch, int64 of shape (n,): permutations of ``range(m)`` in a row.

    No record comes a second time before each came once. Streams: ``("retain", epoch, round)``.
    """
    rounds = -(-_whole("n", n, 0) // _whole("m", m, 1))
    orders = [np.random.default_rng(stream(seed, "retain", epoch, k)).permutation(m) for k in range(rounds)]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *orders])[:n].astype(np.int64))


class PairSampler(Sampler[tuple[int, int, bool]]):
    """Yields (forget record, retain partner, whether it counts) for each place of an epoch; the same on every rank.

    Epochs are filled up to whole blocks with places that do not count, so that every rank gets as many batches as
    every other and no record weighs twice, however many ranks there are.

    Parameters
    ----------
    n : int
        Forget records.
    m : int
        Retain records; with 0 the partner is always 0.
    seed : int
    block : int
        Records that all ranks take at once: batch per device times number of ranks.
    weighted : MRDSampler, optional
        Where forget records come from; a permutation of all of them when left out.
    drop_last : bool
        Leave the places out that fill no block.

    Raises
    ------
    InputError
        When an epoch would be empty.
    """

    def __init__(
        self, n: int, m: int, *, seed: int, block: int, weighted: MRDSampler | None = None, drop_last: bool = False
    ) -> None:
        self.n, self.m, self.seed, self.block = _whole("n", n, 1), _whole("m", m, 0), int(seed), block
        self.weighted = weighted
        self.epoch = 0
        self.counted = n if weighted is None else weighted.num_samples
        if drop_last:
            self.counted -= self.counted % block
        if not self.counted:
            got = f"{n} records in blocks of {block}, with the last block dropped"
            raise InputError(got, "one full block at least", "set dataloader_drop_last=False or a smaller batch")

    def __len__(self) -> int:
        return -(-self.counted // self.block) * self.block

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        if self.weighted is None:
            order = shuffle_order(self.n, self.seed, self.epoch)
        else:
            order = draws(self.weighted.weights, self.weighted.seed, self.epoch, self.weighted.num_samples)
        forget = order[: self.counted].tolist()
        retain = partners(self.m, self.seed, self.epoch, len(forget)).tolist() if self.m else [0] * len(forget)
        yield from ((i, j, True) for i, j in zip(forget, retain, strict=True))
        yield from ((forget[0], retain[0], False) for _ in range(len(self) - len(forget)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here and in the weighted sampler."""
        self.epoch = _whole("epoch", epoch, 0)
        if self.weighted is not None:
            self.weighted.set_epoch(epoch)
