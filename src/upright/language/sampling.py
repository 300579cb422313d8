r"""Which record is drawn next: weights from difficulty, draws that depend on names alone, and a sampler for training.

    p_i = (1 - floor) d_i^tau / sum_j d_j^tau + floor / n

A draw is a pure function of (weights, seed, epoch, place in the epoch). No global generator is read, so workers, ranks
and a resumed run see the same stream. The same uniform numbers serve all weights (common random numbers): weights that
differ little give nearly the same indices.

Published is ``tau = 1``, ``floor = 0`` with replacement, as many draws an epoch as there are records (*MRD*, arXiv
2504.06658). Temperature and floor are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from upright.contract import InputError, stream
from upright.language.adapters import quiet
from upright.language.encoding import Encoded
from upright.language.reader import read_answers
from upright.language.references import agree, digest_of

__all__ = [
    "MRDSampler",
    "PairSampler",
    "Schedule",
    "draws",
    "effective_sample_size",
    "mean_one",
    "partners",
    "sampling_weights",
    "shuffle_order",
]

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


def mean_one(weights: ArrayLike, n: int) -> NDArray[np.float64]:
    """``n w_i / sum_j w_j``: weights of the losses of n records, with mean 1; a factor on all changes nothing.

    Raises
    ------
    InputError
        Unless there is one finite number of at least 0 a record, one of them above 0.
    """
    if (shape := np.shape(weights)) != (n,):
        raise InputError(f"weights of shape {shape}", f"shape ({n},)", "give one number a forget record")
    w = _weights(weights)
    return np.asarray(n * (w / w.sum())) if w.min() < w.max() else np.ones(n)


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
        """Choose the stream of an epoch; another epoch starts at its first draw."""
        epoch = _whole("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch = epoch
            self._place = self._resume_at = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the stream: weights, seed, epoch, number of draws and place."""
        own = {name: getattr(self, name) for name in ("seed", "epoch", "num_samples")}
        return {**own, "weights": self.weights.copy(), "place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken: the next iterator starts there, later ones at the start.

        Raises
        ------
        InputError
            When the state is of another number of records.
        """
        w = _weights(state["weights"])
        if len(w) != len(self.weights):
            got = f"a state of {len(w)} records for a sampler of {len(self.weights)}"
            raise InputError(got, "the state of the same records", "load the state that belongs to this forget set")
        self.weights = w
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
    draw : callable, optional
        Epoch to forget records, int64 of shape (n,); a permutation of all of them when left out.
    drop_last : bool
        Leave the places out that fill no block.

    Raises
    ------
    InputError
        When an epoch would be empty.
    """

    def __init__(
        self,
        n: int,
        m: int,
        *,
        seed: int,
        block: int,
        draw: Callable[[int], Tensor] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.n, self.m, self.seed, self.block = _whole("n", n, 1), _whole("m", m, 0), int(seed), block
        self.draw = draw
        self.epoch = 0
        self.counted = n - n % block if drop_last else n
        if not self.counted:
            got = f"{n} records in blocks of {block}, with the last block dropped"
            raise InputError(got, "one full block at least", "set dataloader_drop_last=False or a smaller batch")

    def __len__(self) -> int:
        return -(-self.counted // self.block) * self.block

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        order = shuffle_order(self.n, self.seed, self.epoch) if self.draw is None else self.draw(self.epoch)
        forget = order[: self.counted].tolist()
        retain = partners(self.m, self.seed, self.epoch, len(forget)).tolist() if self.m else [0] * len(forget)
        yield from ((i, j, True) for i, j in zip(forget, retain, strict=True))
        yield from ((forget[0], retain[0], False) for _ in range(len(self) - len(forget)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = _whole("epoch", epoch, 0)


# -- the order of a run ---------------------------------------------------------------------------------------------


class Schedule:
    """The order of forget records over a run, with a stop for each.

        p_i(epoch) proportional to w_i [cbar_i(epoch) < target_i],   w of `sampling_weights`

    All that changes the order is decided before an epoch begins, from the weights of the model at that moment, and kept
    in a state. So a run that stops anywhere goes on as if it had not.

    Parameters
    ----------
    forget : sequence of Encoded, length n
    args : UnlearnArguments
        Its ``sampling``, ``tau``, ``floor``, ``refresh`` and ``scope``.
    difficulty, scoring, targets
        As for `UnlearnTrainer`.
    seed : int
    reading : mapping
        ``pad``, ``scope`` and ``batch_size`` of `read_answers`.

    Raises
    ------
    InputError
        For settings that contradict each other.

    Attributes
    ----------
    history : list of (int, ndarray of shape (n,))
        Epoch and MRD of every scoring.
    weights : ndarray of float64, shape (n,)
        Of the epoch that is prepared.
    finished : bool
        Whether every record is at its target.
    """

    def __init__(
        self,
        forget: Sequence[Encoded],
        args: Any,
        *,
        difficulty: Any,
        scoring: Mapping[str, Any] | Callable[[Any], Any] | None,
        targets: ArrayLike | None,
        seed: int,
        reading: Mapping[str, Any],
    ) -> None:
        self.forget, self.args, self.seed, self.reading = forget, args, seed, reading
        arrays = {"targets": targets, "difficulty": getattr(difficulty, "mrd", difficulty)}
        held = {name: None if one is None else np.asarray(one, dtype=np.float64) for name, one in arrays.items()}
        for name, one in held.items():
            if one is not None and one.shape != (len(forget),):
                got = f"{name} of shape {one.shape}"
                raise InputError(got, f"shape ({len(forget)},)", "give one number a forget record")
        self.targets, self.difficulty = held.values()
        if self.targets is not None and bool(np.isnan(self.targets).any()):
            raise InputError("targets with NaN", "a mean loss per token, inf where there is none", "replace NaN by inf")
        self.by = args.sampling
        if self.by != "mrd" and (self.difficulty is not None or args.refresh):
            got = f"difficulty or refresh with sampling={self.by!r}"
            raise InputError(got, "sampling='mrd'", "set it, or leave both out")
        if targets is not None and self.by == "shuffle":
            got = "targets with sampling='shuffle'"
            raise InputError(got, "sampling by weights", "sampling='uniform' draws with replacement")
        self.scoring = scoring if callable(scoring) else dict(scoring or {})
        self._outside = digest_of(self.difficulty)
        self.history: list[tuple[int, NDArray[np.float64]]] = []
        self.weights = _weights(self._before_stops())
        self.order: PairSampler | None = None
        self.prepared = -1  # last epoch that is scored
        self.finished = False

    def _before_stops(self) -> NDArray[np.float64]:
        """Return weights without early stops: all records alike until they are scored."""
        if self.by != "mrd" or self.difficulty is None:
            return sampling_weights(np.ones(len(self.forget)), tau=0.0, floor=self.args.floor)
        return sampling_weights(self.difficulty, tau=self.args.tau, floor=self.args.floor)

    def make_order(self, retain: int, *, block: int) -> PairSampler:
        """Return the sampler of records with their partners, see `PairSampler`."""
        drop = self.args.dataloader_drop_last
        draw = None if self.by == "shuffle" else self.draw
        self.order = PairSampler(len(self.forget), retain, seed=self.seed, block=block, draw=draw, drop_last=drop)
        return self.order

    def draw(self, epoch: int) -> Tensor:
        """Return the forget records of the epoch that is prepared, int64 of shape (n,)."""
        return draws(self.weights, self.seed, epoch, len(self.forget))

    def start(self, model: Any) -> None:
        """Prepare epoch 0 of a new run."""
        self.prepared, self.finished = -1, False
        self.prepare(0, model)

    def prepare(self, epoch: int, model: Any) -> None:
        """Score what is due before an epoch, at the present weights of a model; does nothing the second time."""
        if epoch <= self.prepared:
            return
        self.prepared = epoch
        if self.by == "shuffle":
            return
        if self.by == "mrd":
            self._score(epoch, model)
        weights = self._before_stops()
        if self.targets is not None:
            loss = agree([-one.mean() for one in read_answers(model, self.forget, **self.reading)])
            weights = np.where(loss < self.targets, weights, 0.0)
        self.finished = not weights.any()
        if not self.finished:
            self.weights = weights

    def _score(self, epoch: int, model: Any) -> None:
        due = bool(self.args.refresh) and epoch > 0 and epoch % self.args.refresh == 0
        if self.difficulty is None or due:
            with quiet(model):
                self.difficulty = agree(self._scored(model))
            self.history.append((epoch, self.difficulty))
        elif not self.history:
            self.history.append((epoch, self.difficulty))

    def _scored(self, model: Any) -> Any:
        if callable(self.scoring):
            found: Any = self.scoring(model)
        else:
            from upright.language.difficulty import score_difficulty

            # one engine, whatever memory is free: they differ by rounding, and a resumed run may not
            options = {"seed": self.seed, "engine": "inplace", **self.reading, **self.scoring}
            found = score_difficulty(model, self.forget, **options)
        return getattr(found, "mrd", found)

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must share."""
        own = {name: getattr(self.args, name) for name in ("sampling", "tau", "floor", "refresh", "scope")}
        return {
            **own,
            "scoring": "a function" if callable(self.scoring) else self.scoring,
            "targets": digest_of(self.targets),
            "seed": self.seed,
            "difficulty": self._outside,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON-able values that continue the order."""
        tensors = {f"difficulty.{k}": torch.from_numpy(mrd) for k, (_, mrd) in enumerate(self.history)}
        tensors["weights"] = torch.from_numpy(self.weights)
        scored, epoch = [epoch for epoch, _ in self.history], 0 if self.order is None else self.order.epoch
        return tensors, {"epoch": epoch, "prepared": self.prepared, "scored": scored, "finished": self.finished}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from a state; the place within the epoch is Trainer's, which skips batches."""
        self.prepared, self.finished = int(values["prepared"]), bool(values["finished"])
        self.history = [(int(e), tensors[f"difficulty.{k}"].numpy()) for k, e in enumerate(values["scored"])]
        if self.history:
            self.difficulty = self.history[-1][1]
        self.weights = tensors["weights"].numpy()
