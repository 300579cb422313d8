"""FedFACT: decisions of a classifier whose groups differ by at most a stated gap, everywhere and inside each site.

Paper
-----
Zhang, Han, Feng, Zhang, Li, Chen: *FedFACT: A Provable Framework for Controllable Group-Fairness Calibration in
Federated Learning*, NeurIPS 2025, arXiv 2506.03777.

Problem
-------
    minimise  P(h(X) != Y)   such that  |D^g_u(h)| <= global_tol,  |D^k_u(h)| <= local_tol  for every client k

over (randomised) decisions h, with D the gaps of demographic parity, equal opportunity or equalized odds
(`upright.maths.parity.rates`), for any number of classes, groups and clients.

Algorithm
---------
*Post-processing* (``remedy="post"``)

1. a model by federated averaging, stopped on calibration rows
2. its probabilities on calibration rows; where the criterion conditions on the label, fitted to each group's labels
3. the convex program of `upright.maths.parity.program`: prices of all constraints, and a table of adjustments
4. decide the largest adjusted probability, from the group and the client of the row

*In training* (``remedy="train"``): `upright.classification.training`, blind to the group at prediction.

Shapes
------
n rows, d features, m classes, G groups, K clients.

Deviations
----------
D1. Log-sum-exp in place of the softmax-weighted mean, which is not convex although the paper says so.
D2. Tolerances bound the gap between any two groups, which is what people read; ``gap="average"`` is the paper's gap of
    a group to the average.
D3. The program is solved by Newton steps on all clients' sums together. With ``fit=rounds`` a client sends sums of the
    size of a table each round and keeps its rows and local prices; the answer is the same.
D4. Deterministic decisions tighten the tolerances by what they exceed them on the calibration rows.
D5. Calibration rows are not training rows; the paper does not say which it takes.
D6. In training, deviations 1 to 7 of `upright.classification.training`: signs and steps of local prices above all.
D7. In training the last 20 iterates are averaged; the paper's experiments serve the last, which oscillated on the
    calibration rows of COMPAS and Adult, its theory averages all. Chosen, with the dual step, on these rows at seed 0.
D8. Equal opportunity of two classes looks at the positive class alone, as Fairlearn does; the paper takes both.
D9. The model of groups and the ranges of features are fitted to pooled rows, and so is the calibration of
    probabilities without ``fit=rounds``, which averages gradients of it: 300 rounds of m (m + 1) numbers a group.

Cost
----
One Newton step is O(n Q^2) with Q = strata x groups x classes entries of a table, and O(K U^3) for U prices a client;
10 to 80 steps. Training in the constrained form costs twice federated averaging and one look at all rows a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.classification.gaps import gaps
from upright.classification.inputs import one_hot
from upright.contract import (
    Arm,
    Config,
    InputError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    Task,
    method,
    stream,
)
from upright.declare import Front, Heat, Holds, Intervals, Noted
from upright.federation.rounds import drive, from_tensors, rounds, to_tensors
from upright.lazy import LazyModule
from upright.maths.parity.oracle import linear_program
from upright.maths.parity.program import Constraint
from upright.maths.parity.site import Site

if TYPE_CHECKING:
    from upright.classification import controls, exchange, rivals
    from upright.classification import estimator as estimators
    from upright.classification import fitting as fits
    from upright.classification import post as posts
    from upright.classification import silos as silo
    from upright.classification import training as federated
    from upright.classification.estimator import FedFACTClassifier
    from upright.classification.post import FairPost
    from upright.classification.training import cost_sensitive_loss
else:
    controls = LazyModule("upright.classification.controls")
    exchange = LazyModule("upright.classification.exchange")
    rivals = LazyModule("upright.classification.rivals")
    federated = LazyModule("upright.classification.training")
    posts = LazyModule("upright.classification.post")
    silo = LazyModule("upright.classification.silos")
    estimators = LazyModule("upright.classification.estimator")
    fits = LazyModule("upright.classification.fitting")

__all__ = ["FairPost", "FedFACTClassifier", "FedFACTConfig", "cost_sensitive_loss", "run"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Share = Annotated[float, Range(ge=0, le=1)]
#: settings of federated averaging; arms that agree in them share the model
_BASE = ("rounds", "local_steps", "batch_size", "learning_rate", "weight_decay", "hidden", "check_every", "patience")

_CALIBRATING = 300  # rounds in which probabilities are calibrated at clients, all groups in the same


class FedFACTConfig(Config):
    """Settings of FedFACT and of its controls."""

    global_tol: Share = 0.01
    """Largest gap for everybody; 1 removes the constraint, since no gap is larger."""
    local_tol: Share | None = None
    """Largest gap inside each client; none takes `global_tol`, 1 removes the constraint."""
    remedy: Literal["post", "train", "majority", "thresholds", "reductions", "fairfed", "fedfb", "oracle"] = "post"
    """FedFACT after or in training; the commonest class for everybody; Fairlearn's ThresholdOptimizer and
    ExponentiatedGradient on pooled rows; FairFed; FedFB; the linear program of `post`."""
    fit: Literal["central", "rounds"] = "central"
    """Whether `post` solves its program on pooled rows, or in rounds between a server and clients that keep theirs."""
    gap: Literal["pairwise", "average"] = "pairwise"
    """Between any two groups, or of a group to the average."""
    randomised: bool = False
    """Whether decisions are drawn; they then meet the tolerances on the calibration rows, where criteria that condition
    on the label count rows by its probability. Equalized odds needs it."""
    blind: bool = False
    """Whether `post` decides without the group, from an estimate of P(group | x, client)."""
    temperature: PositiveFloat = 0.002
    """beta of the randomised decision."""
    groups: Literal["true", "random"] = "true"
    """`random` permutes groups inside each client before anything is fitted to them: the placebo."""
    rounds: PositiveInt = 200
    """Most rounds of federated averaging; the log loss on calibration rows stops earlier."""
    local_steps: PositiveInt = 20
    """Steps of a client in a round."""
    batch_size: PositiveInt = 256
    """Rows of a step."""
    learning_rate: PositiveFloat = 0.01
    """Adam's step size."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty."""
    hidden: NonNegativeInt = 0
    """Width of the hidden layer; 0 is logistic regression."""
    check_every: PositiveInt = 2
    """Rounds between checks."""
    patience: PositiveInt = 5
    """Checks without a better log loss before averaging stops."""
    fair_rounds: PositiveInt = 60
    """Rounds of `train`, `fairfed` and `fedfb`."""
    dual_step: PositiveFloat = 0.03
    """Step of the prices in `train`."""
    radius: PositiveFloat = 5.0
    """Bound of their sum."""
    average: PositiveInt = 20
    """How many of the last iterates of `train` are averaged; 1 serves the last one, which oscillates."""
    fairfed_beta: NonNegativeFloat = 1.0
    """Step of FairFed's weights of clients."""
    fedfb_alpha: NonNegativeFloat = 0.3
    """Step of FedFB's weights of groups and labels; it knows demographic parity alone."""

    def tolerances(self) -> tuple[float, float]:
        """Return the global and the local tolerance, infinity where the constraint is removed."""
        both = (self.global_tol, self.global_tol if self.local_tol is None else self.local_tol)
        return tuple(np.inf if t >= 1.0 else float(t) for t in both)  # type: ignore[return-value]

    def constraint(self, criterion: Any) -> Constraint:
        """Return the constraint on a criterion."""
        everybody, inside = self.tolerances()
        return Constraint(criterion, everybody, inside, self.gap)


@dataclass(frozen=True, eq=False)
class Decider:
    """Decisions of rows: ``decide(x, group, client) -> (n, m)``."""

    rule: Callable[[Array, Ints, Ints], Array]

    def decide(self, x: Array, group: Ints, client: Ints) -> Array:
        """Return the probability of each decision, shape (n, m)."""
        return self.rule(x, group, client)


def _settings(silos: Any, t: Any, config: FedFACTConfig, run: Run, **own: Any) -> federated.Training:
    own |= {name: getattr(config, name) for name in ("local_steps", "learning_rate", "weight_decay", "hidden")}
    own |= {"classes": len(t.classes), "batch": config.batch_size, "seed": stream(run.seed, "model")}
    return federated.settings_of(silos, **own)


def base_model(t: Any, config: FedFACTConfig, run: Run) -> dict[str, Any]:
    """Train by federated averaging (step 1); returns the parameters of the best round and its log loss."""
    x, y, _, client = t.part(run, "train")
    held, labels, _, _ = t.part(run, "valid")
    silos = silo.silos_of(x, y, np.array(t.clients)[client])
    settings = _settings(silos, t, config, run, rounds=config.rounds)
    kept: dict[str, Any] = {}
    alone = run.silent()
    with alone.training(config, epochs=config.rounds, kept=kept) as epochs:
        for _, (state, _) in zip(epochs, rounds(federated.FedAvg(settings), silos), strict=False):
            if epochs.due:
                p = federated.trained(state, {}).predict_proba(held)
                loss = float(-np.log(np.clip(p[np.arange(len(p)), labels], 1e-12, None)).mean())
                epochs.log(**{"valid/loss": loss, "valid/accuracy": float((p.argmax(1) == labels).mean())})
                kept["parameters"] = federated.trained(state, {}).parameters()
                epochs.check(-loss, least=1e-6)
    return {
        "parameters": to_tensors(kept["parameters"]),
        "curve": [
            {"round": line["step"]} | {k: v for k, v in line.items() if k not in ("arm", "step")}
            for line in alone.metrics
            if len(line) > 2
        ],
        "converged": epochs.converged,
    }


def _calibrated_in_rounds(t: Any, p: Array, y: Ints, group: Ints, client: Ints) -> dict[str, tuple[Array, Array]]:
    """Fit ``softmax(log p A + b)`` of each group by averaged gradients: ``m (m + 1)`` numbers each way and round."""
    m, found = p.shape[1], {}
    x = np.log(np.clip(p, 1e-12, None))
    x -= x.mean(1, keepdims=True)  # the mean tells little, and gradients go far slower with it
    for g, name in enumerate(t.groups):
        rows = np.flatnonzero(group == g)
        found[str(name)] = (np.eye(m), np.zeros(m))
        if len(np.unique(y[rows])) < m or len(rows) < 5 * m:
            continue
        silos = silo.silos_of(x[rows], y[rows], np.array(t.clients)[client[rows]])
        own = {"classes": m, "rounds": _CALIBRATING, "local_steps": 1, "batch": max(len(s.y) for s in silos.values())}
        steep = float((x[rows] ** 2).sum(1).mean()) + 1.0  # twice the largest curvature
        averaging = federated.FedAvg(federated.settings_of(silos, **own, optimiser="sgd", learning_rate=2.0 / steep))
        state, _ = drive(averaging, silos, resume=(averaging.start() | {"theta.weight": np.eye(m)}, {}))
        a = state["theta.weight"]
        found[str(name)] = (a - a.mean(0), state["theta.bias"])
    return found


def _fit_post(t: Any, config: FedFACTConfig, run: Run, model: federated.Trained) -> tuple[fits.Fitted, Any]:
    """Solve the program on calibration rows (steps 2 and 3); returns it and the model of groups when blind."""
    x, y, group, client = t.part(run, "valid")
    group = _shuffled(config, run, group, client)
    members, blind = None, None
    if config.blind:
        rows, _, own, sites = t.part(run, "train")
        own = _shuffled(config, run, own, sites)
        from sklearn.linear_model import LogisticRegression

        blind = LogisticRegression(max_iter=500).fit(_beside(rows, sites, len(t.clients)), own)
        members = {"group": blind.predict_proba(_beside(x, client, len(t.clients)))}
    one = config.constraint(t.config.criterion)
    asked = config.tolerances() != (np.inf, np.inf)  # without a constraint the decisions are the model's own
    told: list[dict[str, int]] = []
    p, inside = model.predict_proba(x), config.fit == "rounds"
    calibrate: Any = asked and t.config.criterion != "demographic_parity"
    if calibrate and inside:
        calibrate = _calibrated_in_rounds(t, p, y, group, client)
    fitted = fits.fit_table(
        p,
        {"group": group},
        {"group": [str(g) for g in t.groups]},
        client,
        t.clients,
        [("group", one, one.local_tol)],
        list(t.classes),
        y=y,
        members=members,
        temperature=config.temperature,
        randomised=config.randomised,
        calibrate=calibrate,
        solver=exchange.in_rounds(drive, t.clients, told) if inside else None,
    )
    if told:
        found = {**told[0], "rounds": sum(own["rounds"] + (not config.randomised) for own in told)}
        run.note("exchange", {**found, "calibrating": _CALIBRATING if calibrate else 0})
    if not fitted.solution.converged:
        run.warn(f"arm {run.arm}: the program stopped at a violation of {fitted.solution.kkt:.2g}")
    return fitted, blind


def _shuffled(config: FedFACTConfig, run: Run, group: Ints, client: Ints) -> Ints:
    """Permute groups inside each client for the placebo."""
    if config.groups == "true":
        return group
    out = group.copy()
    for k in np.unique(client):
        rows = np.flatnonzero(client == k)
        out[rows] = group[run.rng("placebo", "groups", int(k)).permutation(rows)]
    return out


def _beside(x: Array, client: Ints, clients: int) -> Array:
    return np.hstack([x, one_hot(client, clients)])


def _post(t: Any, config: FedFACTConfig, run: Run, model: federated.Trained) -> Decider:
    """Post-processing (steps 2 to 4)."""
    fitted, blind = _fit_post(t, config, run, model)
    table = fitted.table

    def rule(x: Array, group: Ints, client: Ints) -> Array:
        soft = one_hot(group, len(t.groups))
        if blind is not None:
            soft = blind.predict_proba(_beside(x, client, len(t.clients)))
        z = table.scores(model.predict_proba(x), {"group": soft}, client)
        return table.decide(z) if config.randomised else one_hot(z.argmax(1), z.shape[1])

    solution = fitted.solution
    own = {name: getattr(solution, name) for name in ("kkt", "duality_gap", "converged", "beta")}
    run.note("solver", {**own, "steps": solution.iterations})
    run.note("prices", fitted.report)
    run.note("small", fitted.small)
    run.note("conflicts", fitted.conflicts)
    run.note("table", table.as_dict())
    for text in ("" if config.randomised else fitted.misses(), fitted.vanished()):
        if text:
            run.warn(f"arm {run.arm}: {text}")
    return Decider(rule)


def _train(t: Any, config: FedFACTConfig, run: Run) -> Decider:
    """Train under the constraints, or by a rival that trains."""
    x, y, group, client = t.part(run, "train")
    group = _shuffled(config, run, group, client)
    names = np.array(t.clients)
    silos = silo.silos_of(x, y, names[client], [group], [list(range(len(t.groups)))])
    own = {"rounds": config.fair_rounds, "dual_step": config.dual_step, "radius": config.radius}
    settings = _settings(silos, t, config, run, **own, average=config.average if config.remedy == "train" else 1)
    if config.remedy == "train":
        algorithm: Any = federated.FedFACTTraining([config.constraint(t.config.criterion)], settings, list(t.clients))
    elif config.remedy == "fairfed":
        algorithm = rivals.FairFed(settings, t.config.criterion, beta=config.fairfed_beta)
    else:
        if t.config.criterion != "demographic_parity":
            raise InputError(
                f"FedFB for {t.config.criterion}", "demographic_parity", "leave the arm fedfb out with --arms"
            )
        algorithm = rivals.FedFB(settings, alpha=config.fedfb_alpha)
    state, privates = drive(algorithm, silos)
    for entry in state["history"]:
        run.log(entry["round"], **{k: float(v) for k, v in entry.items() if isinstance(v, int | float)})
    for text in state.get("unreached", []):
        run.warn(f"arm {run.arm}: {text}")
    model = federated.trained(state, privates)

    def rule(x: Array, group: Ints, client: Ints) -> Array:
        p = model.predict_proba(x, names[client])
        return one_hot(p.argmax(1), p.shape[1])

    return Decider(rule)


def _rival(t: Any, config: FedFACTConfig, run: Run, model: federated.Trained) -> Decider:
    """Return one of the remedies that FedFACT is compared with."""
    x, y, group, client = t.part(run, "valid")
    p = model.predict_proba(x)
    if config.remedy == "majority":
        commonest = np.eye(p.shape[1])[np.bincount(y, minlength=p.shape[1]).argmax()]
        return Decider(lambda x, g, k: np.tile(commonest, (len(x), 1)))
    if config.remedy == "oracle":
        found, _ = _fit_post(t, config, run, model)
        member = one_hot(group, len(t.groups))
        q = found.table.calibrated(p, {"group": member})  # what `post` solves the program for
        each = [np.flatnonzero(client == k) for k in range(len(t.clients))]
        site = [Site(q[r], (member[r],), np.full(len(r), 1.0 / len(q)), (t.config.criterion,)) for r in each]
        tables = linear_program(site, [config.constraint(t.config.criterion)])[2]
        exact = replace(found.table, tables=tuple(tuple(one) for one in tables))

        def scores(x: Array, group: Ints, client: Ints) -> tuple[Array, NDArray[np.bool_]]:
            p, own = model.predict_proba(x), {"group": one_hot(group, len(t.groups))}
            z = exact.scores(p, own, client)
            return found.table.scores(p, own, client), z > z.max(1, keepdims=True) - 1e-6

        def exactly(x: Array, group: Ints, client: Ints) -> Array:
            z, best = scores(x, group, client)  # of what the linear program holds equally good, `post` chooses
            return one_hot(np.where(best, z, -np.inf).argmax(1), z.shape[1])

        run.note("share tied", float((scores(x, group, client)[1].sum(1) > 1).mean()))
        return Decider(exactly)
    if config.remedy == "thresholds":
        decide = controls.thresholds(p, y, group, t.config.criterion)
        return Decider(lambda x, g, k: decide(model.predict_proba(x), g))
    rows, labels, own, _ = t.part(run, "train")
    from sklearn.linear_model import LogisticRegression

    draw = controls.reductions(
        rows, labels, own, t.config.criterion, config.tolerances()[0], LogisticRegression(C=1e3, max_iter=500)
    )
    return Decider(lambda x, g, k: draw(x))


def _looked_at(t: Any, config: FedFACTConfig, run: Run, model: federated.Trained, found: Decider) -> None:
    """Note gaps and accuracy on calibration rows, and whose decisions changed."""
    x, y, group, client = t.part(run, "valid")
    h = found.decide(x, group, client)
    before = one_hot(model.predict_proba(x).argmax(1), h.shape[1])
    found_gaps = gaps(h, group, client, t.config.criterion, y)
    run.note("calibration", {"accuracy": float(h[np.arange(len(y)), y].mean()), **found_gaps})
    sides = zip(("global", "local_max"), config.tolerances(), strict=True)
    asked = {side: tol for side, tol in sides if tol < 1}
    if asked and config.remedy == "post":
        run.note("tolerance_met", all(found_gaps[side] <= tol + 1e-6 for side, tol in asked.items()))
    flips = []
    for g, name in enumerate(t.groups):
        rows = group == g
        for j, to in enumerate(t.classes):
            gained = float((h[rows, j] * (1.0 - before[rows, j])).mean())
            flips.append({"group": str(name), "to": to, "share": gained, "n": int(rows.sum())})
    run.note("flips", flips)
    run.note("valid", float(h[np.arange(len(y)), y].mean()))


def _two_classes_alone(t: Any) -> str:
    if len(t.classes) != 2 or t.config.criterion == "equalized_odds_cells":
        return f"Fairlearn has no such remedy for {len(t.classes)} classes and {t.config.criterion}"
    return ""


def _parity_alone(t: Any) -> str:
    own = t.config.criterion
    return "" if own == "demographic_parity" else f"FedFB knows demographic parity alone, not {own}"


def _threshold_alone(t: Any) -> str:
    """The dual of equalized odds leaves whole groups to chance: its prices say nothing about them."""
    own = t.config.criterion
    return f"prices of the linear program decide no row of a tied group under {own}" if "odds" in own else ""


_ONLY = ("remedy",)
_REPORT = [
    Front("Accuracy against the gap"),
    Front(
        "Accuracy against the gap of the worst client",
        "client_disparity:rate:group",
        ["A client's own gap; of all clients the largest."],
    ),
    Holds(
        "Tolerances hold on the calibration rows of every run.",
        "tolerance_met",
        [
            "Decisions without chance need not meet a tolerance exactly; equal opportunity counts labels, the program "
            "probabilities."
        ],
        arms=_ONLY,
        bad="A gap on calibration rows is above its tolerance.",
    ),
    Holds(
        "The program converged.",
        "solver.converged",
        arms=_ONLY,
        bad="The program did not converge: prices are approximate.",
    ),
    Heat("Decided, by client and group, test rows", "rate/*"),
    Noted(
        "On calibration rows, on which decisions after training are fitted",
        "calibration",
        names={
            "accuracy": "accuracy",
            "global": "gap of all rows",
            "local_max": "worst client",
            "local_mean": "mean client",
        },
    ),
    Noted(
        "Prices of the constraints",
        "prices",
        [
            "A price is the accuracy lost per unit of tolerance, by the model's own probabilities: at a price of 0.2, "
            "a tolerance smaller by 0.01 costs 0.002. That of a client counts in accuracy of its own rows. Clients are "
            "the first seed's."
        ],
        by={"level": "For", "client": "Client", "between": "Between", "class": "Decided"},
        names={"price": "price", "gap_deterministic": "gap, calibration", "tolerance": "tolerance"},
        arms=_ONLY,
    ),
    Intervals(
        "Decisions that changed, by group",
        "flips",
        [
            "Share of a group's calibration rows that is decided otherwise than without a remedy, and to which class. "
            "Closing a gap moves decisions in both directions."
        ],
        by=("group", "to"),
        value="share",
        bars=True,
        arms=_ONLY,
    ),
    Noted(
        "Cells too small to certify",
        "small",
        [
            "A gap inside a client is certified where the group is sure to have more than 30 calibration rows in 95 % "
            "of samples: with share p, n of at least 60 / p + ln(20) / (2 p²). The rule suffices and is not necessary."
        ],
        by={"client": "Client", "group": "Group"},
        names={"n": "rows of the group", "of": "rows of the client", "needed": "rows needed"},
        arms=_ONLY,
    ),
    Noted(
        "Local constraints against global ones",
        "conflicts",
        ["What closes the gap of all rows would open one here, so the client's own adjustment takes part of it back."],
        by={"client": "Client", "between": "Between", "class": "Decided"},
        names={"global_price": "price for everybody", "local_price": "price inside"},
        arms=_ONLY,
    ),
    Noted(
        "How rows are spread over clients",
        "counts",
        ["Rows of training, calibration and test together."],
        by={"client": "Client", "group": "Group", "label": "Label"},
        names={"n": "rows"},
    ),
    Noted(
        "The solver",
        "solver",
        names={"kkt": "KKT violation", "duality_gap": "duality gap", "steps": "Newton steps"},
        arms=_ONLY,
    ),
]
_LIMITS = [
    "Tolerances are fitted on calibration rows. On other rows gaps differ from them by chance, most at small clients "
    "and in small groups.",
    "The largest of many gaps is large by selection: compare it with what random groups show.",
    "Deciding after training needs a person's group at the time of the decision. Whether that is lawful differs by "
    "place and purpose.",
    "Equal rates are no proof of fair treatment: labels may be unfair, and decisions may cost groups unlike much.",
    "Only the groups that the data name are compared. A group that is not named may be worse off.",
]


@method(
    "fedfact",
    task="upright.tasks.classify:Classify",
    config=FedFACTConfig,
    title="FedFACT",
    mends="unequal treatment of groups, globally and inside each client",
    neutral=[{"global_tol": 1.0, "local_tol": 1.0}],
    arms=[
        Arm("none", "baseline", {"global_tol": 1.0, "local_tol": 1.0}, "federated averaging"),
        Arm("fedfact", "remedy", {}, "FedFACT, post-processing"),
        Arm("hull", "trivial", title="hull of baseline and majority", mix=("none", "majority")),
        Arm("random", "placebo", {"groups": "random"}, "shuffled groups"),
        Arm("train", "rival", {"remedy": "train"}, "FedFACT, in training"),
        Arm("oracle", "rival", {"remedy": "oracle"}, "linear program", sweep=(), unfit=_threshold_alone),
        Arm(
            "thresholds",
            "rival",
            {"remedy": "thresholds"},
            "Fairlearn ThresholdOptimizer",
            sweep=(),
            unfit=_two_classes_alone,
        ),
        Arm(
            "reductions",
            "rival",
            {"remedy": "reductions"},
            "Fairlearn ExponentiatedGradient",
            sweep=(),
            unfit=_two_classes_alone,
        ),
        Arm("fairfed", "rival", {"remedy": "fairfed"}, "FairFed", sweep=()),
        Arm("fedfb", "rival", {"remedy": "fedfb"}, "FedFB", sweep=(), unfit=_parity_alone),
        Arm("majority", "anchor", {"remedy": "majority"}, "the commonest class for everybody"),
    ],
    statistics=[
        "disparity:rate:group",
        "client_disparity:rate:group",
        "mean_client_disparity:rate:group",
        "mean:accuracy",
        "mean:accuracy:group",
    ],
    primary="disparity:rate:group",
    cost="mean:accuracy",
    presets={
        "quick": {"method": {"rounds": 60, "fair_rounds": 30}, "task": {}},
        "full": {"method": {}, "task": {}},
    },
    tune={"global_tol": [0.0, 0.01, 0.02, 0.05]},
    sweep={"global_tol": [0.0, 0.01, 0.02, 0.04, 0.08]},
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "adult",
        "settings": {"group": "sex"},
        "arms": ["none", "fedfact", "majority", "random", "train"],
        "study": "fedfact-adult-sex",
    },
    tiny={"rounds": 6, "fair_rounds": 6, "local_steps": 5, "batch_size": 64, "global_tol": 0.02},
)
def run(task: Task, config: FedFACTConfig, run: Run) -> Decider:
    """Train the model that all arms share, and return the decisions of one remedy."""
    t: Any = task
    if len(t.groups) < 2:
        run.warn("there is one group: nobody to compare, and nothing is constrained")
    key = {k: config.as_dict()[k] for k in _BASE}
    base = run.shared("base", key, lambda: base_model(t, config, run))
    model = federated.Trained.of(from_tensors(base["parameters"]))
    for entry in base["curve"]:
        run.log(int(entry["round"]), **{k: float(v) for k, v in entry.items() if k != "round"})
    if not base["converged"]:
        run.warn(f"federated averaging was still improving after {config.rounds} rounds: raise rounds")
    if config.remedy == "post":
        found = _post(t, config, run, model)
    elif config.remedy in ("train", "fairfed", "fedfb"):
        found = _train(t, config, run)
    else:
        found = _rival(t, config, run, model)
    _looked_at(t, config, run, model, found)
    if config.tolerances() == (np.inf, np.inf):
        run.note("counts", t.counts(run))
    return found


def __getattr__(name: str) -> Any:
    """Return what a native door is made of, loaded when it is asked for."""
    home = {"FairPost": posts, "FedFACTClassifier": estimators, "cost_sensitive_loss": federated}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)
