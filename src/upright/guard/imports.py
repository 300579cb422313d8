"""Works from files: tables, JSON Lines, folders of texts, ONIX and renewals. Nothing is written by reading.

Sources: ONIX for Books 3.0 (EDItEUR), reference and short tags; NYPL's cce-renewals, columns of its files before and
after 1978.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path, PurePath
from typing import Any
from xml.etree.ElementTree import Element, iterparse
from xml.parsers import expat

from upright.contract import InputError
from upright.guard.passages import normalise
from upright.guard.registry import FLAGS, LONE, NAMES, YEARS, refuse_odd
from upright.guard.rights import Work

__all__ = ["read_works"]

_MOST = 200 << 20  # bytes of a file once unpacked
_KNOWN = {*NAMES[1:], "text", "text_file"}
_DATE = re.compile(r"\A([0-9]{4})(?:-?([0-9]{2})(?:-?([0-9]{2}))?)?\Z")
_SAID = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_TAGS = (
    "b202=titletype x409=titleelementlevel b203=titletext b030=titleprefix b031=titlewithoutprefix b036=personname "
    "b037=personnameinverted b039=namesbeforekey b040=keynames b047=corporatename x448=publishingdaterole b306=date "
    "j260=dateformat b087=copyrightyear b083=countryofpublication"
)
_SHORT = dict(re.findall("([a-z0-9]+)=([a-z]+)", _TAGS))  # the two spellings of ONIX


def read_works(path: Path) -> tuple[list[tuple[Work, str | None]], list[tuple[str, str]]]:
    """Read works from a file or a folder, and write nothing.

    Parameters
    ----------
    path : Path
        CSV or TSV with a header, or JSON Lines: fields of `Work` but ``id``, and ``text`` or ``text_file``, a path
        below the file's folder; authors parted by ``;``, years also as dates (1930-02-28), ``=A1`` as the text it is.
        A folder of ``.txt`` files, named by title. ONIX (``.xml``): the year of first publication, else the earliest of
        copyright, else of publication. Renewals (``.tsv``). A file also as ``.gz``, or alone in a ``.zip``. UTF-8.

    Returns
    -------
    rows : list of (Work, str or None)
        Works, each with the id 0, and their texts.
    refused : list of (str, str)
        Place and reason of what is left out, such as a text that came before, but for what `normalise` drops.

    Raises
    ------
    InputError
        When the whole is refused: another kind, over 200 MB unpacked, unknown columns, XML with a DTD or broken.
    """
    rows: list[tuple[Work, str | None]] = []
    refused: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for place, found in _records(path):
        try:
            work, text = _as_work(found, path if path.is_dir() else path.parent)
            if text is not None and not (letters := normalise(text)):
                raise ValueError("a text without letters")
            if text is not None and (first := seen.setdefault(letters, place)) != place:
                raise ValueError(f"the same text as {first}")
            rows.append((work, text))
        except InputError as error:
            refused.append((place, f"{error.got.removeprefix('work 0 with ')}; accepted: {error.accepted}"))
        except ValueError as error:
            refused.append((place, str(error)))
    return rows, refused


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield places with fields by name, or with the reason why there are none."""
    if files := sorted(path.glob("*.txt")):
        yield from ((one.name, {"title": one.stem, "text_file": one.name}) for one in files)
        return
    name, data = _unpacked(path)
    kinds = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".xml": _onix}
    if (read := kinds.get(PurePath(name).suffix.lower())) is None:
        accepted = f"a folder of .txt, {', '.join(kinds)}, these as .gz or in a .zip"
        raise InputError(f"{path.name} of another kind", accepted, "save it as one of them")
    yield from ((f"{path.name} line {line}", found) for line, found in read(path.name, data))


def _unpacked(path: Path) -> tuple[str, bytes]:
    """Return the name and bytes of a file, or of the one packed in it: no size that it states is believed."""
    kind = path.suffix.lower()
    try:
        with contextlib.ExitStack() as stack:
            opened: Any = gzip.open if kind == ".gz" else open
            file = stack.enter_context(opened(path, "rb"))
            name = path.stem if kind == ".gz" else path.name
            if kind == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(file))
                held = [one for one in archive.infolist() if not one.is_dir()]
                if len(held) != 1 or held[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile("not one file, stored or deflated")  # others unpack without a bound
                name, file = held[0].filename, stack.enter_context(archive.open(held[0]))
            if len(data := file.read(_MOST + 1)) > _MOST:
                raise EOFError(f"more than {_MOST >> 20} MB unpacked")
            return name, data
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        got = f"{path.name} that cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(got, f"a whole file, up to {_MOST >> 20} MB unpacked", "check the file, or split it") from None


def _table(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    text = data.decode("utf-8-sig", "surrogateescape")
    csv.field_size_limit(_MOST)  # of the whole process: texts are longer than the 128 KiB that it allows
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
    header = [cell.strip().lower() for cell in next(rows, [])]
    renewals = {"oreg", "odat"} <= {*header}
    known = sorted({*header} & _KNOWN) == sorted(header) and {*header} & {"title", "text", "text_file"}
    if not renewals and not known:
        raise InputError(f"{name} with the columns {header}", ", ".join(sorted(_KNOWN)), "rename or remove the others")
    line = rows.line_num + 1
    for row in rows:
        at, line = line, rows.line_num + 1
        if row and len(row) != len(header):
            yield at, ValueError(f"{len(row)} cells under {len(header)} names")
        elif row:
            found = dict(zip(header, row, strict=True))
            yield at, _renewal(found) if renewals else found


def _renewal(row: Mapping[str, str]) -> Mapping[str, str]:
    """Return a renewed work; a title that was not parsed stands in the full text, claimants are ``name|role||...``."""
    title = row.get("title") or row.get("titl") or row.get("full_text", "").partition("©")[0]
    holders = [claim.partition("|")[0] for claim in row.get("claimants", "").split("||")]
    author, holder = row.get("author") or row.get("auth", ""), "; ".join(holders)
    return {"title": title, "authors": author, "published": row["odat"], "holder": holder, "renewed": "yes"}


def _json_lines(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.decode("utf-8-sig", "surrogateescape").split("\n"), start=1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError):
            yield number, ValueError("no JSON")


def _onix(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield products. A first pass refuses what could refer to anything, and finds the lines."""
    parser, lines = expat.ParserCreate(namespace_separator="}"), []

    def typed(*_: object) -> None:
        raise InputError(f"{name} line {parser.CurrentLineNumber}: a DTD", "XML without one", "take it out")

    def started(tag: str, _: object) -> None:
        if tag.rpartition("}")[2].lower() == "product":
            lines.append(parser.CurrentLineNumber)

    parser.StartDoctypeDeclHandler, parser.StartElementHandler = typed, started
    try:
        text = data.decode("utf-8-sig")
        parser.Parse(text, True)
    except (UnicodeDecodeError, expat.ExpatError) as error:
        raise InputError(f"{name} that is broken ({error})", "well-formed XML in UTF-8", "export it anew") from None
    if not lines:
        raise InputError(f"{name} without a product", "a message of ONIX 3", "export it anew")
    numbers = iter(lines)
    for _, one in iterparse(io.StringIO(text)):
        tag = one.tag.rpartition("}")[2].lower()
        one.tag = _SHORT.get(tag, tag)
        if tag == "product":
            yield next(numbers), _product(one)
            one.clear()


def _product(product: Element) -> Mapping[str, Any]:
    """Return what a product of ONIX says: title, contributors, owners of the rights, year and country."""

    def names(path: str) -> str:
        found = []
        for one in product.iterfind(path):
            kinds = "personname", "namesbeforekey", "keynames", "personnameinverted", "corporatename"
            name, first, key, inverted, body = (one.findtext(kind, "").strip() for kind in kinds)
            found.append(name or f"{first} {key}".strip() or inverted or body)
        return "; ".join(found)

    titles = product.findall("descriptivedetail/titledetail[titletype='01']/titleelement")
    titles.sort(key=lambda one: one.findtext("titleelementlevel", ""))  # of the product, then of its series
    parts = [one.findtext(tag, "") for one in titles[:1] for tag in ("titletext", "titleprefix", "titlewithoutprefix")]
    years = product.iterfind("publishingdetail/copyrightstatement/copyrightyear")
    first = min(((one.text or "").strip()[:4] for one in years), default="")  # of a range, too
    dates = {}
    for one in product.iterfind("publishingdetail/publishingdate"):
        for day in one.iterfind("date"):
            form, told = day.get("dateformat") or one.findtext("dateformat", "00"), (day.text or "").strip()
            dates[one.findtext("publishingdaterole")] = told if form in ("00", "01", "05") else told[:4]
    return {
        "title": " ".join(parts),
        "authors": names("descriptivedetail/contributor"),
        "holder": names("publishingdetail/copyrightstatement/copyrightowner"),
        "published": dates.get("11") or first or dates.get("01"),
        "country": product.findtext("publishingdetail/countryofpublication"),
    }


def _as_work(record: Any, folder: Path) -> tuple[Work, str | None]:
    """Return the work and the text of named fields, or raise why there is none."""
    if not isinstance(record, Mapping):
        raise record if isinstance(record, ValueError) else ValueError("no JSON object")
    told = {name: value for name, cell in record.items() if (value := _field(name, cell)) not in (None, "", ())}
    text = told.pop("text", None)
    if file := told.pop("text_file", None):
        if text is not None:
            raise ValueError("both text and text_file")
        text = _field("text", _text_below(folder, file))
    if not text and "title" not in told:
        raise ValueError("neither a title nor a text")
    work = Work(0, **told)
    refuse_odd(work, text)
    return work, text


def _text_below(folder: Path, name: str) -> str:
    found = False
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, links in a circle, a NUL
        file = (folder / name).resolve()
        found = file.is_relative_to(folder.resolve()) and file.is_file()
    if not found:
        raise ValueError(f"text_file {name!r} is no file below the folder")
    return _unpacked(file)[1].decode("utf-8-sig", "surrogateescape")


def _field(name: str, cell: Any) -> Any:
    """Return a cell as `Work` takes it; it is text whatever it begins with, and nothing is computed from it."""
    if name not in _KNOWN:
        raise ValueError(f"unknown name {name!r}")
    if name == "authors" and isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        cell = ";".join(cell)
    if not isinstance(cell, str | int | None):
        raise ValueError(f"{name} that is no text")
    told = "" if cell is None else str(cell)
    told = told.strip() if name in ("text", "text_file") else " ".join(told.split())
    if LONE.search(told):
        raise ValueError(f"{name} that is not UTF-8")
    if name == "authors":
        return tuple(one for part in told.split(";") if (one := part.strip()))
    if not told or name not in YEARS + FLAGS:
        return told
    try:
        if name in FLAGS:
            return _SAID[told.lower()]
        ((year, month, day),) = _DATE.findall(told)
        return date(int(year), int(month or 1), int(day or 1)).year
    except (KeyError, ValueError):
        kind = "a year or a day" if name in YEARS else "yes or no"
        raise ValueError(f"{name} {told!r}, which is not {kind}") from None
