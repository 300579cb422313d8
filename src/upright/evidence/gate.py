"""``--fail-if``: SQL over the numbers that the report prints, evaluated by polars.

``"gap:ndcg@10:activity low" > 0.05 AND NOT works`` fails a build. Names of more than a word stand in double quotes. Of
the remedy's arm, of the only arm, or of what was audited:

=======================================  ==============================================================================
``statistic``, ``statistic=group``       value of a level, of one of its cells: ``"mean:ndcg@10:activity=advantaged"``
with `` low``, `` high``, `` p`` behind  ends of its interval; chance of as much without any effect
with `` null``, `` detectable`` behind   size by chance alone, on average; smallest size that could have been detected
with ``change`` before                   remedy minus baseline, for all of these: ``"change mean:ndcg@10 low"``
``headline``                             what decides the verdict, over all units; also ``"headline low"`` ...
``works``, ``shown``                     true or false: the remedy works; an audit, if it compared, shows something
``"gini:exposure@10"``, ``p_max``        Gini coefficient of a total; of an audit of embeddings, p of its best attack
=======================================  ==============================================================================

Accepted besides: numbers, ``+ - * /``, comparisons, ``AND OR NOT BETWEEN``, ``ABS() LEAST() GREATEST()``. What is
undefined or divided by zero is refused wherever it stands, because a comparison with it would pass unseen. The earlier
spelling is read too: ``gap_low["ndcg@10"]``, ``mean["ndcg@10", "women"]``, ``leakage_high``, ``min()``, ``max()``.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from upright.contract import InputError

__all__ = ["check_syntax", "example", "fail_if", "names"]

_LONGEST, _MOST = 1_000, 100  # characters; names and numbers, so that polars is not nested too deep for its stack
_ENDS = {"": "value", " low": "low", " high": "high", " null": "null", " detectable": "smallest_detectable", " p": "p"}
_SAME = {"min": "LEAST", "max": "GREATEST"}  # of the earlier spelling
_SOME = ("still known", "told apart", "over-unlearned")  # words of verdicts, besides those that end in "shown"
_KEY = r"""(?:"[^"]*"|'[^']*')"""
_TOKEN = re.compile(  # "()" is none: polars panics at LEAST()
    rf"""\s*(?: "(?P<quoted>(?:[^"]|"")+)" | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<word>[a-z]\w*(?=\s*\[) | (?:works|shown|p_max|headline(?:_\w+)?|(?:change_)?(?:worst_)?leakage(?:_\w+)?)\b)
      (?:\s*\[\s*(?P<keys>{_KEY}(?:\s*,\s*{_KEY})*)\s*\])?
    | (?P<sign><=|>=|<>|!=|==|[-+*/<>=),]|\((?!\s*\))|(?i:and|or|not|between|abs|least|greatest|min|max)\b) )\s*""",
    re.VERBOSE | re.ASCII,
)
_LANGUAGE = "names, numbers, + - * /, comparisons, AND, OR, NOT, BETWEEN, ABS(), LEAST(), GREATEST()"
_EXAMPLE = """write for example '"gap:ndcg@10:activity low" > 0.05': names of more than a word in double quotes"""


def example(verb: str) -> str:
    """Return an expression for the help of ``run``, ``compare``, or a kind of audit: ``ranking``, ``forgetting`` ..."""
    of_run = 'NOT works OR "headline high" > 0.1'
    own = {"run": of_run, "compare": of_run, "predictions": '"headline low" > 0.05', "forgetting": "headline > 0.1"}
    return own.get(verb, "shown AND ABS(headline) > 0.05")


def check_syntax(expression: str) -> None:
    """Refuse what cannot be true or false (`InputError`); names of statistics are looked up later, in a summary."""
    sql, leaves = _read(expression)
    _evaluate(expression, sql, [x if isinstance(x, float) else x[0] in ("works", "shown") or 0.5 for x in leaves])


def names(summary: Mapping[str, Any]) -> list[str]:
    """Return every name that an expression over this summary may use: those with a defined value."""
    return [name + end for (name, end), value in _values(summary).items() if value is not None]


def fail_if(summary: Mapping[str, Any], expression: str) -> bool:
    """Return whether the expression holds over ``summary.json`` or ``comparison.json``, which is when a gate fails.

    Raises `InputError` for what the module does not document, an unknown name, an undefined number, a division by zero.
    """
    sql, leaves = _read(expression)
    known = _values(summary)
    parts = _evaluate(expression, sql, [x if isinstance(x, float) else _look_up(expression, x, known) for x in leaves])
    if not all(map(math.isfinite, parts)):
        raise _refusal(expression, "a division by zero or a number too large", "finite numbers", "write it another way")
    return bool(parts[0])


def _refusal(expression: str, got: str, accepted: str = _LANGUAGE, todo: str = _EXAMPLE) -> InputError:
    return InputError(f"--fail-if {expression!r}: {got}", accepted, todo)


def _values(summary: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """Every name and end with its value; None where it is undefined or stands there twice."""
    evidence, arms = summary.get("evidence") or {}, {a["name"]: a for a in summary.get("arms", []) if "name" in a}
    levels, changes = evidence.get("levels", []), evidence.get("differences", [])
    there = {row["arm"] for row in levels}  # retrain is what an audited model is compared with
    chosen = [n for n in arms if arms[n].get("role") == "remedy"] or sorted(there & {"yours"} or there - {"retrain"})
    if len(chosen) > 1:
        raise InputError(f"--fail-if: arms {chosen}", "one remedy, or one arm", "gate on a finished run or audit")
    arm, verdict = "".join(chosen), evidence.get("verdict") or {}
    rows = [("=".join(filter(None, (r["statistic"], r.get("group")))), r) for r in levels if r["arm"] == arm]
    rows += [(f"change {r['statistic']}", r) for r in changes if (r["arm"], r.get("role")) == (arm, "baseline")]
    totals = arms.get(arm, {}).get("totals") or {}
    rows += [(f"gini:{name[5:]}", {"value": value}) for name, value in totals.items() if name.startswith("gini_")]
    rows.append(("p_max", {"value": (summary.get("audit") or {}).get("p_max")}))
    rows.append(("headline", evidence.get("headline") or dict(rows).get(verdict.get("primary", ""), {})))
    found: dict[tuple[str, str], float | None] = {}
    for (text, row), (end, field) in itertools.product(rows, _ENDS.items()):
        value = row.get(field)
        value = value.get("expected_abs") if isinstance(value, Mapping) else value
        number = float(value) if isinstance(value, int | float) else math.nan
        found[text, end] = number if math.isfinite(number) and (text, end) not in found else None
    word, works = str(verdict.get("word", "")), verdict.get("works")
    none, some = word.startswith(("none", "no ")), word.endswith("shown") or word in _SOME
    shown = not none if (none or some) and works is None else None
    return found | {("works", ""): works if isinstance(works, bool) else None, ("shown", ""): shown}


def _read(expression: str) -> tuple[str, list[float | tuple[str, ...]]]:
    """Return SQL in which every name and number is a column ``n0``, ``n1`` ..., and each number, or name with keys."""
    sql: list[str] = []
    leaves: list[float | tuple[str, ...]] = []
    at, text = 0, expression.strip()
    while at < len(text):
        if len(expression) > _LONGEST or len(leaves) > _MOST:
            raise InputError(f"--fail-if {expression[:50]!r}...", f"{_LONGEST} characters, {_MOST} names", "split it")
        token = _TOKEN.match(text, at)
        sign = token["sign"] if token else text[at]
        if token is None or (sign == ")" and sql.count(")") >= sql.count("(")):
            raise _refusal(expression, f"{text[at : at + 20]!r} is not understood there")
        at, name = token.end(), token["word"] or (token["quoted"] or "").replace('""', '"')
        sql.append(_SAME.get(sign.lower(), sign) if sign else f"n{len(leaves)}")
        if not sign:
            keys = (key[1:-1] for key in re.findall(_KEY, token["keys"] or ""))
            leaves.append((name, *keys) if name else float(token["number"] or 0))
    return " ".join(sql), leaves


def _look_up(expression: str, name: tuple[str, ...], known: Mapping[tuple[str, str], float | None]) -> float:
    """Return the value of a name in either spelling, or say which names are near it."""
    cells = {x: (*re.split("[:=]", x[0], maxsplit=3), "", "", "") for x in known}  # statistic, metric, grouping, group
    alike = [x for x, cell in cells.items() if (cell[0] + x[1]).replace(" ", "_") == name[0]]
    meant = [x for x in alike if name[1:2] in ((), cells[x][1:2]) and {*name[2:]} <= {*cells[x][2:4]}]
    found = [x for x in known if ("".join(x),) == name] or [x for x in meant if len(name) > 2 or not cells[x][3]]
    found = found or meant[: len(meant) == 1]  # of two groups an audit stores their only pair
    if len(found) != 1:
        asked, offered = ":".join(name), ["".join(x) for x in found or alike or known if known[x] is not None]
        near = [f'"{n}"' for n in difflib.get_close_matches(asked, offered, 12, 0.0)] or ["nothing: none was computed"]
        got = f"{asked!r} names {len(found) or 'no'} number{'s' * (len(found) > 1)}"
        raise _refusal(expression, got, ", ".join(near), f"did you mean {near[0]}?")
    value = known[found[0]]
    if value is None:
        todo = "see the summary's warnings, or gate on another number; works is of a run, shown of an audit"
        raise _refusal(expression, f"{''.join(found[0])!r} is undefined", "a number that was measured", todo)
    return value


def _evaluate(expression: str, sql: str, values: Sequence[float]) -> tuple[float, ...]:
    """Return the truth of the expression, then the values of its parts; numbers and truths must not mix."""
    import polars as pl

    below = [range(1)]  # for the whole and for each node, the nodes that it is made of
    try:
        nodes = [pl.sql_expr(f"({sql})")]  # polars 1.20 takes "a b" for a named b, but not in parentheses
        for node in nodes:  # grows until everything is taken apart
            parts = node.meta.pop()
            below.append(range(len(nodes), len(nodes) + len(parts)))
            nodes += parts
        frame = pl.DataFrame({f"n{i}": [value] for i, value in enumerate(values)})
        found = frame.select([node.alias(str(i)) for i, node in enumerate(nodes)]).row(0)
    except pl.exceptions.PolarsError:
        raise _refusal(expression, "is no expression") from None
    truths = [isinstance(value, bool) for value in found]
    for truth, places in zip([True, *truths], below, strict=True):
        kinds = {truths[i] for i in places}
        if len(kinds) == 2 or (kinds == {not truth} and (not truth or len(places) == 1)):  # two numbers are compared
            raise _refusal(expression, "takes a number for true or false, or the reverse", "comparisons")
    return found
