"""Tables: files, groups, features against scikit-learn, a planted table."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder

from upright.contract import InputError
from upright.data.tabular import Table, _scores, encode, groups_of, load_table, synthetic_table

GOOD = (
    "age,job,sex,city,hired\n23,clerk,F,A,no\n31,cook,M,A,yes\n\n47,,F,B,yes\n52,cook,M,B,no\n19,clerk,M,A,no\n"
    "64,,F,B,yes\n"
)
NAMED = {"label": "hired", "sensitive": ("sex",)}


def write(folder: Path, text: str | bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- a person's file ------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_table(tmp_path):
    # catches a label among the features, columns out of step after a blank line, and an empty category thrown away
    table = load_table(write(tmp_path, GOOD), **NAMED)
    assert (table.name, len(table)) == ("people.csv", 6)
    assert table.features == ("age", "job", "city")
    assert table.sensitive == ("sex",)
    assert table.classes == ("no", "yes")
    assert table.label.tolist() == [0, 1, 1, 0, 0, 1]
    assert table.columns["age"].tolist() == [23, 31, 47, 52, 19, 64]
    assert table.columns["job"].tolist() == ["clerk", "cook", "", "cook", "clerk", ""]
    assert table.columns["hired"].tolist() == ["no", "yes", "yes", "no", "no", "yes"]
    assert table.columns["age"].dtype == np.float64
    assert table.facts["rows_read"] == table.facts["rows"] == 6
    assert table.facts["rows_dropped"] == {}
    assert table.facts["left_out_of_features"] == {"hired": "the label", "sex": "sensitive"}
    json.dumps(dict(table.facts))


def test_csv_tsv_and_parquet_give_one_table(tmp_path):
    # catches a separator that is guessed, numbers read as text in one of the formats, and a fingerprint of the file
    one = load_table(write(tmp_path, GOOD), **NAMED)
    two = load_table(str(write(tmp_path, GOOD.replace(",", "\t"), "people.tsv")), **NAMED)
    frame = pl.read_csv(io.StringIO(GOOD.replace("\n\n", "\n")))
    frame.write_parquet(tmp_path / "people.parquet")
    three = load_table(tmp_path / "people.parquet", **NAMED)
    assert one.fingerprint == two.fingerprint == three.fingerprint


def test_the_types_of_a_parquet_file(tmp_path):
    # catches whole labels that become 0.0, booleans and numbers that text= does not turn into categories
    frame = pl.DataFrame(
        {
            "y": [1.0, 0.0, 1.0, None], "zip": [10115, 10117, 10115, 10117], "member": [True, None, False, True],
            "sex": pl.Series(["F", "M", "F", "M"], dtype=pl.Categorical), "born": pl.Series([1, 2, 3, 4]).cast(pl.Date),
        }
    )  # fmt: skip
    frame.write_parquet(tmp_path / "t.parquet")
    table = load_table(tmp_path / "t.parquet", label="y", sensitive="sex", missing="drop", text="zip", drop="born")
    assert table.classes == ("0", "1")
    assert table.label.tolist() == [1, 0, 1]
    assert table.columns["zip"].tolist() == ["10115", "10117", "10115"]
    assert table.columns["member"].tolist() == ["true", "", "false"]
    assert table.facts["rows_dropped"] == {"no y": 1}
    with pytest.raises(InputError, match=r"row 4: 1 missing 'y'"):
        load_table(tmp_path / "t.parquet", label="y", sensitive="sex", drop="born")
    frame.with_columns(member=pl.Series([[1], [2], [3], [4]])).write_parquet(tmp_path / "n.parquet")
    with pytest.raises(InputError) as error:
        load_table(tmp_path / "n.parquet", label="y", sensitive="sex")
    assert error.value.got == "n.parquet: 'member' has type List(Int64)"


def test_classes_that_are_numbers_stand_in_the_order_of_the_numbers(tmp_path):
    # catches 10 before 9, and text in the order of the file
    rows = [f"{y},{y % 2},{'FM'[y % 2]}" for y in (10, 9, 2, 10)]
    table = load_table(write(tmp_path, "y,x,sex\n" + "\n".join(rows)), label="y", sensitive="sex")
    assert table.classes == ("2", "9", "10")
    assert table.label.tolist() == [2, 1, 0, 2]


def test_positive_is_the_last_class(tmp_path):
    # catches classes turned round without their labels
    path = write(tmp_path, GOOD)
    table = load_table(path, positive="no", **NAMED)
    assert table.classes == ("yes", "no")
    assert [table.classes[code] for code in table.label] == table.columns["hired"].tolist()
    assert load_table(path, positive="yes", **NAMED).classes == ("no", "yes")
    with pytest.raises(InputError) as error:
        load_table(path, positive="maybe", **NAMED)
    assert error.value.got == "positive = 'maybe' for the classes 'no', 'yes'"


def test_rows_left_out_are_counted(tmp_path):
    # catches rows dropped without a word, and a row counted for two reasons
    text = "age,sex,y\n23,F,no\n,M,yes\n30,,yes\n31,M,\n,,no\n40,M,yes\nnan,F,no\n"
    table = load_table(write(tmp_path, text), label="y", sensitive="sex", missing="drop")
    assert table.columns["age"].tolist() == [23, 40]
    assert (table.facts["rows_read"], table.facts["rows"]) == (7, 2)
    assert table.facts["rows_dropped"] == {"no age": 3, "no sex": 1, "no y": 1}


def test_a_cut_is_a_sensitive_column(tmp_path):
    # catches the number itself left among the features, a wrong side of the bound, and a second spelling
    table = load_table(write(tmp_path, GOOD), label="hired", sensitive=("age < 31", "sex"))
    assert table.sensitive == ("age<31", "sex")
    assert table.features == ("job", "city")
    expected = ["age<31", "age>=31", "age>=31", "age>=31", "age<31", "age>=31"]
    assert table.columns["age<31"].tolist() == groups_of(table, ["age<31"]).tolist() == expected
    assert groups_of(table, ["age<=31"]).tolist() == [
        "age<=31" if age <= 31 else "age>31" for age in table.columns["age"]
    ]
    assert groups_of(table, ["age>50"]).tolist() == [
        "age>50" if age > 50 else "age<=50" for age in table.columns["age"]
    ]
    ranges = load_table(write(tmp_path, GOOD), label="hired", sensitive="age:31,52").columns["age:31,52"]
    assert ranges.tolist() == ["age<31", "age 31 to 52", "age 31 to 52", "age>=52", "age<31", "age>=52"]
    with pytest.raises(InputError, match="'job<3' cuts 'job', which is text"):
        groups_of(table, ["job<3"])


def test_the_fingerprint_covers_what_a_result_depends_on(tmp_path):
    # catches a fingerprint of the name, and one that misses a cell, the label, or the choice of features
    table = load_table(write(tmp_path, GOOD), **NAMED)
    assert load_table(write(tmp_path, GOOD, "copy.csv"), **NAMED).fingerprint == table.fingerprint
    others = [
        load_table(write(tmp_path, GOOD.replace("47", "48")), **NAMED),
        load_table(write(tmp_path, GOOD.replace("cook", "cooc", 1)), **NAMED),
        load_table(write(tmp_path, GOOD), label="hired", sensitive=("city",)),
        load_table(write(tmp_path, GOOD), drop="age", **NAMED),
        load_table(write(tmp_path, GOOD), positive="no", **NAMED),
        dataclasses.replace(table, label=table.label[::-1].copy()),
        dataclasses.replace(table, features=("job", "city")),
    ]
    assert len({table.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert toy(x=["ab", "c"]).fingerprint != toy(x=["a", "bc"]).fingerprint


def test_a_table_is_checked_when_it_is_made():
    # catches columns of another length, which numpy would broadcast or cut
    table = synthetic_table(8, seed=0)
    for change, got in (
        ({"label": table.label[:4]}, "column 'x1' of shape (8,)"),
        ({"features": ("x1", "x3")}, "no column 'x3'; did you mean 'x2' or 'x1'?"),
        ({"label": table.label + 1}, f"labels from {1 + table.label.min()} to 2"),
    ):
        with pytest.raises(InputError) as error:
            dataclasses.replace(table, **change)
        assert error.value.got == got


# -- groups ---------------------------------------------------------------------------------------------------------


def toy(**columns) -> Table:
    arrays = {
        name: np.array(values, dtype=object if isinstance(values[0], str) else np.float64)
        for name, values in columns.items()
    }
    n = len(next(iter(arrays.values())))
    return Table("toy", arrays, tuple(arrays), (next(iter(arrays)),), np.zeros(n, dtype=np.int64), ("a", "b"))


def test_groups_of_several_columns():
    # catches the product in another order, and numbers written as 1.0
    table = toy(sex=["F", "M", "F"], level=[1, 2.5, 10], age=[30, 20, 10])
    assert groups_of(table, ["sex", "level"]).tolist() == ["F & 1", "M & 2.5", "F & 10"]
    assert groups_of(table, ["level", "age<25"]).tolist() == ["1 & age>=25", "2.5 & age<25", "10 & age<25"]
    assert groups_of(table, "sex").tolist() == ["F", "M", "F"]


def test_groups_that_are_refused():
    # catches a group for each age, two groups merged by their names, and a group without a name
    table = toy(
        sex=["F & x", "F", "M", *"FM" * 5],
        other=["y", "x & y", "z", *"zz" * 5],
        age=[*range(13)],
        gap=["a", "", *"b" * 11],
    )
    with pytest.raises(InputError) as error:
        groups_of(table, ["age"])
    assert error.value.got == "'age' is a column of numbers with 13 values"
    assert error.value.todo == "cut it in two: age<6"
    for names, got in (
        (["sex", "other"], "two different groups with one name"),
        (["gap"], "'gap' is empty in 1 rows"),
        (["agee<3"], "no column 'agee'; did you mean 'age'?"),
        ([], "no column to group by"),
    ):
        with pytest.raises(InputError) as error:
            groups_of(table, names)
        assert error.value.got == got


# -- features -------------------------------------------------------------------------------------------------------

EIGHTHS = st.integers(-80_000, 80_000).map(lambda whole: whole / 8)  # far from where scikit-learn calls a range 0
CELLS = st.lists(st.tuples(EIGHTHS, st.sampled_from("abcd")), min_size=4, max_size=30)


@settings(max_examples=100, deadline=None)
@given(CELLS, st.data())
def test_encode_equals_scikit_learn(cells, data):
    # catches ranges or categories taken from all rows, columns out of order, and an unseen category with a 1 somewhere
    number, letter = (list(values) for values in zip(*cells, strict=True))
    table = toy(number=number, letter=letter)
    rows = np.array(data.draw(st.lists(st.integers(0, len(cells) - 1), min_size=1)))
    columns, names = [], []
    if len(set(np.array(number)[rows])) > 1:
        scaler = MinMaxScaler().fit(np.array(number)[rows, None])
        columns.append(scaler.transform(np.array(number)[:, None]))
        names.append("number")
    if len(set(np.array(letter)[rows])) > 1:
        coder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(np.array(letter)[rows, None])
        columns.append(coder.transform(np.array(letter)[:, None]))
        names += [f"letter={letter}" for letter in coder.categories_[0]]
    if not columns:
        with pytest.raises(InputError, match="every feature is constant"):
            encode(table, rows)
        return
    features, found = encode(table, rows)
    assert found == names
    np.testing.assert_allclose(features, np.hstack(columns), rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_other_rows_do_not_reach_the_features(seed):
    # catches a leak of test rows into ranges, categories or the columns that are dropped
    table = synthetic_table(60, clients=2, seed=seed)
    rows = np.arange(40)
    rng = np.random.default_rng(seed)
    changed = {name: values.copy() for name, values in table.columns.items()}
    for name in table.features:
        changed[name][40:] = rng.normal(0, 1e3, 20) if changed[name].dtype.kind == "f" else "new"
    one, names = encode(table, rows)
    two, other = encode(dataclasses.replace(table, columns=changed), rows)
    assert names == other
    np.testing.assert_array_equal(one[:40], two[:40])
    assert one[:40].min() == 0
    assert one[:40].max() == 1
    assert not two[40:, names.index("kind=a") :].any()


def test_sensitive_columns_are_no_features(tmp_path):
    # catches a sensitive column that slips in
    table = load_table(write(tmp_path, GOOD), **NAMED)
    assert encode(table, np.arange(6))[1] == ["age", "job=", "job=clerk", "job=cook", "city=A", "city=B"]


@pytest.mark.parametrize("rows", [[], [6], [-1], [0.5], [True] * 6, [[0, 1]]])
def test_rows_that_are_no_row_numbers(tmp_path, rows):
    # catches a mask read as the rows 0 and 1, and negative numbers counted from the end
    table = load_table(write(tmp_path, GOOD), **NAMED)
    with pytest.raises(InputError, match="row numbers from 0 to 5, at least one"):
        encode(table, np.array(rows))


def test_numbers_with_gaps_and_huge_ranges():
    # catches a silent NaN
    table = toy(x=[1.0, float("nan"), 3.0], y=[-1.7e308, 0.0, 1.7e308])
    with pytest.raises(InputError, match="'x' is missing or infinite in 1 rows"):
        encode(table, np.arange(3))
    features, _ = encode(dataclasses.replace(table, features=("y",)), np.arange(3))
    assert features[:, 0].tolist() == [0, 0.5, 1]
    tiny = toy(x=[0.0, 5e-324, 5e-324, 1.0])
    assert encode(tiny, np.arange(4))[0][:, 0].tolist() == [0, 5e-324, 5e-324, 1]
    with pytest.raises(
        InputError, match=r"'x' spreads over 4\.9.*e-324 on 3 rows, and other rows lie beyond all bounds"
    ):
        encode(tiny, np.arange(3))


# -- the planted table ----------------------------------------------------------------------------------------------


def planted_scores(table):
    """The true P(y | x, group, site), which labels are drawn from."""
    return _scores(table.columns, table.facts["planted"])


def planted_groups(table):
    """The true P(group | x, site), from the formulas of `synthetic_table`."""
    spread = lambda count: np.linspace(-1, 1, count) if count > 1 else np.zeros(1)  # noqa: E731
    size = table.facts["planted"]
    site = np.array([int(one[1:]) for one in table.columns["site"]])
    u, t = spread(size["groups"]), spread(size["clients"])[site]
    weight = np.exp(0.6 * np.outer(t, u) - 0.5 * (table.columns["x2"][:, None] - 0.75 * u) ** 2)
    return weight / (weight.sum(1, keepdims=True))


@pytest.mark.parametrize(("groups", "classes", "clients"), [(2, 2, 1), (3, 4, 5)])
def test_labels_and_groups_are_drawn_from_the_stated_probabilities(groups, classes, clients):
    # catches scores that are not those of the draw: in every group, client and range of scores counts must agree
    table = synthetic_table(40_000, groups=groups, classes=classes, clients=clients, seed=7)
    group, site = table.columns["group"], table.columns["site"]
    group_code = np.array([int(one[1:]) for one in group])
    for truth, drawn in ((planted_scores(table), table.label), (planted_groups(table), group_code)):
        np.testing.assert_allclose(truth.sum(1), 1)
        for j in range(truth.shape[1]):
            level = np.digitize(truth[:, j], [0.1, 0.25, 0.5, 0.75, 0.9])
            # under its own posterior the group may not be a cell
            cells = np.char.add(site.astype(str), level.astype(str))
            if drawn is table.label:
                cells = np.char.add(cells, group.astype(str))
            for cell in np.unique(cells):
                mine = cells == cell
                spread = np.sqrt((truth[mine, j] * (1 - truth[mine, j])).sum())
                assert abs((drawn[mine] == j).sum() - truth[mine, j].sum()) < 5 * spread + 3
    rate = [(table.label[group == one] == classes - 1).mean() for one in np.unique(group)]
    assert max(rate) - min(rate) > 0.1
    if clients > 1:
        rate = [(table.label[site == one] == classes - 1).mean() for one in np.unique(site)]
        assert max(rate) - min(rate) > 0.03


def test_planted_scores_by_hand():
    # catches a formula that differs from its docstring
    table = synthetic_table(30, groups=3, classes=3, clients=2, seed=1)
    spread = {2: [-1, 1], 3: [-1, 0, 1]}
    for row in range(30):
        at = {name: values[row] for name, values in table.columns.items()}
        u, t = spread[3][int(at["group"][1])], spread[2][int(at["site"][1])]
        kind = {"a": -0.5, "b": 0.0, "c": 0.5}[at["kind"]]
        weight = [
            np.exp(
                1.5 * (at["x1"] * np.cos(2 * np.pi * j / 3) + at["x2"] * np.sin(2 * np.pi * j / 3))
                + spread[3][j] * (kind + 0.5 * u + 0.4 * t)
            )
            for j in range(3)
        ]
        np.testing.assert_allclose(planted_scores(table)[row], np.array(weight) / sum(weight))


def test_the_proxy_of_two_classes():
    # catches a proxy that predicts the label by itself: a blind model would then lose nothing without it
    table = synthetic_table(50, seed=3)
    moved = dataclasses.replace(table, columns=dict(table.columns) | {"x2": table.columns["x2"] + 5})
    np.testing.assert_allclose(planted_scores(moved), planted_scores(table))
    assert np.abs(planted_groups(moved) - planted_groups(table)).max() > 0.3


def test_synthetic_tables_are_drawn_from_their_seed():
    # catches a global generator, and sizes that are taken and ignored
    one = synthetic_table(100, groups=2, classes=3, clients=4, seed=5)
    assert one.fingerprint == synthetic_table(100, groups=2, classes=3, clients=4, seed=5).fingerprint
    assert one.fingerprint != synthetic_table(100, groups=2, classes=3, clients=4, seed=6).fingerprint
    assert set(one.columns["site"]) == {"s0", "s1", "s2", "s3"}
    assert one.features == ("x1", "x2", "noise", "kind")
    json.dumps(dict(one.facts))
    assert len(synthetic_table(1, groups=1, seed=0)) == 1
    for sizes in ({"n": 0}, {"groups": 0}, {"classes": 1}, {"clients": 0}):
        with pytest.raises(InputError, match="a whole number from"):
            synthetic_table(**({"n": 10, "seed": 0} | sizes))
