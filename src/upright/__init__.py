"""upright: measure how a trained model breaks trust, mend it, and show with intervals what that gained and cost.

    import upright
    result = upright.run("in_ucds", data="ml100k", seeds=6)
    print(result.verdict)
    result.report()

Importing this package imports neither torch nor a data frame library; each name below loads what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "audit", "check", "compare", "load", "run"]

if TYPE_CHECKING:
    from upright.api import audit, check, compare, load, run


def __getattr__(name: str) -> Any:
    if name in ("run", "audit", "check", "compare", "load"):
        from upright import api

        return getattr(api, name)
    raise AttributeError(f"module 'upright' has no attribute {name!r}; it has {', '.join(__all__)}")
