"""What is here and what is missing: interpreter, packages by extra, data, cache, browser."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

__all__ = ["examine"]


def _extra_of(requirement: str) -> tuple[str, str]:
    name = re.split(r"[ ;<>=!\[]", requirement, maxsplit=1)[0]
    found = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
    return name, found.group(1) if found else "core"


def examine() -> list[dict[str, Any]]:
    """Return rows of ``what``, ``state`` (ok, missing) and ``note``, without importing what is examined."""
    from upright.contract import InputError
    from upright.data.catalogue import CATALOGUE, cache_dir, locate
    from upright.experiment.folders import environment

    here = environment()
    rows: list[dict[str, Any]] = [{"what": "python", "state": "ok", "note": here["python"]}]
    extras: dict[str, list[str]] = {}
    for requirement in requires("upright") or []:
        name, extra = _extra_of(requirement)
        if name != "upright":
            extras.setdefault(extra, []).append(name)
    for extra, names in extras.items():
        absent = []
        for name in names:
            try:
                version(name)
            except PackageNotFoundError:
                absent.append(name)
        note = f"pip install 'upright[{extra}]' brings {', '.join(absent)}" if absent else f"{len(names)} packages"
        rows.append({"what": f"extra {extra}", "state": "missing" if absent else "ok", "note": note})
    for name in CATALOGUE:
        try:
            locate(name)
            rows.append({"what": f"data {name}", "state": "ok", "note": CATALOGUE[name].licence})
        except InputError as error:
            rows.append({"what": f"data {name}", "state": "missing", "note": error.todo})
    cache = cache_dir()
    writable = os.access(next(p for p in [cache, *cache.parents] if p.exists()), os.W_OK)
    rows.append(
        {
            "what": "cache",
            "state": "ok" if writable else "missing",
            "note": "writable" if writable else "set UPRIGHT_CACHE to a folder that can be written",
        }
    )
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    rows.append(
        {
            "what": "browser for tests",
            "state": "ok" if browser else "missing",
            "note": "" if browser else "apt-get install chromium",
        }
    )
    return rows
