"""The run folder: atomic status, named streams, checkpoints, resume after a kill to the same result."""

from __future__ import annotations

import contextlib
import copy
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

__all__ = ["ArmRun", "RunFolder", "environment", "plain", "prune", "read_json", "read_log", "run_status", "write_json"]

MOST_PICTURE = 300_000  # bytes; a report holds its pictures
PACKAGES = ("upright", "torch", "numpy", "scipy", "polars", "pyarrow")


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it. NaN becomes null.

    ``compact`` leaves out indentation and digits beyond the ninth, which are half of a file of numbers.
    """
    found, form = plain(value), dict[str, Any](indent=1)
    if compact:
        found = json.loads(json.dumps(found), parse_float=lambda number: float(f"{float(number):.9g}"))
        form = {"separators": (",", ":")}
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8") as f:
        json.dump(found, f, ensure_ascii=False, allow_nan=False, **form)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file to write beside a path, which takes its place when it is whole."""
    temporary = path.with_name(path.name + ".part")
    yield temporary
    temporary.replace(path)


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

    @contextlib.contextmanager
    def running(
        self, *, method: str, seed: int, command: str, since: tuple[float, float] | None = None
    ) -> Iterator[None]:
        """Hold the lock and keep ``run.json`` true: ``running``, then ``done``, ``failed`` or ``killed``.

        ``since`` is the time and the processor time at which the work began, where that was before the folder.
        """
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
        start, cpu = since or (time.time(), time.process_time())
        record: dict[str, Any] = {
            "schema": 1,
            "status": "running",
            "method": method,
            "seed": seed,
            "pid": os.getpid(),
            "started": before.get("started") or _now(start),
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
            record["traceback"] = _public_traceback(error)
            raise
        finally:
            record["finished"] = _now()
            record["wall_s"] += round(time.time() - start, 3)
            record["cpu_s"] += round(time.process_time() - cpu, 3)
            write_json(file, record)
            lock.close()


def run_status(folder: Path) -> str | None:
    """Return the status of a run, ``interrupted`` where nobody holds the lock of one that says it is running."""
    import fcntl

    if not (folder / "run.json").is_file():
        return None
    status = str(read_json(folder / "run.json").get("status"))
    if status == "running":
        with (folder / ".lock").open("a") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "interrupted"
    return status


def _now(at: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _public_traceback(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames]
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])


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
        self._go_on()

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
        kept = dict(state) if self.folder else copy.deepcopy(dict(state))
        payload = {"state": kept, "logged": len(self.metrics), "notes": self.notes, "warnings": self.warnings}
        for which in ("best", "last") if best else ("last",):  # best first: a kill between the two repeats the step
            if self.folder is None:
                self._kept[which] = payload
            else:
                _save_tensors(self._checkpoint(self.folder, which), payload)

    def restore(self, which: Literal["last", "best"] = "last") -> dict[str, Any] | None:
        """Return a checkpoint of this arm."""
        found = self._read(which)
        return None if found is None else dict(found["state"])

    def training(
        self, config: Any, *, epochs: int | None = None, patience: int | None = -1, first: int = 0, **parts: Any
    ) -> Epochs:
        """Return the companion of a training loop."""
        return Epochs(self, config, epochs=epochs, patience=patience, first=first, parts=parts)

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
        digest = hashlib.sha256(json.dumps(plain(key), sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder.path / "checkpoints" / f"shared.{name}.{digest}.pt"
        if not path.exists():
            _save_tensors(path, dict(make()))
        return _load_tensors(path)

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

    @contextlib.contextmanager
    def progress(self, total: int, label: str) -> Iterator[Any]:
        """Show a progress bar that stays silent when quiet or away from a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda n=1: None
            return
        from rich import progress as parts
        from rich.console import Console

        times = (parts.TimeElapsedColumn(), parts.TimeRemainingColumn())
        columns = ("{task.description}", parts.BarColumn(), parts.MofNCompleteColumn(), *times)
        with parts.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            job = bar.add_task(label, total=total)
            yield lambda n=1: bar.advance(job, n)

    def _checkpoint(self, folder: RunFolder, which: str) -> Path:
        return folder.path / "checkpoints" / f"{self.arm}.{which}.pt"

    def _read(self, which: str) -> dict[str, Any] | None:
        if self.folder is None:
            return self._kept.get(which)
        path = self._checkpoint(self.folder, which)
        return _load_tensors(path) if path.exists() else None

    def _go_on(self) -> None:
        """Take up notes and warnings of the last checkpoint, and drop this arm's log lines after it.

        So a resumed log equals an uninterrupted one. Lines of other arms stay: an arm that was finished before the
        kill logs nothing when it is resumed.
        """
        if self.folder is None:
            return
        keep = 0
        if (saved := self._read("last")) is not None:
            keep, self.notes, self.warnings = saved["logged"], dict(saved["notes"]), list(saved["warnings"])
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
        with _replacing(log) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def _save_tensors(path: Path, value: dict[str, Any]) -> None:
    import torch

    with _replacing(path) as temporary:
        torch.save(value, temporary)


def _load_tensors(path: Path) -> dict[str, Any]:
    import torch

    return dict(torch.load(path, weights_only=True))
