"""The saved table: what it decides, what it says in JSON, and the ten lines of NumPy that apply it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification.post import FairPost
from upright.classification.table import FairTable
from upright.contract import InputError
from upright.maths.parity.rates import CRITERIA

# small worlds have tolerances below the standard error of their gaps; what is said of that is tested by FairPost
pytestmark = pytest.mark.filterwarnings("ignore::upright.classification.post.ToleranceWarning")


def world(seed=0, n=900, m=3, groups=3, clients=3):
    """Probabilities that differ by group and client, labels drawn from them."""
    rng = np.random.default_rng(seed)
    g, k = rng.integers(0, groups, n), rng.integers(0, clients, n)
    z = 1.2 * rng.normal(size=(n, m)) + 0.7 * np.eye(m)[g % m] + 0.3 * np.eye(m)[(k + 1) % m]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    return p, y, np.array([f"g{i}" for i in g]), np.array([f"k{i}" for i in k])


def fitted(criterion="demographic_parity", seed=0, **settings):
    p, y, g, k = world(seed)
    features = {"race": g, "sex": np.where(np.random.default_rng(seed).random(len(p)) < 0.4, "f", "m")}
    post = FairPost(criterion, global_tol=0.02, local_tol=0.05, **settings)
    return post.fit(p, y, sensitive_features=features, clients=k), p, features, k


def apply(table, p, features, clients):
    """Decide with the saved JSON and NumPy alone."""
    first = table["constraints"][0]
    if table["calibration"]:
        own = [table["calibration"][g] for g in features[first["feature"]]]
        a, b = (np.array([one[name] for one in own]) for name in ("matrix", "bias"))
        p = np.exp(np.einsum("ni,nij->nj", np.log(np.maximum(p, 1e-12)), a) + b)
        p = p / p.sum(1, keepdims=True)
    strata = {"demographic_parity": [1 + 0 * p], "equal_opportunity": [p], "equalized_odds": [p, 1 - p],
              "equalized_odds_cells": [p[:, [c]] for c in range(p.shape[1])]}  # fmt: skip
    z = p.copy()
    for c in table["constraints"]:
        group = [c["groups"].index(g) for g in features[c["feature"]]]
        client = [list(c["by_client"]).index(k) for k in clients]
        v = np.array(list(c["by_client"].values()))[client, :, group]  # (n, strata, classes)
        z -= sum(f * v[:, s] for s, f in enumerate(strata[c["criterion"]]))
    return z


@pytest.mark.parametrize("criterion", CRITERIA)
def test_plain_numpy_applies_the_saved_table(criterion, tmp_path):
    # catches a file that leaves out a part of the decision, or states its axes wrongly
    post, p, features, k = fitted(criterion)
    table = json.loads(post.table_.save(tmp_path / "table.json").read_text())
    new, _, g, sites = world(seed=7)
    others = {"race": g, "sex": features["sex"][::-1]}
    for rows, own, at in ((p, features, k), (new, others, sites)):
        z = apply(table, rows, own, at)
        np.testing.assert_allclose(z, post.scores(rows, sensitive_features=own, clients=at), atol=1e-12)
        np.testing.assert_array_equal(
            np.array(table["classes"])[z.argmax(1)],
            post.predict(rows, sensitive_features=own, clients=at).astype(str),
        )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_json_gives_the_same_table_back(criterion, tmp_path):
    # catches numbers that lose digits on the way, and a field that is not saved
    post, p, features, k = fitted(criterion, randomised=True)
    again = FairTable.load(post.table_.save(tmp_path / "table.json"))
    assert json.dumps(again.as_dict()) == json.dumps(post.table_.as_dict())
    for field in dataclasses.fields(FairTable):
        assert type(getattr(again, field.name)) is type(getattr(post.table_, field.name))
    members = again.members({f: again.place(f, {f: c}, "error") for f, c in features.items()})
    client = np.array([again.clients.index(name) for name in k])
    before = post.scores(p, sensitive_features=features, clients=k)
    np.testing.assert_allclose(again.scores(p, members, client), before, atol=1e-14)
    np.testing.assert_array_equal(again.decide(before), post.table_.decide(before))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"schema": "upright.other/1"}', "KeyError"),
        ('{"schema": "upright.fair_table/1"}', "KeyError"),
        ('{"schema": "upright.fair_table/1", "constraints": [{"feature": 1}], "classes": []}', "KeyError"),
    ],
)
def test_a_file_that_is_no_table_is_refused(text, why, tmp_path):
    # catches a traceback of json in place of words, and another schema that is read as this one
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        FairTable.load(path)
    assert caught.value.got.startswith(f"broken.json: {why}")
    assert caught.value.accepted == "JSON that save wrote, schema upright.fair_table/1"
    assert caught.value.todo == "save the table again"
    with pytest.raises(InputError, match=r"absent\.json: FileNotFoundError"):
        FairTable.load(tmp_path / "absent.json")


def test_rows_name_every_adjustment():
    # catches axes that are swapped in what an auditor reads
    post, *_ = fitted("equalized_odds")
    table, rows = post.table_, post.table_.rows()
    assert len(rows) == sum(v.size for one in table.tables for v in one)
    for row in rows[:: len(rows) // 40]:
        c, k = table.features.index(row["feature"]), table.clients.index(row["client"])
        g, j = table.groups[row["feature"]].index(row["group"]), table.classes.index(row["class"])
        assert row["adjustment"] == table.tables[k][c][row["stratum"], g, j]
        assert row["criterion"] == "equalized_odds"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_adjustments_are_averaged_over_an_unknown_group(seed):
    # catches an unknown group that is the first one, or nobody: its scores are the mean of all groups' by their shares
    post, p, features, k = fitted(seed=seed % 3)
    table, rng = post.table_, np.random.default_rng(seed)
    some = rng.permutation(len(p))[:20]
    client = np.array([table.clients.index(name) for name in k[some]])
    sex = table.place("sex", {"sex": features["sex"][some]}, "error")
    codes = {"race": np.full(20, -1), "sex": sex}
    unknown = table.scores(p[some], table.members(codes), client)
    each = [table.scores(p[some], table.members(codes | {"race": np.full(20, g)}), client) for g in range(3)]
    np.testing.assert_allclose(unknown, np.tensordot(table.shares["race"], each, 1), atol=1e-12)
    np.testing.assert_allclose(table.shares["race"], [(features["race"] == g).mean() for g in table.groups["race"]])


def test_an_unknown_client_has_the_common_part_alone():
    # catches an unknown client that gets the last one's adjustments (index -1)
    post, p, features, _ = fitted()
    table = post.table_
    members = table.members({f: table.place(f, {f: c}, "error") for f, c in features.items()})
    common = dataclasses.replace(table, tables=(table.common,) * 3)
    found = table.scores(p, members, np.full(len(p), -1))
    np.testing.assert_array_equal(found, common.scores(p, members, np.zeros(len(p), dtype=np.int64)))
    assert np.abs(found - table.scores(p, members, np.full(len(p), 2))).max() > 1e-3


def test_the_randomised_decision_is_a_distribution_at_any_score():
    # catches overflow of the softmax at a small temperature
    table = fitted()[0].table_
    h = table.decide(np.array([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(h, [[1, 0, 0], [1 / 3] * 3], atol=1e-15)


def test_place_names_features_and_groups_that_are_strange():
    table = fitted()[0].table_
    with pytest.raises(InputError) as caught:
        table.place("race", {"Race": np.array(["g0"])}, "error")
    assert caught.value.args == ("no sensitive feature 'race' among 'Race'", "'race', 'sex'",
                                 "pass the features that the fit had, under the same names")  # fmt: skip
    with pytest.raises(InputError) as caught:
        table.place("race", {"race": np.array(["g0", "g9"])}, "error")
    assert caught.value.args == (
        "groups of 'race' that the fit did not see: 'g9'", "'g0', 'g1', 'g2'",
        "fit with samples of these groups, or set unknown='common' to treat them as the average of the groups",
    )  # fmt: skip
    assert table.place("race", {"race": np.array(["g1", "g9"])}, "common").tolist() == [1, -1]


def test_strangers_are_refused_or_treated_as_the_average():
    p, _, g, k = world(15, groups=2)
    post = FairPost(local_tol=0.05).fit(p, sensitive_features=g, clients=k)
    strange, elsewhere = np.where(np.arange(len(g)) == 3, "g9", g), np.where(np.arange(len(k)) == 4, "k8", k)
    with pytest.raises(InputError, match="groups of 'group' that the fit did not see: 'g9'"):
        post.predict(p, sensitive_features=strange, clients=k)
    with pytest.raises(InputError, match="clients that the fit did not see: 'k8'"):
        post.predict(p, sensitive_features=g, clients=elsewhere)
    with pytest.raises(InputError, match="no clients, and the table has 3"):
        post.predict(p, sensitive_features=g)
    post.set_params(unknown="common")
    known = post.scores(p, sensitive_features=g, clients=k)
    for features, clients, row in ((strange, k, 3), (g, elsewhere, 4)):
        z = post.scores(p, sensitive_features=features, clients=clients)
        changed = np.flatnonzero((z != known).any(1))
        assert changed.tolist() == [row]
    alone = post.scores(p, sensitive_features=g)
    np.testing.assert_array_equal(alone[4], z[4])  # no client at all is a client that is not known
