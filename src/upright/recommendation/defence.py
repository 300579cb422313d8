r"""Moving users onto one common distribution, so that their vectors no longer tell a class.

Problem
-------
Users of class c have the distribution ``P_c`` of vectors. The common target is the Wasserstein barycenter

    P* = argmin_Q  sum_c w_c W_2^2(P_c, Q)

and ``T_c`` carries ``P_c`` onto it. A user of a known class c moves towards ``T_c(e_u)``. A user whose class is not
known moves to the nearest point at which a linear classifier, fitted to the known users before any of them was moved,
gives everybody the shares of the classes. The expected image ``sum_c p(c | e_u) T_c(e_u)`` would be the plainer choice
and hides nothing: along what tells the classes it is one to one. No class is needed when the model is used.

The barycenter minimises the total squared movement among all common targets, a proxy for what recommendation loses.

===========  ==========================================================================================================
``free``     support points, entropic plans; off the sample ``T_c(x) = sum_j softmax_j((g_j - |x - z_j|^2) / reg) z_j``
``bures``    Gaussian barycenter; ``T_c`` affine, symmetric, positive definite
``sliced``   one-dimensional barycenters along orthonormal directions, drawn anew at each refresh
``mean``     class means only: ``T_c(x) = x - m_c + m*``. The trivial remedy; it fools linear attackers alone
``mmd``      no map: ``sum_c w_c MMD^2(P_c, P_rest)`` of the batch's labelled users, each once, is the loss, unscaled
===========  ==========================================================================================================

References
----------
Agueh and Carlier, *Barycenters in the Wasserstein space*, SIAM J. Math. Anal. 43 (2011); Cuturi and Doucet, *Fast
computation of Wasserstein barycenters*, ICML 2014; Alvarez-Esteban et al., J. Math. Anal. Appl. 441 (2016), for the
Gaussian fixed point; Gretton et al., JMLR 13 (2012), for MMD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.contract import InputError, stream
from upright.maths import transport as ot
from upright.recommendation.maps import EntropicMap, Eraser, SlicedMap, pooled_gaussians, pooling_share, quantiles

__all__ = ["BarycenterDefense", "Variant", "codes_of"]

Variant = Literal["free", "bures", "sliced", "mean", "mmd"]
UNKNOWN = -1
Maps = tuple[list[Any], dict[str, Any]]  # one map a class, and what the history keeps


def codes_of(labels: Any) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return class codes (U,), `UNKNOWN` for None, NaN, "" and negative numbers, and the names of the classes.

    Raises
    ------
    InputError
        When fewer than two users of some class, or fewer than two classes, are labelled.
    """
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    missing = [v is None or v == "" or v != v or (isinstance(v, int | float) and v < 0) for v in given]
    known = [None if gone else v for v, gone in zip(given, missing, strict=True)]
    names = [str(v) for v in sorted({v for v in known if v is not None}, key=lambda v: (str(type(v)), v))]
    known = [None if v is None else str(v) for v in known]
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([UNKNOWN if v is None else place[v] for v in known], dtype=np.int64)
    size = np.bincount(codes[codes >= 0], minlength=len(names))
    if len(names) and size.min() < 2:
        name = names[int(size.argmin())]
        raise InputError(
            f"class {name!r} with {size.min()} labelled user", "at least two labelled users in every class",
            "merge it with another class, or leave its label out",
        )  # fmt: skip
    return codes, tuple(names)


@dataclasses.dataclass
class _State:
    """What a refresh leaves for the steps that follow it, and for the next refresh."""

    target: Tensor | None = None  # (U, d), where each user moves
    scale: Tensor | None = None  # (), mean squared distance to the centre
    support: Tensor | None = None  # (s, d), `free` only, as are the next two
    shares: Tensor | None = None  # (U, s)
    potentials: list[Tensor] = dataclasses.field(default_factory=list)
    eraser: list[Tensor] | None = None  # for users of unknown class
    rounds: int = 0  # how often users were moved; names the directions of `sliced`
    pooling: float | None = None  # `bures`: how far class covariances are drawn to the pooled one


class BarycenterDefense:
    """``mean_{(u, i) in batch} ||e_u - sg(T(e_u))||^2 / sg(mean_u ||e_u - mean||^2)``, for any table of vectors.

    Parameters
    ----------
    labels : sequence, shape (U,)
        Class of each user; None, NaN, "" or a negative number where it is not known.
    fit : bool array, shape (U,), optional
        Users on whom barycenter, maps and classifier are fitted; all by default. Others of known class are moved by the
        maps of their class: that is how a defence is measured, because users whom it was fitted on look safer than they
        are.
    method : {"free", "bures", "sliced", "mean", "mmd"}
        See the module. ``mean`` is the trivial remedy.
    weights : {"uniform", "proportional"}
        ``w_c``: 1/C, or the share of the class. Proportional weights put the centre on the majority, and the minority
        pays the whole move.
    support : int
        Most support points of ``free``; never more than fitted users. On these, few points leave each class separable
        by trees on its own copies of them; on other users a finer plan carries over less.
    reg : float
        Entropic regularisation of ``free`` as a share of the median cost. Large values collapse all users.
    sweeps : int
        Most sweeps of ``free`` at a refresh; each starts where the last one ended.
    refresh_every : int
        Steps between two calls of `refresh` that `step` makes.
    seed : int
        Of the directions of ``sliced`` and the first support of ``free``.

    Attributes
    ----------
    history : list of dict
        One entry a refresh: ``objective``, ``converged``, ``iterations``, ``residual`` where they exist.

    Raises
    ------
    InputError
        For a class with one labelled user, or one of `fit`, and options out of range. With fewer than two classes every
        loss is 0 and every map the identity.
    """

    def __init__(
        self, labels: Any, *, fit: Any = None, method: Variant = "sliced",
        weights: Literal["uniform", "proportional"] = "uniform", support: int = 512, reg: float = 0.02,
        sweeps: int = 10, refresh_every: int = 50, seed: int = 0,
    ) -> None:  # fmt: skip
        self.codes, self.classes = codes_of(labels)
        counts = {"refresh_every": refresh_every, "support": support, "sweeps": sweeps}
        _check_options(method, weights, counts, reg)
        mask = np.ones(len(self.codes), dtype=bool) if fit is None else np.asarray(fit, dtype=bool)
        if mask.shape != self.codes.shape:
            raise InputError(f"fit of shape {mask.shape}", f"shape ({len(self.codes)},)", "one entry a user")
        self.fitted = np.where(mask, self.codes, UNKNOWN)
        least = np.bincount(self.fitted[self.fitted >= 0], minlength=len(self.classes))
        if len(self.classes) and least.min() < 2:
            raise InputError(
                f"class {self.classes[int(least.argmin())]!r} with {least.min()} users in `fit`",
                "at least two users of every class among those that maps are fitted to",
                "draw the hold-out inside each class",
            )  # fmt: skip
        self.method, self.reg, self.sweeps = method, float(reg), int(sweeps)
        self.refresh_every, self.seed = int(refresh_every), seed
        known = self.fitted[self.fitted >= 0]
        size = np.bincount(known, minlength=len(self.classes)).astype(np.float64)
        share = size / max(size.sum(), 1.0) if weights == "proportional" else np.full(len(size), 1 / max(len(size), 1))
        self.weights = torch.from_numpy(share)
        self.support = int(min(support, len(known)))
        self.rows = [torch.from_numpy(np.flatnonzero(self.fitted == c)) for c in range(len(self.classes))]
        self.others = [torch.from_numpy(np.flatnonzero((self.codes == c) & (self.fitted < 0)))
                       for c in range(len(self.classes))]  # fmt: skip
        self.history: list[dict[str, Any]] = []
        self._state = _State()
        self._steps, self.fresh = 0, False

    @property
    def active(self) -> bool:
        """Whether there are two classes to bring together."""
        return len(self.classes) >= 2

    def step(self, table: Tensor, users: Tensor) -> Tensor:
        """Return the loss of a training step, with a refresh first at every ``refresh_every``-th call."""
        self.fresh = self.active and self._steps % self.refresh_every == 0
        if self.fresh:
            self.refresh(table)
        self._steps += 1
        return self.loss(users, table)

    def refresh(self, table: Tensor) -> None:
        """Find the barycenter of the table as it is, and where each user moves.

        Raises
        ------
        InputError
            When the table holds NaN or infinite values.
        """
        x = _checked(table, len(self.codes))
        centred = x - x.mean(0)
        self._state.scale = centred.square().sum(1).mean().clamp_min(1e-30)
        if self.method != "mmd":
            self._state.target = self._moved(x)

    def loss(self, users: Tensor, table: Tensor) -> Tensor:
        """Return the loss of some users, a scalar; exactly 0 with fewer than two classes.

        Parameters
        ----------
        users : int64 Tensor, shape (B,)
            User of each pair of the batch. A user counts as often as it occurs, as in the recommendation loss: were
            each to count once, active users would stay behind, and the maps would overshoot for the others.
        table : Tensor, shape (U, d)
            All vectors, with their gradient.
        """
        if not self.active or self._state.scale is None:
            return table.sum() * 0.0
        own, often = torch.unique(users.detach().cpu(), return_counts=True)
        scale = self._state.scale.to(table)
        if self.method == "mmd":
            return self._mmd(own, table)
        target = self._state.target
        assert target is not None
        move = table.index_select(0, own.to(table.device)) - target[own].to(table)
        share = often.to(table) / len(users)  # as often as the recommendation loss pulls at them
        loss: Tensor = (share * move.square().sum(1)).sum() / scale
        return loss

    def transport(self, table: Tensor, step: float = 1.0, rounds: int | None = None) -> Tensor:
        """Return a finished table with every user moved: ``e_u + step (T(e_u) - e_u)``, shape (U, d).

        A half-way step leaks nearly as much as none.

        Parameters
        ----------
        table : Tensor, shape (U, d)
        step : float
            Share of the way.
        rounds : int, optional
            How often users are moved, each time from where they arrived; by default 20 for ``sliced``, whose directions
            change, and 1 for the others.
        """
        if not self.active:
            return table.detach().clone()
        if self.method == "mmd":
            raise InputError("transport with method='mmd'", "free, bures, sliced or mean", "MMD has no map; take one")
        x = _checked(table, len(self.codes))
        moved = x
        for _ in range(rounds if rounds is not None else 20 if self.method == "sliced" else 1):
            moved = self._moved(moved)
        return (x + step * (moved - x)).to(table)

    # -- state, for checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"steps": self._steps, "history": list(self.history), **dataclasses.asdict(self._state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._steps, self.history = int(state["steps"]), list(state["history"])
        self._state = _State(**{f.name: state[f.name] for f in dataclasses.fields(_State)})

    # -- maps ---------------------------------------------------------------------------------------------------------

    def _moved(self, x: Tensor) -> Tensor:
        """``T(e_u)`` of every user, shape (U, d), float64."""
        state, build = self._state, getattr(self, f"_{self.method}")
        parts = [x[rows] for rows in self.rows]
        state.rounds += 1
        maps, facts = build(parts)
        if facts:
            self.history.append(facts)
        out = x.clone()
        unknown = torch.from_numpy(np.flatnonzero(self.codes < 0))
        if len(unknown):
            if state.eraser is None:  # of the table before anybody was moved: afterwards the known users tell nothing
                found = Eraser.fit(x, self.fitted, len(self.classes))
                state.eraser = [found.weight, found.bias, found.gain]
            out[unknown] = Eraser(*state.eraser)(x[unknown])
        if self.method == "free":
            shares = x.new_zeros(len(x), len(maps[0].support))
            for f, rows, part, others in zip(maps, self.rows, parts, self.others, strict=True):
                shares[rows], shares[others] = f.shares(part), f.shares(x[others])
            known = torch.from_numpy(self.codes >= 0)
            out[known] = (shares @ maps[0].support)[known]
            state.shares = shares  # what `couple` moves users by
            return out
        for f, rows, others in zip(maps, self.rows, self.others, strict=True):
            out[rows], out[others] = f(x[rows]), f(x[others])
        return out

    def _mean(self, parts: list[Tensor]) -> Maps:
        means = torch.stack([p.mean(0) for p in parts])
        centre = self.weights @ means
        return [lambda v, shift=centre - m: v + shift for m in means], {}

    def _bures(self, parts: list[Tensor]) -> Maps:
        if self._state.pooling is None:  # chosen once: it is dear, and hardly changes
            self._state.pooling = pooling_share(parts)
        sources = pooled_gaussians(parts, self._state.pooling)
        found = ot.bures_barycenter(sources, self.weights)
        cost = sum(float(w * ot.gaussian_w2(s, found.gaussian)) for w, s in zip(self.weights, sources, strict=True))
        return [ot.affine_map(s, found.gaussian) for s in sources], _facts(cost, found.convergence)

    def _sliced(self, parts: list[Tensor]) -> Maps:
        d = parts[0].shape[1]
        rng = torch.Generator().manual_seed(stream(self.seed, "directions", self._state.rounds))
        directions = ot.random_directions(d, d, rng, torch.float64)
        lines = [torch.sort(p @ directions.T, 0).values for p in parts]  # (n_c, d)
        grid = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
        curves = torch.stack([quantiles(line, grid) for line in lines])  # (C, 256, d)
        centre = torch.einsum("c,cqd->qd", self.weights, curves)
        cost = float(torch.einsum("c,cqd->", self.weights, (curves - centre).square()) / len(grid))
        return [SlicedMap(q, centre, directions) for q in curves], _facts(cost)

    def _free(self, parts: list[Tensor]) -> Maps:
        state = self._state
        if state.support is None:
            place = torch.argsort(torch.cat(self.rows))
            pool = torch.cat(parts)[place]  # in order of the users, whatever their classes are called
            rng = torch.Generator().manual_seed(stream(self.seed, "support"))
            state.support = pool[torch.randperm(len(pool), generator=rng)[: self.support]].clone()
        z = state.support
        near = torch.cat([ot.squared_distances(p[:512], z).flatten() for p in parts])
        reg = self.reg * max(float(near.median()), 1e-30)
        start = None
        if state.potentials:
            rest = ot.Convergence(True, 0, 0.0, 0.0)
            start = ot.FreeBarycenter(z, (), (), rest, tuple(state.potentials), reg, rest)
        found = ot.free_barycenter(parts, z, weights=self.weights, reg=reg, sweeps=self.sweeps, start=start)
        state.support, state.potentials = found.support, list(found.potentials)
        maps = [EntropicMap(found.support, g, found.reg, own, plan)
                for g, own, plan in zip(found.potentials, parts, found.plans, strict=True)]  # fmt: skip
        return maps, _facts(found.objective[-1], found.convergence)

    def couple(self, loss_of: Callable[[Tensor], Tensor], rate: float = 0.1) -> None:
        """Let another loss pull the support once: ``z <- z - rate * r * grad / rms(grad)``, r the spread per dimension.

        The step is the same for all classes, so that the images stay as close to each other as they were.

        Parameters
        ----------
        loss_of : callable
            Loss as a function of where all users move, (U, d) to ().
        rate : float
            Length of the step in standard deviations of the vectors.

        Raises
        ------
        InputError
            For a variant without a support.
        """
        shares, support, scale = self._state.shares, self._state.support, self._state.scale
        if shares is None or support is None or scale is None:
            raise InputError(
                f"constraint='coupled' with variant {self.method!r}",
                "variant='free': the others have no points to pull",
                "take variant='free', or constraint='lagrange'",
            )  # fmt: skip
        z = support.clone().requires_grad_()
        target = self._state.target
        assert target is not None
        # users outside `fit` and of unknown class may not shape the support
        images = torch.where(torch.from_numpy(self.fitted >= 0)[:, None], shares @ z, target)
        (grad,) = torch.autograd.grad(loss_of(images), z)
        size = grad.square().mean().sqrt()
        if float(size) > 0:
            step = rate * (scale / z.shape[1]).sqrt() * grad / size
            self._state.support = support - step
            known = shares.sum(1) > 0
            target[known] = (shares @ self._state.support)[known]

    def _mmd(self, own: Tensor, table: Tensor) -> Tensor:
        """``sum_c w_c MMD^2(P_c, P_rest)`` of the fitted users, and of the others against fitted ones held fixed."""
        codes, fitted = torch.from_numpy(self.codes)[own], torch.from_numpy(self.fitted)[own]
        total = table.sum() * 0.0
        for c, w in enumerate(self.weights.tolist()):
            inside, rest = own[fitted == c], own[(fitted >= 0) & (fitted != c)]
            others = own[(codes == c) & (fitted < 0)]
            for some, target in ((inside, table[rest]), (others, table[rest].detach())):
                if len(some) > 1 and len(rest) > 1:
                    total = total + w * ot.mmd2(table[some.to(table.device)], target)
        return total


def _facts(objective: float, convergence: ot.Convergence | None = None) -> dict[str, Any]:
    """What a refresh leaves in the history."""
    facts: dict[str, Any] = {"objective": objective}
    if convergence is not None:
        facts |= {"converged": convergence.converged, "iterations": convergence.iterations,
                  "residual": convergence.residual}  # fmt: skip
    return facts


def _check_options(method: str, weights: str, counts: Mapping[str, int], reg: float) -> None:
    words = (("method", method, get_args(Variant)), ("weights", weights, ("uniform", "proportional")))
    for name, value, accepted in words:
        if value not in accepted:
            raise InputError(f"{name} = {value!r}", ", ".join(map(repr, accepted)), "take one of them")
    for name, number in counts.items():
        if number < 1:
            raise InputError(f"{name} = {number}", "a whole number from 1", f"raise {name}")
    if not reg > 0:
        raise InputError(f"reg = {reg}", "a number above 0", "raise reg")


def _checked(table: Tensor, users: int) -> Tensor:
    if not isinstance(table, Tensor) or table.ndim != 2:
        what = f"{type(table).__name__} of {getattr(table, 'ndim', 'no')} dimensions"
        raise InputError(what, "a torch.Tensor of shape (U, d)", "pass torch.from_numpy(array) for an array")
    if table.shape[0] != users:
        raise InputError(f"a table of {table.shape[0]} users and {users} labels", "one row a label", "pass all users")
    x = table.detach().to(torch.float64).cpu()
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise InputError(f"{bad} users with NaN or infinite vectors", "finite vectors", "lower the learning rate")
    return x
