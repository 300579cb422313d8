"""Made-up folders in the schema of the run folder, with numbers that ML-100K plausibly gives, and how tests read pages.

No model was trained for these numbers: they test the page, not a method. Words and verdicts are those of the evidence.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upright.contract import Arm
from upright.evidence.records import Difference, Level, Null
from upright.evidence.verdict import audit_verdict, effect_of, verdict
from upright.report import build_report
from upright.report.build import typeset

ARMS = [
    Arm("none", "baseline", {"lam": 0.0}, "no remedy"),
    Arm("in_ucds", "remedy", {}, "In-UCDS"),
    Arm("top_k", "trivial", {"neighbours": "top_k"}, "most similar users"),
    Arm("random", "placebo", {"neighbours": "random"}, "random users"),
    Arm("zero", "placebo", {"neighbours": "zero"}, "pull to zero"),
]
DATA = {
    "name": "ml100k",
    "licence": "GroupLens research licence, not redistributable",
    "users": 943,
    "items": 1349,
    "train": 69500,
    "valid": 9929,
    "test": 19858,
    "fingerprint": "3f0c" + "9b1e7a52" * 7 + "d41c",
}
# metric -> title, advantaged level of each arm, disadvantaged level of each arm
GROUPED = {
    "ndcg@10": ("NDCG@10", (0.71, 0.66, 0.69, 0.67, 0.62), (0.363, 0.372, 0.360, 0.336, 0.351)),
    "ndcg@10_matched5": (
        "NDCG@10, 5 positives a user",
        (0.31, 0.29, 0.30, 0.28, 0.27),
        (0.262, 0.268, 0.259, 0.241, 0.252),
    ),
    "ndcg@10_sampled": (
        "NDCG@10, 99 sampled negatives",
        (0.33, 0.35, 0.32, 0.30, 0.31),
        (0.505, 0.507, 0.486, 0.478, 0.490),
    ),
}
PLAIN = {"recall@10": ("Recall@10", 0.241), "mrr@10": ("MRR@10", 0.552), "hit@10": ("Hit rate@10", 0.801)}
NOTES = {
    "alpha": 14.216,
    "lambda_max": 9.338,
    "row_sum_bound": 13.539,
    "condition_holds": True,
    "targets": 896,
    "targets_without_neighbours": 2,
    "x_t_min": 0.548,
    "x_t_mean": 0.731,
    "kkt_residual": 3.1e-15,
    "picks_gini": 0.214,
    "picks_top5_share": 0.183,
    "cluster_size": {"p10": 41.0, "median": 46.0, "p90": 47.0},
    "official_overlap": 0.41,
}
DEVIATIONS = ["D1. alpha exceeds the largest eigenvalue, as the theory asks.", "D3. Cosine similarity with shrinkage."]
WARNINGS = ["ML-100K may not be redistributed; this page holds no row of it."]
PRIMARY = "abs_gap:ndcg@10:activity"
CHROMIUM = "/usr/bin/chromium"


# -- evidence -----------------------------------------------------------------------------------------------------


def level(statistic: str, label: str, arm: str, value: float, half: float, **more: Any) -> Level:
    """A level whose interval has a half-width that such data would give."""
    name, metric, *grouping = statistic.split(":")
    better = "none" if name == "gap" else "lower" if name in ("abs_gap", "gini") or "leakage" in name else "higher"
    found = {"n_units": 943, "grouping": grouping[0] if grouping else None, "better": better, **more}
    return Level(
        statistic=statistic,
        label=label,
        metric=metric,
        arm=arm,
        value=value,
        low=value - half,
        high=value + half,
        **found,
    )


def levels(seeds: int, *, works: bool) -> list[Level]:
    """Levels of every arm under three protocols."""
    rng, found = np.random.default_rng(seeds), list[Level]()
    for metric, (title, high, low) in GROUPED.items():
        for arm, a, d in zip(ARMS, high, low, strict=True):
            if works and arm.role == "remedy":
                a, d = a + 0.05, d + 0.15
            a, d, by, name = a + rng.normal(0, 0.004), d + rng.normal(0, 0.002), f"{metric}:activity", arm.name
            if metric == "ndcg@10":
                mean = (47 * a + 893 * d) / 940
                found.append(level("mean:ndcg@10", title, name, mean, 0.014, n_units=940, n_undefined=3))
                found.append(level("worst_decile:ndcg@10", f"{title}, worst tenth", name, 0.021, 0.006))
                found.append(level("gini:ndcg@10", f"{title}, Gini over units", name, 0.41, 0.012))
            for group, value, half, n in (("advantaged", a, 0.058, 47), ("disadvantaged", d, 0.015, 893)):
                found.append(level(f"mean:{by}", f"{title}, {group}", name, value, half, group=group, n_units=n))
            chance = {"null": Null(0.024, -0.059, 0.061), "p": 0.0005, "smallest_detectable": 0.09}
            found.append(level(f"gap:{by}", f"{title}: advantaged minus disadvantaged", name, a - d, 0.06, **chance))
            if metric == "ndcg@10":
                label = f"{title}: size of the gap between advantaged and disadvantaged"
                found.append(level(f"abs_gap:{by}", label, name, abs(a - d), 0.06, **chance))
    for metric, (title, base) in PLAIN.items():
        for arm in ARMS:
            value = base + rng.normal(0, 0.006)
            found.append(level(f"mean:{metric}", title, arm.name, value, 0.016, n_units=940, n_undefined=3))
    return found


def differences(rows: Iterable[Level], arms: Iterable[Arm], half: Callable[[Level], float]) -> list[Difference]:
    """The remedy minus every other arm, for everything that has a better side, in the words of the evidence."""
    at, found = {(row.statistic, row.group, row.arm): row for row in rows}, []
    mine = next(arm.name for arm in arms if arm.role == "remedy")
    for (statistic, group, own), row in at.items():
        for arm in arms if own == mine and row.better != "none" else ():
            if arm.name == mine:
                continue
            value, wide = row.value - at[statistic, group, arm.name].value, half(row)
            change = Difference(
                statistic=statistic + (f"={group}" if group else ""),
                label=row.label,
                arm=mine,
                against=arm.name,
                role=arm.role,
                value=value,
                low=value - wide,
                high=value + wide,
                direction=row.better,
                margin=0.01,
                seed_share=0.4,
                smallest_detectable=1.43 * wide,
            )
            found.append(dataclasses.replace(change, verdict=effect_of(change)))
    return found


def stored(rows: list[Level], changes: list[Difference], said: dict[str, Any], seeds: int, n: int) -> dict[str, Any]:
    """The evidence of a folder."""
    found = {"n_seeds": seeds, "n_units": n, "unit_kind": "user", "draws": 2000, "confidence": 0.95}
    found["resampling"] = f"paired bootstrap, 2000 draws: {seeds} seeds, then {n} users"
    return {**found, "levels": [r.row() for r in rows], "differences": [r.row() for r in changes], "verdict": said}


def evidence(seeds: int = 1, *, works: bool = False) -> dict[str, Any]:
    """Evidence of a run (seeds=1) or a comparison."""
    rows = levels(seeds, works=works)
    wide = 0.03 if works else 0.04
    changes = differences(rows, ARMS, lambda r: wide if r.better == "lower" or r.group == "advantaged" else 0.009)
    said = verdict(rows, changes, ARMS, primary=PRIMARY, cost="mean:ndcg@10", title="In-UCDS", seeds=seeds)
    return stored(rows, changes, said.row(), seeds, 943)


# -- folders ------------------------------------------------------------------------------------------------------


def arms(seed: int = 0, titles: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Arms with diagnostics."""
    rng, rows = np.random.default_rng(100 + seed), []
    for arm in ARMS:
        inactive = {"zero": 0.5, "random": 0.85}.get(arm.name, 1.0) * 1.24 + rng.normal(0, 0.02)
        norms = {"advantaged": 2.31 + rng.normal(0, 0.02), "disadvantaged": inactive}
        notes = {"converged": True, "embedding_norm": norms, **(NOTES if arm.role == "remedy" else {})}
        totals = {"coverage@10": 0.38 + rng.normal(0, 0.01), "gini_exposure@10": 0.86 + rng.normal(0, 0.01)}
        row = {"name": arm.name, "role": arm.role, "title": arm.title, "settings": dict(arm.settings)}
        rows.append(row | {"title": (titles or {}).get(arm.name, arm.title), "notes": notes, "totals": totals})
    return rows


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Write one JSON file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, default=float).replace("NaN", "null")
    (folder / name).write_text(text, encoding="utf-8")


def run_folder(
    parent: Path, seed: int = 0, *, titles: dict[str, str] | None = None, works: bool = False, lam: float = 0.03
) -> Path:
    """One run at one seed."""
    folder = parent / f"2026-01-31-in_ucds-ml100k-s{seed}"
    own = {"kind": "run", "seeds": [seed], "arms": arms(seed, titles), "evidence": evidence(works=works)}
    write(folder, "summary.json", {**common(), **own})
    method = {"lam": lam, "neighbours": "dominant_set", "shrinkage": 10.0, "top_k": None, "mode": "paper"}
    passed, task = {"lam": lam, "task": {"backbone": "bprmf"}}, {"data": "ml100k", "backbone": "bprmf", "k": 10}
    write(folder, "config.json", {"passed": passed, "preset": "full", "resolved": {"method": method, "task": task}})
    status = {
        "schema": 1,
        "status": "done",
        "method": "in_ucds",
        "seed": seed,
        "started": f"2026-01-31T09:{10 + seed}:04+00:00",
        "finished": f"2026-01-31T09:{14 + seed}:31+00:00",
        "wall_s": 267.4 + seed,
        "cpu_s": 488.0 + seed,
        "command": f"upright run in_ucds --data ml100k --preset full --seeds 6 --set lam={lam}",
        "environment": {"python": "3.11.7", "platform": "Linux-6.1-x86_64", "packages": {"torch": "2.13.0"}},
    }
    write(folder, "run.json", status)
    (folder / "metrics.jsonl").write_text("\n".join(curves(seed)) + "\n", encoding="utf-8")
    return folder


def common() -> dict[str, Any]:
    """What a run and a comparison have alike."""
    names = {"schema": 2, "method": "in_ucds", "title": "In-UCDS", "mends": "worse lists for inactive users"}
    return {**names, "data": dict(DATA), "warnings": WARNINGS, "deviations": DEVIATIONS}


def curves(seed: int) -> list[str]:
    """A loss a step and a validation score every fifth, as lines of JSON."""
    rng = np.random.default_rng(seed)
    lines = []
    for arm, top in zip(ARMS, (0.338, 0.341, 0.333, 0.312, 0.322), strict=True):
        for step in range(1, int(rng.integers(14, 22)) * 5 + 1):
            row = {"arm": arm.name, "step": step, "loss": 0.69 * math.exp(-step / 18) + 0.12 + rng.normal(0, 0.002)}
            if step % 5 == 0:
                row["valid/ndcg@10"] = top * (1 - math.exp(-step / 16)) + rng.normal(0, 0.0012)
            lines.append(json.dumps(row))
    return lines


def comparison_folder(parent: Path, seeds: int = 6, *, works: bool = False, lam: float = 0.03) -> Path:
    """Several seeds and their comparison, beside one another."""
    runs = [run_folder(parent, seed, works=works, lam=lam).name for seed in range(seeds)]
    folder = parent / f"2026-01-31-in_ucds-ml100k-x{seeds}"
    own = {
        "kind": "comparison",
        "runs": runs,
        "seeds": list(range(seeds)),
        "arms": arms(),
        "evidence": evidence(seeds, works=works),
    }
    write(folder, "comparison.json", {**common(), **own})
    return folder


def audit_folder(parent: Path, p: float = 0.001) -> Path:
    """An audit of one's own lists, whose only pair of groups has this chance."""
    folder = parent / "2026-01-31-audit-ranking-lists"
    rows = [
        dataclasses.replace(r, arm="yours") for r in levels(1, works=False) if r.arm == "none" and "gap" not in r.name
    ]
    cell, half = "advantaged minus disadvantaged", 0.1 if p < 0.05 else 0.4
    pair = {"group": cell, "better": "none", "p": p, "smallest_detectable": 0.12}
    pairs = [level("gap:ndcg@10_matched5:activity", f"NDCG@10, 5 positives: {cell}", "yours", 0.35, half, **pair)]
    said = audit_verdict("gap shown", pairs, margin=0.01, unit="user").row() | {"works": None}
    names = {"schema": 2, "kind": "audit", "method": "audit_ranking", "title": "Audit of the ranked lists in lists.csv"}
    exposure = []
    for name, n, share in (("head", 270, 0.71), ("mid", 405, 0.22), ("tail", 674, 0.07)):
        row = {"bin": name, "items": n, "share_of_items": n / 1349, "share_of_exposure": share}
        exposure.append({**row, "low": share - 0.02, "high": share + 0.02, "coverage": 0.9, "gini": 0.4})
    arm = {"name": "yours", "role": "baseline", "title": "your lists", "totals": {"coverage@10": 0.31}}
    own = {
        "mends": "how well the lists serve each user",
        "data": dict(DATA),
        "arms": [arm],
        "audit": {"exposure": exposure},
    }
    write(folder, "summary.json", {**names, **own, "seeds": [0], "evidence": stored([*rows, *pairs], [], said, 1, 943)})
    write(folder, "run.json", {"status": "done", "wall_s": 3.2, "command": "upright audit ranking lists.csv"})
    return folder


# -- reading and editing ------------------------------------------------------------------------------------------


def page(folder: Path) -> str:
    """Build a page and return its source without entities, on one line."""
    return page_of(build_report(folder))


def page_of(file: Path) -> str:
    """Return the source of a page without entities, on one line."""
    return re.sub(r"\s+", " ", html.unescape(file.read_text(encoding="utf-8")))


def shown(text: str) -> str:
    """Return a stored sentence as a page writes it, spaces alike."""
    return re.sub(r"\s+", " ", typeset(text))


def section(folder: Path, first: str = "panel", last: str = "units") -> str:
    """Return a page from one section to another."""
    source = page(folder)
    return source[source.index(f'id="{first}"') : source.index(f'id="{last}"')]


def titles(source: str) -> list[str]:
    """Return the titles of the figures."""
    return re.findall(r"<figcaption>(.*?)</figcaption>", source)


def figure(source: str, title: str) -> str:
    """Return one figure."""
    return next(f for f in re.findall(r"<figure>(.*?)</figure>", source) if f"<figcaption>{title}" in f)


def table(source: str, label: str) -> list[list[list[str]]]:
    """Return the rows of a table below its head; a cell is its value and the small lines below it."""
    start = source.index(f'<table aria-label="{label}')
    rows = re.findall(r"<tr>(.*?)</tr>", source[start : source.index("</table>", start)])[1:]
    cells = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows)
    return [[re.findall(r'<(?:span class="v"|small)>(.*?)</', cell) or [""] for cell in row] for row in cells]


def by_name(source: str, label: str) -> dict[str, list[str]]:
    """Return the values of a table by its first column."""
    return {row[0][0]: [cell[0] for cell in row[1:]] for row in table(source, label)}


def assert_complete(source: str) -> None:
    """Hold that every figure has words, a text alternative and a table, and that nothing undefined is written raw."""
    for one in re.findall(r"<figure>(.*?)</figure>", source):
        assert re.search(r'<div class="plot" role="img" aria-label="[^"]+"', one)
        assert "Numbers behind this plot" in one
        assert re.search(r"<p>[A-Z].{10,}?</p>", one)
    words = re.sub(r"<[^>]*>", " ", source).split()
    assert not {"None", "nan"} & set(words)


CROWDED = """() => {
  const bad = []; let seen = 0;
  for (const svg of document.querySelectorAll('#panel .plot svg')) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    seen += boxes.length;
    boxes.forEach(([a, p], i) => {
      if (p.left < frame.left - 1 || p.right > frame.right + 1) bad.push('cut: ' + a);
      for (const [b, q] of boxes.slice(i + 1))
        if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
            Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4) bad.push(a + ' | ' + b);
    });
  }
  for (const term of document.querySelectorAll('#panel dt')) {
    const [p, q] = [term, term.nextElementSibling].map(one => {
      const range = document.createRange(); range.selectNodeContents(one); return range.getBoundingClientRect();
    });
    if (p.right > q.left) bad.push(term.textContent);
  }
  return [seen, bad, document.documentElement.scrollWidth];
}"""


def assert_readable(target: Path) -> None:
    """Hold that a panel cuts no letter and lets no two labels meet, on a phone and on a wide screen."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        for width in (400, 1200):
            visit = browser.new_page(viewport={"width": width, "height": 900})
            visit.goto(target.as_uri())
            seen, bad, wide = visit.evaluate(CROWDED)
            assert seen > 60
            assert bad == []
            assert wide <= width
        browser.close()


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "summary.json") -> Path:
    """Change a stored file in place."""
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def noting(arm: str, **notes: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit that replaces notes of an arm; None takes one away."""

    def change(summary: dict[str, Any]) -> None:
        own = next(row for row in summary["arms"] if row["name"] == arm)["notes"]
        own.update(notes)
        for key in [key for key, value in notes.items() if value is None]:
            own.pop(key)

    return change
