"""Reports: one self-contained HTML file for a run, a comparison, an audit, several of them side by side, or a demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upright.report.build import build_demo, build_report
    from upright.report.compare import build_compare

__all__ = ["build_compare", "build_demo", "build_report"]


def __getattr__(name: str) -> Any:
    # matplotlib and jinja2 are loaded when a page is built, not when the command line starts
    if name == "build_compare":
        from upright.report.compare import build_compare

        return build_compare
    if name in {"build_demo", "build_report"}:
        from upright.report import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
