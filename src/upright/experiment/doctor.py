"""What is here and what is missing: interpreter, packages by extra, data, cache, tesseract, browser."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version

from upright.contract import InputError
from upright.data.catalogue import CATALOGUE, cache_dir, locate

__all__ = ["examine"]


def examine() -> list[dict[str, str]]:
    """Return rows of ``what``, ``state`` (ok, missing) and ``note``, without importing what is examined."""
    rows = []

    def tell(what: str, ok: str, missing: str) -> None:
        rows.append({"what": what, "state": "missing" if missing else "ok", "note": missing or ok})

    tell("python", platform.python_version(), "")
    extras: dict[str, list[str]] = {}
    for requirement in requires("upright") or []:
        name = re.split(r"[ ;<>=!\[]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if name != "upright":
            extras.setdefault(extra[1] if extra else "core", []).append(name)
    for owner, names in extras.items():
        absent = []
        for name in names:
            try:
                version(name)
            except PackageNotFoundError:
                absent.append(name)
        todo = f"pip install 'upright[{owner}]' brings {', '.join(absent)}" if absent else ""
        tell(f"extra {owner}", f"{len(names)} packages", todo)
    for name, entry in CATALOGUE.items():
        try:
            locate(name)
            tell(f"data {name}", entry.licence, "")
        except InputError as error:
            tell(f"data {name}", "", error.todo)
    cache = cache_dir()
    writable = os.access(next(p for p in [cache, *cache.parents] if p.exists()), os.W_OK)
    tell("cache", "writable", "" if writable else "set UPRIGHT_CACHE to a folder that can be written")
    reads = "" if shutil.which("tesseract") else "apt-get install tesseract-ocr tesseract-ocr-eng"
    tell("tesseract, which reads pictures", "", reads)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    tell("browser for tests", "", "" if browser else "apt-get install chromium")
    return rows
