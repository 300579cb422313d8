"""Methods and audits by name: entry points of ``upright.methods`` and ``upright.audits``, loaded when asked for."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from upright.contract import AuditSpec, InputError, MethodSpec, spec_of
from upright.experiment.config import suggest
from upright.lazy import find, package_of

__all__ = ["METHODS", "declared_of", "find", "load_audit", "load_method", "load_object", "names"]

S = TypeVar("S", MethodSpec, AuditSpec)

#: what the ten methods mend, and the module that will hold each; the order of the documentation
METHODS = {
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


def names() -> list[dict[str, str]]:
    """List the ten methods and all plugins with their state, importing nothing."""
    installed = find()
    rows = [{"name": k, "mends": v, "state": "works", "package": "upright"} for k, v in METHODS.items()]
    for name, point in sorted(installed.items()):
        if name not in METHODS:
            rows.append({"name": name, "mends": "", "state": "plugin", "package": package_of(point)})
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
        raise InputError(f"{name!r} is no method", ", ".join(sorted(installed)), suggest(name, sorted(installed)))
    return _loaded(installed[name], MethodSpec, "method")


def load_audit(kind: str) -> AuditSpec:
    """Load one kind of audit.

    Raises
    ------
    InputError
        For an unknown kind, or a plugin that does not import (a warning names its package first).
    """
    installed = find("audits")
    if not isinstance(kind, str):
        raise InputError(f"a {type(kind).__name__}", ", ".join(sorted(installed)), "name the kind of audit first")
    if kind not in installed:
        raise InputError(f"{kind!r} is no audit", ", ".join(sorted(installed)), suggest(kind, sorted(installed)))
    return _loaded(installed[kind], AuditSpec, "audit")


def _loaded(point: EntryPoint, kind: type[S], mark: str) -> S:
    try:
        return spec_of(point.load(), kind)
    except Exception as error:
        package = package_of(point)
        warnings.warn(f"{mark} {point.name!r} of package {package} does not load: {error}", stacklevel=3)
        raise InputError(
            f"{mark} {point.name!r} of package {package} does not load: {type(error).__name__}: {error}",
            f"an installed package whose entry point is a function marked with @upright.contract.{mark}",
            f"repair or uninstall {package}",
        ) from error


def declared_of(name: str) -> MethodSpec | AuditSpec | None:
    """Return what a method, or an audit as ``audit_<kind>``, declares; None when it is not installed."""
    kind = name.removeprefix("audit_")
    if kind != name:
        return load_audit(kind) if kind in find("audits") else None
    return load_method(name) if name in find() else None
