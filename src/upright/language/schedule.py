r"""Which records an epoch draws: shuffled, uniform, by difficulty or by given weights, with a stop for each.

    p_i(epoch) proportional to w_i [cbar_i(epoch) < target_i],   w of `sampling_weights`

Everything that changes the order of records is decided before an epoch begins, from the weights of the model at that
moment, and kept in a state. So a run that stops anywhere goes on as if it had not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError
from upright.language.adapters import quiet
from upright.language.encoding import Encoded, Scope
from upright.language.references import agree, mean_nll
from upright.language.resume import digest_of
from upright.language.sampling import MRDSampler, PairSampler, sampling_weights

__all__ = ["Sampling", "Schedule"]

Sampling = Literal["shuffle", "uniform", "mrd"]


class Schedule:
    """The order of forget records over a run.

    Parameters
    ----------
    forget : sequence of Encoded, length n
    sampling : {"shuffle", "uniform", "mrd"} or array of float, shape (n,)
    tau, floor : float
        Of `sampling_weights`.
    difficulty : Difficulty or array of float, shape (n,), optional
        For ``mrd``; scored before the first epoch when left out.
    refresh : int
        Score again before every epoch that is a multiple of this; 0 never does.
    scoring : mapping
        Options of `score_difficulty`.
    targets : array of float, shape (n,), optional
        Mean loss per token from which a record counts as forgotten.
    scope : {"answer", "sequence"}
    seed, pad : int

    Raises
    ------
    InputError
        For settings that contradict each other.

    Attributes
    ----------
    history : list of (int, ndarray of shape (n,))
        Epoch and MRD of every scoring.
    finished : bool
        Whether every record is at its target.
    """

    def __init__(
        self, forget: Sequence[Encoded], sampling: Any = "shuffle", *, tau: float = 1.0, floor: float = 0.0,
        difficulty: Any = None, refresh: int = 0, scoring: Mapping[str, Any] | Callable[[Any], ArrayLike] | None = None,
        targets: ArrayLike | None = None, scope: Scope = "answer", seed: int = 0, pad: int = 0,
    ) -> None:  # fmt: skip
        self.forget, self.scope, self.seed, self.pad = forget, scope, seed, pad
        self.sampling: str = sampling if isinstance(sampling, str) else "weights"
        given = getattr(difficulty, "mrd", difficulty)
        _check(len(forget), sampling, given, refresh, targets)
        self.tau, self.floor, self.refresh = float(tau), float(floor), int(refresh)
        self.scoring = scoring if callable(scoring) else dict(scoring or {})
        self._given = None if isinstance(sampling, str) else np.asarray(sampling, dtype=np.float64)
        self.difficulty = None if given is None else np.asarray(given, dtype=np.float64)
        self.targets = None if targets is None else np.asarray(targets, dtype=np.float64)
        self._outside = digest_of(given)
        self.history: list[tuple[int, NDArray[np.float64]]] = []
        self.weights = self._before_stops()  # of the epoch that is prepared
        self.sampler = None if self.sampling == "shuffle" else MRDSampler(self.weights, seed)
        self.order: PairSampler | None = None
        self.prepared = -1  # last epoch that is scored
        self.finished = False

    def _before_stops(self) -> NDArray[np.float64]:
        """Return weights without early stops: all records alike until they are scored."""
        if self._given is not None:
            return self._given
        if self.sampling == "mrd" and self.difficulty is not None:
            return sampling_weights(self.difficulty, tau=self.tau, floor=self.floor)
        return sampling_weights(np.ones(len(self.forget)), tau=0.0, floor=self.floor)

    def make_order(self, retain: int, *, block: int, drop_last: bool) -> PairSampler:
        """Return the sampler of records with their partners, see `PairSampler`."""
        self.order = PairSampler(
            len(self.forget), retain, seed=self.seed, block=block, weighted=self.sampler, drop_last=drop_last
        )
        return self.order

    def start(self, model: Any, batch_size: int) -> None:
        """Prepare epoch 0 of a new run."""
        self.prepared, self.finished = -1, False
        self.prepare(0, model, batch_size)
        if self.sampler is not None:  # from this epoch on: it has not begun
            self.sampler = MRDSampler(self.weights, self.seed)

    def prepare(self, epoch: int, model: Any, batch_size: int) -> None:
        """Score what is due before an epoch and set its weights; does nothing the second time.

        Parameters
        ----------
        epoch : int
        model : PreTrainedModel
            At its weights of this moment.
        batch_size : int
        """
        if epoch <= self.prepared:
            return
        self.prepared = epoch
        if self.sampler is None:
            return
        if self.sampling == "mrd":
            self._score(epoch, model, batch_size)
        weights = self._before_stops()
        if self.targets is not None:
            loss = mean_nll(model, self.forget, pad=self.pad, scope=self.scope, batch_size=batch_size)
            weights = np.where(agree(loss) < self.targets, weights, 0.0)
        self.finished = not weights.any()
        if not self.finished:
            self.weights = weights
            self.sampler.set_weights(weights)

    def _score(self, epoch: int, model: Any, batch_size: int) -> None:
        due = bool(self.refresh) and epoch > 0 and epoch % self.refresh == 0
        if self.difficulty is None or due:
            with quiet(model):
                self.difficulty = agree(self._scored(model, batch_size))
            self.history.append((epoch, self.difficulty))
        elif not self.history:
            self.history.append((epoch, self.difficulty))

    def _scored(self, model: Any, batch_size: int) -> Any:
        if callable(self.scoring):
            found: Any = self.scoring(model)
        else:
            from upright.language.difficulty import score_difficulty

            # one engine, whatever memory is free: they differ by rounding, and a resumed run may not
            options = {"seed": self.seed, "scope": self.scope, "pad": self.pad, "batch_size": batch_size,
                       "engine": "inplace"}  # fmt: skip
            found = score_difficulty(model, self.forget, **{**options, **self.scoring})
        return getattr(found, "mrd", found)

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must share."""
        return {
            "sampling": self.sampling, "weights": digest_of(self._given), "tau": self.tau, "floor": self.floor,
            "refresh": self.refresh, "scoring": "a function" if callable(self.scoring) else self.scoring,
            "targets": digest_of(self.targets), "scope": self.scope, "seed": self.seed, "difficulty": self._outside,
        }  # fmt: skip

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON-able values that continue the order."""
        tensors = {f"difficulty.{k}": torch.from_numpy(mrd) for k, (_, mrd) in enumerate(self.history)}
        if self.sampler is not None:
            held = self.sampler.state_dict()
            tensors |= {name: torch.from_numpy(held[name]) for name in ("weights", "next_weights")}
        values = {
            "epoch": 0 if self.order is None else self.order.epoch, "prepared": self.prepared,
            "scored": [epoch for epoch, _ in self.history], "finished": self.finished,
        }  # fmt: skip
        return tensors, values

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from a state; the place within the epoch is Trainer's, which skips batches."""
        self.prepared, self.finished = int(values["prepared"]), bool(values["finished"])
        self.history = [(int(e), tensors[f"difficulty.{k}"].numpy()) for k, e in enumerate(values["scored"])]
        if self.history:
            self.difficulty = self.history[-1][1]
        if self.sampler is not None:
            state = {"seed": self.seed, "epoch": values["epoch"], "place": 0, "num_samples": len(self.forget)}
            self.sampler.load_state_dict({**state, **{k: tensors[k].numpy() for k in ("weights", "next_weights")}})
            self.weights = tensors["next_weights"].numpy()


def _check(n: int, sampling: Any, difficulty: Any, refresh: int, targets: Any) -> None:
    """Refuse settings that contradict each other."""
    if isinstance(sampling, str) and sampling not in ("shuffle", "uniform", "mrd"):
        got = f"sampling = {sampling!r}"
        raise InputError(got, "'shuffle', 'uniform', 'mrd' or one weight a record", "choose one of these")
    weights = None if isinstance(sampling, str) else sampling
    for name, value in (("sampling", weights), ("difficulty", difficulty), ("targets", targets)):
        if value is not None and np.shape(value) != (n,):
            raise InputError(f"{name} of shape {np.shape(value)}", f"shape ({n},)", "give one number a forget record")
    if targets is not None and bool(np.isnan(np.asarray(targets, dtype=np.float64)).any()):
        raise InputError("targets with NaN", "a mean loss per token, inf where there is none", "replace NaN by inf")
    if (weights is not None or sampling != "mrd") and (difficulty is not None or refresh):
        got = f"difficulty or refresh with {'given weights' if weights is not None else f'sampling={sampling!r}'}"
        raise InputError(got, "sampling='mrd'", "set it, or leave both out")
    if refresh < 0:
        raise InputError(f"refresh = {refresh}", "an integer of at least 0", "0 scores once")
    if targets is not None and weights is None and sampling == "shuffle":
        got = "targets with sampling='shuffle'"
        raise InputError(got, "sampling by weights", "sampling='uniform' draws with replacement")
