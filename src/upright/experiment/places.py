"""Where results go: refuse a place that cannot be written to before anything is computed."""

from __future__ import annotations

from pathlib import Path

from upright.contract import InputError

__all__ = ["require_file", "require_folder"]


def require_folder(path: Path) -> Path:
    """Return a path that is a folder or can become one.

    Raises
    ------
    InputError
        When it, or a folder above it, is a file.
    """
    for part in (path, *path.parents):
        if part.is_dir():
            break
        if part.exists():
            raise InputError(f"--out {path}: {part} is a file", "a folder, new or there already", "name another one")
    return path


def require_file(path: Path) -> Path:
    """Return a path that is a file or can become one; the folder above it must be there.

    Raises
    ------
    InputError
        When it is a folder, or when what stands above it is none.
    """
    if path.is_dir():
        raise InputError(f"--out {path} is a folder", "a file, new or there already", "name a file inside it")
    if not path.parent.is_dir():
        what = "a file" if path.parent.exists() else "not there"
        raise InputError(
            f"--out {path}: {path.parent} is {what}",
            "a file in an existing folder",
            "make the folder first, or name another one",
        )
    return path
