"""What every training loop repeats: going on after a kill, the best checkpoint, patience, curves."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from upright.contract import InputError, Run

__all__ = ["Epochs"]


class Epochs:
    """Epochs (rounds, steps) of a loop that a method writes itself; parameters as of `upright.contract.Run.training`.

    Notes
    -----
    *Plateau rule.* The loop ends after ``max(patience, ceil(checks / 3))`` checks in a row without a better score, but
    not while the last third of the checks is on average above the third before by more than a hundredth of the best: so
    neither a patience that was meant for the start of a curve nor one lucky check cuts off what still creeps upwards.
    """

    def __init__(
        self, run: Run, config: Any, *, epochs: int | None, patience: int | None, first: int, parts: Mapping[str, Any]
    ) -> None:
        self.run, self.first, self.parts, self.check_every = run, first, dict(parts), config.check_every
        self.epochs = config.epochs if epochs is None else epochs
        self.patience = config.patience if patience == -1 else patience
        self.best, self.best_epoch = -math.inf, 0
        self._done = self._stale = 0
        self._line, self._scores = dict[str, float](), list[float]()
        self._checked = self._improved = False
        self._bar = contextlib.ExitStack()

    @property
    def due(self) -> bool:
        """Whether this epoch should be checked; the last one is."""
        return (self._done + 1) % self.check_every == 0 or self._done + 1 == self.epochs

    @property
    def converged(self) -> bool:
        """Whether the plateau rule has ended the loop, or would end it now."""
        n, scores = len(self._scores) // 3, self._scores
        rises = n > 0 and sum(scores[-n:]) - sum(scores[-2 * n : -n]) > 0.01 * n * abs(self.best)
        return self.patience is not None and self._stale >= max(self.patience, math.ceil(len(scores) / 3)) and not rises

    def log(self, **values: float) -> None:
        """Add values to this epoch's line of ``metrics.jsonl``."""
        self._line |= values

    def check(self, score: float, *, least: float = 0.0, ties: bool = False) -> bool:
        """Tell how good this epoch is, higher is better; return whether it is the best so far.

        The epoch is kept as a checkpoint, and as the best one where its score is larger by more than ``least``, or
        with ``ties`` as large; never with minus infinity, the score of an epoch that may not be served.

        Raises
        ------
        InputError
            For a score that is NaN: the loop has diverged, or nothing is there to validate on.
        """
        if math.isnan(score):
            got = f"arm {self.run.arm}: the validation score of epoch {self._done + 1} is NaN"
            todo = "lower the learning rate, or look whether anything is left to validate on"
            raise InputError(got, "a number", todo)
        better = score > self.best + least or (ties and score == self.best > -math.inf)
        self._scores.append(score)
        self._stale = 0 if better else self._stale + 1
        if better:
            self.best, self.best_epoch = score, self._done + 1
        self._checked, self._improved = True, self._improved or better
        return better

    def __enter__(self) -> Self:
        kept = self.run.restore()
        if kept is not None:
            self._load(kept)
            self._done, self._stale, self._scores = kept["epoch"], kept["stale"], list(kept["scores"])
            self.best, self.best_epoch = kept["best"], kept["best_epoch"]
        return self

    def __iter__(self) -> Iterator[int]:
        left = max(0, self.epochs - self._done)
        self._advance = self._bar.enter_context(self.run.progress(left, self.run.arm))
        while self._done < self.epochs and not self.converged:
            yield self._done
            self._end_epoch()

    def _end_epoch(self) -> None:
        self._done += 1
        self.run.log(self.first + self._done, **self._line)
        if self._checked:
            counts = {"epoch": self._done, "stale": self._stale, "scores": list(self._scores)}
            parts = {name: _state_of(part) for name, part in self.parts.items()}
            state = {**counts, "best": self.best, "best_epoch": self.best_epoch, "parts": parts}
            self.run.save(self.first + self._done, state, best=self._improved)
        self._line, self._checked, self._improved = {}, False, False
        self._advance()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        best = self.run.restore("best") if kind is None else None
        if best is not None:
            self._load(best)

    def _load(self, kept: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            _load_into(part, kept["parts"][name])


def _state_of(part: Any) -> Any:
    if isinstance(part, list):
        return [_state_of(one) for one in part]
    return copy.deepcopy(part) if isinstance(part, dict) else part.state_dict()


def _load_into(part: Any, state: Any) -> None:
    if isinstance(part, list):
        for one, own in zip(part, state, strict=True):
            _load_into(one, own)
    elif isinstance(part, dict):
        part.clear()
        part.update(state)
    else:
        part.load_state_dict(state)
