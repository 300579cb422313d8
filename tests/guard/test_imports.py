"""Files of works: every row that is refused is named with its reason."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zipfile
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.guard import imports
from upright.guard.imports import read_works
from upright.guard.rights import Work


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return path


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return caught.value


# -- tables and lines -----------------------------------------------------------------------------------------------

CELL = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=8).map(lambda s: " ".join(s.split()))
AUTHORS = st.lists(CELL.map(lambda s: s.replace(";", "").strip()).filter(bool), max_size=3).map(tuple)
KINDS = {"title": CELL.filter(bool), "holder": CELL, "authors": AUTHORS, "published": st.integers(1000, 2099)}
KINDS |= {"declared": st.sampled_from([None, "unknown"]), "renewed": st.none() | st.booleans(), "owner": CELL}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries(KINDS), min_size=1, max_size=4), st.sampled_from([",", ";", "\t"]))
def test_works_come_back_from_a_table_and_from_lines(tmp_path, rows, mark):
    # catches: a formula that is computed, quotes and commas that move a cell, a year or an author lost
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, [*KINDS], delimiter=mark)
        table.writeheader()
        table.writerows(row | {"authors": ";".join(row["authors"])} for row in rows)
    for path in (tmp_path / "a.csv", written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))):
        assert read_works(path) == ([(Work(0, **row), None) for row in rows], [])


def checked(path, cases):
    """Read cases `row -> reason`, one after the other, and return the works; each refused row must say its reason."""
    rows = [case.partition(" -> ")[::2] for case in cases.strip("\n").split("\n")]
    content = "\n".join(row.replace("¶", "\n") for row, _ in rows)
    lines = [1 + sum(1 + row.count("¶") for row, _ in rows[:i]) for i in range(len(rows))]
    found, refused = read_works(written(path.parent, path.name, content))
    assert refused == [(f"{path.name} line {n}", why) for n, (_, why) in zip(lines, rows, strict=True) if why]
    return found


TABLE = """
Title,published,renewed,country,text,text_file
=A1,,,,a text,
"two¶lines",1930,,,b text,
x,1930-02-31,,,, -> published '1930-02-31', which is not a year or a day
x,=1+1,,,, -> published '=1+1', which is not a year or a day
x,-800,,,, -> published '-800', which is not a year or a day
x,1930-02-28,maybe,,, -> renewed 'maybe', which is not yes or no
"x¶y",,,,c text -> 5 cells under 6 names
x,,,us,, -> the country 'us'; accepted: two capital letters (ISO 3166 alpha-2), such as US
x,,,,A -- TEXT!, -> the same text as a.csv line 2
,1930,,,, -> neither a title nor a text
x,,,,!?, -> a text without letters
x,,,,y,poem.txt -> both text and text_file
x,,,,,poem.txt
x,,,,,../out.txt -> text_file '../out.txt' is no file below the folder
x,,,,,a.gz -> a.gz that cannot be read (Not a gzipped file (b'no')); accepted: a whole file, up to 200 MB unpacked
x,,,,,link.txt -> text_file 'link.txt' is no file below the folder
x,,,,,/etc/passwd -> text_file '/etc/passwd' is no file below the folder
x,,,,,a\x00b -> text_file 'a\\x00b' is no file below the folder
\x07,,,,, -> a work with the character U+0007; accepted: what prints
\udcfcx,,,,, -> title that is not UTF-8
"""


def test_every_refused_row_of_a_table_is_named_with_its_line_and_reason(tmp_path):
    # catches: lines counted wrong after a quoted line break, 31 February taken, a file outside read
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to(written(tmp_path, "out.txt", "outside"))
    written(tmp_path / "in", "poem.txt", "\ufeffA poem, in a file")
    written(tmp_path / "in", "a.gz", "no gzip")
    found = [(work.title, work.published, text) for work, text in checked(tmp_path / "in" / "a.csv", TABLE)]
    assert found == [("=A1", None, "a text"), ("two lines", 1930, "b text"), ("x", None, "A poem, in a file")]


LINES = """
{"title": "a"}

{ -> no JSON
[] -> no JSON object
"no JSON" -> no JSON object
{"titel": "b"} -> unknown name 'titel'
{"title": NaN} -> title that is no text
{"title": 1984}
{"title": "\\ud800"} -> title that is not UTF-8
{"title": "c", "authors": ["Bo", "Ann"]}
{"title": "d", "authors": [1]} -> authors that is no text
"""


def test_lines_that_are_no_object_are_refused_one_by_one(tmp_path):
    # catches: one broken line, or one nested 100,000 deep, that costs the whole file
    found = checked(tmp_path / "a.jsonl", LINES + "[" * 100_000 + " -> no JSON")
    assert [(work.title, work.authors) for work, _ in found] == [("a", ()), ("1984", ()), ("c", ("Bo", "Ann"))]


def test_a_folder_holds_a_work_a_text(tmp_path):
    # catches: a text in Latin-1 read as something else, an order that depends on the disk
    for name, content in {
        "b.txt": b"two",
        "a.txt": b"one",
        "c.txt": b"\xfcber",
        "d.txt": b"T W O",
        "e.md": b"3",
    }.items():
        written(tmp_path, name, content)
    rows, refused = read_works(tmp_path)
    assert [(work.title, text) for work, text in rows] == [("a", "one"), ("b", "two")]
    assert refused == [("c.txt", "text that is not UTF-8"), ("d.txt", "the same text as b.txt")]


RENEWALS = """
entry_id~AUTHOR~TITLE~oreg~odat~id~RDAT~claimants~full_text
u~DOE, ANN~"The ""old"" mill"~A1~1935-08-01~R1~1963-02-19~Ann Doe|A||Bo Doe|C~
u~~~A2~1936-01-02~R2~1963-02-19~~DOE, BO. Arch. © 2Jan36; A2.
u~~Arch~A3~1936-02-30~R3~1963-02-19~~ -> published '1936-02-30', which is not a year or a day
"""


@pytest.mark.parametrize(("author", "title", "day"), [("author", "title", "rdat"), ("auth", "titl", "dreg")])
def test_renewals_are_works_that_were_renewed(tmp_path, author, title, day):
    # catches: the columns of one half of the files only, the day of the renewal for that of the first registration
    content = RENEWALS.replace("AUTHOR", author).replace("TITLE", title).replace("RDAT", day).replace("~", "\t")
    first = Work(0, 'The "old" mill', "Ann Doe; Bo Doe", ("DOE, ANN",), published=1935, renewed=True)
    second = Work(0, "DOE, BO. Arch.", published=1936, renewed=True)
    assert checked(tmp_path / "a.tsv", content) == [(first, None), (second, None)]


# -- ONIX, packed files ---------------------------------------------------------------------------------------------

PRODUCT = """
<product><descriptivedetail>
 <collection><titledetail><b202>01</b202><titleelement><b203>A Series</b203></titleelement></titledetail></collection>
 <titledetail><b202>03</b202><titleelement><x409>01</x409><b203>Die Graue</b203></titleelement></titledetail>
 <titledetail><b202>01</b202><titleelement><x409>02</x409><b203>Mills</b203></titleelement><titleelement>
  <x409>01</x409><b030>The</b030><b031>Grey
  Mill</b031></titleelement></titledetail>
 <contributor><b036>Ann &amp; Doe</b036><b037>Doe, Ann</b037></contributor>
 <contributor><b039>Bo</b039><b040>Roe</b040></contributor><contributor><b047>A Choir</b047></contributor>
</descriptivedetail><publishingdetail>
 <b083>GB</b083><publishingdate><x448>01</x448><b306 dateformat="00">20100203</b306></publishingdate>%s
</publishingdetail></product>"""
OWNED = "<copyrightstatement><b087>1999</b087><b087>1931</b087><copyrightowner><b036>Cy</b036></copyrightowner>"
OWNED += "</copyrightstatement>"
FIRST = '<publishingdate><x448>11</x448><b306 dateformat="%s">%s</b306></publishingdate>'


def message(*parts):
    products = "".join(PRODUCT % part for part in parts)
    return f'<?xml version="1.0"?>\n<ONIXmessage release="3.0" xmlns="x">{products}</ONIXmessage>'


def test_a_product_of_onix_is_a_work_in_either_spelling(tmp_path):
    # catches: the title of the series or of another language, the reprint's year for the first one's
    dates = [FIRST % pair for pair in (("05", "1897"), ("06", "1897050118970601"), ("00", "18970231"))]
    short = message("", OWNED, OWNED + dates[0], dates[1], dates[2])
    long = short.replace("product>", "Product>").replace("titledetail>", "TitleDetail>")
    for tag, name in imports._SHORT.items():
        long = re.sub(rf"(</?){tag}\b", rf"\1{name}", long)
    assert not re.search("<[bx][0-9]", long)
    for content in (short, long):
        rows, refused = read_works(written(tmp_path, "a.xml", content))
        common = Work(0, "The Grey Mill", authors=("Ann & Doe", "Bo Roe", "A Choir"), country="GB")
        expected = [(2010, ""), (1931, "Cy"), (1897, "Cy"), (1897, "")]
        assert rows == [(replace(common, published=year, holder=name), None) for year, name in expected]
        line = content[: content.rindex("roduct><descriptive")].count("\n") + 1
        assert refused == [(f"a.xml line {line}", "published '18970231', which is not a year or a day")]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><ONIXmessage/>', "line 1: a DTD"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><ONIXmessage/>', "line 1: a DTD"),
        (message("&a;"), "that is broken (undefined entity: line 12"),
        (message("")[:-14], "that is broken (no element found: line"),
        (message("\udcfc"), "that is broken ('utf-8' codec can't decode byte 0xfc"),
        ("<x:product/>", "that is broken (unbound prefix: line 1"),
        (message(), "without a product"),
    ],
)
def test_xml_that_could_refer_to_anything_is_refused_whole(tmp_path, content, got):
    # catches: entities that unfold without end or read other files, half of a file taken for all of it
    assert refusal(read_works, written(tmp_path, "a.xml", content)).got.startswith(f"a.xml {got}")


def packed(path, content, names=("a.csv",), how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def test_packed_files_are_read_up_to_a_bound(tmp_path, monkeypatch):
    # catches: a small file that unpacks without end, a size in the header that is believed, a second file unseen
    assert imports._MOST == 200 << 20
    monkeypatch.setattr(imports, "_MOST", 1 << 20)
    table, bomb = b"title\nA\n", b"title\n" + b"A" * (1 << 20)
    for path in (written(tmp_path, "a.csv.gz", gzip.compress(table)), packed(tmp_path / "a.zip", table)):
        assert read_works(path) == ([(Work(0, "A"), None)], [])
    lying = gzip.compress(bomb)[:-4] + (9).to_bytes(4, "little")  # the size that gzip states
    for path, why in (
        (written(tmp_path, "b.csv", bomb), "more than 1 MB unpacked"),
        (written(tmp_path, "b.csv.gz", lying), "more than 1 MB unpacked"),
        (packed(tmp_path / "b.zip", bomb), "more than 1 MB unpacked"),
        (packed(tmp_path / "c.zip", table, how=zipfile.ZIP_BZIP2), "not one file, stored or deflated"),
        (packed(tmp_path / "d.zip", table, ("a.csv", "b.csv")), "not one file, stored or deflated"),
        (written(tmp_path, "e.csv.gz", gzip.compress(table)[:-9]), "Compressed file ended"),
        (written(tmp_path, "f.zip", b"PK"), "File is not a zip file"),
        (tmp_path / "none.csv", "No such file or directory"),
    ):
        assert refusal(read_works, path).got.startswith(f"{path.name} that cannot be read ({why}")


@pytest.mark.parametrize("header", [[], ["titel", "text"], ["holder"], ["title", "title"]])
def test_a_file_that_says_too_little_is_refused_whole(tmp_path, header):
    # catches: a misspelt column that is passed over, and a licence lost with it
    told = refusal(read_works, written(tmp_path, "a.csv", ",".join(header)))
    assert told.got == f"a.csv with the columns {header}"
    assert refusal(read_works, written(tmp_path, "a.docx", "")).got == "a.docx of another kind"
