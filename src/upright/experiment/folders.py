"""The run folder: atomic status, named streams, checkpoints, resume after a kill to the same result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from upright.contract import InputError, stream
from upright.experiment.notes import suppress_few
from upright.experiment.training import Epochs

__all__ = ["ArmRun", "RunFolder", "environment", "plain", "prune", "read_json", "read_log", "write_json"]

MOST_PICTURE = 300_000  # bytes; a report holds its pictures
PACKAGES = ("upright", "torch", "numpy", "scipy", "polars", "pyarrow")


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it. NaN becomes null.

    ``compact`` leaves out indentation and digits beyond the ninth, which are half of a file of numbers.
    """
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as f:
        form: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
        json.dump(_rounded(plain(value)) if compact else plain(value), f, ensure_ascii=False, allow_nan=False, **form)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinity become None, arrays and scalars of NumPy plain."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        return plain(value.tolist())  # NumPy scalars and arrays, tensors
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises
    ------
    InputError
        When it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.parent.name}/{path.name}: {error}", "the folder of a run", "check the path, or run it again"
        ) from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, but for one that a killed process left half written."""
    file, found = folder / "metrics.jsonl", list[dict[str, Any]]()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def environment() -> dict[str, Any]:
    """Return interpreter, platform and the versions of the packages that numbers depend on."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
    }


def prune(folder: Path) -> dict[str, int]:
    """Delete the checkpoints of finished runs below a folder; returns the bytes freed by run."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "a folder that holds runs", "name the folder given to --out")
    freed = {}
    for run in sorted(folder.glob("*/run.json")):
        if read_json(run)["status"] == "done":
            files = list((run.parent / "checkpoints").glob("*.pt"))
            freed[run.parent.name] = sum(f.stat().st_size for f in files)
            for file in files:
                file.unlink()
    return freed


class RunFolder:
    """One folder, one process, one seed.

    Parameters
    ----------
    path : Path
        Made when it does not exist.

    Raises
    ------
    InputError
        When another living process holds the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "artifacts"):
            (path / name).mkdir(exist_ok=True)
        self._lock: Any = None

    @property
    def status(self) -> str | None:
        """``running``, ``done``, ``failed``, ``killed``, or None before the first start."""
        file = self.path / "run.json"
        return str(read_json(file)["status"]) if file.exists() else None

    @contextlib.contextmanager
    def running(self, *, method: str, seed: int, command: str) -> Iterator[None]:
        """Hold the lock and keep ``run.json`` true while the body runs."""
        import fcntl

        lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(
                f"run folder {self.path.name} is held by another process",
                "one process a folder",
                "wait for it, or choose another folder",
            ) from None
        file = self.path / "run.json"
        before = read_json(file) if file.exists() else {}
        start, cpu = time.time(), time.process_time()
        record: dict[str, Any] = {
            "schema": 1,
            "status": "running",
            "method": method,
            "seed": seed,
            "pid": os.getpid(),
            "started": before.get("started") or _now(),
            "resumed": int(before.get("resumed", -1)) + 1,
            "finished": None,
            "wall_s": before.get("wall_s") or 0.0,
            "cpu_s": before.get("cpu_s") or 0.0,
            "command": command,
            "environment": environment(),
            "traceback": None,
        }
        write_json(file, record)
        try:
            yield
            record["status"] = "done"
        except BaseException as error:
            record["status"] = "killed" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
            record["traceback"] = _public_traceback()
            raise
        finally:
            record["finished"] = _now()
            record["wall_s"] += round(time.time() - start, 3)
            record["cpu_s"] += round(time.process_time() - cpu, 3)
            write_json(file, record)
            lock.close()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _public_traceback() -> str:
    kind, error, tb = sys.exc_info()
    lines = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in traceback.extract_tb(tb)]
    return "\n".join([*lines, f"{kind.__name__ if kind else 'Error'}: {error}"])


class ArmRun:
    """What a method sees of its run: see `upright.contract.Run`.

    Parameters
    ----------
    folder : RunFolder or None
        None keeps everything in memory (a native use, or a conformance check).
    seed : int
        Seed of the run; arms share it.
    arm : str
        Name of the arm.
    quiet : bool
        No progress bars.
    """

    def __init__(self, folder: RunFolder | None, seed: int, arm: str, *, quiet: bool = True) -> None:
        self.folder, self.seed, self.arm, self.quiet = folder, seed, arm, quiet
        self.notes: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.metrics: list[dict[str, Any]] = []
        self._kept: dict[str, Any] = {}
        self._saved = self._read("last")
        self._truncate()

    def rng(self, *name: str | int) -> Any:
        """Return the NumPy generator of a named stream."""
        import numpy as np

        return np.random.default_rng(stream(self.seed, *name))

    def torch_rng(self, *name: str | int) -> Any:
        """Return the torch generator of a named stream."""
        import torch

        return torch.Generator().manual_seed(stream(self.seed, *name))

    def log(self, step: int, **values: float) -> None:
        """Append to ``metrics.jsonl``."""
        line = {"arm": self.arm, "step": step, **values}
        self.metrics.append(line)
        if self.folder is not None:
            with (self.folder.path / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(plain(line)) + "\n")

    def save(self, step: int, state: Mapping[str, Any], *, best: bool = False) -> None:
        """Keep the last checkpoint, and the best one beside it; both are replaced in one step."""
        if self.folder is None:
            import copy

            kept = copy.deepcopy(dict(state))
            self._kept |= {"last": kept} | ({"best": kept} if best else {})
            return
        import torch

        payload = {"state": dict(state), "logged": len(self.metrics), "notes": self.notes, "warnings": self.warnings}
        for which in ("best", "last") if best else ("last",):  # best first: a kill between the two repeats the step
            path = self._checkpoint(which)
            torch.save(payload, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

    def restore(self, which: Literal["last", "best"] = "last") -> dict[str, Any] | None:
        """Return a checkpoint of this arm."""
        if self.folder is None:
            return self._kept.get(which)
        found = self._read(which)
        return None if found is None else dict(found["state"])

    def training(
        self, config: Any, *, epochs: int | None = None, patience: int | None = -1, first: int = 0, **parts: Any
    ) -> Epochs:
        """Return the companion of a training loop; -1 takes the patience of the config."""
        return Epochs(
            self,
            epochs=config.epochs if epochs is None else epochs,
            check_every=config.check_every,
            patience=config.patience if patience == -1 else patience,
            first=first,
            parts=parts,
        )

    def silent(self) -> ArmRun:
        """Return a run in memory with the same seed, streams and shared values."""
        inner = ArmRun(None, self.seed, self.arm)
        inner.shared = self.shared  # type: ignore[method-assign]
        return inner

    def shared(self, name: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what ``make()`` gives; a run folder keeps it, so that other arms and a resumed run need not repeat it.

        ``make`` must be a function of the name, the key and the run's seed alone.
        """
        if self.folder is None:
            return dict(make())
        import torch

        digest = hashlib.sha256(json.dumps(plain(key), sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder.path / "checkpoints" / f"shared.{name}.{digest}.pt"
        if not path.exists():
            torch.save(dict(make()), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return dict(torch.load(path, weights_only=True))

    def note(self, name: str, value: Any) -> None:
        """Record a diagnostic, without what rests on one to four people."""
        self.notes[name] = suppress_few(plain(value))

    def picture(self, name: str, data: bytes) -> None:
        """Keep a picture under ``artifacts/`` and note its file: PNG (animated too) or WebP."""
        kind = "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else "webp" if data[8:12] == b"WEBP" else ""
        if not kind or len(data) > MOST_PICTURE:
            got = f"picture {name!r} of {len(data):,} bytes"
            raise InputError(got, f"PNG or WebP of at most {MOST_PICTURE:,} bytes", "make it smaller")
        file = f"{self.arm}.{name}.{kind}"
        if self.folder is not None:
            (self.folder.path / "artifacts" / file).write_bytes(data)
        self.note(name, file)

    def warn(self, text: str) -> None:
        """Record a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def progress(self, total: int, label: str) -> Any:
        """Return a progress bar that stays silent when quiet or away from a terminal."""
        return _progress(total, label, self.quiet)

    def _checkpoint(self, which: str) -> Path:
        assert self.folder is not None
        return self.folder.path / "checkpoints" / f"{self.arm}.{which}.pt"

    def _read(self, which: str) -> dict[str, Any] | None:
        if self.folder is None or not self._checkpoint(which).exists():
            return None
        import torch

        return dict(torch.load(self._checkpoint(which), weights_only=True))

    def _truncate(self) -> None:
        """Drop this arm's log lines after its last checkpoint, so that a resumed log equals an uninterrupted one.

        Lines of other arms stay: an arm that was finished before the kill logs nothing when it is resumed.
        """
        if self.folder is None:
            return
        keep = 0
        if self._saved is not None:
            self.notes, self.warnings = dict(self._saved["notes"]), list(self._saved["warnings"])
            keep = self._saved["logged"]
        log = self.folder.path / "metrics.jsonl"
        if not log.exists():
            return
        lines = []
        for text in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if not text.endswith("\n"):
                continue  # the kill came in the middle of a line
            line = json.loads(text)
            if line["arm"] == self.arm:
                if len(self.metrics) == keep:
                    continue
                self.metrics.append(line)
            lines.append(text)
        temporary = log.with_name(log.name + ".part")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(log)


@contextlib.contextmanager
def _progress(total: int, label: str, quiet: bool) -> Iterator[Any]:
    if quiet or not sys.stderr.isatty():
        yield lambda n=1: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(label, total=total)
        yield lambda n=1: bar.advance(job, n)
