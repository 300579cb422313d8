"""The task of classification: who sees which rows, what a row is worth, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.tabular import encode, synthetic_table
from upright.experiment.folders import ArmRun
from upright.maths.parity.rates import CRITERIA
from upright.tasks.classify import Classify, ClassifyConfig, rate_values


def task(n=1200, groups=3, classes=3, clients=3, seed=0, **changes):
    settings = {"data": "synthetic", "clients": clients, "least": 5, "gamma": 5.0} | changes
    return Classify(
        synthetic_table(n, groups=groups, classes=classes, clients=clients, seed=seed), ClassifyConfig(**settings)
    )


def run(seed=0, arm="none"):
    return ArmRun(None, seed, arm)


class Fixed:
    """Decisions that are given."""

    def __init__(self, decide):
        self.decide = decide


def constant(m, j):
    return Fixed(lambda x, group, client: np.tile(np.eye(m)[j], (len(x), 1)))


# -- layouts ---------------------------------------------------------------------------------------------------------


def test_arms_meet_the_same_layout_and_seeds_another():
    # catches a layout that is drawn from a stream of the arm: pairs of rows would be no pairs
    one, other = task(), task()
    a, b, c = one.layout(run(0, "none")), other.layout(run(0, "fedfact")), other.layout(run(1, "none"))
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.client, b.client)
    for part in ("train", "valid", "test"):
        np.testing.assert_array_equal(a.rows[part], b.rows[part])
        assert (len(a.rows[part]) != len(c.rows[part])) or (a.rows[part] != c.rows[part]).any()
    assert (a.client != c.client).any()


@pytest.mark.parametrize("kind", ["dirichlet", "correlation", "iid"])
@pytest.mark.parametrize(("test", "valid"), [(0.4, 0.5), (0.2, 0.25)])
def test_parts_have_the_stated_shares_of_each_client_and_group(kind, test, valid):
    # catches a share of all rows that leaves a small group at one client without test rows
    t = task(partition=kind, test_share=test, calibration_share=valid)
    laid = t.layout(run())
    assert sorted(np.concatenate(list(laid.rows.values())).tolist()) == list(range(t.n))
    for k in range(3):
        for g in range(3):
            cell = (laid.client == k) & (t.group == g)
            n = int(cell.sum())
            sizes = {p: int(cell[r].sum()) for p, r in laid.rows.items()}
            assert sizes["test"] == round(test * n)
            assert sizes["valid"] == round(valid * (n - sizes["test"]))
    assert sorted(set(laid.client.tolist())) == [0, 1, 2]


def test_features_are_encoded_as_the_training_rows_say():
    # catches test rows that decide a range: the largest number of all rows would be 1 everywhere
    t = task()
    laid = t.layout(run())
    x, names = encode(t.table, laid.rows["train"])
    np.testing.assert_array_equal(laid.x, x)
    assert laid.names == tuple(names)
    assert "group" not in laid.names
    numbers = laid.x[laid.rows["train"]][:, :3]
    np.testing.assert_allclose([numbers.min(0), numbers.max(0)], [[0.0] * 3, [1.0] * 3])
    assert laid.x.max() > 1.0


def test_methods_get_training_and_calibration_rows_alone():
    t = task()
    laid = t.layout(run())
    for part in ("train", "valid"):
        x, y, g, k = t.part(run(), part)
        rows = laid.rows[part]
        np.testing.assert_array_equal(x, laid.x[rows])
        np.testing.assert_array_equal(y, t.label[rows])
        np.testing.assert_array_equal(g, t.group[rows])
        np.testing.assert_array_equal(k, laid.client[rows])


def test_sites_can_be_a_column_and_then_are_no_feature(tmp_path):
    # catches a site that the model reads off its own column
    table = synthetic_table(1200, clients=4, seed=0)
    t = Classify(table, ClassifyConfig(data="synthetic", partition="column", client_column="site"))
    assert t.clients == ["s0", "s1", "s2", "s3"]
    np.testing.assert_array_equal(np.array(t.clients)[t.layout(run(0)).client], table.columns["site"])
    np.testing.assert_array_equal(t.layout(run(0)).client, t.layout(run(1)).client)
    path = tmp_path / "rows.csv"
    rows = zip(*(table.columns[c] for c in ("x1", "kind", "group", "site", "label")), strict=True)
    path.write_text("x1,kind,group,site,label\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))
    own = Classify.load(ClassifyConfig(data=str(path), label="label", group="group", partition="column",
                                       client_column="site"))  # fmt: skip
    assert own.table.features == ("x1", "kind")
    assert own.clients == ["s0", "s1", "s2", "s3"]


def test_fewer_rows_are_drawn_and_stay_the_same():
    # catches another draw with each seed of the run: it belongs to split_seed
    a, b, c = (task(most_rows=600, split_seed=s) for s in (0, 0, 1))
    assert a.n == 600
    np.testing.assert_array_equal(a._table_rows, b._table_rows)
    assert (a._table_rows != c._table_rows).any()
    found = Classify.score(a, constant(3, 0), "valid", run())
    assert set(found.unit) <= set(a._table_rows.tolist())
    np.testing.assert_array_equal(a.label, a.table.label[a._table_rows])


def test_counts_and_facts_say_what_there_is():
    t = task(groups=2, classes=2)
    rows = t.counts(run())
    assert sum(r["n"] for r in rows) == 1200
    laid = t.layout(run())
    for r in rows:
        own = (laid.client == int(r["client"])) & (np.array(t.groups)[t.group] == r["group"])
        assert r["n"] == (t.label[own] == t.classes.index(r["label"])).sum()
    assert t.facts["groups"] == {g: int((t.group == i).sum()) for i, g in enumerate(t.groups)}
    assert (t.facts["rows"], t.facts["classes"], t.facts["clients"]) == (1200, ["c0", "c1"], 3)


def test_products_and_cuts_make_groups():
    table = synthetic_table(1200, clients=2, seed=0)
    t = Classify(table, ClassifyConfig(data="synthetic", clients=2, group="group*kind", least=1))
    assert sorted(t.groups.tolist()) == [f"g{i} & {c}" for i in (0, 1) for c in "abc"]
    cut = Classify(table, ClassifyConfig(data="synthetic", clients=2, group="x1<0", least=1))
    assert sorted(cut.groups.tolist()) == ["x1<0", "x1>=0"]
    np.testing.assert_array_equal(np.array(cut.groups)[cut.group] == "x1<0", table.columns["x1"] < 0)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_test_rows_are_refused_until_they_are_opened():
    # catches a method that selects on test
    t = task()
    with pytest.raises(InputError) as caught:
        t.score(constant(3, 0), "test", run())
    assert caught.value.args == (
        "the test split inside a method", "split='valid'", "select on validation; the runner scores"
    )  # fmt: skip
    t.open_test()
    assert len(t.score(constant(3, 0), "test", run()).unit) == len(t.layout(run()).rows["test"])


def test_rows_are_scored_where_they_stand():
    # catches groups, clients or labels of other rows beside a value
    t = task()
    laid = t.layout(run())
    rows = laid.rows["valid"]
    h = np.random.default_rng(0).dirichlet(np.ones(3), len(rows))

    def decide(x, group, client):
        np.testing.assert_array_equal(x, laid.x[rows])
        np.testing.assert_array_equal(group, t.group[rows])
        np.testing.assert_array_equal(client, laid.client[rows])
        return h

    found = t.score(Fixed(decide), "valid", run())
    assert list(found.unit) == rows.tolist()
    np.testing.assert_array_equal(found.values["accuracy"], h[np.arange(len(rows)), t.label[rows]])
    assert found.by["group"] == [f"g{i}" for i in t.group[rows]]
    assert found.by["client"] == [str(i) for i in laid.client[rows]]
    assert found.by["label"] == [f"c{i}" for i in t.label[rows]]


@pytest.mark.parametrize(
    "bad", [np.ones((3, 3)), np.full((240, 3), np.nan), np.full((240, 3), 0.5), np.full((240, 2), 0.5)]
)
def test_decisions_that_are_no_distribution_are_refused(bad):
    t = task(n=800, test_share=0.4, calibration_share=0.5)
    n = len(t.layout(run()).rows["valid"])
    bad = np.resize(bad, (n, bad.shape[1])) if len(bad) == 240 else bad
    with pytest.raises(InputError) as caught:
        t.score(Fixed(lambda x, g, k: bad), "valid", run())
    assert caught.value.args == (
        f"decisions of shape {bad.shape}", "one distribution over 3 classes a row",
        "return the probability of each decision",
    )  # fmt: skip


NAN = np.nan
H2 = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]])
Y2 = np.array([0, 1, 0])
H3 = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
Y3 = np.array([0, 1, 0])


@pytest.mark.parametrize(
    ("criterion", "two", "three"),
    [
        ("demographic_parity", {"b": [0.1, 0.8, 1.0]},
         {"a": [0.7, 0.0, 0.3], "b": [0.2, 1.0, 0.3], "c": [0.1, 0.0, 0.4]}),
        ("equal_opportunity", {"b": [NAN, 0.8, NAN]},
         {"a": [0.7, NAN, 0.3], "b": [NAN, 1.0, NAN], "c": [NAN] * 3}),
        ("equalized_odds", {"b, true positive": [NAN, 0.8, NAN], "b, false positive": [0.1, NAN, 1.0]},
         {"a, true positive": [0.7, NAN, 0.3], "b, true positive": [NAN, 1.0, NAN], "c, true positive": [NAN] * 3,
          "a, false positive": [NAN, 0.0, NAN], "b, false positive": [0.2, NAN, 0.3],
          "c, false positive": [0.1, 0.0, 0.4]}),
        ("equalized_odds_cells", {"b, label a": [0.1, NAN, 1.0], "b, label b": [NAN, 0.8, NAN]},
         {"a, label a": [0.7, NAN, 0.3], "b, label a": [0.2, NAN, 0.3], "c, label a": [0.1, NAN, 0.4],
          "a, label b": [NAN, 0.0, NAN], "b, label b": [NAN, 1.0, NAN], "c, label b": [NAN, 0.0, NAN],
          "a, label c": [NAN] * 3, "b, label c": [NAN] * 3, "c, label c": [NAN] * 3}),
    ],
)  # fmt: skip
def test_rates_by_hand(criterion, two, three):
    # catches a rate that counts a row it is not about, and a name on another rate
    for h, y, classes, wanted in ((H2, Y2, ("a", "b"), two), (H3, Y3, ("a", "b", "c"), three)):
        found = rate_values(criterion, h, y, classes)
        assert list(found) == [f"rate/{name}" for name in wanted]
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[f"rate/{name}"], values)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(CRITERIA), st.integers(2, 4))
def test_rates_are_declared_as_metrics_and_finite_where_they_count(seed, criterion, m):
    # catches a value without a metric, which no report would show
    t = task(n=900, classes=m, seed=seed % 3, criterion=criterion)
    found = t.score(constant(m, 1), "valid", run(seed))
    names = set(t.metrics) - {"rate"}
    assert set(found.values) == names
    assert set(Classify.metrics_of({"criterion": criterion})) == {"accuracy", "rate"}
    assert found.values["accuracy"].mean() == pytest.approx(np.mean([v == "c1" for v in found.by["label"]]))
    for name in names - {"accuracy"}:
        values = found.values[name][~np.isnan(found.values[name])]
        assert set(values.tolist()) <= {1.0 if name.startswith("rate/c1") else 0.0}
        assert len(values)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "column"}, ("partition = 'column' with client_column = None",
                                   "a client_column with partition='column' alone", "set both or neither")),
        ({"client_column": "site"}, ("partition = 'dirichlet' with client_column = 'site'",
                                     "a client_column with partition='column' alone", "set both or neither")),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(InputError) as caught:
        ClassifyConfig(**changes)
    assert caught.value.args == said


def test_none_can_be_written_on_a_command_line():
    # catches a column called "none" that nobody has
    config = ClassifyConfig(label="none", positive="None", client_column="")
    assert (config.label, config.positive, config.client_column) == (None, None, None)


def test_parts_without_a_class_are_refused():
    # catches a model that never met a class and is asked for its probability
    table = synthetic_table(60, classes=2, seed=0)
    label = np.zeros(60, dtype=np.int64)
    label[0] = 1
    t = Classify(dataclasses.replace(table, label=label), ClassifyConfig(data="synthetic", clients=1, least=1))
    with pytest.raises(InputError) as caught:
        t.layout(run())
    assert caught.value.args[1:] == ("every class in every part", "use more rows, or merge rare classes")
    assert caught.value.got.endswith("rows without one of the classes c0, c1")
    with pytest.raises(InputError) as caught:
        Classify(synthetic_table(9, seed=0), ClassifyConfig(data="synthetic"))
    assert caught.value.args == ("9 rows", "10 rows or more", "use a larger table")


def test_rows_of_one_person_are_a_cluster_and_the_person_is_no_feature():
    # catches rows of one person that are drawn apart, and an identity that the model may learn
    table = synthetic_table(900, clients=3, seed=0)
    persons = np.array([f"p{i // 3}" for i in range(900)], dtype=object)
    table = dataclasses.replace(table, columns={**table.columns, "who": persons})
    t = Classify(table, ClassifyConfig(data="synthetic", clients=3, least=5, gamma=5.0, person="who"))
    t.open_test()
    scores = t.score(constant(2, 0), "test", run())
    assert list(scores.cluster) == [persons[int(u)] for u in scores.unit]
    assert list(task().score(constant(3, 0), "valid", run()).cluster) == []
    with pytest.raises(InputError, match="person"):
        Classify(table, ClassifyConfig(data="synthetic", clients=3, person="whom"))
