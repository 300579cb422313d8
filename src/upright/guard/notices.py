"""What a page says of its own rights: a grammar over text that OCR has read, not a list of words.

    claim       mark ["by"] (years ["by"] [holder] | holder [years])
    mark        "copyright" [sign] | sign; sign = the sign, "(c)", or what OCR makes of it: @ ? O 0 e ® ¢
    reserved    ["all" | "some"] "rights reserved"
    licence     an open licence by its name; a short name, such as MIT, only beside the word
    dedication  "in the public domain" and its like, "no rights reserved", CC0

Key words bear one wrong, missing or added letter. What looks like the sign counts after the word, or where a sentence
begins and a year and a holder follow: else "O Captain" is a notice. "(c)" is none before prose or in a list. A question
says nothing, nor does a denied licence. Each pattern is bounded, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from upright.guard.rights import Status, licence_conditions

__all__ = ["Notice", "claims", "find_notices"]

_KEYS = ("copyright", "copyrighted", "rights", "allrights", "reserved", "public", "domain")
_SURE = 0.9  # confidence for each repaired letter
_LIST = 4000  # characters after a "(b)" in which a "(c)" is the next item
_BESIDE = 120  # letters between a claim and a licence that is given of the same
_NEAR = 80  # most characters between a claim and a reservation that belongs to it
_LETTER = r"[\w|!$\u00ad\u200b-\u200d\u2060\ufeff]"  # with what OCR makes of one, and with signs that are not drawn
_SIGN = r"(?:[©ⓒⒸ]|&copy;|(?<!\d\s)\(\s?[cC©]\s?\))"
_HEADS, _TAILS = ("|".join(sorted({key[part] for key in _KEYS})) for part in (slice(3), slice(-3, None)))
_MARK = re.compile(  # one edit spares the first three letters of a key word or its last three
    rf"(?<!\w)(?:(?P<item>\([bB]\))|(?P<sign>{_SIGN})|(?P<like>(?<!\S)(?:[@®¢?]|\([eoGO06]\)|[O0e](?=\s)))|"
    rf"(?P<word>(?:(?i:{_HEADS}){_LETTER}{{2,9}}+|{_LETTER}{{5,12}}+(?<=(?i:{_TAILS})))(?!\w)))"
)
_YEAR = r"(?<!\w)(?:1[5-9]\d\d|20\d\d|2100)(?:(?!\w)|(?=by\b))"
_YEARS = rf"(?P<years>{_YEAR}(?:\s{{0,2}}(?:[-–—,&/]|and|to)\s{{0,2}}{_YEAR}){{0,19}})"
_STOP = r"(?:(?:(?<=\b[A-Z])|(?<=\.[A-Z])|(?<=\b(?:Co|Dr|Jr|Mr|St))|(?<=\b(?:Inc|Ltd|Mrs)))\.)?"  # of an abbreviation
_NAME = rf"(?![a-zß-öø-ÿ])[^\W\d_][\w'’&-]{{0,30}}(?:\.[\w'’&-]{{1,30}}){{0,3}}{_STOP}"
_SMALL = r"(?:(?:of|and|the|for|de|du|des|la|le|van|von|der|den|dos|da|di|et|und|&)\s{1,2}){0,2}"
_HOLDER = rf"(?:[Tt]he\s)?(?P<holder>{_NAME}(?:[ \t]{{1,2}}{_SMALL}{_NAME}){{0,7}}(?:,[ ](?:Inc|Ltd|LLC|LLP|Jr)\b\.?)?)"
_LEAD = re.compile(  # the sign after the word: before a year it may have become any one letter
    rf"(?:\s{{0,2}}[:,])?(?P<sign>\s{{0,3}}{_SIGN}|\s{{1,3}}[@®¢?O0e](?=\s)|"
    rf"\s{{1,3}}(?:\w\w\)|[^\w\s]{{0,2}}\w?[^\w\s]{{0,2}}(?=\s{{0,2}}{_YEAR})))?"
)
_DATED = re.compile(rf"[\s,:]{{0,4}}{_YEARS}(?:(?:[ \t,;]|\s(?=(?i:by)\b)){{1,3}}(?P<by>(?i:by\s{{1,2}}))?{_HOLDER})?")
_HELD = re.compile(rf"[\s,:]{{0,4}}(?P<by>(?i:by\s{{1,2}}))?{_HOLDER}(?:[\s,(]{{1,3}}(?:in\s)?{_YEARS})?")
_NO_HOLDER = re.compile(
    r"(?:An?|Acts?|Agency|All|Amendment|Clearance|Code|Directive|Edition|First|In|Information|Infringement|Its?|Laws?|"
    r"Licen[cs]e|Matters|Notice|Office|Page|Policy|Printed|Protection|Published|Section|Statement|Term|The|This)(?!\w)"
)
_SHORT = "MIT|ISC|BSD|[AL]?GPL|MPL|Unlicense"
_LICENCE = re.compile(
    rf"""(?<!\w)(?:(?P<cc>CC[\s-]{{0,2}}BY(?:[\s.,-]{{0,2}}(?:NC|SA|ND)){{0,3}}+(?:[\s-]?\d\.?\d)?
      | (?i:creativecommons\.org/licenses/by[a-z-]{{0,9}}/\d\.\d | creative\s{{1,2}}commons[\s,:–-]{{1,3}}attribution
        (?:[\s,-]{{1,3}}(?:non-?commercial|share-?alike|no-?deriv\w{{0,6}}|works|licen[cs]e|international)){{0,5}}+
        (?:\s{{1,2}}v?\d\.\d)?))
    | (?P<zero>CC[\s-]?0(?:[\s-]1\.0)?|(?i:creative\scommons\szero|creativecommons\.org/publicdomain/zero))
    | (?P<apache>Apache(?:[\s-]{{1,2}}2\.0|\s{{1,2}}(?:Software\s{{1,2}})?Licen[cs]e(?!\W{{1,3}}(?:Version\s)?1\.)))
    | (?P<bsd>BSD[\s-][23][\s-][Cc]lause|[23][\s-][Cc]lause\sBSD) | (?P<mpl>MPL[\s-]2\.0|Mozilla\sPublic\sLicen[cs]e)
    | (?P<gpl>[AL]?GPL(?:\s[Vv]ersion\s|[\s-]?v?)\d(?:\.\d)? | (?i:GNU\s{{1,2}}(?:(?:affero|lesser|library)\s{{1,2}})?
        general\s{{1,2}}public\s{{1,2}}licen[cs]e(?:,?\s{{1,2}}(?:version\s{{1,2}}|v\.?\s?)?\d(?:\.\d)?)?))
    | (?P<first>{_SHORT})[\s-]{{1,3}}(?P<one>{_LETTER}{{5,9}}+) | (?P<two>{_LETTER}{{5,9}}+)(?:-Identifier)?
        (?:\s?[:=]|\s{{1,3}}(?:is|under))(?:\s{{1,3}}(?:the|terms|of|an?)\b){{0,4}}[\s"'(]{{0,3}}
        (?P<last>{_SHORT})(?!-)(?:\s(?P<more>{_LETTER}{{5,9}}+))?)(?!\w)""",
    re.VERBOSE,
)
_FREE = re.compile("CC|Apache|BSD|MPL|Mozilla|GPL|MIT|ISC|Unlicense|(?i:creative|gnu)")  # in each licence one of them
_NEXT = re.compile(rf"[\s-]{{1,3}}({_LETTER}{{5,12}})(?!\w)")
_ALL = re.compile(r"(?<!\S)\W?(?i:(?P<no>no)|(?P<all>all|some)|a[l1|!i]{1,2}|\w[l1|!]{2}|a\w[l1|!])\s{1,3}\Z")
_DEDICATED = re.compile(r"(?i:(?:in|into|to)\s{1,3}the|\b(?:is|are|an?)|[:=])\s{1,3}\Z")
_CLOSED, _PROSE = re.compile(r"[ \t]{0,3}(?:[\n.,;:)\]|•–—]|\Z)"), re.compile(r"\s{1,3}(?!by\b)[a-z]")
_ASKED = re.compile(r"(?:[^.!?\n]|\.\d){0,160}(?<=[\w\"'”’)])\?")
_DENIED = re.compile(r"(?i:\b(?:not|never|no\s{1,2}longer|cannot|without|\w{2,5}n['’]t)\b)[^.!?:;\n]{0,40}\Z")


@dataclass(frozen=True)
class Notice:
    """One notice; `licence` is the id of an open licence, of CC0 as well, `span` its characters in the text."""

    kind: Literal["reserved", "copyright", "licence", "public domain"]
    years: tuple[int, ...]  # of a range both ends
    holder: str
    licence: str
    span: tuple[int, int]
    confidence: float  # in (0, 1]: 1 where every letter was read exactly


def _key(word: str) -> tuple[int, str]:
    """Return the nearest key word, after 0 or 1 edits; 2 say that there is none."""
    word, best = word.casefold(), (2, "")
    for key in (*_KEYS, "license", "licence", "licensed") if word not in ("preserved", "deserved") else ():
        if abs(len(word) - len(key)) < 2:
            same = next((i for i in range(min(len(word), len(key))) if word[i] != key[i]), min(len(word), len(key)))
            a, b = word[same:], key[same:]
            best = min(best, (0 if a == b else 1 if a[1:] == b[1:] or a[1:] == b or a == b[1:] else 2, key))
    return best


def _begins_sentence(text: str, at: int) -> bool:
    return text[max(0, at - 8) : at].rstrip(" \t\"'“‘(*_")[-1:] in "\n.!?;:|•–—-"  # where "" is too


def _licence(found: re.Match[str]) -> Notice | None:
    text, kind = found[0].lower(), found.lastgroup or ""
    repairs = min((_key(word)[0] for word in found.group("one", "two", "more") if word), default=0)
    version = f"-{'.'.join(re.findall(r'[0-9]', text)[:2])}".rstrip("-")
    name = found["first"] or found["last"] or ""
    if kind == "cc":
        flags = {"-NC": "nc(?!e)|commercial", "-SA": "sa|alike", "-ND": "nd|deriv"}
        name = "CC-BY" + "".join(flag for flag, words in flags.items() if re.search(words, text)) + version
    elif kind == "gpl":
        lead = re.sub(r"(?s:(?:gnu\s+)?(a(?=f|g)|l(?=e|i|g))?.*)", r"\1", text, count=1).upper()
        name = f"{lead}GPL{version}{'.0' if len(version) == 2 else ''}"
    name = {"zero": "CC0-1.0", "apache": "Apache-2.0", "mpl": "MPL-2.0", "bsd": f"BSD{version}-Clause"}.get(kind, name)
    free: Literal["public domain", "licence"] = "public domain" if kind == "zero" else "licence"
    return Notice(free, (), "", name, found.span(), _SURE**repairs) if repairs < 2 else None


def _phrase(text: str, start: int, end: int, repairs: int, key: str) -> Notice | None:
    """Return the reservation or dedication that a key word begins."""
    second = _NEXT.match(text, end)
    more, word = _key(second[1]) if second else (2, "")
    if second is None or (key[-6:], word) not in (("rights", "reserved"), ("public", "domain")):
        return None
    end, repairs, free = second.end(), repairs + more, key == "public"
    before = text[max(0, start - 20) : start]
    whole = bool((_begins_sentence(text, start) and _CLOSED.match(text, end)) or (free and _DEDICATED.search(before)))
    if not free and (lead := _ALL.search(before)):
        free, repairs = lead["no"] is not None, repairs + (lead.lastgroup is None)
        start -= len(before) - lead.start()
        whole = _begins_sentence(text, start) or not _PROSE.match(text, end)
    return Notice("public domain" if free else "reserved", (), "", "", (start, end), _SURE**repairs) if whole else None


def _claim(text: str, mark: re.Match[str], repairs: int, listed: bool, limit: int) -> Notice | None:
    """Return what a word or sign claims, read up to `limit`, where another notice begins."""
    sign, at = mark["sign"] or "", mark.end()
    if mark["word"] and (lead := _LEAD.match(text, at, limit)):
        sign, at = (lead["sign"] or "").strip(), lead.end()
        repairs += bool(sign) and not re.fullmatch(_SIGN, sign)
    found = _DATED.match(text, at, limit) or _HELD.match(text, at, limit)
    holder, dated, end = (found["holder"] or "", found["years"] or "", found.end()) if found else ("", "", at)
    if found and holder and (_NO_HOLDER.match(holder) or _key(holder.split()[0])[0] < 2):
        holder, dated, end = ("", dated, found.end("years")) if found.re is _DATED else ("", "", at)
    closed, opens = _CLOSED.match(text, end, limit) is not None, _begins_sentence(text, mark.start())
    held = bool(holder) and closed
    if mark["like"]:
        fits = bool(dated) and opens and (held or (closed and mark[0] in "@®¢"))
    elif mark["word"]:
        fits = bool(sign or holder or opens or not _PROSE.match(text, end)) and bool(dated)
        fits = fits or (held and bool(sign or (found and found["by"]) or (opens and " " in holder)))
    elif listed and sign[0] == "(":
        fits = held and bool(dated)
    else:
        fits = held or (bool(dated) and not _PROSE.match(text, end))
    years = tuple(int(year) for year in re.findall(r"\d{4}", dated))
    return Notice("copyright", years, holder, "", (mark.start(), end), _SURE**repairs) if fits else None


def find_notices(text: str) -> list[Notice]:
    """Return the notices of a text in the order of their spans; a reservation near a claim is part of it."""
    found, marks, item = list(map(_licence, _LICENCE.finditer(text) if _FREE.search(text) else ())), [], -_LIST
    for mark in _MARK.finditer(text):
        repairs, key = _key(mark["word"]) if mark["word"] else (int(bool(mark["like"])), "copyright")
        if mark["item"]:
            item = mark.end()
        elif repairs < 2 and key.startswith("copyright"):
            marks.append((mark, repairs, mark.start() - item < _LIST))
        elif repairs < 2:
            found.append(_phrase(text, *mark.span(), repairs, key))
    starts = [*sorted(one.span[0] for one in found if one), len(text)]
    found += [_claim(text, *mark, starts[bisect_left(starts, mark[0].end())]) for mark in marks]
    kept: list[Notice] = []
    for one in sorted((one for one in found if one), key=lambda one: (one.span[0], -one.span[1])):
        (start, end), free = one.span, one.kind in ("licence", "public domain")
        gap = start - kept[-1].span[1] if kept else 0
        asked = _ASKED.match(text, end) and (free or not _begins_sentence(text, start))
        if gap < 0 or asked or (free and _DENIED.search(text[max(0, start - 60) : start])):
            continue
        if kept and gap <= _NEAR and {kept[-1].kind, one.kind} == {"copyright", "reserved"}:
            last = kept.pop()
            span, sure = (last.span[0], end), min(last.confidence, one.confidence)
            one = replace(last if last.kind == "copyright" else one, span=span, confidence=sure)
        kept.append(one)
    return kept


def claims(notices: Sequence[Notice], *, year: int) -> Status:
    """Return what a page says of itself in a year.

    An open licence goes before a claim or reservation within `_BESIDE` letters of it, these before a licence elsewhere
    on the page, such as that of its pictures, and before a dedication without a name. A notice whose youngest year is
    more than 95 years before `year` claims nothing.
    """
    said = [
        one for one in notices if one.kind in ("copyright", "reserved") and max(one.years, default=year) >= year - 95
    ]
    opened = [(one, asked) for one in notices if one.licence and (asked := licence_conditions(one.licence)) is not None]
    apart = [
        one for one in said
        if not any(max(one.span[0] - free.span[1], free.span[0] - one.span[1]) <= _BESIDE for free, _ in opened)
    ]  # fmt: skip
    if opened and not apart:
        return "open licence" if any(asked for _, asked in opened) else "public domain"
    if said:
        return "protected"
    return "public domain" if any(one.kind == "public domain" for one in notices) else "unknown"
