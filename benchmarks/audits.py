"""Speed and memory of audits of large files, and how soon a typo is answered.

    python benchmarks/audits.py [--only NAME ...]

==============  ====================================================  ===========================  ======  ========
name            what                                                  peer                         CPU-s   GiB
==============  ====================================================  ===========================  ======  ========
``typos``       six commands that cannot be meant                                                  0.8
``predictions`` a million rows, three groups, labels                  fairlearn's MetricFrame      8       1
``lists``       200,000 users x 20 items, held-out items, two groups  pytrec_eval, at most 5 x     20      1.5
``vectors``     10,000 x 64, one attribute of two classes             scikit-learn: cross-fitted   15
``many``        100,000 x 64                                          scikit-learn: cross-fitted   120
==============  ====================================================  ===========================  ======  ========

Each runs in a process of its own with one thread; CPU seconds include the start. The peer computes the point values
alone, without intervals, nulls and the page; that of ``lists`` is in the package pytrec-eval-terrier. Exit status 1
where a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

TIMES = {"lists": 5.0}  # the peer's CPU seconds, at most
BARS = {"predictions": (8.0, 1.0), "lists": (20.0, 1.5), "vectors": (15.0, 99.0), "many": (120.0, 99.0)}
TYPOS = (
    "run in_ucds --set lam=-1",
    "run in_ucds --preset quik",
    "run fedfact --set tolerence=0",
    "run raid --data ml100",
    "run mrd --set sigmaa=1",
    "audit ranking lists.csv --held-out held.csv --user usr",
)
MAKE = {
    "predictions": """
n = 1_000_000
g, y = rng.integers(0, 3, n), rng.integers(0, 2, n)
pl.DataFrame({"group": np.array(["a", "b", "c"])[g], "label": y,
              "prediction": (rng.random(n) < 0.4 + 0.1 * (g == 1) + 0.1 * y).astype(int)}).write_csv("cases.csv")
""",
    "lists": """
u, k = 200_000, 20
items = rng.integers(0, 5_000, (u, k)) * 1 + np.arange(k) * 5_000
user = np.repeat(np.arange(u), k)
pl.DataFrame({"user": user, "item": items.ravel(), "rank": np.tile(np.arange(1, k + 1), u)}).write_csv("lists.csv")
wanted = items[np.arange(u)[:, None], np.sort(rng.permuted(np.tile(np.arange(k), (u, 1)), axis=1)[:, :3])]
pl.DataFrame({"user": np.repeat(np.arange(u), 3), "item": wanted.ravel()}).write_csv("held.csv")
pl.DataFrame({"user": np.arange(u), "group": np.array(["x", "y"])[np.arange(u) % 2]}).write_csv("who.csv")
""",
    "vectors": """
n = 10_000
y = rng.integers(0, 2, n); x = rng.normal(size=(n, 64)); x[:, 0] += 0.3 * y
np.save("v.npy", x); pl.DataFrame({"sex": np.array(["f", "m"])[y]}).write_csv("labels.csv")
""",
}
MAKE["many"] = MAKE["vectors"].replace("n = 10_000", "n = 100_000")
OURS = {
    "predictions": "audit predictions cases.csv --group group --label label --prediction prediction",
    "lists": "audit ranking lists.csv --held-out held.csv --users who.csv",
    "vectors": "audit embeddings v.npy --labels labels.csv",
}
OURS["many"] = OURS["vectors"]
PEER = {
    "predictions": """
from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
d = pl.read_csv("cases.csv")
f = MetricFrame(metrics={"rate": selection_rate, "tpr": true_positive_rate}, y_true=d["label"].to_numpy(),
                y_pred=d["prediction"].to_numpy(), sensitive_features=d["group"].to_numpy())
print(f.difference())
""",
    "lists": """
import pytrec_eval
def nested(file, score):
    found = {}
    for user, item, value in pl.read_csv(file).select("user", "item", score).cast({"user": str, "item": str}).rows():
        found.setdefault(user, {})[item] = value
    return found
run, qrel = nested("lists.csv", (100.0 - pl.col("rank")).alias("s")), nested("held.csv", pl.lit(1).alias("s"))
judged = pytrec_eval.RelevanceEvaluator(qrel, {"ndcg_cut.10", "recall.10", "recip_rank", "success.10"}).evaluate(run)
who = dict(pl.read_csv("who.csv").cast({"user": str}).rows())
for group in ("x", "y"):
    print(np.mean([one["ndcg_cut_10"] for user, one in judged.items() if who[user] == group]))
""",
    "vectors": """
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier
x, y = np.load("v.npy"), (pl.read_csv("labels.csv")["sex"] == "m").to_numpy()
for one in (LogisticRegression(max_iter=500), MLPClassifier(early_stopping=True), HistGradientBoostingClassifier()):
    print(roc_auc_score(y, cross_val_predict(one, x, y, cv=5, method="predict_proba")[:, 1]))
""",
}
PEER["many"] = PEER["vectors"]
HEAD = "import numpy as np, polars as pl\nrng = np.random.default_rng(0)\n"


def measure(words: list[str]) -> tuple[float, float, int]:
    """Return CPU seconds and GiB of a command, and its exit status."""
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", WATCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = done.stderr.strip().splitlines() or ["0"]
    if not lines[-1].isdigit():
        print(done.stdout, done.stderr, sep="\n")
    return cpu, int(lines[-1]) / 2**20 if lines[-1].isdigit() else float("nan"), done.returncode


#: runs a command and writes its peak memory in KiB as the last line
WATCH = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["typos", *BARS], default=["typos", *BARS])
    chosen, missed = parser.parse_args().only, False
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if "typos" in chosen:
            subprocess.run([sys.executable, "-c", HEAD + MAKE["lists"].replace("200_000", "50")], check=True)
            for words in TYPOS:
                cpu, _, code = measure(["-m", "upright.cli", *words.split()])
                missed |= cpu > 0.8 + 0.05 or code != 2  # the watcher itself takes about 0.05
                print(f"{cpu:6.2f} CPU-s  status {code}  {words}")
        for name in BARS.keys() & set(chosen):
            subprocess.run([sys.executable, "-c", HEAD + MAKE[name]], check=True)
            peer, _, failed = measure(["-c", HEAD + PEER[name]])
            missed |= failed != 0
            by_position = ["--by-position"] * (name in ("vectors", "many"))
            cpu, memory, code = measure(["-m", "upright.cli", *OURS[name].split(), *by_position])
            most, room = BARS[name]
            missed |= cpu > most or memory > room or code != 0 or cpu > TIMES.get(name, math.inf) * peer
            ratio = f"{cpu / peer:.1f} x the peer's {peer:.2f}"
            print(f"{cpu:6.2f} CPU-s (bar {most:g}), {ratio}; {memory:.2f} GiB  status {code}  {name}")
            for file in Path().glob("audits/**/*"):
                if file.is_file():
                    file.unlink()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
