"""The fitted remedy: a small table of adjustments that an auditor reads, saves as JSON and applies with numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from upright.classification.inputs import Array, Ints, one_hot, places, some
from upright.contract import InputError
from upright.maths.parity.rates import Criterion
from upright.maths.parity.site import adjusted

__all__ = ["FairTable", "cut"]

_SCHEMA = "upright.fair_table/1"


def cut(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return the tables of each constraint that lie one after the other in a vector, shape (Q,)."""
    cuts = np.cumsum([0, *map(math.prod, shapes)])
    return [flat[a:b].reshape(shape) for a, b, shape in zip(cuts, cuts[1:], shapes, strict=False)]


@dataclass(frozen=True, eq=False)
class FairTable:
    """Adjustments by client, group and class.

    The decision of a sample with probabilities p, of client k and groups g_c, is the largest entry of

        z_j = p_j - sum_c sum_s F_cs,j V_kcs,g_c,j

    with strata F: ``1`` for demographic parity, ``p_j`` for true positives, ``1 - p_j`` for false positives, ``p_c`` of
    each class c for the cells of equalized odds.

    Parameters
    ----------
    classes, clients : tuple of str
    features, criteria : tuple of str
        Sensitive feature and criterion of each constraint.
    groups : mapping of feature to tuple of str
    tables : tuple of tuple of ndarray, shape (S_c, G_c, m)
        V of each client.
    common : tuple of ndarray, shape (S_c, G_c, m)
        The part that all clients share, from the global constraints.
    beta : float
        Temperature of the randomised decision ``softmax(z / beta)``.
    calibration : mapping of group to (ndarray (m, m), ndarray (m,))
        ``p = softmax(log p A + b)`` before the adjustment, for each group of the first feature; empty for none.
    shares : mapping of feature to ndarray, shape (G,)
        Shares of the groups where the table was fitted.
    """

    classes: tuple[str, ...]
    features: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    criteria: tuple[Criterion, ...]
    clients: tuple[str, ...]
    tables: tuple[tuple[Array, ...], ...]
    common: tuple[Array, ...]
    beta: float
    calibration: Mapping[str, tuple[Array, Array]]
    shares: Mapping[str, Array]

    def members(self, codes: Mapping[str, Ints]) -> dict[str, Array]:
        """Return membership of each feature, shape (n, G): one-hot, and the shares of all groups for code -1."""
        found = {}
        for f, names in self.groups.items():
            found[f] = one_hot(codes[f], len(names))
            found[f][codes[f] < 0] = self.shares[f]
        return found

    def calibrated(self, p: Array, members: Mapping[str, Array]) -> Array:
        """Return calibrated probabilities, shape (n, m); soft members mix the groups' calibrations."""
        if not self.calibration:
            return p
        first = next(iter(self.groups))
        log = np.log(np.clip(p, 1e-12, None))
        out = np.zeros_like(p)
        for g, name in enumerate(self.groups[first]):
            a, b = self.calibration[name]
            out += members[first][:, g : g + 1] * softmax(log @ a + b, axis=1)
        return np.asarray(out / out.sum(1, keepdims=True))

    def scores(self, p: Array, members: Mapping[str, Array], client: Ints) -> Array:
        """Return the adjusted scores z, shape (n, m); client -1 is adjusted by the common part alone.

        Members of each feature, shape (n, G), are one-hot, or probabilities of the groups.
        """
        p = self.calibrated(p, members)
        z = np.empty_like(p)
        for k in np.unique(client):
            rows = np.flatnonzero(client == k)
            own = [members[f][rows] for f in self.features]
            z[rows] = adjusted(p[rows], own, self.criteria, self.common if k < 0 else self.tables[k])
        return z

    def decide(self, z: Array) -> Array:
        """Return the randomised decision ``softmax(z / beta)``, shape (n, m)."""
        return np.asarray(softmax(z / self.beta, axis=1))

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python values."""
        return {
            "schema": _SCHEMA,
            "classes": list(self.classes), "clients": list(self.clients), "beta": self.beta,
            "constraints": [
                {"feature": f, "criterion": c, "groups": list(self.groups[f]),
                 "shares": self.shares[f].tolist(), "common": self.common[i].tolist(),
                 "by_client": {k: t[i].tolist() for k, t in zip(self.clients, self.tables, strict=True)}}
                for i, (f, c) in enumerate(zip(self.features, self.criteria, strict=True))
            ],
            "calibration": {g: {"matrix": a.tolist(), "bias": b.tolist()} for g, (a, b) in self.calibration.items()},
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write JSON; the axes of a table are stratum, group, class."""
        path = Path(path)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> FairTable:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            For a file that is missing or no such table.
        """
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != _SCHEMA:
                raise KeyError(found["schema"])
            rows = found["constraints"]
            return cls(
                tuple(found["classes"]), tuple(r["feature"] for r in rows),
                {r["feature"]: tuple(r["groups"]) for r in rows}, tuple(r["criterion"] for r in rows),
                tuple(found["clients"]),
                tuple(tuple(np.array(r["by_client"][k], dtype=np.float64) for r in rows) for k in found["clients"]),
                tuple(np.array(r["common"], dtype=np.float64) for r in rows), float(found["beta"]),
                {g: (np.array(v["matrix"]), np.array(v["bias"])) for g, v in found["calibration"].items()},
                {r["feature"]: np.array(r["shares"], dtype=np.float64) for r in rows},
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path.name}: {type(error).__name__} {error}", f"JSON that save wrote, schema {_SCHEMA}",
                "save the table again",
            ) from None  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a constraint, client, group, stratum and class: what is subtracted there."""
        found = []
        for i, (f, c) in enumerate(zip(self.features, self.criteria, strict=True)):
            for k, client in enumerate(self.clients):
                for (s, g, j), v in np.ndenumerate(self.tables[k][i]):
                    found.append({"feature": f, "criterion": c, "client": client, "group": self.groups[f][g],
                                  "stratum": s, "class": self.classes[j], "adjustment": float(v)})  # fmt: skip
        return found

    def place(self, name: str, columns: Mapping[str, NDArray[np.str_]], unknown: str) -> Ints:
        """Return the place of each sample's group of a feature; -1 where it is unknown and that is allowed."""
        if name not in columns:
            raise InputError(
                f"no sensitive feature {name!r} among {some(list(columns))}", some(list(self.groups)),
                "pass the features that the fit had, under the same names",
            )  # fmt: skip
        codes, strangers = places(columns[name], self.groups[name])
        if strangers and unknown == "error":
            raise InputError(
                f"groups of {name!r} that the fit did not see: {some(strangers)}", some(list(self.groups[name]), 20),
                "fit with samples of these groups, or set unknown='common' to treat them as the average of the groups",
            )  # fmt: skip
        return codes
