"""What evidence costs beside the first code for it: at most 1.2 of its CPU seconds, by medians of pairs.

    python benchmarks/evidence.py [PAIRS]

Two tables: decisions of 43,000 rows over five clients (ten arms, two seeds, a fifth of the rows scored by no arm), and
the published one of In-UCDS on ML-100K. The first code (commit 7b76a5f, with 500 instead of 1,999 moves of labels and
without p-values or adjusted intervals) runs from a git worktree, in turn with today's, each in a process of its own.
Exits 1 above the bar.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST, BAR = "7b76a5f", 1.2
WORK = """
import sys, time
from pathlib import Path
import numpy as np
try:
    from upright.evidence.compute import evidence
    from upright.evidence.units import Block, Units, read_units
except ImportError:
    from upright.shell.evidence import evidence
    from upright.shell.units import Block, Units, read_units
from upright.contract import Arm, Metric, UnitScores

if sys.argv[1] == "rows":
    rng, n, arms = np.random.default_rng(0), 43_000, [Arm("none", "baseline"), Arm("new", "remedy")]
    arms += [Arm(f"rival{i}", "rival") for i in range(8)]
    blocks = []
    for seed in (0, 1):
        group = rng.choice(["men", "women"], n, p=[0.67, 0.33])
        by = {"group": group.tolist(), "client": rng.choice(list("abcde"), n).tolist()}
        label, rate = rng.random(n) < 0.25, np.where(group == "men", 0.3, 0.2)
        for arm in arms:
            decided = (rng.random(n) < rate).astype(float)
            decided[rng.random(n) < 0.2] = np.nan
            values = {"rate/yes": decided, "accuracy": (decided == label).astype(float)}
            blocks.append(Block("b", arm.name, seed, UnitScores("row", range(n), values, by)))
    texts = ["disparity:rate:group", "client_disparity:rate:group", "mean_client_disparity:rate:group",
             "mean:accuracy", "mean:accuracy:group"]
    metrics, primary, cost = {"accuracy": Metric("accuracy"), "rate": Metric("rate", "lower")}, texts[0], texts[3]
else:
    blocks = read_units(Path(sys.argv[2]))
    arms = [Arm(a, {"none": "baseline", "in_ucds": "remedy", "random": "placebo"}.get(a, "trivial"))
            for a in dict.fromkeys(b.arm for b in blocks)]
    texts = ["mean:ndcg@10", "mean:ndcg@10:activity", "gap:ndcg@10:activity", "abs_gap:ndcg@10:activity",
             "worst_decile:ndcg@10", "mean:recall@10"]
    metrics, primary, cost = {"ndcg@10": Metric("ndcg@10")}, texts[3], texts[0]
units = Units(blocks)
start = time.process_time()
evidence(units, arms=arms, statistics=texts, metrics=metrics, primary=primary, cost=cost, title="new")
print(time.process_time() - start)
"""


def seconds(source: Path, table: str) -> float:
    """CPU seconds of one call in a new process, imports and reading left out."""
    path = ROOT / "results" / "in_ucds-bprmf-ml100k" / "units.parquet"
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    first = subprocess.run([sys.executable, "-c", WORK, table, str(path)], env=environment, check=True,
                           capture_output=True, text=True)  # fmt: skip
    return float(first.stdout.split()[-1])


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "first"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old), FIRST], cwd=ROOT, check=True)
        try:
            for table in ("rows", "ml100k"):
                both = [(seconds(ROOT, table), seconds(old, table)) for _ in range(pairs)]
                ratio = statistics.median(new / first for new, first in both)
                new, first = (statistics.median(side) for side in zip(*both, strict=True))
                failed |= ratio > BAR
                print(
                    f"{table}: {new:.2f} CPU s, first code {first:.2f}, ratio {ratio:.2f} (at most {BAR})", flush=True
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
