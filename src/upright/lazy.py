"""Modules and plug-ins that are imported when first used: a declaration is read without torch, scikit-learn or a wing.

A lazy module of the standard library stands in ``sys.modules`` unloaded, and is loaded by whoever looks through that
table, as `inspect` does while torch is imported. One of these stands nowhere until it is used.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["LazyModule", "find", "package_of"]


class LazyModule:
    """A module by name, imported at the first attribute.

    Parameters
    ----------
    name : str
        Full name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def find(group: str = "methods", own: Container[str] = ()) -> dict[str, EntryPoint]:
    """Return the entry point of each installed method, or audit or reward, without importing any.

    A name that two packages register stays with this package, whose `own` need no entry point, or else with the first;
    a warning names the other.
    """
    found: dict[str, EntryPoint] = {}
    points = sorted(entry_points(group=f"upright.{group}"), key=lambda p: (package_of(p) != "upright", package_of(p)))
    for point in points:
        taken = point.name in own
        if taken or (point.name in found and found[point.name].value != point.value):
            warnings.warn(
                f"package {package_of(point)} registers {point.name!r}, which is one of the {group} of "
                f"{'upright' if taken else package_of(found[point.name])}; it is left out: rename one of them",
                stacklevel=2,
            )
        if not taken:
            found.setdefault(point.name, point)
    return found


def package_of(point: EntryPoint) -> str:
    """Return the package that registers an entry point."""
    return point.dist.name if point.dist else point.value.partition(":")[0]
