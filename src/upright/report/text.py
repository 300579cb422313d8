"""Numbers, intervals and names as a report writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "ROLES",
    "attack_title",
    "duration",
    "flatten",
    "hundredths",
    "interval",
    "lower",
    "metric_title",
    "number",
    "percent",
    "plain",
    "plural",
    "printable",
    "shorten",
    "title_of",
    "two_lines",
]

MINUS = "\N{MINUS SIGN}"
NARROW = "\N{NARROW NO-BREAK SPACE}"

ROLES: Mapping[str, str] = {
    "baseline": "baseline",
    "remedy": "remedy",
    "trivial": "trivial remedy",
    "placebo": "placebo",
    "rival": "rival remedy",
    "anchor": "fixed point",
}

SURFACES: Mapping[str, str] = {
    "embedding": "user embeddings",
    "propagated": "propagated user vectors",
    "scores": "scores of all items",
    "lists": "lists shown",
}
ATTACKERS: Mapping[str, str] = {"logistic": "logistic regression", "mlp": "neural network", "gbdt": "boosted trees"}
PROTOCOLS: Mapping[str, str] = {"cross": "cross-fitted", "transfer": "transfer"}


def number(value: Any, digits: int = 3, *, sign: bool = False, plain: bool = False) -> str:
    """Write a number with a fixed count of decimals, as tables need to line up.

    Parameters
    ----------
    value : float
        NaN gives ``undefined``.
    digits : int
        Decimals; a number below what they can show gets as many as its first digit needs.
    sign : bool
        Write a plus before positive numbers.
    plain : bool
        Drop trailing zeros (axis labels, settings).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return MINUS * (value < 0) + "∞"
    size = abs(value)
    if isinstance(value, int) or (plain and float(value).is_integer() and size < 1e15):
        text = f"{int(size):,}".replace(",", NARROW)
    elif 0 < size < 0.5 * 10**-digits:
        # one digit more than the column has, rather than a zero that is none
        text = f"{size:.{-math.floor(math.log10(size))}f}" if size >= 1e-5 else f"{size:.1e}".replace("e-0", "e-")
        text = text.replace("e-", f"e{MINUS}")
    elif size >= 1000:
        text = f"{size:,.{1 if size < 1e5 else 0}f}".replace(",", NARROW)
    else:
        text = f"{size:.{digits}f}"
    if plain and "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return (MINUS if value < 0 else "+" if sign and value > 0 else "") + text


def interval(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """Write an interval; words between the ends, because a dash beside a minus sign is misread."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def percent(share: float) -> str:
    """Write a share as a percentage without needless decimals."""
    return f"{100 * share:.1f}".rstrip("0").rstrip(".") + NARROW + "%"


def duration(seconds: float | None) -> str:
    """Write a time in the two units that matter."""
    if seconds is None or not math.isfinite(seconds):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def metric_title(metric: str) -> str:
    """Write a metric's name: ``ndcg@10_matched5`` is *NDCG@10, 5 positives a user*."""
    base, at, rest = metric.partition("@")
    cut, _, protocol = rest.partition("_")
    upper = {"ndcg", "mrr", "auc", "map", "dcg", "f1", "ks", "hr"}
    name = base.upper() if base.lower() in upper else base.replace("_", " ").capitalize()
    title = f"{name}{at}{cut}"
    if matched := re.fullmatch(r"matched(\d+)", protocol):
        return f"{title}, {matched[1]} positives a user"
    if protocol == "sampled":
        return f"{title}, sampled candidates"
    return f"{title}, {protocol.replace('_', ' ')}" if protocol else title


def attack_title(attack: str) -> str:
    """Write an attack's name: ``embedding/mlp/cross`` is *neural network on user embeddings, cross-fitted*.

    A group's name may hold a slash as well: without a known attacker it stays whole.
    """
    surface, attacker, protocol = [*attack.split("/", 2), "", ""][:3]
    if attacker not in ATTACKERS:
        return SURFACES.get(attack, attack)
    title = f"{ATTACKERS[attacker]} on {SURFACES.get(surface, surface)}"
    return f"{title}, {PROTOCOLS.get(protocol, protocol)}" if protocol else title


def shorten(text: str, size: int = 40) -> str:
    """Cut a name so that it fits above a plot's row; tables hold it whole."""
    return text if len(text) <= size else text[: size - 1].rstrip() + "…"


def printable(text: str) -> str:
    """Write control characters as their code: a name may hold any, and a page or a plot may not."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def title_of(label: str, group: str | None) -> str:
    """Return a label without the group, attack or class that it ends in."""
    return label.removesuffix(f", {group}").removesuffix(f": {group}") if group else label


def two_lines(name: str, size: int) -> list[str]:
    """Break a name at a space or hyphen where its halves are most alike, each cut to a size; the table holds it."""
    if len(name) <= size:
        return [name]
    cuts = [i + 1 for i, letter in enumerate(name) if letter in " -" and 0 < i < len(name) - 1]
    if not cuts:
        return [shorten(name, size)]
    at = min(cuts, key=lambda i: max(i, len(name) - i))
    return [shorten(half.strip(), size) for half in (name[:at], name[at:])]


def hundredths(value: float) -> str:
    """Write two decimals and no more, where a cell has no room for the digits of a tiny number."""
    if math.isnan(value):
        return "–"
    return f"{value:+.2f}".replace("-", MINUS) if abs(value) >= 0.005 else "0.00"


def plain(value: Any) -> str:
    """Write a setting as the config file has it, numbers without needless zeros."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "(empty)"
    return str(value)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted names."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat


def plural(count: int, word: str) -> str:
    """Return ``1 seed``, ``6 seeds``."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


def lower(title: str) -> str:
    """Return a title for the middle of a phrase: *No remedy* loses its capital, *In-UCDS* and *LLM* keep theirs."""
    head = title.split(" ")[0]
    return title[:1].lower() + title[1:] if head[1:].islower() and "-" not in head else title
