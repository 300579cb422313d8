"""Thirty exports of other tools, each read as it is; bad files, each with the line and the column that are wrong."""

from __future__ import annotations

import gzip
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from upright.contract import InputError
from upright.data import formats
from upright.data.columns import Column, known_names, read_columns
from upright.data.forget import read_records
from upright.data.formats import open_columns

PAIRS = {"user": Column("id"), "item": Column("id"), "value": Column("number", optional=True)}
TIMED = {**PAIRS, "time": Column("time")}
LISTS = {
    "user": Column("id"),
    "item": Column("id"),
    "rank": Column("number", optional=True),
    "score": Column("number", optional=True),
}
HELD = {"user": Column("id"), "item": Column("id"), "grade": Column("number", optional=True)}
ONE = [("1", "10", 5.0), ("2", "20", 3.5)]
DAY = 1_769_817_600_000_000  # 2026-01-31 in microseconds


def zst(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(text.encode())
    return sink.getvalue().to_pybytes()


def parquet(frame: pl.DataFrame) -> bytes:
    import io

    sink = io.BytesIO()
    frame.write_parquet(sink)
    return sink.getvalue()


CSV = "user_id,item_id,rating\n1,10,5\n2,20,3.5\n"
JSONL = '{"user": 1, "item": 10, "rating": 5}\n{"user": 2, "item": 20, "rating": 3.5}\n'
ITEMS = [[{"item_id": 5, "score": 0.5}, {"item_id": 6, "score": 0.4}], [{"item_id": 7, "score": 0.1}]]
LENSKIT = pl.DataFrame({"user_id": [1, 2], "items": ITEMS})
FOREIGN = {
    # what wrote it: file, content, wanted, options, rows
    "RecBole": ("ml.inter", "user_id:token\titem_id:token\trating:float\n1\t10\t5\n2\t20\t3.5\n", PAIRS, {}, ONE),
    "RecBole, a quote in an id": (
        "x.inter", 'user_id:token\titem_id:token\n1\t"a\n2\tb\n', PAIRS, {}, [("1", '"a'), ("2", "b")],
    ),
    "MovieLens u.data": (
        "u.data", "1\t10\t5\t881250949\n2\t20\t3\t891717742\n", TIMED, {},
        [("1", "10", 5.0, 881250949), ("2", "20", 3.0, 891717742)],
    ),
    "MovieLens ratings.csv": (
        "ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,964982703\n", TIMED, {},
        [("1", "10", 5.0, 964982703)],
    ),
    "implicit": ("log.csv", "user,item\n1,10\n2,20\n", PAIRS, {}, [("1", "10"), ("2", "20")]),
    "pandas' fractions": ("log.csv", "user_id,item_id\n1.0,a\n2.0,b\n", PAIRS, {}, [("1", "a"), ("2", "b")]),
    "fractions beside wholes": ("log.csv", "user,item\n1.0,a\n1,b\n", PAIRS, {}, [("1.0", "a"), ("1", "b")]),
    "semicolons and a decimal comma": ("log.csv", CSV.replace(",", ";").replace(".", ","), PAIRS, {}, ONE),
    "bars": ("log.txt", CSV.replace(",", "|"), PAIRS, {}, ONE),
    "tabs named csv": ("log.csv", CSV.replace(",", "\t"), PAIRS, {}, ONE),
    "no ending": ("log", CSV, PAIRS, {}, ONE),
    "byte order mark and CRLF": ("log.csv", "﻿" + CSV.replace("\n", "\r\n"), PAIRS, {}, ONE),
    "gzip": ("log.csv.gz", gzip.compress(CSV.encode()), PAIRS, {}, ONE),
    "Zstandard": ("log.tsv.zst", zst(CSV.replace(",", "\t")), PAIRS, {}, ONE),
    "Latin-1": (
        "log.csv", "user,item\né,10\n".encode("latin-1"), PAIRS, {"encoding": "latin-1"}, [("é", "10")],
    ),
    "UTF-16": ("log.csv", CSV.encode("utf-16"), PAIRS, {"encoding": "utf-16"}, ONE),
    "a shop": (
        "shop.csv", "Kundennummer;Artikel;Zeitpunkt\nA1;x;2026-01-31\n", TIMED,
        {"names": {"user": "Kundennummer", "item": "Artikel", "time": "Zeitpunkt"}}, [("A1", "x", DAY)],
    ),
    "ISO times": (
        "log.csv", "user,item,time\n1,a,2026-01-31T00:00:01Z\n1,b,2026-01-31 01:00:00.5+01:00\n", TIMED, {},
        [("1", "a", DAY + 1_000_000), ("1", "b", DAY + 500_000)],
    ),
    "milliseconds": (
        "log.csv", "user,item,ts\n1,a,1769817600000\n", TIMED, {}, [("1", "a", 1769817600000)],
    ),
    "JSON lines": ("log.jsonl", JSONL, PAIRS, {}, ONE),
    "a JSON array": ("log.json", json.dumps([json.loads(x) for x in JSONL.splitlines()]), PAIRS, {}, ONE),
    "Parquet": ("log.parquet", parquet(pl.DataFrame({"uid": [1, 2], "iid": [10, 20]})), PAIRS,
                {"names": {"item": "iid"}}, [("1", "10"), ("2", "20")]),
    "LensKit's item lists": ("lists.parquet", parquet(LENSKIT), LISTS, {"lists": True},
                             [("1", "5", 0.5), ("1", "6", 0.4)]),
    "TREC run": (
        "bm25.run", "q1 Q0 d1 1 3.2 bm25\nq1  Q0 d2 2 3.0 bm25\n", LISTS, {"lists": True},
        [("q1", "d1", 3.2), ("q1", "d2", 3.0)],
    ),
    "TREC qrels": ("a.qrels", "q1 0 d1 1\nq1 0 d2 0\n", HELD, {}, [("q1", "d1", 1.0), ("q1", "d2", 0.0)]),
    "a column a place": (
        "wide.csv", "user_id,item_1,item_2\na,x,y\nb,z,\n", LISTS, {"lists": True},
        [("a", "x", 1.0), ("a", "y", 2.0), ("b", "z", 1.0)],
    ),
    "numbered places": (
        "wide.csv", "user,0,1\na,x,y\n", LISTS, {"lists": True}, [("a", "x", 1.0), ("a", "y", 2.0)],
    ),
    "lists in JSON lines": (
        "l.jsonl", '{"user": "a", "items": ["x", "y"]}\n', LISTS, {"lists": True}, [("a", "x", 1.0), ("a", "y", 2.0)],
    ),
    "lists with scores": (
        "l.jsonl", '{"user": "a", "items": [3, 4], "scores": [0.5, 0.1]}\n', LISTS,
        {"lists": True}, [("a", "3", 0.5), ("a", "4", 0.1)],
    ),
    "RecBole, a sequence a row": (
        "l.inter", "user_id:token\titem_id_list:token_seq\na\tx y\nb\tz x\n", LISTS, {"lists": True},
        [("a", "x", 1.0), ("a", "y", 2.0), ("b", "z", 1.0)],
    ),
    "lists between bars": (
        "l.csv", "user,recommendations\na,x|y\nb,z\n", LISTS, {"lists": True}, [("a", "x", 1.0), ("a", "y", 2.0)],
    ),
    "names with commas, a row an item": (
        "l.csv", 'user,items\na,"Lock, Stock"\na,Star Wars\n', LISTS, {"lists": True}, [("a", "Lock, Stock")],
    ),
    "a list as text": (
        "l.csv", "user,items\na,\"['x', 'y']\"\n", LISTS, {"lists": True}, [("a", "x", 1.0), ("a", "y", 2.0)],
    ),
}  # fmt: skip


def read_large(monkeypatch, path, wanted, names=None, encoding="utf-8", **options):
    """Read as a file is read that is too large to hold the columns that nobody asks for."""
    known = {*wanted, *(names or {}).values()}
    with monkeypatch.context() as patch:
        patch.setattr(formats, "LARGE", -1)
        keep = lambda own: own in known or own[-1:].isdigit() or known_names([own])  # noqa: E731
        return read_columns(open_columns(path, encoding, keep=keep), wanted, names or {}, **options)


@pytest.mark.parametrize("case", FOREIGN)
def test_exports_of_other_tools_are_read_as_they_are(tmp_path, monkeypatch, case):
    # catches: a format that is refused, or read as something else
    name, content, wanted, options, rows = FOREIGN[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for found in (read_columns(path, wanted, **options), read_large(monkeypatch, path, wanted, **options)):
        assert found.frame.rows()[: len(rows)] == rows
        assert found.header == [name for name in wanted if name in found]


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, pa.table])
def test_data_frames_are_files(make):
    # catches: a frame that is matched by its index, or needs a file
    found = read_columns(make({"userId": [1, 2], "movieId": [10, 20], "rating": [5.0, 3.5]}), PAIRS)
    assert found.frame.rows() == ONE
    with pytest.raises(InputError, match=r"the data frame row 1 \(the first is 0\): 1 missing 'user'"):
        read_columns(make({"user": ["a", None], "item": ["x", "y"]}), PAIRS)


def test_what_was_understood_is_told(tmp_path, caplog):
    # catches: a guess that nobody hears of
    path = tmp_path / "shop.csv"
    path.write_text("Kunde;sku;rating\n1.0;x;3,5\n2.0;y;4,0\n")
    with caplog.at_level(logging.INFO, "upright.data"):
        read_columns(path, PAIRS, {"user": "Kunde"})
    assert caplog.messages == [
        "shop.csv: 2 rows; separator ';'; user = Kunde, item = sku, value = rating; 1.0 of 'Kunde' is 1; "
        "decimal comma in 'rating'"
    ]


# -- bad files ------------------------------------------------------------------------------------------------------

NUMBER, ID = "a finite number in every row", "an id in every row"
GOOD = "user,item,rating\n1,10,5\n"
BAD = {
    # file, content, wanted, options, got, accepted
    "no rows": ("a.csv", "user,item\n", PAIRS, {}, "a.csv has a header and no rows", "one row"),
    "blank lines alone": ("a.csv", "user,item\n\n\n", PAIRS, {}, "a.csv has a header and no rows", "one row"),
    "empty": ("a.csv", "", PAIRS, {}, "a.csv is empty", "a header line"),
    "blank": ("a.csv", "\n\n", PAIRS, {}, "a.csv is empty", "a header line"),
    "empty gzip": ("a.csv.gz", gzip.compress(b""), PAIRS, {}, "a.csv.gz is empty", "a header line"),
    "damaged gzip": ("a.csv.gz", b"\x1f\x8b\x08rubbish", PAIRS, {}, "a.csv.gz cannot be read", "a whole file"),
    "Excel": ("a.xlsx", b"PK\x03\x04..", PAIRS, {}, "a.xlsx is no text and no Parquet", "CSV"),
    "binary": ("a.csv", b"user,item\n1,\x00\n", PAIRS, {}, "a.csv is no text and no Parquet", "CSV"),
    "damaged Parquet": ("a.parquet", b"PAR1rubbish", PAIRS, {}, "a.parquet cannot be read", "a whole file"),
    "no such column": ("a.csv", "usr,itm,rating\n1,2,3\n", PAIRS, {}, "a.csv line 1 has no column 'user' and no "
                       "column 'item'", "its columns are 'usr', 'itm', 'rating'"),
    "no header": ("a.csv", "1,50,0.9\n1,51,0.8\n", LISTS, {"lists": True}, "a.csv has no header: line 1 is '1,50,0.9'",
                  "names of columns"),
    "no header, ids of letters": ("a.csv", "u1;i1;3\nu1;i2;2\n", LISTS, {"lists": True}, "a.csv has no header: line 1 "
                                  "is 'u1;i1;3'", "names of columns"),
    "no header, labels": ("a.csv", "a,f\nb,m\nc,f\n", {"user": Column("id", optional=True)}, {}, "a.csv has no header",
                          "names of columns"),
    "no header, a number twice": ("a.csv", "5,5,1\n5,6,1\n", PAIRS, {}, "a.csv line 1 names '5' twice", "each"),
    "unknown names over numbers": ("a.csv", "kunde,artikel\n1,2\n1,3\n", PAIRS, {}, "a.csv line 1 has no column 'user'",
                                   "its columns are 'kunde', 'artikel'"),
    "names of dimensions": ("a.csv", "name,0,1\nx,0.5,1\n", {"user": Column("id")}, {}, "a.csv line 1 has no column "
                            "'user'", "its columns are"),
    "a name that is not there": ("a.csv", GOOD, PAIRS, {"names": {"value": "ratng"}},
                                 "a.csv line 1 has no column 'ratng'", "its columns are"),
    "two columns for one": ("a.csv", "user_id,uid,item\n1,1,2\n", PAIRS, {}, "a.csv line 1 has 'user_id', 'uid' for "
                            "'user'", "one column of users"),
    "one column for two": ("a.csv", GOOD, PAIRS, {"names": {"item": "user"}}, "a.csv: 'user' as user and item",
                           "a column of its own"),
    "a column twice": ("a.csv", "user,item,user\n1,2,3\n", PAIRS, {}, "a.csv line 1 names 'user' twice", "each"),
    "fields that no header names": ("a.csv", "user,item\n1,2\n1,3,4\n2,2\n2,4,5\n", PAIRS, {},
                                    "a.csv has more fields than its header in lines 3, 5", "2 fields"),
    "not UTF-8": ("a.csv", b"user,item\n1,2\n1,\xe9\n", PAIRS, {}, "a.csv line 3 is not UTF-8", "UTF-8 text"),
    "an encoding that nobody knows": ("a.csv", GOOD, PAIRS, {"encoding": "klingon"}, "encoding 'klingon'", "Python"),
    "another encoding": ("a.csv", b"user,item\n1,\xe9\n", PAIRS, {"encoding": "ascii"}, "a.csv is not ascii", "text"),
    "a short line": ("a.csv", "user,item\n1,2\n1\n", PAIRS, {}, "a.csv line 3: 1 missing 'item'", ID),
    "missing users": ("a.csv", "user,item\n1,2\n,2\n  ,4\nNaN,4\n", PAIRS, {}, "a.csv lines 3, 4 and 5: 3 missing "
                      "'user'", ID),
    "separators alone": ("a.csv", "user,item\n1,2\n\n,\n", PAIRS, {}, "a.csv line 4: 1 missing 'user'", ID),
    "one column with a gap": ("a.csv", "user\na\n\nb\n", {"user": Column("id")}, {}, "a.csv line 3: 1 missing 'user'",
                              ID),
    "words for a number": ("a.csv", GOOD + "\n1,3,good\n", PAIRS, {}, "a.csv line 4: 'rating' is 'good', not a number",
                           NUMBER),
    "thousands": ("a.csv", 'user;item;rating\n1;2;1.000,5\n', PAIRS, {}, "a.csv line 2: 'rating' is '1.000,5'",
                  NUMBER),
    "comma and point": ("a.csv", "user;item;rating\n1;2;1,5\n1;3;1.5\n", PAIRS, {}, "a.csv line 2: 'rating' is '1,5', "
                        "not a number", NUMBER),
    "no number": ("a.csv", "user,item,rating\n1,2,3\n1,3,\n", PAIRS, {}, "a.csv line 3: 1 missing 'rating'", NUMBER),
    "infinite": ("a.csv", "user,item,rating\n1,2,NaN\n1,3,2\n2,2,inf\n", PAIRS, {},
                 "a.csv lines 2 and 4: 'rating' is 'NaN', not finite", NUMBER),
    "after a quoted line break": ("a.csv", 'user,note,item,rating\n1,"two\nlines",2,3\n1,,3,x\n', PAIRS, {},
                                  "a.csv line 4: 'rating' is 'x'", NUMBER),
    "after leading blank lines": ("a.csv", "\n\nuser,item,rating\n1,2,3\n1,3,x\n", PAIRS, {},
                                  "a.csv line 5: 'rating' is 'x'", NUMBER),
    "in a compressed file": ("a.tsv.gz", gzip.compress(b"user\titem\trating\n1\t2\t3\n1\t3\tx\n"), PAIRS, {},
                             "a.tsv.gz line 3: 'rating' is 'x'", NUMBER),
    "in u.data": ("u.data", "1\t10\t5\t881250949\n2\t20\t3\t8e99\n", TIMED, {}, "u.data line 2: 'time' is", "whole"),
    "a time in words": ("a.csv", "user,item,time\n1,2,noon\n", TIMED, {}, "a.csv line 2: 'time' is 'noon'", NUMBER),
    "half a date": ("a.csv", "user,item,time\n1,2,2026-01-31\n1,3,2026-02-31\n", TIMED, {}, "a.csv lines 2 and 3: "
                    "'time' is '2026-01-31'", NUMBER),
    "a time missing": ("a.csv", "user,item,time\n1,2,7\n1,3,\n", TIMED, {}, "a.csv line 3: 1 missing 'time'", NUMBER),
    "a time with a fraction": ("a.csv", "user,item,time\n1,2,7.5\n", TIMED, {}, "a.csv line 2: 'time' is 7.5", "whole"),
    "an id with a fraction": ("a.parquet", parquet(pl.DataFrame({"user": [1.0, 1.5], "item": [1, 2]})), PAIRS, {},
                              "a.parquet row 2: 'user' is 1.5", "whole numbers or text"),
    "an id twice": ("a.csv", "user,g\na,x\nb,x\na,y\n", {"user": Column("id", unique=True)}, {},
                    "a.csv line 4: user 'a' again", "each user once"),
    "a flag of 2": ("a.csv", "user,flag\na,1\nb,2\n", {"flag": Column("flag")}, {}, "a.csv line 3: 'flag' is '2'",
                    "0 or 1"),
    "lists of two lengths": ("a.jsonl", '{"user": 1, "items": [1, 2], "scores": [1]}\n', LISTS, {"lists": True},
                             "a.jsonl line 1: 'scores' and 'item' hold lists of different lengths", "lists of one"),
    "no JSON": ("a.jsonl", '{"user": 1, "item": 2}\n\n{"user": 2,}\n', PAIRS, {}, "a.jsonl line 3: ", "one JSON"),
    "no object": ("a.jsonl", '{"user": 1, "item": 2}\n[1, 2]\n', PAIRS, {}, "a.jsonl line 2: list", "one JSON"),
    "half a surrogate": ("a.jsonl", '{"user": 1, "item": "\\ud800"}\n', PAIRS, {}, "a.jsonl line 1 holds half of a "
                         "surrogate pair", "characters"),
    "a column of lists as ids": ("a.parquet", parquet(pl.DataFrame({"user": [[1]], "item": [1]})), PAIRS, {},
                                 "a.parquet: 'user' has type List(Int64)", "numbers or text as ids"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_line_and_column(tmp_path, monkeypatch, case):
    # catches: a bad cell read as something, a row dropped, a line number that is not the editor's
    name, content, wanted, options, got, accepted = BAD[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_columns, partial(read_large, monkeypatch)):
        with pytest.raises(InputError) as error:
            read(tmp_path / name, wanted, **options)
        assert error.value.got.startswith(got)
        assert error.value.accepted.startswith(accepted) or accepted in error.value.accepted


def test_columns_of_a_large_file_that_nobody_asks_for_are_not_held(tmp_path, monkeypatch):
    # catches: a large file held whole; a message that forgets what the file has
    (tmp_path / "a.csv").write_text("user,note,item\n1,x,2\n\n,y,3\n")
    monkeypatch.setattr(formats, "LARGE", 9)
    found = open_columns(tmp_path / "a.csv", keep={"user"}.__contains__)
    assert (found.header, found.frame.columns) == (["user", "note", "item"], ["user"])
    assert found.where([1]) == "line 4"


def test_what_is_lacking_is_said_in_words_to_paste(tmp_path):
    # catches: advice that has to be put together by hand
    (tmp_path / "a.csv").write_text("usr,itm,rating\n1,2,3\n")
    with pytest.raises(InputError) as error:
        read_columns(tmp_path / "a.csv", PAIRS)
    assert error.value.todo == "name them: --user usr --item itm"
    for text, line in (("1;50;0,9\n1;51;0,8\n", "user;item;score"), ("a,x,1\na,y,2\n", "user,item,rank")):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(InputError) as error:
            read_columns(tmp_path / "a.csv", LISTS, lists=True)
        assert error.value.todo.endswith(line)
    with pytest.raises(InputError, match="no file"):
        read_columns(tmp_path / "absent.csv", PAIRS)


def test_line_breaks_inside_a_text_break_no_line(tmp_path):
    # catches: JSON lines cut at characters that may stand in a text
    texts = ["a\u2028b", "c\u2029d", "e\u0085f"]
    rows = [json.dumps({"instruction": "say", "input": "it", "output": t}, ensure_ascii=False) for t in texts]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "alpaca.json").write_text(f"[{', '.join(rows)}]", encoding="utf-8")
    for name in ("alpaca.jsonl", "alpaca.json"):
        found = read_records(Path(tmp_path, name))
        assert [(r.prompt, r.answer) for r in found] == [("say\n\nit", t) for t in texts]


def test_a_million_rows_are_read_in_one_pass(tmp_path):
    # catches: rows that are walked in Python
    n = 200_000
    pl.DataFrame({"user": np.arange(n) % 999, "item": np.arange(n) % 77}).write_csv(tmp_path / "a.csv")
    found = read_columns(tmp_path / "a.csv", PAIRS)
    assert len(found) == n
    assert found["user"].n_unique() == 999


def test_fixed_arrays_are_lists_and_nan_is_missing():
    # catches: a bare error of the reading library; an age that nobody gave refused as infinite
    frame = pl.DataFrame({"user": ["a", "b"], "items": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2))})
    assert read_columns(frame, LISTS, lists=True).frame.rows()[0] == ("a", "1", 1.0)
    ages = pd.DataFrame({"age": [30.0, float("nan")]})
    assert np.isnan(read_columns(ages, {"age": Column("number", missing=True)}).array("age")).tolist() == [False, True]
