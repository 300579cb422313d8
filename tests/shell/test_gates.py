"""Gates: what an expression may say, and that nothing undefined or unknown passes unseen."""

from __future__ import annotations

import pytest

from upright.contract import InputError
from upright.shell.gates import fail_if, names


def level(statistic, value, low, high, arm="fair", group=None, grouping=None, null=None, detectable=None):
    return {
        "statistic": statistic, "metric": statistic.split(":")[1], "value": value, "low": low, "high": high, "arm": arm,
        "group": group, "grouping": grouping, "null": null, "smallest_detectable": detectable,
    }  # fmt: skip


RUN = {
    "arms": [{"name": "none", "role": "baseline"},
             {"name": "fair", "role": "remedy", "totals": {"gini_exposure@10": 0.9}}],
    "evidence": {
        "levels": [
            level("mean:ndcg@10", 0.30, 0.28, 0.32),
            level("mean:ndcg@10", 0.99, 0.99, 0.99, arm="none"),
            level("mean:ndcg@10:activity", 0.35, 0.3, 0.4, group="advantaged", grouping="activity"),
            level("mean:ndcg@10:activity", 0.25, 0.2, 0.3, group="disadvantaged", grouping="activity"),
            level("gap:ndcg@10:activity", 0.10, 0.02, 0.18, grouping="activity", null={"expected_abs": 0.03},
                  detectable=0.11),
            level("gap:recall@10:activity", None, None, None, grouping="activity"),
            level("gap:mrr@10:activity", 0.1, 0.0, 0.2, grouping="activity"),
            level("gap:mrr@10:age", 0.2, 0.0, 0.2, grouping="age"),
            level("worst_decile:ndcg@10", 0.01, 0.0, 0.02),
        ],
        "differences": [
            {"statistic": "abs_gap:ndcg@10:activity", "arm": "fair", "against": "none", "role": "baseline",
             "value": -0.02, "low": -0.05, "high": 0.01},
            {"statistic": "abs_gap:ndcg@10:activity", "arm": "fair", "against": "random", "role": "placebo",
             "value": 0.9, "low": 0.9, "high": 0.9},
            {"statistic": "mean:ndcg@10:activity=disadvantaged", "arm": "fair", "against": "none", "role": "baseline",
             "value": 0.04, "low": 0.01, "high": 0.07},
        ],
        "verdict": {"works": False},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('gap["ndcg@10"] > 0.05', True),
        ('gap["ndcg@10"] > 0.15', False),
        ('gap_low["ndcg@10"] > 0.05', False),
        ('gap_high["ndcg@10"] > 0.15', True),
        ('mean["ndcg@10"] > 0.9', False),  # the baseline's 0.99 must not be read
        ('mean["ndcg@10","disadvantaged"] < 0.3', True),
        ('mean["ndcg@10", "activity", "advantaged"] < 0.3', False),
        ('gap["mrr@10", "age"] == 0.2', True),
        ('gap_null["ndcg@10"] == 0.03 and gap_detectable["ndcg@10"] == 0.11', True),
        ('change_abs_gap["ndcg@10"] < 0', True),  # against the baseline, not the placebo
        ('change_abs_gap_high["ndcg@10"] < 0', False),
        ('change_mean["ndcg@10", "disadvantaged"] > 0.03', True),
        ('gini["exposure@10"] >= 0.9', True),
        ('worst_decile["ndcg@10"] < 0.05 and not works', True),
        ("works or 1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("max(1, 2) == 2 and min(1, 2) == 1 and abs(-1) == 1 and max(3) == 3", True),
        ("-(1 + 2) * 3 / 2 == -4.5", True),
    ],
)
def test_value(expression, expected):
    """Catches a wrong arm, a wrong end of the interval, a wrong group, a chained comparison cut short."""
    assert fail_if(RUN, expression) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "().__class__", "(lambda: True)()", "[1][0] > 0", "open('x') > 1",
        "2 ** 9 > 1", "7 % 2 > 1", "1 if works else 2", "{1: 2}", "f'{works}'", "works is works", "True", "'a' < 'b'",
        "max() > 1", "abs(1, 2) > 0", "max(*[1, 2]) > 0", "max(1, key=abs) > 0", "(x := 1) > 0", "mean.real > 0",
        "gap[0] > 0", 'gap["a","b","c","d"] > 0', 'gap["ndcg@10"][0] > 0', "1 < works", "not 1", "1 and 2",
        "mean > 0", "", "1 <", "1; 2", "x" * 2000, "(" * 400 + "1" + ")" * 400, "1\0", "1e999 > 0", "1 / 0 > 0",
        "1" * 400 + " > 0", 'gap["ndcg@10"]', "1 + 1", 'works["ndcg@10"]',
    ],
)  # fmt: skip
def test_anything_else_is_refused(expression):
    """Catches an evaluator that runs code, or that takes a number for a truth."""
    with pytest.raises(InputError) as caught:
        fail_if(RUN, expression)
    assert all(caught.value.args)


def test_undefined_number_is_refused():
    """Catches NaN comparing as false, so that a gate passes on nothing."""
    with pytest.raises(InputError, match="undefined"):
        fail_if(RUN, 'gap["recall@10"] > 0.05')


def test_unknown_metric_lists_what_there_is():
    """Catches a mistyped metric that passes."""
    with pytest.raises(InputError) as caught:
        fail_if(RUN, 'gap["ndcg@20"] > 0.05')
    assert caught.value.got.endswith('gap["ndcg@20"] names nothing')
    assert 'gap["ndcg@10"]' in caught.value.accepted


def test_ambiguous_metric_is_refused():
    """Catches taking the first of two groupings."""
    with pytest.raises(InputError, match="names 2 numbers"):
        fail_if(RUN, 'gap["mrr@10"] > 0.05')


def test_unknown_name_is_suggested():
    """Catches a list without help."""
    with pytest.raises(InputError) as caught:
        fail_if(RUN, 'abs_gaps["ndcg@10"] > 0')
    assert caught.value.todo == "did you mean 'abs_gap'?"


def test_audit_has_no_works():
    """Catches None taken for false."""
    with pytest.raises(InputError, match="audit has no remedy"):
        fail_if({"arms": [], "evidence": {"verdict": {"works": None}}}, "not works")


def test_audit_reads_its_only_arm():
    """Catches a gate that needs a remedy."""
    audit = {"arms": [{"name": "yours", "role": "baseline"}],
             "evidence": {"levels": [level("mean:ndcg@10", 0.3, 0.2, 0.4, arm="yours")]}}  # fmt: skip
    assert fail_if(audit, 'mean["ndcg@10"] < 0.5')


def test_names_are_all_documented():
    """Catches a name that the page of the module leaves out."""
    assert {"mean", "gap_low", "change_abs_gap_high", "gap_null", "works"} <= set(names())


def test_disparities_have_the_endings_of_a_gap():
    # catches a statistic that an audit computes and no gate can name
    level = {
        "statistic": "disparity:predicted:group", "metric": "predicted", "grouping": "group", "group": None,
        "arm": "yours", "value": 0.2, "low": 0.1, "high": 0.3, "null": {"expected_abs": 0.02},
        "smallest_detectable": 0.05,
    }  # fmt: skip
    summary = {"arms": [{"name": "yours", "role": "baseline"}], "evidence": {"levels": [level]}}
    for expression in ('disparity["predicted"] == 0.2', 'disparity_low["predicted"] > 0.05',
                       'disparity_null["predicted"] < disparity_detectable["predicted"]'):  # fmt: skip
        assert fail_if(summary, expression)
    with pytest.raises(InputError, match="no client_disparity was computed"):
        fail_if(summary, 'client_disparity["predicted"] > 0')
