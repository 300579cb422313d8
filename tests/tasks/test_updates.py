"""Audit of uploads: planted labels, noise and padding, what is written, what is refused, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from upright import api
from upright.contract import InputError
from upright.data.interactions import synthetic
from upright.evidence.gate import fail_if
from upright.evidence.units import read_units
from upright.federation.rounds import rounds
from upright.maths import ranks
from upright.recommendation.devices import devices_of
from upright.recommendation.federated import FedRecGEL
from upright.recommendation.settings import FedRecConfig
from upright.tasks.updates import _level, row_scores

ITEMS, DIM = 200, 8


def name(item):
    return f"film-{item:04d}-title"


def gradient(rng, table, positive, u, radius=0.0):
    """Closed form of the gradient of binary cross-entropy under a dot product, four negatives a positive, (I, d)."""
    negative = rng.choice(np.setdiff1d(np.arange(len(table)), positive), 4 * len(positive))
    code, y = np.r_[positive, negative], np.arange(5 * len(positive)) < len(positive)

    def at(v):
        out = np.zeros_like(v)
        np.add.at(out, code, (1 / (1 + np.exp(-v[code] @ u)) - y)[:, None] / 128 * u)
        return out

    plain = at(table)
    return at(table + radius * plain / np.linalg.norm(plain)) if radius else plain


def sparse(dense):
    rows = np.flatnonzero(dense.any(axis=1))
    return {"rows": rows, "values": dense[rows].astype(np.float32)}


def world(folder, clients=12, rounds=1, radius=0.0, send=lambda rng, dense: sparse(dense), seed=0):
    """Write uploads, catalogue and truth; return what each client trained on."""
    rng, truth = np.random.default_rng(seed), {}
    table = rng.normal(size=(ITEMS, DIM))
    (folder / "up").mkdir(exist_ok=True)
    for c in range(clients):
        u, positive = rng.normal(size=DIM), rng.choice(ITEMS, rng.integers(2, 20), replace=False)
        truth[f"u{c:02d}"] = positive
        for number in range(1, rounds + 1):
            sent = send(rng, gradient(rng, table, positive, u, radius))
            save_file(sent, folder / "up" / f"u{c:02d}.{number}.safetensors")
    (folder / "items.csv").write_text("\n".join(["item", *map(name, range(ITEMS))]) + "\n")
    write_truth(folder, {client: map(name, own) for client, own in truth.items()})
    return truth


def write_truth(folder, truth):
    lines = [f"{client},{item}" for client, own in truth.items() for item in own]
    (folder / "truth.csv").write_text("\n".join(["client,item", *lines]) + "\n")


def audit(folder, **options):
    options = {"items": folder / "items.csv", "truth": folder / "truth.csv", "draws": 50} | options
    made = api.audit("updates", folder / "up", out=folder / "runs", **options).folder
    return json.loads((made / "summary.json").read_text()), made


def level(summary, statistic):
    (found,) = [x for x in summary["evidence"]["levels"] if x["statistic"] == statistic]
    return found


def units(made):
    (block,) = read_units(made / "units.parquet")
    return dict(zip(block.scores.unit, zip(*block.scores.values.values(), strict=True), strict=True)), block.scores


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise_at", "leaks"), [("server", True), ("device", False)])
def test_noise_on_the_sum_leaves_uploads_as_they_are(tmp_path, noise_at, leaks):
    # catches noise that is said to protect what the server sees before it is added, and noise on touched rows alone
    train = synthetic(n_items=ITEMS, seed=1).train
    data = devices_of(train.user, train.item, train.n_users)
    sizes = {"n_items": ITEMS, "n_clients": len(data), "fraction": 1.0, "rounds": 9}
    algorithm = FedRecGEL(FedRecConfig(**sizes, clip=0.1, noise_multiplier=1.0, noise_at=noise_at, noise_seed=1))
    state, privates = next(islice(rounds(algorithm, data), 4, None))
    some = {name: data[name] for name in sorted(data)[:30]}
    (tmp_path / "up").mkdir()
    for client, (reply, _) in algorithm.clients(algorithm.message(state), privates, some).items():
        save_file({k: np.ascontiguousarray(v) for k, v in reply.items()}, tmp_path / "up" / f"{client}.5.safetensors")
    (tmp_path / "items.csv").write_text("\n".join(["item", *map(str, range(ITEMS))]) + "\n")
    write_truth(tmp_path, {client: device.items.tolist() for client, device in some.items()})
    summary, _ = audit(tmp_path)
    row = level(summary, "mean:auc")
    assert summary["evidence"]["verdict"]["word"] == ("leak shown" if leaks else "none shown")
    assert row["value"] == 1.0 if leaks else row["low"] < 0.5 < row["high"]


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_labels_of_rank_one_rows_are_read_without_error(tmp_path, radius):
    # catches a turn that needs the truth, rows matched to other items, a perturbation taken for a defence
    world(tmp_path, radius=radius)
    summary, made = audit(tmp_path)
    auc, leak = level(summary, "mean:auc"), level(summary, "leakage:auc")
    assert (auc["value"], auc["high"], leak["value"], leak["high"]) == (1.0, 1.0, 0.5, 0.5)
    assert auc["low"] - 0.5 == pytest.approx(leak["low"])
    assert 0.5 < auc["low"] < 1.0  # certainty of twelve clients has a width
    assert set(units(made)[1].values["rank"]) == {1.0}
    assert [level(summary, "mean:rank")[end] for end in ("low", "high")] == [
        1.0,
        1.0,
    ]  # no rate, whose interval is wide
    assert summary["audit"]["holds"]["rank_one"] == 1.0
    verdict = summary["evidence"]["verdict"]
    assert (verdict["word"], verdict["answer"]) == ("leak shown", "mend it")
    for expression in ("leakage > 0.4 AND shown", '"mean:auc low" > 0.6', '"mean:rank" < 1.5 AND headline = 0.5'):
        assert fail_if(summary, expression), expression
    quiet, _ = audit(tmp_path, margins={"auc": 0.5})
    assert quiet["evidence"]["verdict"]["word"] == "none that matters"


def test_noise_on_the_device_leaves_nothing(tmp_path):
    # catches an interval that leaves out 1/2 where rows are noise, rows taken for touched because they are positive
    def send(rng, dense):
        return {"item": dense + rng.normal(size=dense.shape)}

    world(tmp_path, clients=40, send=send)
    summary, _ = audit(tmp_path)
    auc = level(summary, "mean:auc")
    assert auc["low"] < 0.5 < auc["high"]
    assert auc["high"] - auc["low"] < 0.2
    assert level(summary, "mean:touched_rows")["value"] == ITEMS
    assert level(summary, "mean:rank")["value"] == DIM
    assert summary["evidence"]["verdict"]["word"] == "none shown"
    assert not fail_if(summary, "shown OR leakage_low > 0")


def test_padding_leaves_the_stated_auc(tmp_path):
    # catches padding that is dropped or counted as trained on: positives lie above every negative and, in the mean,
    # above three of four padding rows that have the sizes of theirs and a random sign
    def send(rng, dense):
        rows, size = np.flatnonzero(dense.any(axis=1)), np.linalg.norm(dense, axis=1)
        along = dense[rows[0]] / size[rows[0]]
        side = np.sign(dense[rows] @ along)
        own = rows[side == (1 if (side > 0).sum() < (side < 0).sum() else -1)]
        pad = np.setdiff1d(np.arange(ITEMS), rows)[:40]
        out = dense.copy()
        out[pad] = (rng.choice([-1, 1], len(pad)) * size[rng.choice(own, len(pad))])[:, None] * along
        return sparse(out)

    truth = world(tmp_path, clients=30, send=send)
    summary, made = audit(tmp_path)
    found = units(made)[0]
    rest = {client: found[client][1] - len(own) - 40 for client, own in truth.items()}
    turned = {client: rest[client] - len(own) for client, own in truth.items()}  # by how much negatives are the more
    sure = [client for client, more in turned.items() if more > 15]  # 2.4 deviations of the sides of 40 rows
    wanted = np.mean([(rest[c] + 30) / (rest[c] + 40) for c in sure])
    assert len(sure) > 10
    assert np.mean([found[c][0] for c in sure]) == pytest.approx(wanted, abs=0.05)
    assert level(summary, "mean:auc")["value"] < 0.99


def test_rows_of_zeros_name_themselves_and_a_table_is_a_reply(tmp_path):
    # catches zero rows that count as touched, and a dense reply whose numbers differ from those of a sparse one
    world(tmp_path)
    wanted = units(audit(tmp_path)[1])[0]

    def padded(rng, dense):
        rows = np.flatnonzero(dense.any(axis=1) | (np.arange(ITEMS) < 50))
        return {"rows": rows, "values": dense[rows].astype(np.float32)}

    for send in (padded, lambda rng, dense: {"item": dense.astype(np.float32), "net.bias": np.ones(1)}):
        world(tmp_path, send=send)
        found = units(audit(tmp_path)[1])[0]
        assert found.keys() == wanted.keys()
        assert all(found[c] == pytest.approx(wanted[c], rel=1e-6) for c in wanted)


@pytest.mark.parametrize("seed", range(5))
def test_scores_know_no_orientation_of_the_rows(seed):
    # catches a sign that is an accident of the decomposition: mirrored, rotated and longer rows say the same
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(31, 5))
    score, rank, leading = row_scores(values)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for other in (-values, values @ rotation, 1e-6 * values):
        again = row_scores(other)
        assert again[0] / np.abs(again[0]).max() == pytest.approx(score / np.abs(score).max(), abs=1e-9)
        assert again[1:] == (rank, pytest.approx(leading))
    assert (score > 0).sum() < (score < 0).sum()
    assert rank == 5
    assert row_scores(values[:0])[:2] == (pytest.approx([]), 0)
    assert row_scores((values @ rotation[:, :2] @ rotation[:2]).astype(np.float32))[1] == 2


def share_shown(trials):
    """In how many audits of 12 clients whose rows are noise a leak is shown."""
    shown = 0
    for seed in range(trials):
        rng = np.random.default_rng([seed, 5])
        score = [row_scores(rng.normal(size=(40, DIM)))[0] for _ in range(12)]
        auc = np.array([ranks.auc(x, np.ones(40), np.arange(40) < rng.integers(3, 15)) for x in score])
        shown += _level(auc, seed)[0].shown
    return shown / trials


def test_noise_is_hardly_ever_shown():
    # catches an interval of rows, which are not drawn, in place of clients
    assert share_shown(30) <= 0.2


@pytest.mark.slow
def test_the_false_alarm_rate_is_the_stated_one():
    assert abs(share_shown(300) - 0.05) < 0.063  # 5 standard errors


# -- clients, rounds, what is written -------------------------------------------------------------------------------


def test_rounds_of_a_client_are_one_unit(tmp_path):
    # catches uploads counted as clients, a truth of one round used for another, names in the metadata that are ignored
    truth = world(tmp_path, clients=8, rounds=2)
    summary, _ = audit(tmp_path)
    assert (summary["data"]["clients"], summary["data"]["uploads"]) == (8, 16)
    assert level(summary, "mean:auc")["n_units"] == 8
    lines = [f"{c},{name(i)},{r}" for c, own in truth.items() for i in own for r in ("1", "02")]
    (tmp_path / "truth.csv").write_text("\n".join(["client,item,round", *lines]) + "\n")
    again, _ = audit(tmp_path)
    assert level(again, "mean:auc") == level(summary, "mean:auc")
    (tmp_path / "truth.csv").write_text("\n".join(["client,item,round", *(x for x in lines if x[-1] == "1")]) + "\n")
    one, _ = audit(tmp_path)
    assert level(one, "mean:auc")["value"] == 1.0  # the other round has no AUC
    rows = {"rows": np.array([3, 5]), "values": np.ones((2, DIM), np.float32)}
    save_file(rows, tmp_path / "up" / "x.safetensors", metadata={"client": "somebody", "round": "7"})
    assert "somebody" in units(audit(tmp_path)[1])[0]


def test_without_truth_numbers_of_rows_alone(tmp_path):
    # catches an AUC that is made up, a verdict on nothing
    world(tmp_path)
    summary, _ = audit(tmp_path, truth=None)
    verdict = summary["evidence"]["verdict"]
    assert verdict["word"] == "measured"
    assert not [x for x in summary["evidence"]["levels"] if x["metric"] == "auc"]
    assert fail_if(summary, '"mean:touched_rows" > 5')


@pytest.mark.parametrize("clients", [1, 5])
def test_few_clients_show_no_interval(tmp_path, clients):
    # catches a certainty of one client that looks measured
    world(tmp_path, clients=clients)
    summary, _ = audit(tmp_path)
    auc = level(summary, "mean:auc")
    assert (auc["value"], auc["low"], auc["high"]) == (1.0, None, None)
    assert summary["evidence"]["verdict"]["word"] == "measured"
    assert (level(summary, "mean:touched_rows")["low"] is None) == (clients == 1)


@pytest.mark.parametrize("few", [False, True])
def test_clients_that_are_turned_the_wrong_way_are_counted(tmp_path, few):
    # catches an AUC near 0 that looks like a client which gives nothing away
    def send(rng, dense):
        side = np.sign(dense @ dense[dense.any(axis=1)][0])
        own = 1 if (side > 0).sum() < (side < 0).sum() else -1
        dense[np.flatnonzero(side == -own)[1:]] = 0  # one negative is left, of the many that were drawn
        return sparse(dense)

    world(tmp_path, **({"send": send} if few else {}))
    summary, _ = audit(tmp_path)
    said = [text for text in summary["warnings"] if "turned the wrong way" in text]
    assert len(said) == few
    if few:
        wrong = sum(row[0] < 0.5 for row in units(audit(tmp_path)[1])[0].values())
        assert wrong > 6
        assert said[0].startswith(f"{wrong} clients")
        assert said[0].endswith("1.00.")


def test_who_takes_no_part_is_counted(tmp_path):
    # catches clients who are left out in silence, and an audit that fails on an empty reply
    truth = world(tmp_path)
    empty = {"rows": np.zeros(0, np.int64), "values": np.zeros((0, DIM), np.float32)}
    save_file(empty, tmp_path / "up" / "nobody.1.safetensors")
    (tmp_path / "up" / "notes.txt").write_text("x")
    sent = {**{c: [*map(name, own)] for c, own in truth.items()}, "away": [name(1)]}
    sent["u00"].append(name(np.setdiff1d(np.arange(ITEMS), sent["u00"])[0]))
    write_truth(tmp_path, sent)
    summary, made = audit(tmp_path, missing="ignore")
    assert level(summary, "mean:auc")["n_units"] == 12
    assert level(summary, "mean:auc")["n_undefined"] == 1
    assert units(made)[0]["nobody"][1:3] == (0.0, 0.0)
    for said in ("1 client without an AUC", "1 client of the truth without", "1 file not read"):
        assert any(said in warning for warning in summary["warnings"]), said


def test_no_file_names_an_item(tmp_path):
    # catches an item, or the numbers of touched rows, in anything that is written, the page too
    from upright.report import build_report

    truth = world(tmp_path)
    _, made = audit(tmp_path)
    build_report(made)
    files = [path for path in made.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"summary.json", "config.json", "units.parquet", "report.html"}
    for path in files:
        said = path.read_bytes()
        assert b"film-" not in said, path.name
        assert str(tmp_path).encode() not in said, path.name
    table = pl.read_parquet(made / "units.parquet")
    assert set(table["unit"]) == set(truth)
    assert set(table["metric"]) == {"auc", "touched_rows", "named_share", "rank", "leading_share"}
    assert not [c for c in table.columns if c.startswith("by_")]


# -- bad input and the command line ---------------------------------------------------------------------------------

ROWS, VALUES = np.array([0, 4]), np.ones((2, DIM), np.float32)
BAD = {
    "names 1 row outside": {"rows": np.array([0, ITEMS]), "values": VALUES},
    "names 1 row outside the": {"rows": np.array([0, -1]), "values": VALUES},
    "names 1 row twice": {"rows": np.array([4, 4]), "values": VALUES},
    "holds values that are not finite": {"rows": ROWS, "values": VALUES * np.array([1, np.nan], np.float32)[:, None]},
    "holds int64 of shape (2, 8)": {"rows": ROWS, "values": VALUES.astype(np.int64)},
    "has rows of width 3, u00.1.safetensors of 8": {"rows": ROWS, "values": VALUES[:, :3].copy()},
    "has rows int64 (2,) and values float32 (1, 8)": {"rows": ROWS, "values": VALUES[:1].copy()},
    "has a table of shape (2, 8), the catalogue 200 items": {"item": VALUES},
    "holds 'net.bias'": {"net.bias": np.ones(1)},
}


def refused(folder, **options):
    with pytest.raises(InputError) as caught:
        audit(folder, **options)
    assert all(caught.value.args)
    return caught.value.got


@pytest.mark.parametrize("got", BAD)
def test_a_bad_upload_is_refused_by_name(tmp_path, got):
    # catches an index that wraps around, a gradient that is counted twice, a NaN that hides in a singular value
    world(tmp_path, clients=2)
    save_file(BAD[got], tmp_path / "up" / "u01.1.safetensors")
    assert refused(tmp_path).startswith(f"u01.1.safetensors {got}")
    assert not (tmp_path / "runs").exists()


def test_bad_folders_and_tables_are_refused(tmp_path):
    # catches files that are guessed, one client twice, a truth of other people, items that are left out in silence
    world(tmp_path, clients=2)
    up, bad = tmp_path / "up", tmp_path / "up" / "u02.safetensors"
    bad.write_bytes(b"PK no tensors")
    assert refused(tmp_path).startswith("u02.safetensors is no whole file")
    save_file({"rows": ROWS, "values": VALUES}, bad)
    assert refused(tmp_path).startswith("u02.safetensors does not say")
    save_file({"rows": ROWS, "values": VALUES}, bad, metadata={"client": "u00", "round": "1"})
    assert refused(tmp_path).startswith("u00.1.safetensors and u02.safetensors are both of client 'u00'")
    bad.unlink()
    write_truth(tmp_path, {"u00": [name(1)], "u77": [name(2)]})
    assert refused(tmp_path) == "1 client of truth.csv without an upload: 'u77'"
    write_truth(tmp_path, {"u77": [name(2)]})
    assert refused(tmp_path, missing="ignore") == "1 client of truth.csv without an upload: 'u77'"
    write_truth(tmp_path, {"u00": [name(1), "unheard"]})
    assert refused(tmp_path) == "truth.csv line 3: 1 item that items.csv does not hold"
    (tmp_path / "truth.csv").write_text("person,item\nu00,x\n")
    assert refused(tmp_path) == "truth.csv line 1 has no column 'client'"
    assert refused(tmp_path, client="person") == "truth.csv line 2: 1 item that items.csv does not hold"
    (tmp_path / "items.csv").write_text("item\na\na\n")
    assert refused(tmp_path) == "items.csv line 3: item 'a' again"
    (tmp_path / "items.csv").write_text("item\na\n")
    for path in up.iterdir():
        path.unlink()
    assert refused(tmp_path, truth=None) == "up holds no .safetensors file"
    up.rmdir()
    assert refused(tmp_path, truth=None) == f"no folder {up}"


def test_command_line(tmp_path):
    # catches a verb that ignores an option, prints what is no JSON, or ends with the wrong status
    world(tmp_path)
    words = [sys.executable, "-m", "upright.cli", "audit", "updates", "up", "--items", "items.csv"]
    words += ["--truth", "truth.csv", "--json", "--fail-if", "leakage > 0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "gate failed: leakage > 0.1" in done.stderr
    assert json.loads(done.stdout)["evidence"]["verdict"]["word"] == "leak shown"
