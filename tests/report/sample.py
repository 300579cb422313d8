"""Fabricated folders with numbers that ML-100K plausibly gives, in the schema of the run folder.

No model was trained for these numbers: they test the page, not a method.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

ARMS = [
    ("none", "baseline", "no remedy", {"lam": 0.0}),
    ("in_ucds", "remedy", "In-UCDS", {}),
    ("top_k", "trivial", "most similar users", {"neighbours": "top_k"}),
    ("random", "placebo", "random users", {"neighbours": "random"}),
    ("zero", "placebo", "pull to zero", {"neighbours": "zero"}),
]
DATA = {
    "name": "ml100k", "licence": "GroupLens research licence, not redistributable", "users": 943, "items": 1349,
    "train": 69500, "valid": 9929, "test": 19858, "fingerprint": "3f0c" + "9b1e7a52" * 7 + "d41c",
}  # fmt: skip
# metric -> title, advantaged level of each arm, disadvantaged level of each arm
GROUPED = {
    "ndcg@10": ("NDCG@10", (0.71, 0.66, 0.69, 0.67, 0.62), (0.363, 0.372, 0.360, 0.336, 0.351)),
    "ndcg@10_matched5": (
        "NDCG@10, 5 positives a user", (0.31, 0.29, 0.30, 0.28, 0.27), (0.262, 0.268, 0.259, 0.241, 0.252)),
    "ndcg@10_sampled": (
        "NDCG@10, 99 sampled negatives", (0.33, 0.35, 0.32, 0.30, 0.31), (0.505, 0.507, 0.486, 0.478, 0.490)),
}  # fmt: skip
PLAIN = {"recall@10": ("Recall@10", 0.241), "mrr@10": ("MRR@10", 0.552), "hit@10": ("Hit rate@10", 0.801)}
NOTES = {
    "alpha": 14.216, "lambda_max": 9.338, "row_sum_bound": 13.539, "condition_holds": True, "targets": 896,
    "targets_without_neighbours": 2, "x_t_min": 0.548, "x_t_mean": 0.731, "kkt_residual": 3.1e-15, "picks_gini": 0.214,
    "picks_top5_share": 0.183, "cluster_size": {"p10": 41.0, "median": 46.0, "p90": 47.0}, "official_overlap": 0.41,
}  # fmt: skip
DEVIATIONS = [
    "D1. alpha exceeds the largest eigenvalue, as the theory asks. The published code floors it at 1.1e-3.",
    "D2. Similarities see training interactions only; the published code adds validation and test.",
    "D3. Cosine similarity with shrinkage instead of co-counts.",
    "D5. The pull is a mean over the batch's disadvantaged users, not a sum over all pairs at each batch.",
]
WARNINGS = ["ML-100K may not be redistributed; this page holds no row of it."]
PRIMARY = "abs_gap:ndcg@10:activity"


class _Levels:
    """Collects levels; the interval's half-width is a number that such data would give."""

    def __init__(self, narrow: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self.narrow = narrow

    def add(self, statistic: str, label: str, arm: str, value: float, half: float, **more: Any) -> None:
        name, metric, *grouping = statistic.split(":")
        row = {
            "statistic": statistic, "label": label, "metric": metric, "grouping": grouping[0] if grouping else None,
            "group": None, "arm": arm, "value": value, "low": value - half * self.narrow,
            "high": value + 1.05 * half * self.narrow, "n_units": 943, "n_undefined": 0, "null": None,
        }  # fmt: skip
        if name in ("gap", "abs_gap"):
            row["null"] = {"expected_abs": 0.024, "low": -0.059, "high": 0.061}
        self.rows.append(row | more)


def levels(seeds: int, *, works: bool) -> list[dict[str, Any]]:
    """Levels of every arm under three protocols."""
    rng = np.random.default_rng(seeds)
    found = _Levels(1.0 if seeds == 1 else 0.8)
    for metric, (title, high, low) in GROUPED.items():
        for (arm, *_), a, d in zip(ARMS, high, low, strict=True):
            if works and arm == "in_ucds":
                a, d = a - 0.08, d + 0.03
            a, d = a + rng.normal(0, 0.004), d + rng.normal(0, 0.002)
            by = f"{metric}:activity"
            if metric == "ndcg@10":
                found.add("mean:ndcg@10", title, arm, (47 * a + 893 * d) / 940, 0.014, n_units=940, n_undefined=3)
                found.add("worst_decile:ndcg@10", f"{title}, worst tenth", arm, 0.021 + rng.normal(0, 0.002), 0.006)
                found.add("gini:ndcg@10", f"{title}, Gini over units", arm, 0.41 + rng.normal(0, 0.006), 0.012)
            found.add(f"mean:{by}", f"{title}, advantaged", arm, a, 0.058, group="advantaged", n_units=47)
            found.add(
                f"mean:{by}",
                f"{title}, disadvantaged",
                arm,
                d,
                0.015,
                group="disadvantaged",
                n_units=893,
                n_undefined=3,
            )
            found.add(f"gap:{by}", f"{title}: advantaged minus disadvantaged", arm, a - d, 0.06)
            if metric == "ndcg@10":
                label = f"{title}: size of the gap between advantaged and disadvantaged"
                found.add(f"abs_gap:{by}", label, arm, abs(a - d), 0.06)
    for metric, (title, base) in PLAIN.items():
        for arm, *_ in ARMS:
            found.add(f"mean:{metric}", title, arm, base + rng.normal(0, 0.006), 0.016, n_units=940, n_undefined=3)
    return found.rows


def differences(rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """The remedy minus each control, for everything but the signed gap."""
    rng = np.random.default_rng(seeds + 50)
    at = {(row["statistic"], row["group"], row["arm"]): row["value"] for row in rows}
    found = []
    for row in rows:
        if row["arm"] != "in_ucds" or row["statistic"].startswith("gap"):
            continue
        lower = row["statistic"].startswith(("abs_gap", "gini"))
        for arm, role, *_ in ARMS:
            if arm == "in_ucds":
                continue
            value = row["value"] - at[row["statistic"], row["group"], arm]
            half = 0.04 if lower or row["group"] == "advantaged" else 0.009
            low, high, margin = value - half, value + half, 0.01
            good, bad = (high < 0, low > 0) if lower else (low > 0, high < 0)
            equal = -margin < low and high < margin
            found.append({
                "statistic": row["statistic"] + (f"={row['group']}" if row["group"] else ""), "label": row["label"],
                "arm": "in_ucds", "against": arm, "role": role, "value": value, "low": low, "high": high,
                "direction": "lower" if lower else "higher", "margin": margin,
                "verdict": "helps" if good else "harms" if bad else "equal" if equal else "inconclusive",
                "smallest_detectable": 1.43 * half,
                "holm_p": None if seeds == 1 else float(np.clip(rng.beta(1, 3), 0.004, 1)),
            })  # fmt: skip
    return found


def evidence(seeds: int = 1, *, works: bool = False) -> dict[str, Any]:
    """Evidence of a run (seeds=1) or a comparison."""
    rows = levels(seeds, works=works)
    changes = differences(rows, seeds)
    main = next(d for d in changes if d["statistic"] == PRIMARY and d["against"] == "none")
    cost = next(d for d in changes if d["statistic"] == "mean:ndcg@10" and d["against"] == "none")

    def said(d: dict[str, Any]) -> str:
        return f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})".replace("-", "−")

    change = f"the gap in NDCG@10 between active and inactive users changes by {said(main)} against no remedy"
    verdict = {
        "works": works, "word": "works" if works else "inconclusive", "primary": PRIMARY,
        "sentence": f"In-UCDS works here: {change}, and it is better than every control." if works
        else f"In-UCDS is not shown to work: {change}; it is not better than pull to zero.",
        "cost": f"Overall NDCG@10 changes by {said(cost)} against no remedy.",
        "not_significant": [] if works else ["Against pull to zero the change of the gap includes zero."],
        "notes": [] if works else ["Part of it is levelling down: advantaged users fall from 0.71 to 0.66."],
    }  # fmt: skip
    return {
        "n_seeds": seeds, "n_units": 943, "unit_kind": "user", "draws": 2000, "confidence": 0.95,
        "resampling": f"paired bootstrap, 2000 draws, percentile: {seeds} seeds, then 943 users",
        "levels": rows, "differences": changes, "verdict": verdict,
    }  # fmt: skip


def arms(seed: int = 0, titles: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Arms with diagnostics."""
    rng = np.random.default_rng(100 + seed)
    rows = []
    for name, role, title, settings in ARMS:
        inactive = {"zero": 0.5, "random": 0.85}.get(name, 1.0) * 1.24 + rng.normal(0, 0.02)
        notes: dict[str, Any] = {
            "best_epoch": int(rng.integers(40, 90)), "converged": True,
            "embedding_norm": {"advantaged": 2.31 + rng.normal(0, 0.02), "disadvantaged": inactive},
        }  # fmt: skip
        rows.append({
            "name": name, "role": role, "title": (titles or {}).get(name, title), "settings": settings,
            "notes": notes | NOTES if name == "in_ucds" else notes,
            "totals": {"coverage@10": 0.38 + rng.normal(0, 0.01), "gini_exposure@10": 0.86 + rng.normal(0, 0.01)},
        })  # fmt: skip
    return rows


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write one JSON file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def run_folder(
    parent: Path, seed: int = 0, *, titles: dict[str, str] | None = None, works: bool = False, lam: float = 0.03
) -> Path:
    """One run at one seed."""
    folder = parent / f"2026-01-31-in_ucds-ml100k-s{seed}"
    write(folder, "summary.json", {
        "schema": 1, "method": "in_ucds", "title": "In-UCDS", "mends": "worse lists for inactive users", "seed": seed,
        "data": dict(DATA), "arms": arms(seed, titles), "warnings": WARNINGS, "deviations": DEVIATIONS,
        "evidence": evidence(works=works),
    })  # fmt: skip
    write(folder, "config.json", {
        "passed": {"lam": lam, "task": {"backbone": "bprmf"}}, "preset": "full", "arms": None,
        "resolved": {
            "method": {"lam": lam, "neighbours": "dominant_set", "similarity": "cosine", "shrinkage": 10.0,
                       "alpha": "auto", "top_k": None, "mode": "paper", "learning_rate": 1e-3, "epochs": 400},
            "task": {"data": "ml100k", "split_seed": 0, "backbone": "bprmf", "dim": 64, "group_share": 0.05, "k": 10},
        },
    })  # fmt: skip
    write(folder, "run.json", {
        "schema": 1, "status": "done", "method": "in_ucds", "seed": seed, "traceback": None, "pid": 4711,
        "started": f"2026-01-31T09:{10 + seed}:04+00:00", "finished": f"2026-01-31T09:{14 + seed}:31+00:00",
        "wall_s": 267.4 + seed, "cpu_s": 488.0 + seed,
        "command": f"upright run in_ucds --data ml100k --preset full --seeds 6 --set lam={lam} --set backbone=bprmf",
        "environment": {"python": "3.11.7", "platform": "Linux-6.1-x86_64",
                        "packages": {"numpy": "2.4.6", "scipy": "1.17.1", "torch": "2.13.0", "upright": "0.1.0"}},
    })  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(curves(seed)) + "\n", encoding="utf-8")
    return folder


def curves(seed: int) -> list[str]:
    """A loss a step and a validation score every fifth, as lines of JSON."""
    rng = np.random.default_rng(seed)
    lines = []
    for (name, *_), top in zip(ARMS, (0.338, 0.341, 0.333, 0.312, 0.322), strict=True):
        for step in range(1, int(rng.integers(14, 22)) * 5 + 1):
            row = {"arm": name, "step": step, "loss": 0.69 * math.exp(-step / 18) + 0.12 + rng.normal(0, 0.002)}
            if step % 5 == 0:
                row["valid/ndcg@10"] = top * (1 - math.exp(-step / 16)) + rng.normal(0, 0.0012)
            lines.append(json.dumps(row))
    return lines


def comparison_folder(parent: Path, seeds: int = 6, *, works: bool = False, lam: float = 0.03) -> Path:
    """Several seeds and their comparison, beside one another."""
    runs = [run_folder(parent, seed, works=works, lam=lam) for seed in range(seeds)]
    folder = parent / f"2026-01-31-in_ucds-ml100k-x{seeds}"
    write(folder, "comparison.json", {
        "schema": 1, "runs": [run.name for run in runs], "method": "in_ucds", "title": "In-UCDS",
        "mends": "worse lists for inactive users", "seeds": list(range(seeds)), "data": dict(DATA), "arms": arms(),
        "warnings": WARNINGS, "deviations": DEVIATIONS, "evidence": evidence(seeds, works=works),
    })  # fmt: skip
    return folder


def audit_folder(parent: Path) -> Path:
    """An audit of one's own lists."""
    folder = parent / "2026-01-31-audit-ranking-lists"
    rows = [{**row, "arm": "yours"} for row in levels(1, works=False) if row["arm"] == "none"]
    write(folder, "summary.json", {
        "schema": 1, "kind": "audit", "method": "audit_ranking", "title": "Audit of the ranked lists in lists.csv",
        "mends": "how well the lists serve each user", "seed": 0, "data": dict(DATA), "warnings": [], "deviations": [],
        "arms": [{"name": "yours", "role": "baseline", "title": "your lists", "totals": {"coverage@10": 0.31}}],
        "evidence": {**evidence(), "levels": rows, "differences": [], "verdict": {}},
        "exposure": [
            {"bin": name, "items": n, "share_of_items": n / 1349, "share_of_exposure": share, "low": share - 0.02,
             "high": share + 0.02, "coverage": 0.9, "gini": 0.4}
            for name, n, share in (("head", 270, 0.71), ("mid", 405, 0.22), ("tail", 674, 0.07))
        ],
    })  # fmt: skip
    write(folder, "run.json", {
        "schema": 1, "status": "done", "seed": 0, "wall_s": 3.2, "cpu_s": 5.0,
        "command": "upright audit ranking lists.csv --held-out test.csv",
    })  # fmt: skip
    return folder


# -- RAID ---------------------------------------------------------------------------------------------------------

RAID_ARMS = [
    ("none", "baseline", "no defence", {"alpha": 0.0}, 0.31, 0.22),
    ("raid", "remedy", "RAID", {}, 0.30, 0.04),
    ("mean", "trivial", "mean matching", {"defence": "mean"}, 0.30, 0.17),
    ("random", "placebo", "random labels", {"labels": "random"}, 0.305, 0.21),
    ("reversal", "rival", "gradient reversal", {"defence": "reversal"}, 0.28, 0.12),
    ("noise", "rival", "noise at matched utility", {"defence": "noise"}, 0.30, 0.2),
    ("after", "rival", "transport after training", {"defence": "after"}, 0.26, 0.05),
]
RAID_ATTACKS = [f"{s}/{a}/{p}" for s in ("embedding", "propagated") for a in ("logistic", "mlp", "gbdt")
                for p in ("cross", "transfer")]  # fmt: skip
RAID_STRENGTHS = (0.1, 0.3, 3.0)
RAID_PRIMARY = "leakage:attack:attribute"
RAID_BAND = 0.07


def raid_notes(seed: int) -> dict[str, Any]:
    """Diagnostics of one transport arm; counts below 5 stand in it so that a page may not show them."""
    rng = np.random.default_rng(seed)
    edges = np.linspace(-3, 3, 9)

    def plane(apart: float) -> dict[str, Any]:
        classes = {}
        for name, side in (("F", -1), ("M", 1)):
            x, y = rng.normal(side * apart, 1, 400), rng.normal(0, 1, 400)
            classes[name] = np.histogram2d(x, y, bins=[edges, edges])[0].astype(int).tolist()
        return {"x": edges.tolist(), "y": edges.tolist(), "classes": classes}

    return {
        "barycenter": [{"objective": 0.1 + math.exp(-i / 5) + 0.01 * seed, "converged": True, "iterations": 7}
                       for i in range(20)],
        "movement": {"edges": [0.0, 0.5, 1.0, 1.5, 2.0], "counts": [411, 300, 29, 3]},
        "projection": {"before": plane(1.5), "after": plane(0.0)},
        "reference": {"valid": 0.33, "epoch": 60, "converged": True}, "valid": 0.31 + 0.001 * seed, "alpha_end": 1.0,
    }  # fmt: skip


def raid_arms(seed: int, *, sweep: bool = True) -> list[dict[str, Any]]:
    """The arms of RAID, with those of a sweep."""
    rows = [{"name": name, "role": role, "title": title, "settings": settings, "totals": {},
             "notes": raid_notes(seed) if name in ("raid", "mean", "random") else {"valid": 0.3}}
            for name, role, title, settings, *_ in RAID_ARMS]  # fmt: skip
    for row in rows[1:] if sweep else ():
        rows = [*rows, *({"name": f"{row['name']}@{s:g}", "role": "sweep", "title": f"{row['title']}, alpha {s:g}",
                          "settings": {**row["settings"], "alpha": s}, "totals": {}, "notes": {}}
                         for s in RAID_STRENGTHS)]  # fmt: skip
    return rows


def raid_levels(*, sweep: bool = True) -> list[dict[str, Any]]:
    """Levels of every arm and strength: leakage of twelve attacks, and quality by class."""
    found = _Levels(1.0)
    every = [(name, ndcg, leak) for name, *_, ndcg, leak in RAID_ARMS]
    if sweep:
        every += [(f"{name}@{s:g}", ndcg - 0.01 * s, leak / (1 + s)) for name, ndcg, leak in every[1:] for s in
                  RAID_STRENGTHS]  # fmt: skip
    for name, ndcg, leak in every:
        # what permuted labels show differs a little between arms
        null = {"null": {"expected_abs": 0.03, "low": 0.0, "high": RAID_BAND - 0.01 * (name == "none")}}
        for kind, label in (
            ("leakage", "Leakage of attribute"),
            ("worst_leakage", "Leakage of attribute, worst class"),
        ):
            statistic = f"{kind}:attack:attribute"
            found.add(statistic, f"{label}, strongest attack", name, leak, 0.02, attack="embedding/mlp/cross", **null)
            for i, attack in enumerate(RAID_ATTACKS):
                found.add(statistic, f"{label}, {attack}", name, leak * (1 - i / 20), 0.02, group=attack, **null)
        found.add("mean:ndcg@10", "NDCG@10", name, ndcg, 0.01)
        for group, shift in (("F", -0.01), ("M", 0.01)):
            found.add("mean:ndcg@10:attribute", f"NDCG@10, {group}", name, ndcg + shift, 0.02, group=group, n_units=400)
    return found.rows


def raid_differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """RAID minus every arm that is no sweep."""
    roles = {name: role for name, role, *_ in RAID_ARMS}
    at = {(row["statistic"], row["group"], row["arm"]): row for row in rows}
    found = []
    for (statistic, group, arm), row in at.items():
        for against, role in roles.items():
            if arm != "raid" or against == "raid":
                continue
            value = row["value"] - at[statistic, group, against]["value"]
            lower = "leakage" in statistic
            good, bad = (value < -0.02, value > 0.02) if lower else (value > 0.02, value < -0.02)
            found.append({
                "statistic": statistic + (f"={group}" if group else ""), "label": row["label"], "arm": "raid",
                "against": against, "role": role, "value": value, "low": value - 0.02, "high": value + 0.02,
                "direction": "lower" if lower else "higher", "margin": 0.02 if lower else 0.01,
                "verdict": "helps" if good else "harms" if bad else "inconclusive", "smallest_detectable": 0.03,
                "holm_p": 0.2,
            })  # fmt: skip
    return found


def raid_folder(parent: Path, *, seeds: int = 2, sweep: bool = True) -> Path:
    """A comparison of RAID at several seeds, its runs beside it."""
    rows = raid_levels(sweep=sweep)
    stored = {
        "n_seeds": seeds, "n_units": 800, "unit_kind": "user", "draws": 2000, "confidence": 0.95,
        "resampling": "paired bootstrap", "levels": rows, "differences": raid_differences(rows),
        "verdict": {"works": False, "word": "helps", "sentence": "RAID is not shown to work.", "cost": "", "notes": [],
                    "not_significant": [], "primary": RAID_PRIMARY, "cost_statistic": "mean:ndcg@10"},
    }  # fmt: skip
    common = {
        "schema": 1, "method": "raid", "title": "RAID", "mends": "private attributes readable from user embeddings",
        "data": {"name": "ml100k", "users": 943, "attribute": "gender", "classes": {"F": 273, "M": 670}},
        "warnings": [], "deviations": ["D1. None."], "evidence": stored,
    }  # fmt: skip
    names = [f"2026-01-31-raid-ml100k-s{seed}" for seed in range(seeds)]
    for seed, name in enumerate(names):
        write(parent / name, "summary.json", {**common, "seed": seed, "arms": raid_arms(seed, sweep=sweep)})
        write(parent / name, "config.json", {"passed": {}, "resolved": {"method": {"alpha": 1.0}, "task": {}}})
        write(parent / name, "run.json", {"schema": 1, "status": "done", "seed": seed, "command": "upright run raid"})
    folder = parent / f"2026-01-31-raid-ml100k-x{seeds}"
    write(folder, "comparison.json", {**common, "runs": names, "seeds": list(range(seeds)),
                                      "arms": raid_arms(0, sweep=sweep)})  # fmt: skip
    return folder
