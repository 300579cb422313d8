"""A folder of clips: do the objects in them obey mechanics, where do they not, and is one model better than another.

`upright.metrics.physics` has most values; ``LAW_excess`` is by how much the largest break of one law exceeds its
tolerance, in tolerances, and ``broken`` is 1 where that of some law does.

A clip is reduced to 64 px on its longer side, its objects are found (or given), and `upright.video.verifiers` judges
them; nothing is trained. A law that a clip does not show, or that its tracks cannot decide, is *undecided*: no value,
never 0 and never a pass. All laws are judged together, in one max-T in which a clip and one that keeps every law change
places, or a clip and that of the same name in the other folder. Sub-folders, or the column ``group`` of ``clips.csv``,
are groups; clips of one ``scene`` are one cluster. `docs/audit-video.md` has files, numbers and errors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from upright.contract import Arm, Config, File, InputError, Metric, PositiveFloat, Range, UnitScores, audit, stream
from upright.data.columns import RENAME, Column, read_columns
from upright.data.formats import open_columns
from upright.declare import Changes, Intervals, Noted, Picture
from upright.evidence.compute import evidence, margins_of
from upright.evidence.records import Level
from upright.evidence.units import Block, Units
from upright.evidence.verdict import audit_verdict
from upright.lazy import LazyModule
from upright.maths.simultaneous import FEWEST, compare_groups
from upright.metrics import physics
from upright.tasks.answers import YOURS, Answer, plural

if TYPE_CHECKING:
    import torch

    from upright.video import animate, files, rewards, tracks, verifiers
else:
    torch = LazyModule("torch")
    animate = LazyModule("upright.video.animate")
    files = LazyModule("upright.video.files")
    rewards = LazyModule("upright.video.rewards")
    tracks = LazyModule("upright.video.tracks")
    verifiers = LazyModule("upright.video.verifiers")

__all__ = ["LAWS", "MotionConfig", "read_motion"]

Array = NDArray[np.float64]
LAWS = (
    *("momentum", "energy", "acceleration", "free_fall", "restitution", "contact_time"),
    *("pendulum", "rolling", "rigidity", "permanence", "overlap"),
)
_EXCESS = {law: f"{law}_excess" for law in LAWS}
_METRICS = {
    "newton": physics.METRICS["newton"],
    **{
        name: Metric(name, "lower", high=math.inf, margin=0.1, title=f"{law.replace('_', ' ').capitalize()}, excess")
        for law, name in _EXCESS.items()
    },
    **{name: physics.METRICS[name] for name in ("lost", "background", "offset")},
    "broken": Metric("broken", "lower", margin=0.02, title="Clips that break some law"),
}
_SIDE = 64  # px of the longer side of what is tracked: tolerances were measured there
_WORST, _NAMED = 10, 20  # clips in the report, and in a message
_SHOWN, _BYTES = 160, 250_000  # px of a clip there, and its size: ten and their first frames fit in a page
_OTHER = "other"
_COLUMNS = ("clip", "group", "scene", "fps", "frames", "height", "width", "objects", "confidence", "law", "notes")
_ALIKE = ("fps", "frames", "height", "width")  # of two clips that are compared


class MotionConfig(Config):
    """A folder of clips, and what is known of them."""

    folder: File
    """Clips: mp4, mov, webm, mkv, gif, .npy, or folders of numbered pictures; sub-folders are groups."""
    truth: File | None = None
    """Folder of the true clips, by the same names, whatever their kind."""
    tracks: File | None = None
    """Points: columns file, frame, object, x, y and radius, in px. Or a folder of masks: clips of the same names in
    black, with the objects in pure red, green and blue. By default objects are found."""
    compare: File | None = None
    """Folder of another model's clips, by the same names: paired differences decide."""
    fps: PositiveFloat | None = None
    """Frames a second of clips that do not say theirs."""
    context: Annotated[int, Range(ge=3)] = 5
    """First frames of each clip, which were given to the model and are not judged."""
    gravity: Literal["auto", "none"] = "auto"
    """Whether the acceleration that free bodies share is found in the context of each clip, or is 0."""
    pictures: bool = True
    """Whether the worst clips are kept in the folder, in motion, for its report."""


@dataclasses.dataclass(eq=False)
class _Found:
    """What was measured in a folder: a row a clip, excesses over frames, and what could not be read."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    series: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    digest: Any = dataclasses.field(default_factory=hashlib.sha256)

    def values(self, name: str) -> Array:
        return np.array([row.get(name, math.nan) for row in self.rows], np.float64)


_RINGS = ["Rings are around the objects that are followed, red where the law that is broken most is beyond tolerance."]


@audit(
    "video",
    config=MotionConfig,
    report=[
        Intervals(
            "How far mechanics is broken",
            "mean:newton mean:newton:group=*",
            ["0 where every law that can be decided is kept; 1 is one tolerance beyond, on the average of laws."],
        ),
        Intervals("Clips that break some law", "mean:broken mean:broken:group=*", bars=True),
        Intervals(
            "Which law, in tolerances beyond its own",
            "mean:*_excess",
            ["Each over the clips that decide it. A tolerance is three times what true clips show."],
            bars=True,
        ),
        Changes("Against the other folder", "mean:newton mean:*_excess"),
        Intervals("Objects that are lost, and the background", "mean:lost mean:background", bars=True),
        Noted(
            "The worst clips",
            "clips",
            by={"clip": "Clip", "law": "Law that is broken most"},
            names={"excess": "beyond tolerance", "frame": "in frame", "newton": "all laws", "confidence": "confidence"},
        ),
        *(Picture(f"Worst clip {i + 1}", f"worst_{i}", _RINGS * (not i)) for i in range(_WORST)),
    ],
    limits=[
        "Objects are bodies in the plane of the picture: a camera that moves, depth and soft bodies are no part of it.",
        "What is undecided is not known: few decided laws are few, however small their excess.",
        f"Clips are judged at {_SIDE} px: breaks that are not seen there are not found.",
        "A clip that obeys mechanics may still differ from what would have happened.",
    ],
)
def read_motion(config: MotionConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit whether the objects in a folder of clips obey mechanics.

    Raises
    ------
    InputError
        For a folder without a clip that can be measured; a clip that cannot be read is named and left out.
    """
    for one in (config.folder, config.truth or "", config.compare or ""):
        if not isinstance(one, str | Path):
            raise InputError(f"a {type(one).__name__}", "folders of clips", "name a folder")
    folder, warnings = Path(config.folder), list[str]()
    own, other = _measure(folder, config), None
    warnings += [f"Left out: {text}." for text in own.left_out]
    if config.compare is not None:
        other = _measure(Path(config.compare), config)
        warnings += [f"Left out of the other folder: {text}." for text in other.left_out]
        _pair(own, other, warnings)
    names, groups, scenes = ([row[key] for row in own.rows] for key in ("clip", "group", "scene"))
    if undecided := [row["clip"] for row in own.rows if math.isnan(row.get("newton", math.nan))]:
        warnings.append(f"{plural(len(undecided), 'clip')} whose motion cannot be judged: {_some(undecided)}.")
    if config.truth is not None and (lone := [row["clip"] for row in own.rows if "offset" not in row]):
        warnings.append(f"{plural(len(lone), 'clip')} without a true one that can be measured: {_some(lone)}.")
    if noted := [f"{row['clip']} ({row['notes']})" for row in own.rows if row["notes"]]:
        warnings.append(f"Read with notes: {_some(noted)}.")
    values = {name: x for name in _METRICS if np.isfinite(x := own.values(name)).any()}
    by = {"group": groups} if len({*groups}) > 1 else {}
    scores = UnitScores("clip", names, values, by, cluster=scenes if len({*scenes}) < len(names) else ())
    there = dataclasses.replace(scores, values={x: other.values(x) for x in values}) if other else None
    judged = margins_of({x: _METRICS[x].margin for x in ("newton", *_EXCESS.values()) if x in values}, margins)
    protocol, worst = _protocol(own, config), _worst(own)
    keys = ("clip", "law", "excess", "frame", "newton", "confidence")
    shown = [{"law": "none", **{key: row[key] for key in keys if key in row and row[key] == row[key]}} for row in worst]
    return Answer(
        title=f"Audit of motion in {folder.name}",
        arm_title="your clips",
        asks="whether the objects in clips obey mechanics, and where they do not",
        data={"name": folder.name, "clips": len(names), "fingerprint": own.digest.hexdigest()},
        scores=scores,
        metrics=_METRICS,
        compared=list(judged),
        facts={"protocol": protocol, "left_out": own.left_out, "undecided": len(undecided)},
        notes={YOURS: {"clips": shown}},
        pictures={f"worst_{i}": _film(row, folder) for i, row in enumerate(worst) if config.pictures},
        warnings=warnings,
        evidence=_judge(scores, there, judged, _lines(own, protocol), draws, seed),
        others=[(_OTHER, "the other clips", there)] if there else [],
        tables={"clips": {x: [row.get(x) for row in own.rows] for x in (*_COLUMNS, *values)}, "series": own.series},
    )


# -- measuring --------------------------------------------------------------------------------------------------------


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # of small clips threads wait for each other
def _measure(folder: Path, config: MotionConfig) -> _Found:
    """Return what each clip of a folder shows; those that cannot be read are named and left out."""
    found, listed, given = _Found(), _listed(folder), _given(config)
    truth = {_stem(one, config.truth): one for one in files.list_clips(config.truth)} if config.truth else {}
    shapes: dict[Any, list[tuple[dict[str, Any], Any]]] = {}  # rows and tracks by frames and objects
    for path in files.list_clips(folder):
        stem = _stem(path, folder)
        try:
            clip = files.read_clip(path, root=folder, size=_SIDE)
            n = len(clip.frames)
            if n <= config.context:
                got = f"{clip.name}: {plural(n, 'frame')}, {config.context} of them context"
                raise InputError(got, "more frames than context", "name fewer with --context")
            if any(row["stem"] == stem for row in found.rows):
                raise InputError(f"{clip.name}: another clip of that name", "a name for each", "rename one")
            row: dict[str, Any] = {"clip": clip.name, "stem": stem, "frames": n, "notes": "; ".join(clip.notes)}
            row |= {"height": clip.size[0], "width": clip.size[1], "fps": clip.fps or config.fps, "scene": clip.name}
            row |= {"group": clip.name.partition("/")[0] if "/" in clip.name else ""}
            row |= {key: x for key, x in listed.get(path.relative_to(folder).as_posix(), {}).items() if x}
            seen = _tracked(clip, stem, config, given)
            row |= {"objects": seen.position.shape[2], "path": path, "seen": seen, "across": clip.frames.shape[2]}
            if stem in truth:
                row |= _offset(clip, truth[stem], config)
        except InputError as error:
            found.left_out.append(error.got)
            continue
        found.digest.update(repr((clip.name, clip.frames.shape)).encode() + clip.frames.tobytes())
        found.rows.append(row)
        if row["objects"] and clip.steady:  # motion is measured from frame to frame
            shapes.setdefault(tuple(seen.visible.shape), []).append((row, seen))
    for some in shapes.values():
        _verify(found, some, config)
    if not np.isfinite(found.values("broken")).any():
        why = found.left_out + [f"{row['clip']}: no motion that can be judged" for row in found.rows]
        got = f"no clip in {folder.name} that can be measured: {_some(why) or 'it holds none'}"
        raise InputError(got, "clips in which objects move on a background that does not", "hand in others")
    return found


def _stem(path: Path, root: Any) -> str:
    own = path.relative_to(root)
    return (own if path.is_dir() else own.with_suffix("")).as_posix()


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return group, scene and fps of the files that clips.csv names."""
    if not (folder / "clips.csv").is_file():
        return {}
    wanted = {"file": Column("id", unique=True, option=RENAME), "fps": Column("number", optional=True, missing=True)}
    wanted |= {name: Column("text", optional=True, missing=True) for name in ("group", "scene")}
    table = read_columns(open_columns(folder / "clips.csv"), wanted)
    rows = table.frame.select([name for name in wanted if name in table]).to_dicts()
    return {row.pop("file"): {key: x for key, x in row.items() if x == x} for row in rows}  # without NaN


def _given(config: MotionConfig) -> Any:
    """Return the points of --tracks by file, or the masks by name, None where objects are to be found."""
    if config.tracks is None:
        return None
    if isinstance(config.tracks, str | Path) and Path(config.tracks).is_dir():
        return {_stem(one, config.tracks): one for one in files.list_clips(config.tracks)}
    wanted = {name: Column("id", option=RENAME) for name in ("file", "object")}
    wanted |= {name: Column("number", option=RENAME) for name in ("frame", "x", "y", "radius")}
    table = read_columns(open_columns(config.tracks, argument="tracks"), wanted)
    if len(again := table.repeats("file", "frame", "object")):
        raise table.refuse(again, "an object twice in one frame", "each once", "keep one of them")
    return {key[0]: some for key, some in table.frame.partition_by("file", as_dict=True).items()}


def _tracked(clip: Any, stem: str, config: MotionConfig, given: Any) -> Any:
    """Return the tracks of the objects of one clip: found, or as they are given."""
    t, h, w, _ = clip.frames.shape
    if given is None:
        return tracks.find_objects(clip.frames, context=config.context)
    one = given.get(stem, given.get(clip.name))
    if one is None:
        raise InputError(f"{clip.name}: nothing of it in --tracks", "points or masks of each clip", "add them")
    if isinstance(one, Path):
        mask = files.read_clip(one, root=config.tracks, size=(h, w)).frames
        colours = torch.eye(3)[np.flatnonzero((mask[: config.context] > 127).any((0, 1, 2)))]
        if len(mask) != t or not len(colours):
            got = f"{clip.name}: {len(mask)} masks for {t} frames, with {plural(len(colours), 'object')}"
            raise InputError(got, "one a frame, objects in red, green and blue", "make them again")
        meta = tracks.Meta(config.context, colour=colours[None], backdrop=torch.zeros(1, h, w, 3))
        return tracks.track_colours(mask[None], meta)
    names, thing = np.unique(one["object"].to_numpy(), return_inverse=True)
    frame, scale = one["frame"].to_numpy().astype(np.int64), w / clip.size[1]
    if frame.min() < 0 or frame.max() >= t:
        got = f"{clip.name}: points in frames {frame.min()} to {frame.max()}"
        raise InputError(got, f"0 to {t - 1}", "count from 0")
    at, r = torch.full((1, t, len(names), 2), torch.nan), torch.zeros(1, t, len(names))
    at[0, frame, thing] = torch.from_numpy((one.select("x", "y").to_numpy() + 0.5) * scale - 0.5).float()
    r[0, frame, thing] = torch.from_numpy(one["radius"].to_numpy() * scale).float()
    beyond = (at - r[..., None] < -0.5) | (at + r[..., None] > torch.tensor([w, h]) - 0.5)
    pieces, axes, quiet = torch.ones(r.shape, dtype=torch.int64), r[..., None].expand(at.shape), torch.zeros(1, t)
    return tracks.Tracks(at, torch.pi * r**2, axes, r > 0, beyond.any(-1), (r > 0).float(), pieces, quiet)


def _offset(clip: Any, path: Path, config: MotionConfig) -> dict[str, Any]:
    """Return the weighted distance of the objects of a clip from those of the true one, or why there is none."""
    try:
        true = files.read_clip(path, root=config.truth, size=clip.frames.shape[1:3]).frames
        both = [torch.from_numpy(one[None, : min(len(clip.frames), len(true))]) for one in (clip.frames, true)]
        return {"offset": float(rewards.fixed().score(both[0], both[1], tracks.Meta(config.context)).value)}
    except InputError as error:
        return {"notes": "; ".join((*clip.notes, f"true clip: {error.got}"))}


def _verify(found: _Found, some: Sequence[tuple[dict[str, Any], Any]], config: MotionConfig) -> None:
    """Add what the verifiers say of clips of as many frames and objects to their rows."""
    fields = [one.name for one in dataclasses.fields(tracks.Tracks)]
    seen = tracks.Tracks(**{name: torch.cat([getattr(one, name) for _, one in some]) for name in fields})
    gravity = torch.zeros(len(some), 2) if config.gravity == "none" else None
    checks = verifiers.verify(seen, tracks.Meta(config.context, gravity=gravity))
    newton, after = verifiers.newton(checks).tolist(), slice(config.context, None)
    low, high = seen.position.nan_to_num(math.inf).amin(1), seen.position.nan_to_num(-math.inf).amax(1)
    way = (high - low).norm(dim=-1).amax(1).tolist()
    for b, (row, _) in enumerate(some):
        told = {law: float(one.excess[b]) for law, one in checks.items() if bool(one.decided[b])}
        if not told or way[b] <= 1:  # where nothing moves, that nothing vanishes is no pass
            continue
        worst = max(told, key=lambda law: told[law])
        row |= {"excess": told[worst], "newton": newton[b], "broken": float(told[worst] > 0)}
        row |= {"beyond": (checks[worst].series[b] > checks[worst].tolerance[b]).tolist()}
        row |= {_EXCESS[law]: x for law, x in told.items()}
        if told[worst] > 0:
            judged = checks[worst].series[b, after]
            row |= {"law": worst}
            if bool((judged != judged[0]).any()):  # a law of the whole clip has no frame
                row |= {"frame": config.context + int(judged.argmax())}
        row |= {"lost": float((~seen.visible[b, after]).double().mean())}
        row |= {"background": float(seen.background[b, after].mean()), "confidence": float(seen.confidence[b].mean())}
        for law in told:
            over = (checks[law].series[b] / checks[law].tolerance[b] - 1).clamp(min=0).tolist()
            n = len(over)
            rows = {"clip": [row["clip"]] * n, "law": [law] * n, "frame": range(n), "excess": over}
            for name, x in rows.items():
                found.series.setdefault(name, []).extend(x)


# -- judging ----------------------------------------------------------------------------------------------------------


def _pair(own: _Found, other: _Found, warnings: list[str]) -> None:
    """Leave in both folders the clips that they share, in one order; refuse where none can be compared."""
    there = {row["stem"]: row for row in other.rows}
    pairs = [(row, there[row["stem"]]) for row in own.rows if row["stem"] in there]
    alike = [[one[key] == two[key] for key in _ALIKE] for one, two in pairs]
    if lone := len(own.rows) + len(other.rows) - 2 * len(pairs):
        warnings.append(f"{plural(lone, 'clip')} without a partner in the other folder left out.")
    if odd := [one["clip"] for (one, _), same in zip(pairs, alike, strict=True) if not all(same)]:
        warnings.append(f"Not compared, being of another rate, length or size: {_some(odd)}.")
    kept = [pair for pair, same in zip(pairs, alike, strict=True) if all(same)]
    if not any(math.isfinite(one.get("broken", math.nan) + two.get("broken", math.nan)) for one, two in kept):
        got = f"{plural(len(pairs), 'clip')} of the same name, none of which can be compared"
        raise InputError(got, "clips of one rate, length and size, by the same names", "name and save them alike")
    own.rows, other.rows = ([pair[side] for pair in kept] for side in (0, 1))


def _judge(
    scores: UnitScores, there: UnitScores | None, margins: Mapping[str, float], more: Mapping[str, str], draws: int,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Return levels, and the verdict over all laws at once: against other clips, or against such as keep every law."""
    blocks = [Block("audit_video", name, seed, one) for name, one in ((YOURS, scores), (_OTHER, there)) if one]
    arms = [Arm(YOURS, "remedy" if there else "baseline"), Arm(_OTHER, "baseline")]
    statistics = [f"mean:{name}" for name in scores.values]
    statistics += [f"mean:{x}:group" for x in ("newton", "broken") if scores.by and x in scores.values]
    held = evidence(Units(blocks), arms=arms, statistics=statistics, metrics=_METRICS, draws=draws, seed=seed)
    names, n = list(margins), len(scores.unit)
    table = np.stack([scores.values[name] for name in names], -1)
    aside = np.stack([there.values[name] for name in names], -1) if there else np.zeros_like(table)
    both = np.concatenate([table + 0 * aside, aside + 0 * table])  # decided on both sides
    cluster = np.unique(scores.cluster or scores.unit, return_inverse=True)[1]
    rng = np.random.default_rng(stream(seed, "audit", "null"))
    seen = compare_groups(both[None], np.repeat([0, 1], n)[None], np.tile(cluster, 2), 2, rng=rng)
    pairs = [
        Level(
            statistic=f"{'change' if there else 'beyond'}:{names[k]}", arm=YOURS, metric=names[k], better="lower",
            label=_METRICS[names[k]].title, group="your clips minus the others" if there else None,
            n_units=int(np.isfinite(both[:n, k]).sum()), **seen.numbers(k, turn=False),
        )
        for k in np.argsort(-seen.score, kind="stable").tolist()
        if math.isfinite(seen.value[k])
    ]  # fmt: skip
    if there is None:  # an excess is never below 0
        pairs = [dataclasses.replace(one, low=max(one.low, 0.0)) for one in pairs]
    enough, kind = cluster.max() + 1 >= FEWEST, "told apart" if there else "gap shown"
    said = audit_verdict(kind, pairs if enough else [], margin=margins, unit="clip").row()
    mean = Level.read(held["levels"][0])
    if not enough:
        text = f"{mean.label} is {mean.value:.3f}; fewer than {FEWEST} scenes show no more."
        said |= {"sentence": text, "lines": {"effect": text}, "next_steps": [f"Hand in {FEWEST} scenes or more."]}
    first = pairs[0].row() if enough else mean.row()
    if there:
        text = str(said["sentence"]).replace(f"{first['label']} is ", f"{first['label']} differs by ", 1)
        said |= {"sentence": text, "lines": {**said["lines"], "effect": text}}
    if there and said["answer"] == "mend it":
        less = first["value"] < 0
        step = "Prefer your clips; an audit without --compare says what they still break."
        said["next_steps"] = [step if less else "Prefer the other clips, or mend what yours break more."]
        said["answer"], said["colour"] = ("fine", "good") if less else ("mend it", "bad")
    said["lines"] |= more
    held["levels"] += [one.row() for one in pairs]
    primary = f"mean:{first['metric']}" if there else first["statistic"]  # which both folders have
    return held | {"headline": first, "verdict": said | {"primary": primary}}


def _lines(found: _Found, protocol: Mapping[str, Any]) -> dict[str, str]:
    """Return what the first screen says beside the verdict: which clips, from which frame on, and what was read."""
    told = [row for row in _worst(found) if "law" in row][:3]
    frames = [f", frame {row['frame']}" if "frame" in row else "" for row in told]
    worst = "; ".join(f"{row['clip']} ({row['law']}{frame})" for row, frame in zip(told, frames, strict=True))
    judged = np.isfinite(found.values("broken"))
    text = f"{int(np.nansum(found.values('broken')))} of {plural(int(judged.sum()), 'clip')} break some law"
    lines = {"clips": text + f"; most: {worst}" * bool(worst)}
    counts = {"not judged": ~judged, "judged without laws of motion": judged & np.isnan(found.values("newton"))}
    lines |= {name: plural(int(some.sum()), "clip") for name, some in counts.items() if some.any()}
    if left := len(found.left_out):
        lines["left out"] = f"{plural(left, 'clip')} of {left + len(found.rows)}"
    if np.isfinite(found.values("offset")).any():
        lines["offset from the true clips"] = f"{np.nanmean(found.values('offset')):.2f} px at {_SIDE} px"
    return lines | {"protocol": "; ".join(f"{name} {value}" for name, value in protocol.items())}


def _worst(found: _Found) -> list[dict[str, Any]]:
    """Return the clips that exceed a tolerance most."""
    told = sorted((row for row in found.rows if "excess" in row), key=lambda row: (-row["excess"], row["clip"]))
    return told[:_WORST]


def _film(row: Mapping[str, Any], folder: Path) -> bytes:
    """Return a clip in motion, with rings around its objects, at most 48 frames of it."""
    clip = files.read_clip(row["path"], root=folder, size=_SHOWN)
    ringed = tracks.ring(clip.frames, row["seen"], row["beyond"], clip.frames.shape[2] / row["across"])
    step = math.ceil(len(ringed) / 48)
    rate = min((row["fps"] or 8.0) / step, 25.0)
    return animate.animate([[ringed[::step]]], labels=[row["clip"]], fps=rate, zoom=1, most=_BYTES)


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)


def _protocol(found: _Found, config: MotionConfig) -> dict[str, str]:
    """Return without what two audits are not compared."""
    rates = {f"{row['fps']:g}" if row["fps"] else "not known" for row in found.rows}
    sizes = {f"{row['width']}x{row['height']}" for row in found.rows}
    own = {"fps": "/".join(sorted(rates)), "size": "/".join(sorted(sizes)), "tracked at": f"{_SIDE} px"}
    own |= {"context": str(config.context), "gravity": config.gravity}
    return own | {name: version(name) for name in ("upright", "av", "torch")}
