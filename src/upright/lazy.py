"""Modules that are imported when they are first used: a declaration is read without torch, scikit-learn or a wing.

A lazy module of the standard library stands in ``sys.modules`` unloaded, and is loaded by whoever looks through that
table, as `inspect` does while torch is imported. One of these stands nowhere until it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["LazyModule"]


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
