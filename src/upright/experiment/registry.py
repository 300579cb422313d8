"""Methods by name, found through the entry-point group ``upright.methods`` and loaded when asked for."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from upright.contract import AuditSpec, InputError, MethodSpec, spec_of
from upright.experiment.config import suggest

__all__ = ["AUDITS", "PLANNED", "declared_of", "find", "load_method", "load_object", "names"]

#: what the ten methods mend, and the module that will hold each; the order of the documentation
PLANNED = {
    "eisam": "tail items ignored by LLM-based recommenders",
    "raid": "private attributes readable from user embeddings",
    "in_ucds": "worse lists for inactive users",
    "fedrecgel": "federated recommendation with item embeddings that do not generalise",
    "fedfact": "unequal treatment of groups, globally and inside each client",
    "mrd": "LLM unlearning blind to how hard each sample is",
    "u2a": "alignment with negatives only",
    "odedit": "multimodal edits that do not generalise or that leak",
    "copyguard": "vision-language models that reproduce protected text",
    "physrvg": "video generators that break rigid-body mechanics",
}

#: kind of audit -> where its function lives
AUDITS = {
    "ranking": "upright.audits.ranking:audit_ranking",
    "embeddings": "upright.audits.embeddings:audit_embeddings",
    "predictions": "upright.audits.predictions:audit_predictions",
    "forgetting": "upright.audits.forgetting:audit_forgetting",
}


def find() -> dict[str, EntryPoint]:
    """Return the entry point of each installed method, without importing any.

    A name that two packages register stays with this package, or else with the first; a warning names the other.
    """
    found: dict[str, EntryPoint] = {}
    points = sorted(entry_points(group="upright.methods"), key=lambda p: (_package(p) != "upright", _package(p)))
    for point in points:
        if point.name in found and found[point.name].value != point.value:
            warnings.warn(
                f"package {_package(point)} registers the method {point.name!r} that {_package(found[point.name])} "
                "has; it is left out: rename one of them",
                stacklevel=2,
            )
        found.setdefault(point.name, point)
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]


def names() -> list[dict[str, str]]:
    """List the ten methods and all plugins with their state, importing nothing."""
    installed = find()
    rows = [
        {"name": name, "mends": mends, "state": "works" if name in installed else "not yet", "package": "upright"}
        for name, mends in PLANNED.items()
    ]
    for name, point in sorted(installed.items()):
        if name not in PLANNED:
            rows.append({"name": name, "mends": "", "state": "plugin", "package": _package(point)})
    return rows


def load_object(path: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_method(name: str) -> MethodSpec:
    """Load one method.

    Raises
    ------
    InputError
        For an unknown name, or a plugin that does not import (a warning names its package first).
    """
    installed = find()
    if name not in installed:
        known = sorted(installed)
        state = "is planned but not built yet" if name in PLANNED else "is not a method"
        raise InputError(f"method {name!r} {state}", ", ".join(known), suggest(name, known))
    point = installed[name]
    try:
        return spec_of(point.load())
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        warnings.warn(f"method {name!r} of package {package} does not load: {error}", stacklevel=2)
        raise InputError(
            f"method {name!r} of package {package} does not load: {type(error).__name__}: {error}",
            "an installed package whose entry point is a function marked with @upright.contract.method",
            f"repair or uninstall {package}",
        ) from error


def declared_of(name: str) -> MethodSpec | AuditSpec | None:
    """Return what a method, or an audit as ``audit_<kind>``, declares; None when it is not installed."""
    kind = name.removeprefix("audit_")
    if kind != name:
        return load_object(AUDITS[kind]).__upright__ if kind in AUDITS else None
    return load_method(name) if name in find() else None
