"""Gates: two spellings with one meaning, and nothing undefined, unknown or infinite passes unseen."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.evidence.gate import check_syntax, example, fail_if, names
from upright.evidence.records import Difference, Level, Null


def level(statistic, *numbers, arm="fair", **more):
    more |= dict(zip(("value", "low", "high"), numbers, strict=False))
    return Level(statistic=statistic, arm=arm, **more).row()


def audit(word, *levels, works=None, **facts):
    verdict = {"works": works, "word": word, "primary": levels[0]["statistic"] if levels else None}
    return {"arms": [], "evidence": {"levels": levels, "differences": [], "verdict": verdict}, "audit": facts}


RUN = {
    "arms": [{"name": "none"}, {"name": "fair", "role": "remedy", "totals": {"gini_exposure@10": 0.9}}],
    "evidence": {
        "levels": [
            level("mean:ndcg@10", 0.99, 0.99, 0.99, arm="none"),
            level("mean:ndcg@10", 0.30, 0.28, 0.32),
            level("mean:ndcg@10:activity", 0.35, 0.3, 0.4, group="advantaged"),
            level("gap:ndcg@10:activity", 0.1, 0.02, 0.18, null=Null(0.03, 0, 1), smallest_detectable=0.11, p=0.01),
            level("gap:recall@10:activity"),
            level("gap:mrr@10:activity", 0.1, 0.0, 0.2),
            level("gap:mrr@10:age", 0.2, 0.0, 0.2),
            level("leakage:attack:sex", 0.2, 0.15, 0.25),
            level("leakage:attack:sex", 0.05, 0.0, 0.1, group="emb/mlp/cross"),
            *(level("gap:twice:activity", value, 0.0, 4.0) for value in (1.0, 3.0)),
            *(level("mean:ndcg@10:pay", 2.0, 1.0, 4.0, group=g) for g in ("very", "very low", 'say "no"')),
        ],
        "differences": [
            Difference(statistic="abs_gap:ndcg@10:sex", arm="fair", against="x", role="placebo", value=0.9).row(),
            Difference(statistic="abs_gap:ndcg@10:sex", arm="fair", against="none", role="baseline", value=-0.2).row(),
            Difference(statistic="mean:hit@10:sex=F", arm="fair", against="none", role="baseline", low=0.1).row(),
        ],
        "verdict": {"works": False, "word": "undecided", "primary": "gap:ndcg@10:activity"},
    },
}
AUDITS = {
    "ranking": audit("gap shown", level("gap:ndcg@10:group", -0.1, -0.2, -0.01, arm="yours")),
    "embeddings": audit("leak shown", level("leakage:attack:sex", 0.2, 0.1, 0.3, arm="yours"), p_max=0.002),
    "predictions": audit("gap shown", level("disparity:predicted:sex", 0.2, 0.1, 0.3, arm="yours")),
    "forgetting": audit("still known", level("mean:known", 0.2, arm="retrain"), level("mean:known", 0.4, arm="yours")),
}
SPELLINGS = [
    ('gap["ndcg@10"] == 0.1', '"gap:ndcg@10:activity" = 0.1', True),
    ('gap_low["ndcg@10"] > 0.05', '"gap:ndcg@10:activity low" > 0.05', False),
    ('gap_null["ndcg@10"] == 0.03', '"gap:ndcg@10:activity null" = 0.03', True),
    ('gap_detectable["ndcg@10"] != 0.11', '"gap:ndcg@10:activity detectable" <> 0.11', False),
    ('mean["ndcg@10"] == 0.3', '"mean:ndcg@10" = 0.3', True),  # 0.99 is the baseline's
    ('mean["ndcg@10","activity",\'advantaged\'] == 0.35', '"mean:ndcg@10:activity=advantaged" = 0.35', True),
    ('mean["ndcg@10", \'say "no"\'] == 2', '"mean:ndcg@10:pay=say ""no""" = 2', True),
    ('gap["mrr@10", "age"] == 0.2', '"gap:mrr@10:age" = 0.2', True),
    ('change_abs_gap["ndcg@10"] == -0.2', '"change abs_gap:ndcg@10:sex" = -0.2', True),  # 0.9 is the placebo's
    ('change_mean_low["hit@10", "F"] > 0.3', '"change mean:hit@10:sex=F low" > 0.3', False),
    ('gini["exposure@10"] == 0.9', '"gini:exposure@10" = 0.9', True),
    ("leakage == 0.2 and leakage_high < 0.3", 'leakage = .2 AND "leakage:attack:sex high" < 3e-1', True),
    ('leakage["attack", "emb/mlp/cross"] == 0.05', '"leakage:attack:sex=emb/mlp/cross" = 0.05', True),
    ("max(1, 2) == 2 and min(1, 2) == 1 and not works", "GREATEST(1, 2) = 2 AND LEAST(1, 2) = 1", True),
    ("1 / 2 > 0 and 5 > 4 --1", "NOT 1 / 2 > 0 OR 5 > 4 - -1", False),  # no whole division, no comment
]


@pytest.mark.parametrize(("earlier", "sql", "expected"), SPELLINGS)
def test_both_spellings_have_one_meaning(earlier, sql, expected):
    # catches a wrong arm, end, group or control, and an earlier gate that changes its answer
    for expression in (earlier, sql):
        check_syntax(expression)
        assert fail_if(RUN, expression) is expected


def grown(leaves, forms):
    return st.recursive(leaves, lambda x: st.builds(str.format, st.sampled_from(forms), x, x), max_leaves=5)


NUMBERS = grown(st.sampled_from(["headline", "1", "0.5"]), ["({} + {})", "({} - {})", "{} * {}", "-{}", "abs({})"])
COMPARISONS = st.builds(str.format, st.sampled_from(["{} < {}", "{} >= {}", "{} == {}", "{} != {}"]), NUMBERS, NUMBERS)


@given(grown(COMPARISONS, ["({} and {})", "({} or {})", "not {}"]))
@settings(max_examples=100, deadline=None)
def test_gates_agree_with_python(expression):
    # catches precedence, signs and rounding of SQL that differ from what a person reads
    assert fail_if(RUN, expression) is eval(expression, {"headline": 0.1})


def test_headline_is_the_primary_statistic_of_every_summary():
    # catches a headline of another arm or of a cell, and one that is read where there is none
    assert fail_if(RUN, 'headline = 0.1 AND "headline low" = 0.02 AND headline_high = 0.18 AND "headline p" = 0.01')
    for other, arm in (("retrain", "none"), ("shuffled", "yours")):
        assert fail_if(audit("", level("mean:x", 0.2, arm=other), level("mean:x", 0.4, arm=arm)), "headline = 0.4")
    assert fail_if(AUDITS["embeddings"], "headline = leakage AND p_max = 0.002")
    with pytest.raises(InputError, match="'headline' is undefined"):
        fail_if(audit("gap shown"), "headline > 0 OR shown")
    with pytest.raises(InputError, match="arms"):
        fail_if(audit("gap shown", level("gap:x:g", arm="a"), level("gap:x:g", arm="b")), "shown")


@pytest.mark.parametrize("verb", ["run", "compare", *AUDITS])
def test_examples_fail_on_what_is_bad_and_pass_on_what_is_good(verb):
    # catches an example of the help that does not parse, names what a verb lacks, or never fails
    good = audit("none shown", level("gap:x:g", 0.0, -0.01, 0.01), works=True if verb in ("run", "compare") else None)
    assert [fail_if(summary, example(verb)) for summary in (AUDITS.get(verb, RUN), good)] == [True, False]


def test_shown_follows_the_word_of_an_audit():
    # catches "none shown", which ends in shown, and an audit that compared nothing and passes
    bad, good = ("gap shown", "still known", "told apart", "over-unlearned"), ("none shown", "none that matters")
    assert [fail_if(audit(word), "shown") for word in (*bad, *good, "no gap shown")] == [True] * 4 + [False] * 3
    assert names(audit("measured")) == []


UNSEEN = ['"gap:recall@10:activity"', 'gap["recall@10"]', '"mean:ndcg@10 null"', 'gap["twice"]', "p_max"]
INFINITE = ["1/0", "0/0", "1 / (headline - 0.1)", "LEAST(1, 0/0)", "1e999", "1e300 * 1e300", "1" * 400]


@pytest.mark.parametrize("form", ["{} > 2", "NOT {} = 1", "0 BETWEEN 0 AND {}", "1 < 2 OR {} > 2", "works AND {} > 2"])
@pytest.mark.parametrize("number", [*UNSEEN, *INFINITE])
def test_what_is_undefined_or_infinite_is_refused_wherever_it_stands(number, form):
    # catches NaN, which compares as false, inf, the last of two rows, and a branch that is never looked at
    with pytest.raises(InputError, match="is undefined" if number in UNSEEN else "division by zero"):
        fail_if(RUN, form.format(number))


# of numbers where truths belong, of what is no SQL or stops at half of the text, of SQL that is more than an expression
REFUSED = """headline; 1 + 1; NOT 1; NOT headline; 1 AND 2; works > 0; works + works > 1; -works < 1; 0 < headline < 1
LEAST(works, 1) > 0; ; 1 <; (works; works); works) OR (works; works works; works 1; 1, works; NOT; ABS > 1; LEAST() > 1
ABS(1, 2) > 1; * > 1; 1\0; TRUE; works AS x; 'a' < 'b'; works -- x; works /* x */; mean > 0; gap[0] > 0; headline(1) > 0
gap:ndcg@10:activity > 0; SELECT 1; (SELECT 1) > 0; EXISTS (SELECT 1); COUNT(*) > 0; SUM(headline) > 0; UPPER('a') = 'A'
read_csv('f.csv') > 0; (SELECT x FROM read_csv('f.csv')) > 0; CAST(headline AS INT) > 0; COLUMNS('.*') > 0; 2 ^ 9 > 1
headline::int > 0; works IS NULL; 1 IN (1); CASE WHEN works THEN works END; __import__('os').system('true'); works()"""
LONG = ["works; works", "x" * 1001, "works" + " " * 1000, "(" * 400 + "works" + ")" * 400, "1" + "+1" * 200 + " > 0"]


@pytest.mark.parametrize("expression", [*REFUSED.replace("\n", "; ").split("; "), *LONG])
def test_all_else_is_refused_before_anything_is_computed(expression, tmp_path, monkeypatch):
    # catches an evaluator that runs code, reads a file, ignores what follows, or takes a number for a truth
    (tmp_path / "f.csv").write_text("x\n1\n")
    monkeypatch.chdir(tmp_path)
    for refuse in (check_syntax, lambda text: fail_if(RUN, text)):
        with pytest.raises(InputError) as caught:
            refuse(expression)
        assert all(caught.value.args)


NEAREST = {
    '"gap:ndgc@10:activity" > 0': "gap:ndcg@10:activity",
    'gaps["mrr@10", "age"] > 0': "gap:mrr@10:age",
    'gap["mrr@10"] > 0': "gap:mrr@10:age",  # or activity
    '"^gap.*$" > 0': "gap:mrr@10:age",  # a pattern, to polars
    '"mean:ndcg@10:pay=very low" > 0': "mean:ndcg@10:pay=very low",  # which is also the low end of "very"
}


@pytest.mark.parametrize("expression", NEAREST)
def test_an_unknown_name_is_answered_by_the_nearest(expression):
    # catches a typo or an ambiguous metric that passes, and a list that fills the screen
    with pytest.raises(InputError, match=r"names (no|2) number") as caught:
        fail_if(RUN, expression)
    offered = [name.strip('"') for name in caught.value.accepted.split(", ")]
    assert (offered[0], caught.value.todo) == (NEAREST[expression], f'did you mean "{NEAREST[expression]}"?')
    assert {*offered[:12]} == {*offered} <= {*names(RUN)}


def test_syntax_is_checked_without_torch():
    # catches an import that makes a typo take seconds to answer
    code = "import sys; from upright.evidence.gate import check_syntax as f; f('works'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
