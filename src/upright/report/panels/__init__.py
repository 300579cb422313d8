"""One small file a method: the plots that its users expect. A method without one has no panel, which is fine."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upright.report.parts import Block
    from upright.report.plots import Canvas
    from upright.report.read import View

__all__ = ["Panel", "limits_for", "panel_for", "shows_front"]

Panel = Callable[["View", "Canvas"], "list[Block]"]


def panel_for(method: str) -> Panel | None:
    """Return ``panel(view, canvas) -> blocks`` of ``upright.report.panels.<method>``, None without such a file."""
    module = _module(method)
    found: Panel | None = getattr(module, "panel", None) if module else None
    return found


def limits_for(method: str) -> Sequence[str]:
    """Return what a reader of this method's report must know before using it."""
    return tuple(getattr(_module(method), "LIMITS", ()))


def shows_front(method: str) -> bool:
    """Return whether the panel draws quality against gap itself, so that the page need not draw it twice."""
    return bool(getattr(_module(method), "SHOWS_FRONT", False))


def _module(method: str) -> object | None:
    # a folder's method name is a file's content: only a plain lower-case word may become an import
    if not re.fullmatch(r"[a-z][a-z0-9_]*", method):
        return None
    name = f"{__name__}.{method}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
