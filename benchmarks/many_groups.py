"""Gaps that are left between many groups at tolerance 0: FairPost, its peers on the same scores, and chance.

    python benchmarks/many_groups.py FOLDER [--splits 6]

OULAD by ``imd_band`` (ten groups), Adult by ``race`` (five) and bank by ``education`` (four), from the folder
UPRIGHT_DATA. Of each split 70 % are to fit, 30 % to test. Everybody post-processes the scores of the same logistic
regressions: ``eighth`` and ``half`` are calibrated on so much of the rows to fit, with a model of the other half;
``cross`` on all of them, each scored by a model of other folds, with a model of all. ExponentiatedGradient trains on
all rows to fit. error-parity is a peer where it is installed, with cvxpy and ECOS.

Gaps are those of drawn decisions, mean over 20 draws and over splits, with the standard error over splits: of rates
expected over draws a remedy would win by drawing more. What chance does: ``null``, the gap of decisions at the remedy's
rates that are the same in every group, in groups of these sizes; ``placebo``, the remedy's own when groups are shuffled
before it is fitted; ``fitted``, its gap on the calibration rows, by labels, in expectation over draws.

Exit 1 where FairPost leaves a larger gap than the best peer on ``half`` or ``cross`` scores, by more than the standard
error of their difference, and one that is not within the null (95 % of t over the splits). FOLDER keeps what is done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from upright.classification import controls
from upright.classification.post import FairPost
from upright.data.tabular import encode, load_table

try:
    from error_parity import RelaxedThresholdOptimizer
except ImportError as why:
    print(f"error-parity is left out: {why}", file=sys.stderr)
    RelaxedThresholdOptimizer = None

DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "oulad": ("oulad/oulad_clean.csv", {"label": "final_result", "sensitive": ["imd_band"], "drop": ["id_student"]}),
    "adult": ("adult", {"sensitive": ["race"]}),
    "bank": ("bank/bank-full.csv", {"label": "y", "sensitive": ["education"]}),
}
CRITERIA = ("demographic_parity", "equalized_odds")
OURS = ("FairPost", "FairPost, drawn")
COLUMNS = ("accuracy", "accepted", "gap", "error", "null", "placebo", "fitted", "groups", "rows")
PEERS = ("Fairlearn ThresholdOptimizer", "error-parity", "Fairlearn ExponentiatedGradient")
MODEL = LogisticRegression(max_iter=300)


def strata(criterion: str, y: np.ndarray) -> list[np.ndarray]:
    """Return the rows that rates are compared among."""
    return [np.ones(len(y), dtype=bool)] if criterion == CRITERIA[0] else [y == 1, y == 0]


def gap(h: np.ndarray, g: np.ndarray, rows: list[np.ndarray]) -> float:
    """Return the largest difference of rates between groups."""
    return max(float(np.ptp(np.bincount(g[r], h[r]) / np.bincount(g[r]))) for r in rows)


def null(h: np.ndarray, g: np.ndarray, rows: list[np.ndarray], rng: np.random.Generator) -> float:
    """Return the expected gap of equal rates, by simulation."""
    n = [np.bincount(g[r]) for r in rows]
    found = [np.ptp(rng.binomial(size, h[r].mean(), (2000, len(size))) / size, axis=1)
             for size, r in zip(n, rows, strict=True)]  # fmt: skip
    return float(np.max(found, axis=0).mean())


def remedies(criterion: str) -> dict[str, Callable[..., Any]]:
    """Return what fits to probabilities, labels and groups, and returns ``decide(p, g) -> P(decided 1)``."""

    def post(randomised: bool) -> Callable[..., Any]:
        def fit(p: np.ndarray, y: Any, g: np.ndarray) -> Any:
            one = FairPost(criterion, global_tol=0.0, randomised=randomised)
            one.fit(p, y, sensitive_features=g)
            h = lambda p, g: one.decide(p, sensitive_features=g)[:, 1]  # noqa: E731
            return h if randomised else lambda p, g: (h(p, g) > 0.5) * 1.0

        return fit

    def fairlearn(p: np.ndarray, y: np.ndarray, g: np.ndarray) -> Any:
        decide = controls.thresholds(p, y, g, criterion)
        return lambda p, g: decide(p, g)[:, 1]

    found = {"no remedy": lambda p, y, g: lambda p, g: (p[:, 1] > 0.5) * 1.0, OURS[0]: post(False), OURS[1]: post(True)}
    found[PEERS[0]] = fairlearn

    def relaxed(p: np.ndarray, y: np.ndarray, g: np.ndarray) -> Any:
        one = RelaxedThresholdOptimizer(predictor=lambda x: x[:, 1], constraint=criterion, tolerance=0.0)
        one.fit(p, y, group=g)
        return lambda p, g: np.mean([one.predict(p, group=g) for _ in range(25)], axis=0)  # each call draws

    return {**found, PEERS[1]: relaxed} if RelaxedThresholdOptimizer else found


def measure(name: str, criterion: str, split: int, done: set[str], out: Any) -> None:
    """Fit and score everything of one split that is not done, one line each."""
    key = lambda scores, remedy: f"{name}|{criterion}|{split}|{scores}|{remedy}"  # noqa: E731
    path, given = DATA[name]
    folder = Path(os.environ.get("UPRIGHT_DATA", "data"))
    table = load_table(folder / path if "/" in path else path, data_dir=folder, **given)
    y, g = table.label, np.unique(table.columns[table.sensitive[0]], return_inverse=True)[1]
    rng = np.random.default_rng(split)
    part = np.empty(len(y))  # even in each group and label
    for cell in np.unique(2 * g + y):
        rows = rng.permutation(np.flatnonzero(2 * g + y == cell))
        part[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    fit, test = np.flatnonzero(part < 0.7), np.flatnonzero(part >= 0.7)
    half, eighth = np.flatnonzero(part < 0.35), np.flatnonzero(part < 0.0875)
    rest, (x, _) = np.setdiff1d(fit, half), encode(table, fit)
    other = clone(MODEL).fit(x[rest], y[rest]).predict_proba(x)
    everybody = clone(MODEL).fit(x[fit], y[fit]).predict_proba(x)
    crossed = everybody.copy()
    folds = StratifiedKFold(5, shuffle=True, random_state=split)
    crossed[fit] = cross_val_predict(MODEL, x[fit], y[fit], cv=folds, method="predict_proba")
    shuffled, among = rng.permutation(g), strata(criterion, y[test])

    def save(scores: str, remedy: str, h: np.ndarray, **more: Any) -> None:
        draw = [gap((rng.random(len(h)) < h) * 1.0, g[test], among) for _ in range(20)]
        row = {"key": key(scores, remedy), "accuracy": float((h * y[test] + (1 - h) * (1 - y[test])).mean()),
               "accepted": float(h.mean()), "gap": float(np.mean(draw)), "groups": int(g.max()) + 1,
               "null": null(h, g[test], among, rng), **more}  # fmt: skip
        out.write(json.dumps(row) + "\n")
        out.flush()

    for scores, (rows, seen, new) in {
        "eighth": (eighth, other, other), "half": (half, other, other), "cross": (fit, crossed, everybody)
    }.items():  # fmt: skip
        for remedy, by in remedies(criterion).items():
            if key(scores, remedy) not in done:
                decide, p = by(seen[rows], y[rows], g[rows]), new[test]
                h = (by(seen[rows], y[rows], shuffled[rows])(p, shuffled[test]) > rng.random(len(test))) * 1.0
                save(scores, remedy, decide(p, g[test]), rows=len(rows), placebo=gap(h, shuffled[test], among),
                     fitted=gap(decide(seen[rows], g[rows]), g[rows], strata(criterion, y[rows])))  # fmt: skip
    batch, p = "FairPost, fitted to the rows to decide", everybody[test]  # demographic parity asks for no label
    if criterion == CRITERIA[0] and key("cross", batch) not in done:
        save("cross", batch, remedies(criterion)[OURS[0]](p, None, g[test])(p, g[test]), rows=len(p))
    if key("own", PEERS[2]) not in done:
        decide = controls.reductions(x[fit], y[fit], g[fit], criterion, 0.0, MODEL)
        save("own", PEERS[2], decide(x[test])[:, 1], rows=len(fit))


def table_of(lines: list[tuple[list[str], dict[str, Any]]]) -> int:
    """Print means over splits, and say where FairPost is worse than the best peer and than chance."""
    found: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for at in dict.fromkeys((name, criterion, scores, remedy) for (name, criterion, _, scores, remedy), _ in lines):
        own = [row for (name, criterion, _, scores, remedy), row in lines if (name, criterion, scores, remedy) == at]
        found[at] = {k: np.array([row.get(k, np.nan) for row in own]) for k in COLUMNS}
    error = lambda v: float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan")  # noqa: E731
    worse = 0
    for (name, criterion, scores, remedy), of in found.items():
        if remedy == "no remedy" or scores == "own":
            head = f"{name}, {of['groups'][0]:.0f} groups, {criterion}, {scores}: {of['rows'][0]:,.0f} rows to fit"
            print(f"\n{head:69} accuracy accepted     gap   error    null placebo  fitted")
        of["error"][:] = error(of["gap"])
        print(f"{remedy:69} " + " ".join(f"{of[k].mean():{max(len(k), 7)}.4f}" for k in COLUMNS[:7]))
        if remedy not in OURS or scores not in ("half", "cross"):
            continue
        peers = {r: other["gap"] for (n, c, s, r), other in found.items()
                 if (n, c) == (name, criterion) and s in (scores, "own") and r in PEERS}  # fmt: skip
        best = min(peers, key=lambda r: float(peers[r].mean()))
        over, beyond = of["gap"] - peers[best], of["gap"] - of["null"]
        bad = over.mean() > error(over) and beyond.mean() > stats.t.ppf(0.975, len(beyond) - 1) * error(beyond)
        print(f"    against {best}: {over.mean():+.4f} ± {error(over):.4f}; beyond the null {beyond.mean():+.4f} ± "
              f"{error(beyond):.4f}{': WORSE' if bad else ''}")  # fmt: skip
        worse += bad
    return int(worse > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where lines of what is done are kept")
    parser.add_argument("--splits", type=int, default=6)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "lines.jsonl"
    done = {json.loads(v)["key"] for v in kept.read_text().splitlines()} if kept.exists() else set()
    with kept.open("a") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tolerance 0 is below every standard error, and says so at each fit
        for name in DATA:
            for criterion in CRITERIA:
                for split in range(options.splits):
                    measure(name, criterion, split, done, out)
    rows = map(json.loads, kept.read_text().splitlines())
    return table_of([(row["key"].split("|"), row) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
