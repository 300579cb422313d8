"""Everything that people hand over: what is taken, and what each bad input is told in three parts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification import inputs
from upright.classification.estimator import FedFACTClassifier
from upright.classification.post import FairPost
from upright.contract import InputError

# small worlds have tolerances below the standard error of their gaps; what is said of that is tested by FairPost
pytestmark = pytest.mark.filterwarnings("ignore::upright.classification.post.ToleranceWarning")
GOOD = np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])


def parts(call):
    """The three parts of the error that a call raises."""
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.got, caught.value.accepted, caught.value.todo


# -- probabilities ---------------------------------------------------------------------------------------------------

SHAPE = "pass predict_proba(X); for two classes both columns"
NO_DISTRIBUTION = "numbers of at least 0 that sum to 1 in each row"


@pytest.mark.parametrize(
    ("given_", "classes", "said"),
    [
        ([["a", "b"]], None,
         ("probabilities that are not numbers", "shape (n, classes)", "pass predict_proba(X)")),
        ([[0.1, 0.9], [1.0]], None,
         ("probabilities that are not numbers", "shape (n, classes)", "pass predict_proba(X)")),
        ([0.1, 0.9], None,
         ("probabilities of shape (2,)", "one row a sample and two columns or more, one a class", SHAPE)),
        (np.ones((3, 1)), None,
         ("probabilities of shape (3, 1)", "one row a sample and two columns or more, one a class", SHAPE)),
        (np.ones((0, 2)), None,
         ("probabilities of shape (0, 2)", "one row a sample and two columns or more, one a class", SHAPE)),
        (GOOD, 3, ("probabilities of shape (3, 2)", "one row a sample and 3 columns, one a class", SHAPE)),
        ([[0.2, 0.8], [np.nan, 1.0]], None,
         ("NaN or infinity in probabilities: row 1", "finite numbers", "find out where the model failed")),
        ([[0.2, 0.8], [np.inf, 1.0], [np.nan, 0.0]], None,
         ("NaN or infinity in probabilities: 2 rows, the first of them 1, 2", "finite numbers",
          "find out where the model failed")),
        ([[0.2, 0.8], [0.2, 0.7]], None,
         ("probabilities that are no distribution: row 1 (sum 0.9)", NO_DISTRIBUTION,
          "pass probabilities, not logits or scores")),
        ([[-0.5, 1.5]], None,
         ("probabilities that are no distribution: row 0 (sum 1)", NO_DISTRIBUTION,
          "pass probabilities, not logits or scores")),
    ],
)  # fmt: skip
def test_bad_probabilities_are_refused_in_three_parts(given_, classes, said):
    # catches logits, scores of one class, NaN and ragged rows that would come out as decisions
    assert parts(lambda: inputs.as_probabilities(given_, classes)) == said


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 6))
def test_probabilities_come_back_as_distributions_of_their_own_memory(seed, n, m):
    # catches float32 rows that sum to 1 + 1e-7 being refused or left so, and input that is changed in place
    p = np.random.default_rng(seed).dirichlet(np.ones(m), n).astype(np.float32)
    before = p.copy()
    found = inputs.as_probabilities(p)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-15)
    np.testing.assert_allclose(found, p, atol=1e-6)
    found[:] = 0.0
    np.testing.assert_array_equal(p, before)


# -- sensitive features ----------------------------------------------------------------------------------------------

SEX, RACE = ["f", "m", "f"], ["x", "x", "y"]


@pytest.mark.parametrize(
    ("given_", "names"),
    [
        (SEX, ["group"]),
        (np.array(SEX), ["group"]),
        (np.array(SEX)[:, None], ["group"]),
        (pd.Series(SEX, name="sex"), ["sex"]),
        (pd.Series(SEX), ["group"]),
        (pl.Series("sex", SEX), ["sex"]),
        (pl.Series(SEX), ["group"]),
        (pd.Series(pd.Categorical(SEX), name="sex"), ["sex"]),
        (pd.DataFrame({"sex": SEX, "race": RACE}), ["sex", "race"]),
        (pl.DataFrame({"sex": SEX, "race": RACE}), ["sex", "race"]),
        (pd.DataFrame({"sex": SEX}), ["sex"]),
        ({"sex": SEX, "race": pd.Series(RACE)}, ["sex", "race"]),
        (np.array([SEX, RACE]).T, ["group0", "group1"]),
    ],
)
def test_features_of_every_kind_come_out_by_name(given_, names):
    # catches a library whose columns lose their names, or come out in another order
    found = inputs.as_features(given_, 3)
    assert list(found) == names
    for column, wanted in zip(found.values(), (SEX, RACE), strict=False):
        assert column.tolist() == wanted


def test_numbers_and_booleans_name_groups():
    # catches groups 0 and 1 of a list, an array and a nullable column that would not be the same group
    for column in ([0, 1, 1], np.array([0, 1, 1]), pd.Series([0, 1, 1], dtype="Int64"), pl.Series([0, 1, 1])):
        assert next(iter(inputs.as_features(column, 3).values())).tolist() == ["0", "1", "1"]
    assert inputs.as_features([True, False, True], 3)["group"].tolist() == ["True", "False", "True"]


MISSING = ("sensitive feature 'group' is missing at row 1", "a group for each sample",
           "leave these samples out, or name their group, for example 'unknown'")  # fmt: skip


@pytest.mark.parametrize(
    "given_",
    [
        ["f", None, "m"],
        [0.0, np.nan, 1.0],
        pd.Series([0, None, 1], dtype="Int64"),
        pd.Series(["f", None, "m"]),
        pd.Series(["f", None, "m"], dtype="string"),
        pd.Series(pd.Categorical(["f", None, "m"])),
        pd.Series(pd.to_datetime(["2000-01-01", None, "2000-01-02"])),
        pl.Series(["f", None, "m"]),
        pl.Series([0, None, 1]),
    ],
)
def test_a_missing_group_is_refused_whatever_stands_for_it(given_):
    # catches a group called "nan" or "None", and the NA of pandas, of which nobody knows whether it differs from itself
    assert parts(lambda: inputs.as_features(given_, 3)) == MISSING
    got, accepted, todo = parts(lambda: inputs.as_codes(given_, 3, None))
    assert (got, accepted, todo) == ("clients missing at row 1", "one for each sample", "leave these samples out")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (3, ("sensitive_features of shape ()", "one value a sample, or one column a family of groups",
             "pass a vector, a data frame, or a mapping of name to vector")),
        (np.zeros((3, 2, 2)), ("sensitive_features of shape (3, 2, 2)",
                               "one value a sample, or one column a family of groups",
                               "pass a vector, a data frame, or a mapping of name to vector")),
        (SEX[:2], ("sensitive feature 'group' of shape (2,) for 3 samples", "shape (3,)",
                   "give one value to each sample")),
        ({"sex": SEX[:2]}, ("sensitive feature 'sex' of shape (2,) for 3 samples", "shape (3,)",
                            "give one value to each sample")),
        ({}, ("sensitive_features without a column", "one family of groups or more", "pass a vector")),
        (pd.DataFrame([[1, 2], [1, 2], [1, 2]], columns=["a", "a"]),
         ("sensitive features 'a', 'a'", "one name a column", "rename the columns that share a name")),
    ],
)  # fmt: skip
def test_features_of_the_wrong_shape_are_refused(given_, said):
    # catches a family of groups that is dropped in silence: two columns of one name were one
    assert parts(lambda: inputs.as_features(given_, 3)) == said


# -- clients and labels ----------------------------------------------------------------------------------------------


def test_codes_count_clients_in_their_order_and_strangers_as_minus_one():
    # catches client 10 before client 2, and a stranger that takes the place of a client
    codes, names = inputs.as_codes([10, 2, 2, 1], 4, None)
    assert names == ["1", "2", "10"]
    assert codes.tolist() == [2, 1, 1, 0]
    assert inputs.as_codes(["2", "7"], 2, names)[0].tolist() == [1, -1]
    assert inputs.as_codes(None, 2, None)[1] == ["all"]
    said = ("clients of shape (3,) for 2 samples", "shape (2,)", "give one to each sample")
    assert parts(lambda: inputs.as_codes([1, 2, 3], 2, None)) == said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1], ("labels of shape (2,) for 3 samples", "shape (3,)", "give one to each sample")),
        ([0, None, 1], ("labels missing at row 1", "a label for each sample", "leave these samples out")),
        ([0, np.nan, 1], ("labels missing at row 1", "a label for each sample", "leave these samples out")),
        (pd.Series([0, None, 1], dtype="Int64"),
         ("labels missing at row 1", "a label for each sample", "leave these samples out")),
    ],
)  # fmt: skip
def test_bad_labels_are_refused_by_both_readers(labels, said):
    # catches a missing label that becomes a class of its own
    assert parts(lambda: inputs.as_labels(labels, 3, [0, 1])) == said
    assert parts(lambda: inputs.classes_in(labels, 3)) == said


def test_strange_labels_and_mixed_kinds_are_named():
    # catches a label outside the columns that would count for the first class
    strange = ("labels '2', '3'", "classes 0, 1", "pass `classes` in the order of the columns")
    assert parts(lambda: inputs.as_labels([0, 3, 2], 3, [0, 1])) == strange
    mixed = ("labels of the kinds int, str", "labels of one kind", "make all text, or all numbers")
    assert parts(lambda: inputs.classes_in(np.array([0, "a"], dtype=object), 2)) == mixed
    assert inputs.as_labels(["b", "a", "b"], 3, ["b", "a"]).tolist() == [0, 1, 0]
    assert inputs.classes_in(["b", "a", "b"], 3) == ["a", "b"]


def test_one_hot_gives_nobody_to_a_negative_code():
    # catches code -1 read as the last group
    np.testing.assert_array_equal(inputs.one_hot(np.array([1, -1, 0]), 2), [[0, 1], [0, 0], [1, 0]])


def test_some_names_the_first_few():
    assert inputs.some(["a", "b"]) == "'a', 'b'"
    assert inputs.some([1, 2, 3], most=2) == "1, 2 and 1 more"


def test_rows_of_different_indices_are_not_matched_by_position():
    # catches: groups of one order beside features of another
    X = pd.DataFrame({"x": np.arange(40.0) % 7}, index=range(100, 140))
    y, group = pd.Series(np.arange(40) % 2, index=X.index), pd.Series(["f", "m"] * 20, index=X.index)
    shuffled = group.sample(frac=1, random_state=0)
    with pytest.raises(InputError, match="sensitive_features has another index than X"):
        FedFACTClassifier().fit(X, y, sensitive_features=shuffled)
    fitted = FedFACTClassifier().fit(X, y, sensitive_features=shuffled.loc[X.index])
    with pytest.raises(InputError, match="sensitive_features has another index than X"):
        fitted.predict(X, sensitive_features=shuffled)
    proba = pd.DataFrame(np.full((40, 2), 0.5), index=X.index)
    with pytest.raises(InputError, match="sensitive_features has another index than proba"):
        FairPost().fit(proba, y, sensitive_features=shuffled)
