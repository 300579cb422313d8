"""Gates for machines: a tiny safe expression over the numbers of a summary, for ``--fail-if``.

Names
-----
===================================================  ============================================================
``mean gap abs_gap worst_decile gini``               value of a statistic, of the remedy's arm or of the only arm
the same with ``_low`` or ``_high``                  ends of its interval
``gap_null abs_gap_null``                            size of the gap that random groups would show, on average
``gap_detectable abs_gap_detectable``                smallest gap that could have been detected
``change_mean change_gap ...``                       remedy minus baseline, also with ``_low`` and ``_high``
``leakage worst_leakage``                            of the strongest attack, mean over classes and worst class, with
                                                     all the endings of ``gap``; needs no metric
``disparity client_disparity mean_client_disparity`` largest difference between groups, with all the endings of ``gap``
``ks_distance membership memory_gap utility``        of forgetting, see `upright.shell.forgetting`; the first two with
                                                     ``_null``, all with ``_detectable`` in an audit
``forget_quality``                                   of forgetting: p-value, median over seeds, without interval
``p_max``                                            of an audit of embeddings: chance that the strongest attack
                                                     leaks as much under permuted labels
``works``                                            whether the remedy is shown to work; not in an audit
===================================================  ============================================================

Each but ``p_max``, ``works`` and those of leakage takes a metric, and a group or grouping where one is needed:
``mean["ndcg@10"]``, ``gap["ndcg@10"]``, ``mean["ndcg@10", "disadvantaged"]``. ``leakage["attack", "emb/mlp/cross"]`` is
one attack, ``gini["exposure@10"]`` the Gini of exposure over items.

Accepted: numbers, ``+ - * /``, ``< <= > >= == !=``, ``and or not``, parentheses, ``abs()``, ``min()``, ``max()``.
Nothing else is evaluated. A number that is undefined is an error, because a comparison with it would pass unseen.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upright.contract import InputError
from upright.shell.config import suggest
from upright.shell.disparities import NAMES as DISPARITIES
from upright.shell.forgetting import NAMES as FORGETTING
from upright.shell.forgetting import RETRAIN

__all__ = ["check_syntax", "fail_if", "names"]

_LEAKS = ("leakage", "worst_leakage")
_STATISTICS = ("mean", "gap", "abs_gap", "worst_decile", "gini", *_LEAKS, *DISPARITIES, *FORGETTING)
_LONGEST = 1_000  # characters; also bounds the depth of nesting
_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARE: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}
_EXAMPLE = """write for example: gap_low["ndcg@10"] > 0.05"""


def check_syntax(expression: str) -> ast.expr:
    """Return the parsed expression; names are looked up later, in a summary.

    Raises
    ------
    InputError
        When it is too long or does not parse.
    """
    if len(expression) > _LONGEST:
        raise InputError(f"an expression of {len(expression)} characters", f"at most {_LONGEST}", "split the gate")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        what = error.msg if isinstance(error, SyntaxError) else "too deep or with characters that are no text"
        raise InputError(f"--fail-if {expression!r}: {what}", "a comparison of numbers", _EXAMPLE) from None


def fail_if(summary: Mapping[str, Any], expression: str) -> bool:
    """Return whether a gate fails: the truth of an expression over a summary's numbers.

    Parameters
    ----------
    summary : mapping
        ``summary.json`` of a run or an audit, or ``comparison.json``.
    expression : str
        A comparison, or several joined by ``and``, ``or`` and ``not``.

    Returns
    -------
    bool
        True when the expression holds, which is when the gate fails.

    Raises
    ------
    InputError
        For anything but the documented language, an unknown name, metric or group, or an undefined number.
    """
    tree = check_syntax(expression)
    value = _Reader(summary, expression).value(tree)
    if not isinstance(value, bool):
        raise InputError(f"--fail-if {expression!r} is a number", "an expression that is true or false", _EXAMPLE)
    return value


def names() -> list[str]:
    """Return every name that an expression may use."""
    plain = [f"{a}{b}{c}" for a, b, c in itertools.product(("", "change_"), _STATISTICS, ("", "_low", "_high"))]
    sizes = [f"{a}_{b}" for a in ("gap", "abs_gap", *_LEAKS, *DISPARITIES, *FORGETTING) for b in ("null", "detectable")]
    return [*plain, *sizes, "p_max", "works"]


class _Reader:
    """Evaluates one expression; every number is a float, every truth a bool, and the two never mix."""

    def __init__(self, summary: Mapping[str, Any], expression: str) -> None:
        self.summary, self.expression = summary, expression

    def value(self, node: ast.expr) -> float | bool:
        match node:
            case ast.BoolOp(op=ast.And()):
                return all(self.truth(part) for part in node.values)
            case ast.BoolOp(op=ast.Or()):
                return any(self.truth(part) for part in node.values)
            case ast.UnaryOp(op=ast.Not()):
                return not self.truth(node.operand)
            case ast.UnaryOp(op=ast.USub()):
                return -self.number(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.number(node.operand)
            case ast.Compare() if all(type(op) in _COMPARE for op in node.ops):
                numbers = [self.number(part) for part in (node.left, *node.comparators)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(node.ops, numbers, numbers[1:], strict=False))
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return self._finite(_ARITHMETIC[type(node.op)], self.number(node.left), self.number(node.right))
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return self._finite(float, node.value)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS and node.args:
                if name != "abs" or len(node.args) == 1:
                    numbers = [self.number(part) for part in node.args]
                    return _FUNCTIONS[name](*(numbers if name == "abs" or len(numbers) > 1 else [numbers]))
            case ast.Name(id="works"):
                return self._works()
            case ast.Name(id="p_max"):
                return self._p_max()
            case ast.Name(id=name) if name in names() and "leakage" in name:
                return self._look_up(name, [])
            case ast.Subscript(value=ast.Name(id=name)):
                return self._look_up(name, self._keys(node.slice))
            case ast.Name(id=name) if name in names():
                raise self._refuse(f"{name} without a metric", f'{name}["METRIC"]', _EXAMPLE)
            case ast.Name(id=name):
                raise self._refuse(f"unknown name {name!r}", ", ".join(names()), suggest(name, names()))
        shown = ast.unparse(node)
        raise self._refuse(
            f"{shown!r} is not part of the language",
            "numbers, + - * /, comparisons, and, or, not, abs(), min(), max(), and " + ", ".join(names()),
            _EXAMPLE,
        )

    def number(self, node: ast.expr) -> float:
        value = self.value(node)
        if isinstance(value, bool):
            raise self._refuse(f"{ast.unparse(node)!r} is true or false", "a number there", _EXAMPLE)
        return value

    def truth(self, node: ast.expr) -> bool:
        value = self.value(node)
        if not isinstance(value, bool):
            raise self._refuse(f"{ast.unparse(node)!r} is a number", "a comparison there", _EXAMPLE)
        return value

    def _refuse(self, got: str, accepted: str, todo: str) -> InputError:
        return InputError(f"--fail-if {self.expression!r}: {got}", accepted, todo)

    def _finite(self, f: Callable[..., float], *numbers: Any) -> float:
        try:
            result = f(*numbers)
        except (ZeroDivisionError, OverflowError):
            result = math.nan
        if not math.isfinite(result):
            raise self._refuse(
                "a division by zero or a number too large", "finite numbers", "guard it, or write it another way"
            )
        return result

    def _keys(self, node: ast.expr) -> list[str]:
        parts = node.elts if isinstance(node, ast.Tuple) else [node]
        keys = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if len(keys) != len(parts) or not 1 <= len(keys) <= 3:
            raise self._refuse(
                f"[{ast.unparse(node)}]", 'a metric in quotes, then a group or grouping: ["ndcg@10", "women"]', _EXAMPLE
            )
        return keys

    def _works(self) -> bool:
        works = self.summary.get("evidence", {}).get("verdict", {}).get("works")
        if not isinstance(works, bool):
            raise self._refuse("works: an audit has no remedy", "a run or a comparison", "gate on gap or mean instead")
        return works

    def _p_max(self) -> float:
        value = (self.summary.get("audit") or {}).get("p_max")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self._refuse("p_max was not computed", "an audit of embeddings", "gate on leakage or gap instead")
        return float(value)

    def _arm(self, rows: Sequence[Mapping[str, Any]]) -> str:
        roles = {str(arm.get("name")): arm.get("role") for arm in self.summary.get("arms", []) if "name" in arm}
        there = {str(row["arm"]) for row in rows}
        chosen = [name for name in there if roles.get(name) == "remedy"] or list(there)
        if len(chosen) > 1:
            chosen = [name for name in chosen if name != RETRAIN]  # of an audit: what the model is compared with
        if len(chosen) != 1:
            raise self._refuse(f"arms {sorted(there)}", "one remedy, or one arm", "gate on a finished run or audit")
        return chosen[0]

    def _look_up(self, name: str, keys: list[str]) -> float:
        if name in ("works", "p_max") or name not in names():
            known = [n for n in names() if n not in ("works", "p_max")]
            raise self._refuse(f"unknown name {name!r}", ", ".join(known), suggest(name, known))
        change = name.startswith("change_")
        rest = name.removeprefix("change_")
        statistic = next(s for s in sorted(_STATISTICS, key=len, reverse=True) if rest in _fields(s))
        field = _fields(statistic)[rest]
        evidence = self.summary.get("evidence", {})
        found = [_Entry(row) for row in evidence.get("differences" if change else "levels", [])]
        found = [e for e in found if e.name == statistic]
        if change:
            found = [e for e in found if e.row.get("role") == "baseline"]
        if found:
            arm = self._arm([e.row for e in found])
            found = [e for e in found if e.row["arm"] == arm]
        if statistic == "gini" and field == "value" and not change:
            found += self._totals()
        here = [e for e in found if e.metric in (keys[:1] or [e.metric]) and set(keys[1:]) <= e.words]
        if len(keys) < 2:
            here = [e for e in here if e.group is None]
        if len(here) != 1:
            offered = ", ".join(dict.fromkeys(f"{name}{e.keys}" for e in found)) or f"nothing: no {name} was computed"
            amount = "nothing" if not here else f"{len(here)} numbers"
            raise self._refuse(
                f"{name}{_written(keys)} names {amount}", offered, "take one of these" if found else "drop that part"
            )
        value = here[0].row.get(field)
        value = value.get("expected_abs") if isinstance(value, Mapping) else value
        if value is None or not math.isfinite(value):
            raise self._refuse(
                f"{name}{_written(keys)} is undefined", "a number that was measured",
                "see the summary's warnings for why, or gate on another statistic",
            )  # fmt: skip
        return float(value)

    def _totals(self) -> list[_Entry]:
        arms = [a for a in self.summary.get("arms", []) if isinstance(a, Mapping)]
        arms = [a for a in arms if a.get("role") == "remedy"] or (arms if len(arms) == 1 else [])
        found = []
        for key, value in (arms[0].get("totals") or {}).items() if arms else ():
            if key.startswith("gini_"):
                found.append(_Entry({"statistic": f"gini:{key.removeprefix('gini_')}", "value": value}))
        return found


def _fields(statistic: str) -> dict[str, str]:
    """Names of one statistic and the field of a level or difference each of them reads."""
    return {
        statistic: "value", f"{statistic}_low": "low", f"{statistic}_high": "high", f"{statistic}_null": "null",
        f"{statistic}_detectable": "smallest_detectable",
    }  # fmt: skip


def _written(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    return "[" + ", ".join(f'"{key}"' for key in keys) + "]"


class _Entry:
    """One level or difference with the words that name it; a difference carries its group after ``=``."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row
        parts = str(row["statistic"]).split(":", 2)
        self.name = parts[0]
        grouping, _, group = parts[2].partition("=") if len(parts) > 2 else ("", "", "")
        self.metric = str(row.get("metric") or parts[1])
        self.grouping = str(row.get("grouping") or grouping) or None
        self.group = str(row["group"]) if row.get("group") is not None else (group or None)
        self.words = {word for word in (self.grouping, self.group) if word}

    @property
    def keys(self) -> str:
        return _written([self.metric, *([self.group] if self.group else [])])
