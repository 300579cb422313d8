"""Who may copy a work: its dates, a country and a day give a status and the rule that said so.

What a registry declares goes before what dates would say; what dates make free stays free whatever licence it carries;
an open licence goes before protection. A term ends with a calendar year: the work is free when on.year > until.

United States (17 U.S.C. 302-305, 405; the first rule that fits), p the year of publication, d of the last death:

=======================  =======================================================================================
of the government        ``us-government`` free (105)
p <= 1977                ``us-95-years`` free when on.year >= p + 96
..., without notice      ``us-no-notice`` free: until 1977 a notice was a condition of protection
1964 <= p <= 1977        ``us-95-years`` protected to p + 95, as the law of 1992 renewed them all
p <= 1963                ``us-renewed`` protected to p + 95, ``us-not-renewed`` free, ``us-renewal-not-known``
p <= 1988, no notice     ``us-no-notice-check`` unknown: until 1 March 1989 a notice could be made good
p >= 1978, corporate     ``us-corporate-95`` to p + 95; 120 years from creation could end it earlier, but the year
                         of creation is not known here
p >= 1978, d known       ``us-life-70`` to d + 70, for p <= 2002 not before 2047 (303)
p >= 1978, d not known   ``us-1978-death-not-known`` protected through 2048, since nobody who died in 1978 or later
                         is free before 2049; then unknown
=======================  =======================================================================================

Want of notice or renewal proves nothing of a work first published abroad, as it may have been restored in 1996 (104A):
``us-restoration-not-known``. Without p: ``us-publication-not-known``. Without p and d, in any place: ``no-dates``.

European Union (directive 2006/116/EC, articles 1 and 8) and Great Britain (CDPA 1988, section 12): ``eu-life-70`` to
d + 70; corporate, anonymous or under a pseudonym, ``eu-publication-70`` to p + 70; d unknown: ``eu-170-years`` free
after p + 170, as nobody outlives a publication by more than 100 years, else ``eu-death-not-known``. In Great Britain
the names begin with ``gb``. The comparison of terms with the country of origin (article 7) is not made: it could only
shorten. Nothing here is legal advice; exceptions such as quotation are a matter of policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

from upright.contract import InputError

__all__ = ["Rights", "Status", "Work", "licence_conditions", "rights_of"]

Status = Literal["public domain", "open licence", "protected", "unknown"]

_PLACES = "US GB AT BE BG CY CZ DE DK EE ES EU FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
_FIRST, _LAST = -3000, 2100  # years a work or a death may have
_OUTLIVED = 100  # years by which an author may outlive a publication
_SINCE = 1999  # the first year under the terms that stand here
_FREE = re.compile(r"cc0(-1\.0)?|unlicense|(cc-)?pd(m(-1\.0)?|dc)|public-?domain(-mark(-1\.0)?)?")
_CREATIVE = re.compile(r"cc-by((?:-nc)?(?:-sa|-nd)?)(-\d(\.\d)?)?(-[a-z]{2,3})?")
_SHARED = re.compile(r"[al]?gpl(-?v?\d(\.\d)?)?(-only|-or-later|\+)?|mpl(-2\.0)?")
_NAMED = re.compile(r"mit|isc|apache-2\.0|bsd(-[23]-clause)?")
_WORDS = {"sa": "share-alike", "nc": "non-commercial", "nd": "no-derivatives"}


@dataclass(frozen=True)
class Work:
    """A registered work; what is not known is None or empty.

    Raises
    ------
    InputError
        For a value outside its range, a death more than 100 years after the publication, and an open licence that is
        declared without a licence that is known.
    """

    id: int  # 0 to 2**24 - 1
    title: str = ""
    holder: str = ""  # of the rights, as declared
    authors: tuple[str, ...] = ()
    died: int | None = None  # year in which the last author died, -3000 to 2100
    published: int | None = None  # year of the first publication, -3000 to 2100
    country: str = "US"  # of the first publication, ISO 3166 alpha-2
    corporate: bool = False  # made for hire, anonymous or under a pseudonym
    renewed: bool | None = None  # a US work of 1963 or before
    noticed: bool | None = None  # published with a notice
    government: bool = False  # of the US federal government
    licence: str = ""  # SPDX id, or "CC-BY-4.0" style
    declared: Status | None = None  # by the registry
    until: int | None = None  # declared: last year of protection, -3000 to 2400
    owner: str = ""  # tenant to whom the work belongs

    def __post_init__(self) -> None:
        if type(self.id) is not int or not 0 <= self.id < 1 << 24:
            raise InputError(f"a work with the id {self.id!r}", f"0 to {(1 << 24) - 1}", "number the works from 0")
        name = f"work {self.id}"
        for what, last in (("published", _LAST), ("died", _LAST), ("until", _LAST + 300)):
            year = getattr(self, what)
            if year is not None and (type(year) is not int or not _FIRST <= year <= last):
                accepted = f"a year from {_FIRST} to {last}, or nothing"
                raise InputError(f"{name} with {what} = {year!r}", accepted, "correct the year, or leave it out")
        if self.died is not None and self.published is not None and self.died > self.published + _OUTLIVED:
            got = f"{name}, published in {self.published}, whose author died in {self.died}"
            raise InputError(got, f"a death at most {_OUTLIVED} years after the publication", "correct one of the two")
        if not re.fullmatch("[A-Z]{2}", self.country):
            accepted = "two capital letters (ISO 3166 alpha-2), such as US"
            raise InputError(f"{name} with the country {self.country!r}", accepted, "write the code of the country")
        if self.declared is not None and self.declared not in get_args(Status):
            accepted = ", ".join(get_args(Status))
            raise InputError(f"{name} declared {self.declared!r}", accepted, "declare one of them, or nothing")
        if self.declared == "open licence" and licence_conditions(self.licence) is None:
            got = f"{name} declared 'open licence' with the licence {self.licence!r}"
            raise InputError(got, "an open licence, such as CC-BY-4.0 or MIT", "name the licence")


@dataclass(frozen=True)
class Rights:
    """What the law or the registry says of a work."""

    status: Status
    rule: str  # name of the rule that fired
    licence: str = ""  # of an open licence
    until: int | None = None  # last calendar year of protection, where it is known
    conditions: frozenset[str] = frozenset()  # attribution, share-alike, non-commercial, no-derivatives


def licence_conditions(licence: str) -> frozenset[str] | None:
    """Return what an open licence asks for, nothing for CC0 and other dedications, None where it is not known.

    Ids are SPDX's in any case, with spaces for hyphens: CC0, CC-BY with its kinds, MIT, ISC, Apache-2.0, BSD, MPL-2.0,
    the GPL family, Unlicense, public-domain marks.
    """
    key = "" if len(licence) > 80 else re.sub(r"[\s_]+", "-", licence.strip()).lower()
    if _FREE.fullmatch(key):
        return frozenset()
    if found := _CREATIVE.fullmatch(key):
        return frozenset({"attribution"} | {_WORDS[word] for word in found[1].split("-") if word})
    if _SHARED.fullmatch(key):
        return frozenset({"attribution", "share-alike"})
    return frozenset({"attribution"}) if _NAMED.fullmatch(key) else None


def rights_of(work: Work, *, jurisdiction: str = "US", on: date) -> Rights:
    """Return the rights in a work in one place on one day, by the rules at the head of this file.

    `jurisdiction` is US, GB, EU or a member of the EU (ISO 3166 alpha-2), in any case. An `InputError` for another one,
    and for a day before 1999, when the terms came to be as they stand here.
    """
    place = jurisdiction.upper()
    if place not in _PLACES.split():
        raise InputError(f"the jurisdiction {jurisdiction!r}", _PLACES, "choose one whose rules are known")
    if on.year < _SINCE:
        raise InputError(f"the day {on}", f"{_SINCE}-01-01 or later", "ask for a later day")
    asked = licence_conditions(work.licence)
    if work.declared is not None or work.until is not None:
        if work.until is not None and on.year > work.until:
            return Rights("public domain", "declared-until", until=work.until)
        if work.declared == "open licence" and asked is not None:
            return Rights("open licence", "declared", work.licence, work.until, asked)
        return Rights(work.declared or "protected", "declared", until=work.until)
    dated = _american(work, on.year) if place == "US" else _european(work, on.year, place)
    if dated.status == "public domain" or asked is None:
        return dated
    return Rights("open licence" if asked else "public domain", "licence", work.licence, dated.until, asked)


def _term(until: int, year: int, rule: str) -> Rights:
    return Rights("public domain" if year > until else "protected", rule, until=until)


def _european(work: Work, year: int, place: str) -> Rights:
    law, published = "gb" if place == "GB" else "eu", work.published
    if work.died is not None and not work.corporate:
        return _term(work.died + 70, year, f"{law}-life-70")
    if published is None:
        return Rights("unknown", "no-dates" if work.died is None else f"{law}-publication-not-known")
    if work.corporate:
        return _term(published + 70, year, f"{law}-publication-70")
    if year > (last := published + _OUTLIVED + 70):
        return Rights("public domain", f"{law}-170-years", until=last)
    return Rights("unknown", f"{law}-death-not-known")


def _american(work: Work, year: int) -> Rights:
    published, died = work.published, work.died
    if work.government:
        return Rights("public domain", "us-government")
    if published is None:
        return Rights("unknown", "no-dates" if died is None else "us-publication-not-known")
    until = published + 95
    if published <= 1977:
        if year > until:
            return _term(until, year, "us-95-years")
        lapsed = work.noticed is False or (published <= 1963 and work.renewed is not True)
        if lapsed and work.country != "US":
            return Rights("unknown", "us-restoration-not-known")
        if work.noticed is False:
            return Rights("public domain", "us-no-notice")
        if published > 1963:
            return _term(until, year, "us-95-years")
        if work.renewed is None:
            return Rights("unknown", "us-renewal-not-known")
        return _term(until, year, "us-renewed") if work.renewed else Rights("public domain", "us-not-renewed")
    if published <= 1988 and work.noticed is False:
        return Rights("unknown", "us-restoration-not-known" if work.country != "US" else "us-no-notice-check")
    if work.corporate:
        return _term(until, year, "us-corporate-95")
    if died is not None:
        return _term(max(died + 70, 2047 if published <= 2002 else 0), year, "us-life-70")
    return Rights("protected" if year <= 2048 else "unknown", "us-1978-death-not-known")
