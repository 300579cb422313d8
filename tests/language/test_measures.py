"""What is said of a model: attacks judged together in all forms, and a verdict that needs evidence on both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from upright.data.forget import Record
from upright.language import measures
from upright.language.encoding import encode_all
from upright.language.evaluation import Speaker
from upright.language.pretraining import teach
from upright.metrics import membership
from upright.models.tiny import tiny_llama, tiny_tokenizer


def looks(rng, shift, *, n=40, m=40, away=0.0, noise=0.5):
    """Scores of a model and a reference: common difficulty, own noise; `away` sets held-out records apart for both."""
    common = [rng.normal(size=n) + away, rng.normal(size=m)]
    names = ("mia_a", "mia_b")

    def one(plus):
        sides = [{k: side + noise * rng.normal(size=side.size) for k in names} for side in common]
        return measures.Look({k: v + plus for k, v in sides[0].items()}, None, {}, sides[1])

    return one(shift), one(0.0)


def judged(after, reference=None, seed=0, **others):
    return measures.compared({**others, "after": after} | ({"reference": reference} if reference else {}), seed=seed)


def test_what_is_still_known_is_a_warning_and_a_verdict():
    # catches a verdict that keeps quiet about an attack that works, and one that looks at one side of 1/2 alone
    rng = np.random.default_rng(3)
    for shift, words in ((3.0, "not forgotten by the attack"), (-3.0, "less likely than unseen records")):
        after, reference = looks(rng, shift)
        for other in (None, reference):
            found = judged(after, other)
            said = measures.verdict(found, "after", before="after")
            assert (said.word, said.records_needed) == ("still known", None)
            assert said.sentence == "still known: 2 of 2 attacks find the records"
            said = measures.still_known(found, "after")
            assert len(said) == 2
            assert all(words in line for line in said)
            assert all(("against the reference" in line) == (other is not None) for line in said)
    assert measures.verdict({"membership": {"after": None}}, "after").word == "not measured"


@pytest.mark.parametrize(("n", "before", "word"), [
    (12, 3.0, "not shown"), (60, 3.0, "not shown"), (400, 3.0, "forgotten"), (400, 0.0, "not shown"),
    (400, None, "not shown"),
])  # fmt: skip
def test_forgotten_is_shown_and_never_assumed(n, before, word):
    """'None of 4 attacks finds the records' was said of 12 records, and of a model that never knew them."""
    rng = np.random.default_rng(4)
    old = {} if before is None else {"before": looks(rng, before, n=n, m=n)[0]}
    same = rng.normal(size=n)  # the AUC is exactly 1/2
    after = measures.Look({"mia_a": same, "mia_b": same}, None, {}, {"mia_a": same, "mia_b": same})
    found = judged(after, **old)
    said = measures.verdict(found, "after", before="before" if old else None)
    assert said.word == word
    assert said.sentence.startswith(f"{word}: ")
    if n < 100:
        assert 65 <= said.records_needed < 90  # at 65 records 1.96 standard errors of an AUC of 1/2 are 0.1
    assert measures.verdict(found, "after", before="before" if old else None, margin=0.4).word == (
        "forgotten" if before else "not shown"
    )


def test_one_form_that_remembers_is_enough():
    # catches a verdict that is an average over attacks, or of the own form alone
    rng, n = np.random.default_rng(5), 400
    sides = [{"mia_loss": rng.normal(size=n)} for _ in range(2)]
    sides[0]["mia_loss_raw"], sides[1]["mia_loss_raw"] = rng.normal(size=n) + 1.0, rng.normal(size=n)
    before = measures.Look({k: v + 3 for k, v in sides[0].items()}, None, {}, sides[1])
    said = measures.verdict(
        judged(measures.Look(sides[0], None, {}, sides[1]), before=before), "after", before="before"
    )
    assert said.sentence == "still known: 1 of 2 attacks find the records"


def test_how_many_records_would_decide():
    # catches a number for attacks that no equivalence can pass, and one that grows with the records at hand
    row = {"value": 0.55, "low": 0.4, "high": 0.7, "n": 40, "n_holdout": 40, "error": 0.065, "critical": 2.2,
           "most": 0.18, "smallest": 0.2}  # fmt: skip
    before = {"a": {**row, "value": 0.9, "low": 0.8, "high": 1.0}}

    def needed(**change):
        found = {"membership": {"before": before, "after": {"a": {**row, **change}}}}
        return measures.verdict(found, "after", before="before").records_needed

    own = needed()
    assert 1.96 * 0.065 * np.sqrt(40 * 40 / 81 * (2 * own + 1)) / own <= 0.05
    assert 1.96 * 0.065 * np.sqrt(40 * 40 / 81 * (2 * own - 1)) / (own - 1) > 0.05
    assert needed(n=160, n_holdout=160, error=0.065 * np.sqrt(40 * 40 / 81 * 321) / 160) == own
    assert needed(value=0.65) < 100  # more records show that this one is known
    assert needed(gap={"value": 0.1, "low": -0.1, "high": 0.3}) is not None


def test_a_look_asks_in_every_form():
    """What was held as running text was measured as question and answer alone: probability 0.03 in place of 0.73."""
    records = [Record(f"In the year {i} the town of {w} built", f"a {w} bridge of stone", kind="completion", author=w)
               for i, w in enumerate(("Riga", "Turku", "Oslo", "Bern", "Lyon", "Graz"))]  # fmt: skip
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=300)
    model = tiny_llama(tokenizer, hidden=32, layers=2, heads=2)
    with torch.random.fork_rng(devices=[]):
        teach(model, encode_all(tokenizer, records), epochs=40, batch_size=6, learning_rate=1e-2)
    speaker = Speaker(model, tokenizer)
    more = {"forget": {"mia_loss_relearned": np.zeros(6)}, "holdout": {"mia_loss_relearned": np.ones(6)}}
    found = measures.look(speaker, records, retain=records, holdout=records, rouge=False, more=more)
    raw, plain = (found.forget[name].mean() for name in ("forget_probability", "forget_probability_plain"))
    assert raw > 2 * plain
    assert {n.removesuffix("_plain") for n in found.holdout} == {*membership.METRICS, "mia_loss_relearned"} - {
        "mia_reference"
    }
    rows = measures.compared({"after": found}, seed=0)["membership"]["after"]
    assert rows["mia_loss_relearned"]["value"] == 0.0
    assert {"mia_loss", "mia_loss_plain"} <= set(rows)
    chats = [Record(r.prompt, r.answer, kind="chat", before=(("user", "x"), ("assistant", "y"))) for r in records]
    assert not any(n.endswith(("_raw", "_chat")) for n in measures.look(speaker, chats, rouge=False).forget)


# at most 5 % and three standard errors of the count
@pytest.mark.parametrize(("trials", "most"), [(40, 6), pytest.param(400, 33, marks=pytest.mark.slow)])
@pytest.mark.parametrize("away", [0.0, 1.5])
def test_a_perfect_retrain_is_not_accused(away, trials, most):
    # catches a judge that compares with 1/2: with held-out records of another kind both models tell the sides apart
    accused = 0
    for seed in range(trials):
        after, reference = looks(np.random.default_rng(seed), 0.0, away=away)
        accused += bool(measures.still_known(judged(after, reference, seed), "after"))
        assert away == 0.0 or measures.still_known(judged(after, None, seed), "after")
    assert accused <= most


def test_attacks_are_judged_together():
    # catches k intervals of 95 % of which one fails by chance in k / 20 of all cases, and a price for a copy
    after, reference = looks(np.random.default_rng(1), 0.3)

    def some(*names):
        kept = [
            measures.Look({k: x.forget[v] for k, v in names}, None, {}, {k: x.holdout[v] for k, v in names})
            for x in (after, reference)
        ]
        return judged(*kept)["membership"]["after"]["mia_a"]

    alone, both, copied = (
        some(("mia_a", "mia_a")),
        some(*[(f"mia_{k}",) * 2 for k in "ab"]),
        some(("mia_a",) * 2, ("mia_b", "mia_a")),
    )
    for row, single, copy in ((both, alone, copied), (both["gap"], alone["gap"], copied["gap"])):
        assert row["value"] == single["value"] == copy["value"]
        assert row["high"] - row["low"] > 1.05 * (single["high"] - single["low"])
        assert (copy["low"], copy["high"]) == pytest.approx((single["low"], single["high"]), abs=0.02)
    auc = [(x.forget["mia_a"][:, None] > x.holdout["mia_a"]).mean() for x in (after, reference)]
    assert both["gap"]["value"] == pytest.approx(auc[0] - auc[1])
    assert both["privleak"] == pytest.approx(membership.privleak(*auc))


@pytest.mark.parametrize(("n", "m", "measured"), [(9, 40, False), (40, 9, False), (10, 10, True)])
def test_no_verdict_of_attacks_from_a_handful_of_records(n, m, measured):
    # catches "none of n attacks finds the records" from records that could show nothing, and a chance find among few
    after, reference = looks(np.random.default_rng(2), 4.0, n=n, m=m)
    found = judged(after, reference)
    said = measures.verdict(found, "after", before="after")
    assert said.word == ("still known" if measured else "not measured")
    assert bool(measures.still_known(found, "after")) is measured


def test_ratios_of_a_collapsed_model_keep_their_ranks():
    # catches: 1 / (1 + r) that is 1 for every small r, so that two models far apart are not told apart
    logs = np.linspace(-60, -40, 30), np.linspace(-90, -61, 30)
    looks = [
        measures.Look({"forget_truth_ratio": np.exp(one), "forget_truth_probability": 1 / (1 + np.exp(one))}, None)
        for one in logs
    ]
    found = measures._quality(*looks)
    assert found["distance"] == 1.0
    assert found["p"] == pytest.approx(ks_2samp(*logs, method="exact").pvalue)
