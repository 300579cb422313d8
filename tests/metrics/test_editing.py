"""Metrics of edits by hand, and what each of them may not hide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hmean

from upright.contract import InputError
from upright.metrics.editing import ENVIRONMENTS, METRICS, edit_values, ordered_top10, positionwise_top1

WANTED = ("edit", "text", "image", "joint", "portability")
KEPT = tuple(name for name in ENVIRONMENTS if name not in WANTED)


def one_edit(**scores):
    """Return the values of one edit from lists of scores by environment."""
    rows = [(name, value) for name, values in scores.items() for value in values]
    _, values = edit_values(["a"] * len(rows), [name for name, _ in rows], [value for _, value in rows])
    return {name: float(value[0]) for name, value in values.items()}


def test_values_by_hand():
    # catches: questions pooled over environments, edits in another order, an environment under another's name
    rows = [
        ("b", "edit", 1, 1),
        ("b", "text", 1, 0),
        ("b", "text", 0, 0),
        ("a", "edit", 0, 1),
        ("b", "unrelated_text", 1, 1),
    ]
    edits, values = edit_values(*map(list, zip(*rows, strict=True)))
    assert edits == ["b", "a"]
    assert set(values) == set(METRICS)
    np.testing.assert_array_equal(values["reliability"], [1.0, 0.0])
    np.testing.assert_array_equal(values["reliability_written"], [1.0, 1.0])
    np.testing.assert_array_equal(values["text_generality"], [0.5, np.nan])
    np.testing.assert_array_equal(values["image_generality"], [np.nan, np.nan])
    np.testing.assert_array_equal(values["text_locality"], [1.0, np.nan])
    np.testing.assert_array_equal(values["edit_score"], [3 / (1 + 2 + 1), np.nan])
    np.testing.assert_array_equal(values["edit_score_written"], [0.0, np.nan])
    np.testing.assert_array_equal(values["worst_environment"], [0.5, 0.0])


def test_a_model_that_answers_the_target_to_everything_scores_nothing():
    everywhere = {name: [1.0] for name in WANTED} | {name: [0.0] for name in KEPT}
    untouched = {name: [0.0] for name in WANTED} | {name: [1.0] for name in KEPT}
    assert one_edit(**everywhere)["edit_score"] == one_edit(**untouched)["edit_score"] == 0.0
    assert one_edit(**{name: [1.0] for name in ENVIRONMENTS})["edit_score"] == 1.0


def test_the_score_is_not_there_without_its_locality():
    # catches: generality that is shown by itself
    assert np.isnan(one_edit(edit=[1], text=[1])["edit_score"])
    assert np.isnan(one_edit(edit=[0], text=[1])["edit_score"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.just(0.0) | st.floats(1e-3, 1), min_size=10, max_size=10))
def test_the_score_is_the_harmonic_mean_of_three_means(values):
    # catches: five environments of generality and locality in one mean, slices that are hard beside those that are not
    found = one_edit(**{name: [value] for name, value in zip(ENVIRONMENTS, values, strict=True)})
    own = dict(zip(ENVIRONMENTS, values, strict=True))
    three = [own["edit"], np.mean([own[n] for n in ("text", "image", "joint")])]
    three.append(np.mean([own["unrelated_text"], own["unrelated_image"]]))
    assert found["edit_score"] == pytest.approx(hmean(three) if min(three) > 0 else 0.0)
    assert found["worst_environment"] == min(value for name, value in own.items() if name != "portability")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40))
def test_the_order_of_the_questions_changes_nothing(seed, n):
    rng = np.random.default_rng(seed)
    edit, name, value = rng.integers(0, 4, n).astype(str), rng.choice(list(ENVIRONMENTS), n), rng.integers(0, 2, n)
    order = rng.permutation(n)
    edits, values = edit_values(list(edit), list(name), value)
    again, others = edit_values(list(edit[order]), list(name[order]), value[order])
    for metric in values:
        found = dict(zip(again, others[metric], strict=True))
        np.testing.assert_allclose(values[metric], [found[one] for one in edits])


def test_every_metric_has_a_direction_and_a_margin():
    assert {one.direction for one in METRICS.values()} == {"higher"}
    assert {one.margin for one in METRICS.values()} == {0.02}
    assert len({one.title for one in METRICS.values()}) == len(METRICS) == 24


def test_what_the_reference_code_calls_locality():
    # catches: lists that are compared as sets, a share of the answer alone
    before = np.arange(20).reshape(2, 10)
    after = before.copy()
    after[0, [8, 9]] = after[0, [9, 8]]
    assert ordered_top10(before, after) == 0.9
    assert positionwise_top1(before[:, 0], after[:, 0]) == 1.0
    assert positionwise_top1([1, 2, 3, 4], [1, 2, 3, 5]) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edit_values(["a"], ["tezt"], [1]), f"environment 'tezt'\n  accepted: {', '.join(ENVIRONMENTS)}\n"
                                                    "  to do:    rename it"),
        (lambda: edit_values(["a"], ["edit"], [float("nan")]),
         "1 edits, 1 environments and values of shape (1,)\n  accepted: one value in [0, 1] a question\n"
         "  to do:    align them, and leave out what was not measured"),
        (lambda: edit_values(["a"], ["edit"], [1, 0]),
         "1 edits, 1 environments and values of shape (2,)\n  accepted: one value in [0, 1] a question\n"
         "  to do:    align them, and leave out what was not measured"),
        (lambda: positionwise_top1([], []), "ids of shapes (0,) and (0,)\n  accepted: equal shapes of 1 axes, not "
                                            "empty\n  to do:    read the same positions before and after"),
        (lambda: ordered_top10([[1, 2]], [[1]]), "ids of shapes (1, 2) and (1, 1)\n  accepted: equal shapes of 2 axes, "
                                                 "not empty\n  to do:    read the same positions before and after"),
    ],
)  # fmt: skip
def test_bad_values(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == message
