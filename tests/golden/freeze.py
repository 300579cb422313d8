"""Freeze what the evidence code of commit 7b76a5f says, as the reference of the code that replaced it.

Runs on that commit alone; nothing imports it. It wrote everything beside it but the tests::

    git worktree add --detach /work/old 7b76a5f
    OMP_NUM_THREADS=1 PYTHONPATH=/work/old/src python tests/golden/freeze.py

``evidence.parquet`` has one row per level, per difference (``against`` is set, no ``null_*``, the cell behind ``=`` in
``statistic``) and one with ``statistic = 'verdict'`` and the ``word`` of each source. Null is what does not apply, NaN
what is undefined. Every source has 2,000 draws and seed 0.

==========================  =========================================================================================
source                      made from
==========================  =========================================================================================
``<folder of results>``     its published unit table: the statistics of its summary that the table can give
``tiny-<method>``           ``<method>.parquet``: every arm on the tiny world of its task, run seeds 0 and 1
``audit-ranking``           ``audits/ranking-*.csv``, two groups of users; ``audit-ranking-plan``: three
``audit-embeddings``        ``audits/embeddings-*``, two classes; ``audit-embeddings-region``: three
``audit-predictions``       ``audits/predictions.csv``, two groupings, clients and labels
``audit-forgetting``        two tiny models taught here, which are not kept; ``audits/forgetting-units.parquet`` is
==========================  =========================================================================================

Unit tables of the embeddings' audits are kept as well (``audits/embeddings*-units.parquet``), because other versions of
scikit-learn train other attackers. Differences of ``audit-forgetting`` are its ``changes``, model minus reference.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import upright
from upright.contract import Arm
from upright.data.forget import tofu_records
from upright.language.encoding import encode_all
from upright.language.pretraining import teach
from upright.models.tiny import tiny_llama, tiny_tokenizer
from upright.shell.audit_embeddings import audit_embeddings
from upright.shell.audit_forgetting import audit_forgetting
from upright.shell.audit_predictions import audit_predictions
from upright.shell.audit_ranking import audit_ranking
from upright.shell.config import to_config
from upright.shell.evidence import DRAWS, evidence
from upright.shell.registry import load_method, load_object
from upright.shell.runner import _evidence, run_task
from upright.shell.runs import read_json
from upright.shell.statistics import computable
from upright.shell.units import Units, read_units, write_units

COMMIT = "7b76a5f"
HERE = Path(__file__).parent
AUDITS = HERE / "audits"
RESULTS = HERE.parents[1] / "results"
NULLS = {"null_expected": "expected_abs", "null_low": "low", "null_high": "high"}
NUMBERS = ("value", "low", "high", *NULLS)
SCHEMA = pa.schema([
    *((name, pa.dictionary(pa.int32(), pa.string())) for name in ("source", "statistic", "group", "arm", "against")),
    *((name, pa.float64()) for name in NUMBERS), ("n_units", pa.int32()), ("n_undefined", pa.int32()),
    ("word", pa.dictionary(pa.int32(), pa.string())),
])  # fmt: skip
Row = dict[str, Any]


def number(value: float | None) -> float:
    """JSON has null for what is undefined."""
    return float("nan") if value is None else float(value)


def rows_of(source: str, found: Mapping[str, Any]) -> list[Row]:
    """Write evidence as rows."""
    rows: list[Row] = []
    for x in found["levels"]:
        null = {column: number(x["null"][key]) for column, key in NULLS.items()} if x["null"] else {}
        rows.append({k: x[k] for k in ("statistic", "group", "arm", "n_units", "n_undefined")}
                    | {k: number(x[k]) for k in ("value", "low", "high")} | null)  # fmt: skip
    rows += [{k: x[k] for k in ("statistic", "arm", "against")} | {k: number(x[k]) for k in ("value", "low", "high")}
             for x in found["differences"]]  # fmt: skip
    keys = [(r["statistic"], r.get("group"), r["arm"], r.get("against")) for r in rows]
    assert len(set(keys)) == len(keys), source
    return [{"source": source, **r} for r in [*rows, {"statistic": "verdict", "word": found["verdict"]["word"]}]]


# -- unit tables ----------------------------------------------------------------------------------------------------


def published(name: str) -> list[Row]:
    """Evidence of a published unit table, with the arms that `_evidence` passed."""
    summary, config = (read_json(RESULTS / name / f"{file}.json") for file in ("summary", "config"))
    units, spec = Units(read_units(RESULTS / name / "units.parquet")), load_method(summary["method"])
    roles = {a["name"]: a["role"] for a in summary["arms"]}
    assert roles.keys() == set(units.arms)
    assert all(roles.get(a.name, a.role) == a.role for a in spec.arms)  # spec.arms: a missing control stays missing
    have = dict.fromkeys(x["statistic"] for x in summary["evidence"]["levels"])
    have = [s for s in have if computable(s, units) and set(s.split(":")[2:]) <= set(units.by)]
    swept = [Arm(a["name"], "sweep", title=a["title"]) for a in summary["arms"] if a["role"] == "sweep"]
    found = evidence(
        units, arms=[*spec.arms, *swept], statistics=have, primary=spec.primary, cost=spec.cost, title=spec.title,
        metrics=load_object(spec.task).metrics_of(config["resolved"]["task"]),
    )  # fmt: skip
    assert found["draws"] == DRAWS == summary["evidence"]["draws"] == 2_000
    _compare(found, summary["evidence"])
    return rows_of(name, found)


def _compare(found: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Say by how much values and interval ends depart from the summary: publishing put units in another order."""
    for kind, key in (("levels", ("statistic", "group", "arm")), ("differences", ("statistic", "arm", "against"))):
        known, gaps = {tuple(x[k] for k in key): x for x in said[kind]}, {"value": [0.0], "low": [0.0], "high": [0.0]}
        for x in found[kind]:
            for k, own in gaps.items():
                own.append(abs(number(x[k]) - number(known[tuple(x[j] for j in key)][k])))
        off = ", ".join(f"{k} {np.nanmax(own):.1g}" for k, own in gaps.items())
        print(f"  {len(found[kind])} of {len(said[kind])} {kind}, off by {off}")
    print(f"  word {found['verdict']['word']!r}, published {said['verdict']['word']!r}")


def tiny(method: str) -> list[Row]:
    """Run a method on the tiny world of its task at two seeds, keep its unit table, and read the evidence off it."""
    spec = load_method(method)
    kind, config, blocks = load_object(spec.task), to_config(spec.config, spec.tiny), []
    for seed in (0, 1):
        blocks += run_task(spec, kind.tiny(0), config, None, seed=seed)[0]
    write_units(HERE / f"{method}.parquet", blocks, "test")
    units = Units(read_units(HERE / f"{method}.parquet"))
    print(f"  {method}: {units.arms}, {len(units.units)} units, {units.metrics}, by {list(units.by)}")
    return rows_of(f"tiny-{method}", _evidence(spec, units, kind.tiny(0).metrics, []))


# -- audits ---------------------------------------------------------------------------------------------------------


def write(name: str, columns: str, rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV of an audit."""
    path = AUDITS / name
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def audited(source: str, made: Path, units: str = "") -> list[Row]:
    """Read an audit's folder; keep its unit table under a name."""
    found = read_json(made / "summary.json")
    if units:
        shutil.copy(made / "units.parquet", AUDITS / units)
    changes = [x | {"arm": "yours", "against": "retrain"} for x in found["audit"].get("changes", ())]
    assert not found["evidence"]["differences"]
    return rows_of(source, found["evidence"] | {"differences": changes})


def ranking(out: Path) -> list[Row]:
    """Lists of 10 of 60 items; regular users more often have a wanted one on top; a group of 4 is too small."""
    rng = np.random.default_rng(0)
    lists, held_out, users = [], [], []
    for u in range(160):
        group, plan = ("regular", "new")[u % 2] if u % 40 else "staff", ("basic", "free", "paid")[u % 3]
        ranked, likes = rng.permutation(60)[:10], rng.choice(60, size=5, replace=False)
        if group == "regular" and rng.random() < 0.5:
            ranked = np.array([likes[0], *(i for i in ranked if i != likes[0])][:10])
        lists += [(f"u{u}", f"i{i}", place) for place, i in enumerate(ranked, start=1)]
        held_out += [(f"u{u}", f"i{i}") for i in likes] if u % 20 else []
        users.append((f"u{u}", group, plan))
    files = {
        "lists": write("ranking-lists.csv", "user,item,rank", lists),
        "held_out": write("ranking-held_out.csv", "user,item", held_out),
        "users": write("ranking-users.csv", "user,group,plan", users),
        "items": write("ranking-items.csv", "item,count", ((f"i{i}", 1000 // (i + 1)) for i in range(60))),
    }
    return [*audited("audit-ranking", audit_ranking(**files, k=10, out=out)),
            *audited("audit-ranking-plan", audit_ranking(**files, k=10, group="plan", out=out))]  # fmt: skip


def embeddings(out: Path) -> list[Row]:
    """Vectors whose class means agree on the fitted half of the users alone; one region of three is written in."""
    rng = np.random.default_rng(0)
    gender, fitted = rng.permutation(["f", "m"] * 90), np.arange(180) % 2
    region = rng.permutation(["a", "b", "c"] * 60)
    x = rng.normal(size=(180, 8))
    x[:, 0] += 1.5 * (gender == "m")
    x[:, 1] += 2.0 * (region == "c")
    for c in "fm":
        own = (fitted == 1) & (gender == c)
        x[own] -= x[own].mean(axis=0)
    np.save(AUDITS / "embeddings-users.npy", x)
    labels = write("embeddings-labels.csv", "user,gender,region,fitted",
                   zip((f"u{i}" for i in range(180)), gender, region, fitted, strict=True))  # fmt: skip
    table = AUDITS / "embeddings-users.npy"
    one = audit_embeddings(table, labels, attribute="gender", aligned="fitted", out=out)
    two = audit_embeddings(table, labels, attribute="region", out=out)
    return [*audited("audit-embeddings", one, "embeddings-units.parquet"),
            *audited("audit-embeddings-region", two, "embeddings-region-units.parquet")]  # fmt: skip


def predictions(out: Path) -> list[Row]:
    """Cases whose first group is decided "yes" more often by 0.3, at three sites."""
    rng, n = np.random.default_rng(0), 600
    sex, age, site = rng.choice(["f", "m"], n), rng.choice(["old", "young"], n), rng.choice(["s0", "s1", "s2"], n)
    truth = np.where(rng.random(n) < 0.5, "yes", "no")
    decided = np.where(rng.random(n) < 0.3 + 0.3 * (sex == "f"), "yes", "no")
    file = write("predictions.csv", "sex,age,site,truth,decided", zip(sex, age, site, truth, decided, strict=True))
    made = audit_predictions(file, group="sex,age", client="site", label="truth", prediction="decided", out=out)
    return audited("audit-predictions", made)


def forgetting(out: Path) -> list[Row]:
    """A model that knows 14 forgotten and 10 retained records by heart, beside one that knows the latter alone."""
    tofu = tofu_records()
    sets = {"forget": tofu[:10] + tofu[20:24], "retain": tofu[60:70], "holdout": tofu[-8:]}
    files = {}
    for side, records in sets.items():
        rows = [{"id": f"{side}-{i}", "author": r.author, "question": r.prompt, "answer": r.answer,
                 "paraphrased_answer": list(r.paraphrases), "perturbed_answer": list(r.perturbed)}
                for i, r in enumerate(records)]  # fmt: skip
        files[side] = out / f"{side}.jsonl"
        files[side].write_text("".join(json.dumps({k: v for k, v in r.items() if v}) + "\n" for r in rows), "utf-8")
    known = sets["forget"] + sets["retain"]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in known], vocabulary=500)
    for name, records in (("full", known), ("kept", sets["retain"])):
        torch.manual_seed(0)
        model = tiny_llama(tokenizer, hidden=32, layers=2)
        teach(model, encode_all(tokenizer, records), epochs=50, batch_size=8, learning_rate=1e-2)
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    made = audit_forgetting(out / "full", **files, reference=out / "kept", out=out)
    return audited("audit-forgetting", made, "forgetting-units.parquet")


def main() -> None:
    """Make every file anew."""
    source = Path(upright.__file__).parent
    commit = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit.stdout.startswith(COMMIT), f"{source} is not at {COMMIT}"
    AUDITS.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        parts: list[tuple[str, Callable[[], list[Row]]]] = [
            (p.parent.name, lambda p=p: published(p.parent.name)) for p in sorted(RESULTS.glob("*/units.parquet"))
        ]
        parts += [(m, lambda m=m: tiny(m)) for m in ("in_ucds", "raid", "fedfact", "mrd")]
        parts += [(f.__name__, lambda f=f: f(Path(folder))) for f in (ranking, embeddings, predictions, forgetting)]
        for name, make in parts:
            start = time.perf_counter()
            found = make()
            words = [r["word"] for r in found if r["statistic"] == "verdict"]
            print(f"{name}: {len(found)} rows, {words}, {time.perf_counter() - start:.1f} s", flush=True)
            rows += found
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), HERE / "evidence.parquet", compression="zstd",
                   compression_level=19, use_dictionary=[n for n in SCHEMA.names if n not in NUMBERS])  # fmt: skip


if __name__ == "__main__":
    main()
