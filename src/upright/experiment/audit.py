"""The one door of audits: files become an answer, the answer evidence, and both a folder that a report reads.

An audit scores what a user already has. It has one arm, trains nothing and gives levels, gaps with intervals and with
what random groups would show, and the smallest gap that it could have detected. Groups are compared in every metric and
pair at once: intervals and p-values are adjusted for all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import polars as pl

from upright.contract import Arm, Config, File, InputError, stream
from upright.evidence.bootstrap import DRAWS
from upright.evidence.compute import evidence, margins_of, pair_levels
from upright.evidence.records import Level
from upright.evidence.units import FEWEST, Block, Units, write_units
from upright.evidence.verdict import audit_verdict
from upright.experiment.config import to_config
from upright.experiment.folders import ArmRun, RunFolder, write_json
from upright.experiment.places import require_folder
from upright.experiment.registry import load_audit
from upright.experiment.runner import new_folder
from upright.experiment.summary import ArmFacts, Evidence, Summary, write_summary
from upright.maths.simultaneous import compare_groups
from upright.tasks.answers import YOURS, Answer, name_of

__all__ = ["file_fields", "run_audit"]


def file_fields(config: type[Config]) -> list[str]:
    """Return the fields that hold a file, or several; the first is the one that an audit is of."""
    hints = get_type_hints(config, include_extras=True)
    return [f.name for f in dataclasses.fields(config) if str(File) in str(hints[f.name])]  # type: ignore[arg-type]


def run_audit(
    kind: str,
    settings: Mapping[str, Any],
    *,
    out: Path,
    seed: int = 0,
    draws: int = DRAWS,
    margins: Mapping[str, float] | None = None,
    command: str | None = None,
) -> Path:
    """Audit files and return the folder that holds what was found.

    Parameters
    ----------
    kind : str
        Registered name of an audit.
    settings : mapping
        Fields of its config: files as paths or data frames, and options.
    out : Path
        Where the folder is made, as ``<date>-audit-<kind>-<data>-s<seed>``.
    seed, draws : int
        Of everything that is drawn; draws of the bootstrap, at least 2.
    margins : mapping of metric to float, optional
        Smallest that matters, '' for what decides.
    command : str, optional
        What the report says to repeat it.

    Returns
    -------
    Path
        Holds ``run.json``, ``config.json``, ``units.parquet`` and ``summary.json`` with ``kind`` ``audit``.

    Raises
    ------
    InputError
        For everything that is wrong with the settings or the files; no folder is made then.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise InputError(f"draws = {draws!r}", "a whole number of at least 2", "set draws to at least 2")
    if not isinstance(margins, Mapping | None):
        raise InputError(f"margins = {margins!r}", "{METRIC: X}, '' for what decides", f"margins={{'': {margins!r}}}")
    since = time.time(), time.process_time()
    spec = load_audit(kind)
    files = file_fields(spec.config)
    one = settings.get(files[0])
    alone = "tuple" in str(get_type_hints(spec.config)[files[0]]) and not isinstance(one, tuple | list | Mapping | None)
    config = to_config(spec.config, {**settings, files[0]: (one,)} if alone else settings)
    require_folder(out)
    answer: Answer = spec.read(config, seed=seed, draws=draws, margins=margins or {})
    for name, margin in (margins or {}).items():
        about = answer.metrics.get(name or next(iter(answer.compared), ""), next(iter(answer.metrics.values())))
        if margin > about.high - about.low:
            got = f"--margin {f'{name}={margin}'.lstrip('=')}"
            raise InputError(got, f"at most {about.high - about.low:g}", "name the smallest change that matters")
    units = Units([Block(f"audit_{kind}", YOURS, seed, answer.scores)])
    found, groups = _evidence(answer, units, margins, draws, seed)

    plain = {name: _named(value) if name in files else value for name, value in config.as_dict().items()}
    resolved = {"draws": draws, **plain, **answer.resolved}
    given = {name: value for name, value in plain.items() if name in settings and value is not None}
    given |= {"margin": [f"{m}={x}".lstrip("=") for m, x in margins.items()]} if margins else {}
    repeat = command or _command(kind, files[0], given, seed)
    path = new_folder(out, f"audit-{kind}", Path(str(answer.data["name"])).stem, seed)
    method, run = f"audit_{kind}", RunFolder(path)
    arms = [(YOURS, "baseline", answer.arm_title, answer.scores)]
    arms += [(name, "reference", title, scores) for name, title, scores in answer.others]
    with run.running(method=method, seed=seed, command=repeat, since=since):
        passed = {"passed": given, "resolved": {"audit": resolved}, "method": method, "seed": seed}
        write_json(path / "config.json", passed | {"arms": [name for name, *_ in arms]})
        write_units(path / "units.parquet", [Block(method, name, seed, scores) for name, _, _, scores in arms], "test")
        kept = ArmRun(run if answer.pictures else None, seed, YOURS)
        for name, data in answer.pictures.items():
            kept.picture(name, data)
        notes = {**answer.notes, YOURS: {**answer.notes.get(YOURS, {}), **kept.notes}}
        for name, columns in answer.tables.items():
            pl.DataFrame(columns).write_csv(path / f"{name}.csv")
        summary = Summary(
            kind="audit",
            method=method,
            title=answer.title,
            mends=answer.asks,
            data={"fingerprint": _fingerprint(config), **answer.data},
            seeds=(seed,),
            arms=tuple(
                ArmFacts(name=n, role=role, title=title, notes=notes.get(n, {}), totals=dict(scores.totals))
                for n, role, title, scores in arms
            ),
            warnings=tuple(answer.warnings),
            evidence=Evidence.read(found),
            audit={**groups, **answer.facts},
        )
        write_summary(path, summary)
    return path


def _named(value: Any) -> Any:
    """Return names in place of files: their folders are nobody's business."""
    if isinstance(value, Mapping):
        return {name: _named(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_named(one) for one in value]
    name, equals, path = str(value).partition("=") if isinstance(value, str) else ("", "", "")
    return None if value is None else f"{name}={name_of(path)}" if equals else name_of(value)


def _fingerprint(config: Config) -> str:
    """SHA-256 over the files, in the order of the fields."""
    digest = hashlib.sha256()
    for name in file_fields(type(config)):
        value = getattr(config, name)
        several = isinstance(value, tuple | list | Mapping)
        for one in (value.values() if isinstance(value, Mapping) else value) if several else [value]:
            digest.update(f"{name}:".encode())
            if not isinstance(one, str | Path | None):
                frame = pl.DataFrame(one)
                digest.update(np.ascontiguousarray(frame.hash_rows().to_numpy()).tobytes())
                continue
            path = Path(str(one).partition("::")[0])
            path = path if path.exists() else Path(str(path).partition("=")[2])
            if path.is_file():
                with path.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _command(kind: str, first: str, given: Mapping[str, Any], seed: int) -> str:
    """Return the words that repeat an audit."""
    tables = given[first]
    named = [f"{name}={file}" for name, file in tables.items()] if isinstance(tables, Mapping) else tables
    words = ["upright", "audit", kind, *([named] if isinstance(named, str) else named)]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif name == "margin":
            words += [word for one in value for word in (option, one)]
        elif name != first:
            words += [option, ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)]
    return shlex.join([*words, "--seed", str(seed)])


def _evidence(
    answer: Answer, units: Units, given: Mapping[str, float] | None, draws: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return levels with gaps and the verdict, and which groups there are."""
    grouping = next(iter(answer.scores.by), "")
    groups = units.groups(grouping) if grouping else []
    facts: dict[str, Any] = {"grouping": grouping or None, "groups": groups}
    if answer.evidence is not None:
        return dict(answer.evidence), facts
    margins = margins_of({metric: answer.metrics[metric].margin for metric in answer.compared}, given)
    compared = list(answer.compared) if len(groups) > 1 else []
    statistics = [*answer.statistics, *(f"mean:{metric}:{grouping}" for metric in compared)]
    arms = [Arm(YOURS, "baseline", title=answer.arm_title)]
    found = evidence(units, arms=arms, statistics=statistics, metrics=answer.metrics, draws=draws, seed=seed)
    if answer.beside is not None:
        pairs_of, more = Units([Block("", YOURS, seed, answer.beside[0])]), answer.beside[1]
        levels = evidence(pairs_of, arms=arms, statistics=more, metrics=answer.metrics, draws=draws, seed=seed)[
            "levels"
        ]
        found["levels"] += levels
    pairs: list[Level] = []
    small: dict[int, float] = {}
    if compared:
        table = np.stack([units.values(YOURS, m) for m in compared], axis=-1)
        rng = np.random.default_rng(stream(seed, "audit", "null"))
        seen = compare_groups(table, units.codes(grouping)[1], units.cluster, len(groups), rng=rng)
        size = {(x["metric"], x["group"]): x["n_units"] for x in found["levels"]}
        about = [answer.metrics[m] for m in compared]
        pairs = pair_levels(seen, arm=YOURS, groups=groups, metrics=about, grouping=grouping, sizes=size)
        # what decides stands first: the largest T of those that are shown and matter, else of those that are shown
        pairs.sort(key=lambda x: (not (x.shown and max(-x.low, x.high) > margins[x.metric]), not x.shown))
        found["levels"] += [x.row() for x in pairs]
    if pairs:
        own = [compared[m] == pairs[0].metric for _, m, *_ in seen.of]  # sizes of other metrics are no measure
        small = dataclasses.replace(seen, value=np.where(own, seen.value, np.nan)).small_groups()
    mean = next((x for x in found["levels"] if x["statistic"] == f"mean:{answer.compared[0]}"), None)
    found["headline"] = pairs[0].row() if pairs else mean
    primary = pairs[0].statistic if pairs else f"mean:{answer.compared[0]}"
    said = audit_verdict(
        "gap shown",
        pairs,
        margin=margins,
        too_small=[(groups[g], least) for g, least in small.items()],
        unit=answer.scores.unit_kind,
    )
    found["verdict"] = {**said.row(), "primary": primary}
    found["verdict"] |= {} if pairs or not mean else _without_groups(answer, mean)
    told = [x for x in map(Level.read, found["levels"]) if x.name in ("effect", "dominance") and math.isfinite(x.low)]
    if told:
        effects = "; ".join(f"{x.label} {x.value:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for x in told)
        found["verdict"]["lines"] = {**found["verdict"]["lines"], "effects": effects}
    found["verdict"]["lines"] = {**found["verdict"]["lines"], **answer.lines}
    return found, facts


def _without_groups(answer: Answer, mean: Mapping[str, Any]) -> dict[str, Any]:
    """Say what an audit without two groups to compare measured."""
    level, kind = Level.read(mean), answer.scores.unit_kind
    what = "Fewer than two groups can be compared" if answer.scores.by else "No groups were given"
    apart = "" if answer.steps else f" {what}, so no gap is stated."
    text = f"{level.label} is {level.value:.3f} [{level.low:.3f}, {level.high:.3f}].{apart}"
    if math.isnan(level.value):
        text = f"{level.label} is undefined for every {kind}."
    steps = answer.steps or [f"Hand in at least two groups of {FEWEST} {kind}s to compare them."]
    return {"sentence": text, "lines": {"effect": text}, "next_steps": steps}
