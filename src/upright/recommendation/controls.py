"""What RAID is compared with: reversed gradients, noise at matched utility with its epsilon, linear erasure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import Tensor, nn

from upright.contract import Run, UnitScores
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.compute import level_of
from upright.evidence.statistics import parse
from upright.evidence.units import Block, Units
from upright.metrics.leakage import rank_values
from upright.models.recommenders import LightGCN

__all__ = ["Adversary", "WithUsers", "clipped", "erased", "exposed", "gaussian_epsilon", "matched_noise"]
__all__ += ["nothing_to_hide"]


def exposed(model: Any, users: Tensor | None = None) -> Tensor:
    """Return all that a model holds of its users, shape (U, d): trained rows, and propagated ones where they differ.

    Parameters
    ----------
    model : backbone
    users : Tensor, optional
        User side of ``model.tables()`` when it is at hand.
    """
    served: Tensor = model.tables()[0] if users is None else users
    if isinstance(model, LightGCN):
        return torch.cat([model.table[: model.n_users], served], dim=1)  # (U, 2 d)
    return served


class WithUsers(nn.Module):
    """A trained backbone that serves another user table, and holds no other.

    Parameters
    ----------
    model : backbone
        Gives items and scores.
    table : Tensor, shape (U, d)
        As ``model.tables()[0]``.
    """

    def __init__(self, model: Any, table: Tensor) -> None:
        super().__init__()
        self.user = nn.Parameter(table.detach().clone(), requires_grad=False)
        self.item = nn.Parameter(model.tables()[1].detach().clone(), requires_grad=False)
        self._score, self._score_all = model.score, model.score_all

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return the user table (U, d) and the item table (I, d)."""
        return self.user, self.item

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """Score pairs of rows as the backbone does, shape (B,)."""
        return self._score(user_rows, item_rows)  # type: ignore[no-any-return]

    def score_all(self, user_rows: Tensor, item_table: Tensor) -> Tensor:
        """Score every item as the backbone does, shape (B, I)."""
        return self._score_all(user_rows, item_table)  # type: ignore[no-any-return]

    def ego(self, users: Tensor, items: Tensor) -> list[Tensor]:
        """Return the rows of users and items."""
        return [self.user[users], self.item[items]]


class Adversary:
    """``-CE(f(e_u), a_u)`` over the batch's users whom the adversary f learns from, ``CE(f(e_u), 1/C)`` over others.

    Adversarial training by gradient reversal: each step improves the adversary on vectors that are held fixed, then
    returns the loss that moves the vectors against it. Classes weigh alike. A reversed loss has no bottom, and only
    users from whom the adversary learns can be pushed back; the others are moved to where it cannot tell, which needs
    no label.

    Parameters
    ----------
    fitted : int array, shape (U,)
        Class of those whom the adversary learns from, negative for others.
    classes : int
    table : Tensor, shape (U, d)
        Gives width and precision.
    generator : torch.Generator
        Of the adversary's first weights.
    hidden : int
        Width of its only hidden layer.
    learning_rate : float
        Adam's step size for the adversary.
    inner : int
        Steps of the adversary to one of the model.
    """

    def __init__(
        self, fitted: NDArray[np.int64], classes: int, table: Tensor, generator: torch.Generator, hidden: int = 64,
        learning_rate: float = 3e-3, inner: int = 3,
    ) -> None:  # fmt: skip
        self.fitted, self.active = torch.from_numpy(fitted), classes >= 2
        size = np.bincount(fitted[fitted >= 0], minlength=max(classes, 1)).astype(np.float64)
        weight = size.sum() / np.maximum(size, 1) / max(classes, 1)
        self.weight = torch.from_numpy(weight).to(table)
        shapes = [(hidden, table.shape[1]), (hidden,), (max(classes, 1), hidden), (max(classes, 1),)]
        self.layers = []
        for shape in shapes:
            bound = shape[-1] ** -0.5 if len(shape) == 2 else 0.0
            start = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound
            self.layers.append(start.to(table).requires_grad_())
        self.solver, self.inner = torch.optim.Adam(self.layers, lr=learning_rate), inner

    def _logits(self, rows: Tensor, layers: list[Tensor]) -> Tensor:
        a, b, c, d = layers
        scaled = (rows - rows.mean(0).detach()) / rows.std().detach().clamp_min(1e-12)
        return torch.relu(scaled @ a.T + b) @ c.T + d

    def step(self, table: Tensor, users: Tensor) -> Tensor:
        """Improve the adversary, and return the loss of the batch's users against it, shape ()."""
        own = torch.unique(users)
        learn = self.fitted[own] >= 0
        if not self.active or int(learn.sum()) < 2:
            return table.sum() * 0.0
        rows, codes = table.index_select(0, own), self.fitted[own][learn]
        for _ in range(self.inner):
            self.solver.zero_grad()
            wrong = nn.functional.cross_entropy(
                self._logits(rows.detach(), self.layers)[learn], codes, weight=self.weight
            )
            wrong.backward()  # type: ignore[no-untyped-call]
            self.solver.step()
        logits = self._logits(rows, [layer.detach() for layer in self.layers])
        against = -nn.functional.cross_entropy(logits[learn], codes, weight=self.weight, reduction="sum")
        unsure = -torch.log_softmax(logits[~learn], 1).mean(1).sum()
        return (against + unsure) / len(own)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"layers": [x.detach() for x in self.layers], "solver": self.solver.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        with torch.no_grad():
            for own, kept in zip(self.layers, state["layers"], strict=True):
                own.copy_(kept)
        self.solver.load_state_dict(state["solver"])


def matched_noise(
    table: Tensor, utility: Callable[[Tensor], float], target: float, generator: torch.Generator, rounds: int = 20
) -> tuple[Tensor, float]:
    """Add Gaussian noise of the size at which utility falls to a target.

    One draw of noise is scaled by bisection on the logarithm of its size, between 1e-4 and 1e2 mean standard deviations
    of the table.

    Returns
    -------
    table : Tensor, shape (U, d)
    size : float
        In mean standard deviations of the table; 0 when the target is not below the utility of the table itself.
    """
    if utility(table) <= target:
        return table.clone(), 0.0
    noise = torch.randn(table.shape, generator=generator, dtype=torch.float64).to(table) * table.std(0).mean()
    low, high = -4.0, 2.0
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if utility(table + 10**middle * noise) > target else (low, middle)
    return table + 10**high * noise, float(10**high)


def clipped(table: Tensor) -> tuple[Tensor, float]:
    """Return rows no longer than the median length, shape (U, d), and that length."""
    length = table.norm(dim=1, keepdim=True)
    most = float(length.median())
    return table * (most / length.clamp_min(1e-30)).clamp(max=1.0), most


def gaussian_epsilon(sigma: float, sensitivity: float, delta: float = 1e-5) -> float:
    r"""Return the least epsilon at which adding ``N(0, sigma^2)`` to each number is (epsilon, delta)-private.

    ``Phi(a - e / b) - exp(e) Phi(-a - e / b) = delta`` with ``a = s / (2 sigma)``, ``b = s / sigma`` and s the largest
    Euclidean change: the analytic Gaussian mechanism, exact, also beyond epsilon 1. Infinite without noise.

    References
    ----------
    Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8.
    """
    if sigma == 0:
        return float("inf")
    b = sensitivity / sigma

    def excess(e: float) -> float:
        return float(np.exp(log_ndtr(b / 2 - e / b)) - np.exp(e + log_ndtr(-b / 2 - e / b)) - delta)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, b * (b / 2 + 40.0), xtol=1e-9))


def erased(table: Tensor, terms: Sequence[tuple[NDArray[np.int64], int]], share: float = 1.0) -> Tensor:
    r"""Take from a table what a linear attacker reads of classes, by the share of the way: LEACE.

    ``x - share * W^+ P W (x - mean)`` with ``W = cov(x)^{-1/2}`` and P the projection onto the columns of
    ``W cov(x, z)``: of all affine maps after which x and z do not covary the one that moves x least.

    Parameters
    ----------
    table : Tensor, shape (U, d)
    terms : sequence of (codes (U,), classes)
        z is one column a class of each; fitted to users with a code of at least 0 in all. Nobody's class is needed
        when the map is used.
    share : float
        In [0, 1]; ``1 - share`` of the covariance is left.

    References
    ----------
    Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman, "LEACE: Perfect Linear Concept Erasure in Closed
    Form", NeurIPS 2023.
    """
    fit = np.all([codes >= 0 for codes, _ in terms], axis=0)
    x = table.detach().double().numpy()
    z = np.concatenate([np.eye(n)[codes[fit]] for codes, n in terms], axis=1)
    mean, z = x[fit].mean(0), z - z.mean(0)
    values, axes = np.linalg.eigh((x[fit] - mean).T @ (x[fit] - mean) / max(int(fit.sum()), 1))
    kept = values > 1e-10 * values[-1]
    root = np.sqrt(values[kept])
    own = (x - mean) @ axes[:, kept] / root  # (U, r), white
    left, size, _ = np.linalg.svd(own[fit].T @ z / max(int(fit.sum()), 1), full_matrices=False)
    left = left[:, size > 1e-10 * max(float(size.max(initial=0.0)), 1e-30)]
    return table - share * torch.from_numpy((own @ left @ left.T * root) @ axes[:, kept].T).to(table)


def nothing_to_hide(task: Any, model: Any, run: Run) -> str:
    """Say that no attack on users whom a defence may be fitted on reads more than chance explains, else nothing.

    Held-out users, on whom the defence is judged, take no part.
    """
    fitted = np.where(task.held_out(run), "", task.labels)
    found = task.attack(task.surfaces(model), fitted, run) if len(task.classes) > 1 else []
    if not found:
        return ""  # the defence says so itself
    values, by = rank_values(found, task.classes), {"attribute": fitted.tolist()}
    block = Block("", run.arm, run.seed, UnitScores("user", range(task.n_users), values, by))
    level = level_of(parse("leakage:attack:attribute", Bootstrap(Units([block])), task.metrics), run.arm, None)
    size = f"the strongest attack reads {level.value:.3f} of {task.config.attribute} without a defence"
    text = f"nothing shown to hide: {size}, which chance explains; a defence can only write it into the vectors"
    return "" if level.shown else text
