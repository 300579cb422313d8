"""Rights: a table of works, boundary days, licences, and what no combination of dates may say."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.guard.rights import Work, licence_conditions, rights_of

FREE, OPEN, KEPT, OPAQUE = "public domain", "open licence", "protected", "unknown"
BY, SA = {"attribution"}, {"attribution", "share-alike"}


@pytest.mark.parametrize(
    ("fields", "place", "year", "status", "rule", "until"),
    [
        ({"published": 1930}, "US", 2026, FREE, "us-95-years", 2025),
        ({"published": 1931, "renewed": True}, "US", 2026, KEPT, "us-renewed", 2026),
        ({"published": 1931}, "US", 2026, OPAQUE, "us-renewal-not-known", None),
        ({"published": 1963, "renewed": False}, "US", 2026, FREE, "us-not-renewed", None),
        ({"published": 1963, "renewed": False, "country": "FR"}, "US", 2026, OPAQUE, "us-restoration-not-known", None),
        ({"published": 1964}, "US", 2026, KEPT, "us-95-years", 2059),
        ({"published": 1977, "noticed": False}, "US", 2026, FREE, "us-no-notice", None),
        ({"published": 1978, "noticed": False}, "US", 2026, OPAQUE, "us-no-notice-check", None),
        ({"published": 1989, "noticed": False}, "US", 2026, KEPT, "us-1978-death-not-known", None),
        ({"published": 1978}, "US", 2048, KEPT, "us-1978-death-not-known", None),
        ({"published": 1978}, "US", 2100, OPAQUE, "us-1978-death-not-known", None),
        ({"published": 2002, "died": 1890}, "US", 2026, KEPT, "us-life-70", 2047),
        ({"published": 2003, "died": 1890}, "US", 2026, FREE, "us-life-70", 1960),
        ({"published": 1990, "died": 1995, "corporate": True}, "US", 2026, KEPT, "us-corporate-95", 2085),
        ({"published": 2020, "government": True}, "US", 2026, FREE, "us-government", None),
        ({"published": 2020, "government": True, "died": 2021}, "GB", 2026, KEPT, "gb-life-70", 2091),
        ({"died": 1616}, "US", 2026, OPAQUE, "us-publication-not-known", None),
        ({}, "US", 2026, OPAQUE, "no-dates", None),
        ({"died": 1955}, "de", 2026, FREE, "eu-life-70", 2025),
        ({"published": 1955, "died": 1990, "corporate": True}, "EU", 2026, FREE, "eu-publication-70", 2025),
        ({"published": 1855}, "GB", 2026, FREE, "gb-170-years", 2025),
        ({"published": 1856}, "GB", 2026, OPAQUE, "gb-death-not-known", None),
        ({"published": 2020, "declared": FREE}, "US", 2026, FREE, "declared", None),
        ({"published": 1850, "declared": KEPT, "until": 2026}, "US", 2026, KEPT, "declared", 2026),
        ({"until": 2026}, "EU", 2026, KEPT, "declared", 2026),
        ({"declared": KEPT, "until": 2025}, "US", 2026, FREE, "declared-until", 2025),
        ({"published": 2020, "licence": "CC-BY-4.0"}, "US", 2026, OPEN, "licence", None),
        ({"published": 2020, "licence": "CC0-1.0"}, "US", 2026, FREE, "licence", None),
        ({"published": 1990, "died": 1995, "licence": "no such"}, "US", 2026, KEPT, "us-life-70", 2065),
        ({"published": 1900, "licence": "CC-BY-NC-4.0"}, "US", 2026, FREE, "us-95-years", 1995),
        ({"licence": "MIT", "declared": OPEN}, "US", 2026, OPEN, "declared", None),
    ],
)
def test_the_table_of_works_and_the_last_day_of_each_term(fields, place, year, status, rule, until):
    # catches: a rule of another period or place; dates that overrule a declaration; a term that ends a day off
    found = rights_of(Work(7, **fields), jurisdiction=place, on=date(year, 6, 1))
    assert (found.status, found.rule, found.until) == (status, rule, until)
    assert found.conditions == (BY if status == OPEN else set())
    if until is not None and until >= 1999:
        ends = date(until, 12, 31), date(until + 1, 1, 1)
        days = [rights_of(Work(7, **fields), jurisdiction=place, on=day).status for day in ends]
        assert (days[0] != FREE, days[1]) == (True, FREE)


YEARS, MAYBE = st.none() | st.integers(1850, 2100), st.sampled_from([None, False, True])
PLACES = st.sampled_from(["US", "GB", "FR"])


@settings(max_examples=150, deadline=None)
@given(YEARS, YEARS, st.booleans(), MAYBE, MAYBE, PLACES, st.integers(1999, 2250), st.integers(0, 80))
def test_what_is_free_stays_free_and_what_is_kept_ends(published, died, corporate, renewed, noticed, place, year, more):
    # catches: a free work that is protected again, a protected one whose last year is over, a free one whose is not
    if published and died and died > published + 100:
        died = published
    one = Work(7, published=published, died=died, corporate=corporate, renewed=renewed, noticed=noticed)
    now, later = (rights_of(one, jurisdiction=place, on=date(when, 3, 1)) for when in (year, year + more))
    assert now.status != FREE or later.status == FREE
    assert now.until is None or (now.status == FREE) == (now.until < year)


@pytest.mark.parametrize(
    ("names", "conditions"),
    [
        (["mit", "ISC", "BSD-3-Clause", "Apache-2.0", "CC BY 4.0"], BY),
        (["CC-BY-SA-3.0-DE", "MPL-2.0", "GPL-3.0-or-later", "AGPLv3", "lgpl-2.1+"], SA),
        (["cc-by-nc-sa-4.0"], SA | {"non-commercial"}),
        (["CC_BY-ND"], BY | {"no-derivatives"}),
        (["CC0", "cc0-1.0", "Unlicense", "PDM-1.0", "public domain"], set()),
        (["", "CC-BY-SA-ND-4.0", "All rights reserved", "MIT-like", "MIT" + " " * 80 + "not"], None),
    ],
)
def test_licences_and_their_conditions(names, conditions):
    # catches: a licence that is taken for another, a flag that is lost, an unknown licence that opens a work
    assert [licence_conditions(name) for name in names] == [conditions] * len(names)


YEAR, STATUS = "a year from -3000 to 2100, or nothing", "public domain, open licence, protected, unknown"
LATE, CODE = "a death at most 100 years after the publication", "two capital letters (ISO 3166 alpha-2), such as US"
DIED, KNOWN = "work 7, published in 1700, whose author died in 1801", "an open licence, such as CC-BY-4.0 or MIT"
PLACE = "US GB AT BE BG CY CZ DE DK EE ES EU FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"


@pytest.mark.parametrize(
    ("fields", "asked", "parts"),
    [
        ({"id": 1 << 24}, {}, ("a work with the id 16777216", "0 to 16777215", "number the works from 0")),
        ({"published": 3000}, {}, ("work 7 with published = 3000", YEAR, "correct the year, or leave it out")),
        ({"died": 1801, "published": 1700}, {}, (DIED, LATE, "correct one of the two")),
        ({"country": "usa"}, {}, ("work 7 with the country 'usa'", CODE, "write the code of the country")),
        ({"declared": "free"}, {}, ("work 7 declared 'free'", STATUS, "declare one of them, or nothing")),
        ({"declared": OPEN}, {}, ("work 7 declared 'open licence' with the licence ''", KNOWN, "name the licence")),
        ({}, {"jurisdiction": "JP"}, ("the jurisdiction 'JP'", PLACE, "choose one whose rules are known")),
        ({}, {"on": date(1998, 12, 31)}, ("the day 1998-12-31", "1999-01-01 or later", "ask for a later day")),
    ],
)
def test_works_places_and_days_that_have_no_rules_are_refused(fields, asked, parts):
    # catches: a row of nonsense that becomes a right; the law of one country or time taken for that of another
    with pytest.raises(InputError) as error:
        rights_of(Work(**{"id": 7} | fields), **{"on": date(2026, 1, 1)} | asked)
    assert error.value.args == parts
