"""The two records that tables, plots, gates, verdicts and desks read: a level of one arm, a difference of two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from upright.contract import InputError

__all__ = ["Better", "Difference", "Level", "Null"]

Better = Literal["higher", "lower", "none"]
_NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Null:
    """What a statistic looks like when only chance is at work: mean size, and 95 % band."""

    expected_abs: float
    low: float
    high: float


class _Row:
    """A record as one line of ``summary.json``: NaN is null there, and a key that is missing is undefined."""

    def row(self) -> dict[str, Any]:
        """Return plain values; what does not apply to this record is None or left out."""
        found = dataclasses.asdict(self)  # type: ignore[call-overload]
        more = found.pop("more", {})
        return {**{k: v for k, v in found.items() if v is not None or k in ("grouping", "group", "null")}, **more}

    @classmethod
    def read(cls, row: Mapping[str, Any], where: str = "row") -> Self:
        """Return the record of a line.

        Raises
        ------
        InputError
            For a text or number that is none.
        """
        fields = {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        found: dict[str, Any] = {k: v for k, v in row.items() if k in fields and v is not None}
        for name in [name for name in fields if name in found or name in ("statistic", "arm", "against")]:
            value, kind = found.get(name), fields[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if (kind == "str" and not isinstance(value, str)) or (kind == "float" and not is_number):
                accepted = "a number or null" if kind == "float" else "a string"
                raise InputError(f"{where}.{name} = {value!r}", accepted, "run again, or repair the file")
        if isinstance(null := found.get("null"), Mapping):
            found["null"] = Null(**{k: _NAN if v is None else v for k, v in null.items()})
        if "more" in fields:
            found["more"] = {k: v for k, v in row.items() if k not in fields}
        return cls(**found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level(_Row):
    """One statistic of one arm.

    Parameters
    ----------
    statistic : str
        ``name:metric[:grouping]``.
    label : str
        In words.
    arm : str
    value, low, high : float
        On the data, and its 95 % interval; adjusted where it was picked as one of several. NaN where undefined.
    metric, grouping, group : str
        Parts of the statistic, and the cell: a group, an attack, a class.
    better : {"higher", "lower", "none"}
    n_units, n_clusters, n_undefined : int
        With a value at one seed at least, how many clusters they make, and without a value.
    null : Null, optional
        For statistics whose labels can change places.
    p : float
        Chance of as much without any effect, adjusted for everything that it was picked from; NaN without a null.
    smallest_detectable : float
        What four of five such tables would have shown.
    more : mapping
        What a statistic says besides: the strongest attack, parts of a utility, p-values of seeds.
    """

    statistic: str
    arm: str
    label: str = ""
    metric: str = ""
    grouping: str | None = None
    group: str | None = None
    value: float = _NAN
    low: float = _NAN
    high: float = _NAN
    better: Better = "none"
    n_units: int | None = None
    n_clusters: int | None = None
    n_undefined: int | None = None
    null: Null | None = None
    p: float = _NAN
    smallest_detectable: float = _NAN
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """First part of the statistic: ``mean``, ``gap``, ``abs_gap``, ``worst_decile`` ..."""
        return self.statistic.split(":", 1)[0]

    @property
    def text(self) -> str:
        """The statistic and its cell, as a `Difference` writes them."""
        return "=".join(filter(None, (self.statistic, self.group)))

    @property
    def attack(self) -> str:
        """Name of the strongest attack, of statistics that pick one."""
        return str(self.more.get("attack") or "")

    @property
    def shown(self) -> bool:
        """Whether it is more than chance: adjusted p below 0.05 and the adjusted interval beyond 0."""
        return self.p < 0.05 and (self.low > 0 or self.high < 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(_Row):
    """The remedy minus another arm, paired by unit and seed.

    Parameters
    ----------
    statistic, label : str
        As of `Level`; the cell stands behind ``=``.
    arm, against, role : str
        The remedy, the other arm, and what that one controls for.
    value, low, high : float
    direction : {"higher", "lower", "none"}
        Which way is better.
    margin : float
        The smallest change that matters.
    verdict : str
        Of this one interval: see `upright.evidence.verdict.effect_of`.
    seed_share : float
        Share of the variance that lies between seeds.
    n_seeds : int
        At which both arms have a value.
    smallest_detectable : float
        2.8 standard errors: found with a chance of 80 % at the 5 % level.
    """

    statistic: str
    arm: str
    against: str
    label: str = ""
    role: str = ""
    value: float = _NAN
    low: float = _NAN
    high: float = _NAN
    direction: Better = "higher"
    margin: float = 0.0
    verdict: str = "undefined"
    seed_share: float = _NAN
    n_seeds: int | None = None
    smallest_detectable: float = _NAN
