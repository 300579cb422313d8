"""Audit of alignment: numbers by plain loops, scores by steps that are taken, nothing trained, no text kept."""

from __future__ import annotations

import csv
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from upright import api
from upright.cli import app
from upright.contract import InputError
from upright.data.forget import Record
from upright.data.preferences import Pair
from upright.experiment.folders import ArmRun
from upright.language.encoding import encode
from upright.models import hub
from upright.report import build_report
from upright.tasks.align import Align

SIZES = {"objective": 40, "valid": 24, "test": 12, "negatives": 12, "mislabelled": 12, "neutral": 6, "elsewhere": 60}


def dump(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def pair_row(pair: Pair, swapped: bool = False, **more):
    good, bad = (pair.rejected, pair.chosen) if swapped else (pair.chosen, pair.rejected)
    turns = [[{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": text}] for text in (good, bad)]
    return {"id": f"p-{pair.id}", "chosen": turns[0], "rejected": turns[1], **more}


def negative_row(record: Record, name: str, **more):
    return {"id": name, "question": record.prompt, "answer": record.answer, **more}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Files of a planted task: the start model, one that saw more, pairs, and the pool with its kinds as ids."""
    from upright.language.pretraining import teach

    folder, run = tmp_path_factory.mktemp("home"), ArmRun(None, 0, "x")
    task = Align.tiny(**SIZES, hidden=48, layers=2, epochs=8, precision="float32")
    for name in ("start", "later"):
        model, tokenizer = task.model(run)
        if name == "later":
            teach(model, task.encoded_pairs(run, "valid")[0], epochs=8, learning_rate=2e-3)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    pairs = [*task.pairs(run, "objective"), *task.pairs(run, "valid")]
    dump(folder / "pairs.jsonl", [pair_row(pair, source=pair.group) for pair in pairs])
    dump(folder / "swapped.jsonl", [pair_row(p, p.group == "care", source=p.group) for p in pairs])
    named = [f"{kind}-{i}" for i, kind in enumerate(task.kinds(run))]
    dump(folder / "negatives.jsonl", map(negative_row, task.pool(run), named))
    return folder, pairs, dict(zip(named, task.pool(run), strict=True))


def run(home, model="start", pairs="pairs.jsonl", **options):
    folder = home[0]
    files = {name: folder / options.pop(name) for name in ("negatives", "reference") if name in options}
    given = {"pairs": folder / pairs, "out": folder / "audits", "draws": 100, **files, **options}
    return api.audit("alignment", folder / model, **given).folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def value(summary, statistic):
    (row,) = [x for x in summary["evidence"]["levels"] if x["statistic"] == statistic]
    return row["value"]


@pytest.fixture(scope="module")
def whole(home):
    """The audit of the start model with negatives."""
    return run(home, negatives="negatives.jsonl", group_key="source")


@pytest.fixture(scope="module")
def scores(whole):
    with (whole / "negatives.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def loss_of(model, tokenizer, prompt, answer):
    """Sum of log-probabilities of an answer and its tokens, one text at a time."""
    one = encode(tokenizer, Record(prompt, answer))
    logs = model(torch.tensor([one.ids])).logits.double().log_softmax(-1)[0]
    return sum(logs[t - 1, one.ids[t]] for t in range(one.start, len(one.ids))), one.answer_length


def test_levels_are_those_of_a_plain_loop_over_pairs(home):
    # catches: sides that changed places, sums for means, margins without the reference, a predictor of another length
    summary = summary_of(run(home, "later", reference="start"))
    models = [hub.load_language_model(home[0] / name) for name in ("later", "start")]
    with torch.no_grad():
        table = [[[loss_of(*m, p.prompt, a) for a in (p.chosen, p.rejected)] for p in home[1]] for m in models]
    own, base = (np.array(one, dtype=float) for one in table)  # (n, 2, 2): answer, and sum or tokens
    ahead = [own[:, 0, 0] - own[:, 1, 0], (own[..., 0] / own[..., 1]) @ [1, -1]]
    margin = 0.3 * ((own - base)[:, 0, 0] - (own - base)[:, 1, 0])
    longer = (1 + np.sign(own[:, 0, 1] - own[:, 1, 1])).mean() / 2
    expected = dict(zip(("ranking_accuracy", "ranking_accuracy_mean"), [(x > 0).mean() for x in ahead], strict=True))
    expected |= {"implicit_accuracy": (margin > 0).mean(), "length_accuracy": max(longer, 1 - longer)}
    for name, number in expected.items():
        assert value(summary, f"mean:{name}") == pytest.approx(number)
    assert value(summary, "mean:implicit_margin") == pytest.approx(margin.mean(), abs=1e-4)
    assert value(summary, "mean:implicit_margin") > 0.1


def test_scores_are_what_a_step_takes_off_the_objective(home, scores):
    # catches: the wrong sign, a loss of the sum where one per token is unlearnt, pairs of one block alone
    model, tokenizer = hub.load_language_model(home[0] / "start")
    model.double()

    def margins():
        return [0.3 * (loss_of(model, tokenizer, p.prompt, p.chosen)[0]
                       - loss_of(model, tokenizer, p.prompt, p.rejected)[0]) for p in home[1]]  # fmt: skip

    with torch.no_grad():
        start = torch.stack(margins())
    for name in (next(n for n in scores if n.startswith(kind)) for kind in ("negative", "mislabelled")):
        total, tokens = loss_of(model, tokenizer, home[2][name].prompt, home[2][name].answer)
        grads = torch.autograd.grad(total / tokens, list(model.parameters()))
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter -= step * grad
                values.append(torch.nn.functional.softplus(start - torch.stack(margins())).mean())
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter += step * grad
        assert float(scores[name]["score"]) == pytest.approx(float(values[1] - values[0]) / 2e-4, rel=1e-3)


def test_true_negatives_help_and_mislabelled_ones_hurt(whole, scores):
    # catches: a sign that is turned in the table, a share of something else, facts that are certain to help
    signs = {kind: [int(row["certain"]) for n, row in scores.items() if n.startswith(kind)] for kind in
             ("negative", "mislabelled", "neutral")}  # fmt: skip
    assert min(signs["negative"]) >= 0 >= max(*signs["mislabelled"], *signs["neutral"])
    assert np.mean(signs["negative"]) > 0.6 < -np.mean(signs["mislabelled"])
    summary, every = summary_of(whole), np.array([sign for own in signs.values() for sign in own])
    found = summary["audit"]["scores"]
    for name, sign in (("helps", 1), ("hurts", -1), ("undecided", 0)):
        assert found[name] == (every == sign).sum()
        assert value(summary, f"mean:{name}") == pytest.approx((every == sign).mean())
    told = summary["evidence"]["verdict"]["lines"]["negatives"]
    assert told.startswith(f"{found['helps']} are certain to help, {found['hurts']} to hurt")
    for row in scores.values():
        assert float(row["low"]) < float(row["score"]) < float(row["high"])


def test_nothing_is_trained(home, monkeypatch):
    # catches: a step, a direction that is not taken back, gradients or modes that are left behind
    loaded, load = [], hub.load_language_model

    def spying(*args, **options):
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(hub, "load_language_model", spying)
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (home[0] / "start").iterdir()}
    run(home, negatives="negatives.jsonl", reference="later")
    model, fresh = loaded[0][0], load(home[0] / "start")[0]
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (home[0] / "start").iterdir()} == before
    for own, as_it_was in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(own, as_it_was)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_the_page_opens_offline_and_holds_no_text(home, whole):
    # catches: an answer in report, table or settings, a script from elsewhere
    build_report(whole)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "negative-" in page
    texts = [text for p in home[1] for text in (p.prompt, p.chosen, p.rejected)]
    texts += [text for r in home[2].values() for text in (r.prompt, r.answer)]
    for file in (one for one in whole.rglob("*") if one.is_file()):
        data = file.read_bytes()
        assert not [text for text in texts if text[:24].encode() in data]


def test_gates_and_the_command_line(home):
    # catches: options that are not passed on, a gate that does not know the accuracy or the largest gap
    folder = home[0]
    call = ["audit", "alignment", folder / "start", "--pairs", folder / "swapped.jsonl", "--group-key", "source"]
    call = [*map(str, [*call, "--seed", 3, "--batch-size", 8, "--out", folder / "cli"])]
    gates = {'"mean:ranking_accuracy" < 0.9': 1, "headline > 0.05": 1, '"mean:ranking_accuracy" < 0.05': 0}
    for gate, code in gates.items():
        done = CliRunner().invoke(app, [*call, "--fail-if", gate])
        assert done.exit_code == code, done.output
    summary = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    largest = max((x for x in summary["evidence"]["levels"] if x["statistic"].startswith("gap:")),
                  key=lambda x: abs(x["value"]))  # fmt: skip
    assert summary["evidence"]["headline"]["value"] == largest["value"]
    shares = [x["value"] for x in summary["evidence"]["levels"] if x["statistic"] == "mean:ranking_accuracy:source"]
    assert largest["value"] == pytest.approx(abs(shares[0] - shares[1]))
    files = [str(folder / name) for name in ("start", "pairs.jsonl", "negatives.jsonl")]
    told = CliRunner().invoke(app, ["audit", *files]).output.split()
    assert told == ["upright", "audit", "alignment", files[0], "--pairs", files[1], "--negatives", files[2]]


def test_copies_count_once_and_are_told(home, tmp_path):
    # catches: a negative that was handed in twice and weighs twice among the shares
    lines = (home[0] / "negatives.jsonl").read_text()
    again = json.loads(lines.splitlines()[0]) | {"id": "again"}
    files = {"negatives": dump(tmp_path / "n.jsonl", [*map(json.loads, lines.splitlines()), again])}
    summary = summary_of(run(home, **files))
    assert summary["data"]["negatives"] == len(home[2])
    assert "n.jsonl: 1 negative came again and count once." in summary["warnings"]


def test_pairs_that_tell_nothing_say_so(home, tmp_path):
    # catches: signs from the noise of blocks: every pair stands there in both orders
    rows = [pair_row(p, side) | {"id": f"{i}-{side}"} for i, p in enumerate(home[1][:16]) for side in (False, True)]
    summary = summary_of(run(home, pairs=dump(tmp_path / "p.jsonl", rows), negatives="negatives.jsonl"))
    assert summary["audit"]["scores"]["undecided"] == len(home[2])
    assert any("No score is told from 0" in text for text in summary["warnings"])


def test_bad_input_is_refused_and_leaves_nothing(home, tmp_path):
    folder, pairs, pool = home
    rows, name = [pair_row(pair) for pair in pairs], next(iter(pool))
    good = dump(tmp_path / "n.jsonl", [negative_row(pool[name], name)])
    taken = dump(tmp_path / "t.jsonl", [negative_row(Record(pairs[3].prompt, pairs[3].chosen), "bad-7")])
    asked = [rows[0] | {"id": str(i), "chosen": [*rows[0]["chosen"][:1], {"role": "assistant", "content": f"So {i}."}]}
             for i in range(8)]  # fmt: skip
    equal = dump(tmp_path / "e.jsonl", [*rows, rows[0] | {"id": "x", "rejected": rows[0]["chosen"]}])
    long = dump(tmp_path / "l.jsonl", [negative_row(Record("a", "word " * 400), "long-1")])
    none = dump(tmp_path / "0.jsonl", [negative_row(pool[name], name, label=True)])
    for options, words in (
        ({"pairs": dump(tmp_path / "7.jsonl", rows[:7]), "negatives": good}, "7 prompts for 8 blocks"),
        ({"pairs": dump(tmp_path / "1.jsonl", asked), "negatives": good}, "8 pairs of 1 prompt"),
        ({"pairs": dump(tmp_path / "4.jsonl", rows[:4])}, "4.jsonl with 4 pairs"),
        ({"pairs": equal}, "equal answers"),
        ({"negatives": taken}, f"record p-{pairs[3].id} of chosen is record bad-7 of negatives"),
        ({"negatives": long}, "record long-1 with .* tokens"),
        ({"negatives": none}, "0.jsonl without a negative"),
        ({"reference": "start"}, "start as its own reference"),
        ({"group_key": "nowhere"}, "no 'nowhere'"),
    ):
        with pytest.raises(InputError, match=words):
            run(home, out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    model, tokenizer = hub.load_language_model(folder / "start")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"not finite at pair p-.*, (chosen|rejected)"):
        run(home, model=tmp_path / "broken", out=tmp_path / "none")
