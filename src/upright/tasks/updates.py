r"""What clients of a federation send, in files: how many items each names, and which of them it trained on.

An upload holds gradients of item rows, ``rows`` (R,) and ``values`` (R, d). Of a client with the vector u the row of
item i under a dot product and binary cross-entropy is

    g_i = c_i u,    c_i = sum over its samples of i of w (sigmoid(u . v_i) - y),

so all rows are multiples of one vector, and the sign of ``c_i`` is the label: below 0 for what the client trained on as
positive, above for the negatives that it drew. At a perturbed point ``v_i`` is another vector, and the sign the same.

*The attack* needs no training: the score of a row is its projection on the leading right singular vector of the rows.
A singular vector has no sign. It is turned without the truth, so that fewer rows have a score above 0 than below:
several negatives are drawn a positive, so positives are the smaller side. Where both sides are as large, the one whose
scores add up to less has them. A client that has seen so much of the catalogue that few negatives are left is turned
the wrong way, and its AUC is near 0.

*AUC of a client*: of its rows, those in the truth against the others, the mean over its uploads. Clients are drawn
whole, and so is chance: where scores know nothing, ``AUC - 1/2`` changes its sign from client to client
(`upright.maths.simultaneous.compare_groups` of AUC and 1 - AUC, whose gap is ``2 AUC - 1``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import Config, File, InputError, Metric, UnitScores, audit, stream
from upright.data.columns import Column, read_columns
from upright.data.formats import open_columns, some
from upright.declare import Intervals, Noted
from upright.evidence.compute import margins_of
from upright.evidence.records import Level
from upright.evidence.verdict import audit_verdict
from upright.maths import ranks
from upright.maths.simultaneous import FEWEST, compare_groups
from upright.tasks.answers import YOURS, Answer, levels_of, name_of, plural

__all__ = ["UpdatesConfig", "Upload", "read_updates", "read_uploads", "row_scores"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
ENDING = ".safetensors"
METRICS = {
    "auc": Metric("auc", "lower", 0.0, 1.0, 0.01, "AUC, trained on against other rows"),
    "touched_rows": Metric("touched_rows", "lower", 0.0, np.inf, 1.0, "Touched rows"),
    "named_share": Metric("named_share", "lower", 0.0, 1.0, 0.01, "Share of the catalogue that an upload names"),
    "rank": Metric("rank", "higher", 0.0, np.inf, 1.0, "Rank of the rows"),
    "leading_share": Metric("leading_share", "lower", 0.0, 1.0, 0.01, "Share of the squares along one direction"),
}


class UpdatesConfig(Config):
    """Uploads, the catalogue, and what clients trained on."""

    folder: File
    """Holds a .safetensors file for each client and round, CLIENT.ROUND.safetensors, with `rows` and `values`, or with
    `item` for the whole table."""
    items: File
    """The catalogue, one item a row, in the order of the rows of the table."""
    truth: File | None = None
    """A table with client and item, and round if it matters: what each client trained on as positive."""
    missing: Literal["error", "ignore"] = "error"
    """What a client of the truth without an upload is."""
    client: str | None = None
    """Column of clients in the truth; client otherwise."""
    item: str | None = None
    """Column of items in the truth; one of the usual names otherwise."""
    encoding: str = "utf-8"
    """Of text files."""


# -- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Upload:
    """What one client sent in one round: row numbers (R,) and their values (R, d), not zero throughout."""

    client: str
    round: str
    rows: Codes
    values: NDArray[np.floating[Any]]


def read_uploads(folder: Any, n_items: int) -> Iterator[tuple[Path, Upload]]:
    """Yield each upload of a folder, in order of the names of its files; rows that are zero throughout are untouched.

    Raises
    ------
    InputError
        For a folder without uploads, and for a file that is none: not whole, without arrays or name, with rows outside
        the catalogue or twice, values that are not finite, another width than the files before it.
    """
    place = Path(folder).expanduser() if isinstance(folder, str | Path) else None
    if place is None or not place.is_dir():
        raise InputError(f"no folder {folder}", f"a folder of {ENDING} files", "check the path")
    files = sorted(place.glob(f"*{ENDING}"))
    if not files:
        accepted = f"CLIENT.ROUND{ENDING}, one file for each client and round"
        raise InputError(f"{place.name} holds no {ENDING} file", accepted, "save the replies of a round there")
    seen: dict[tuple[str, str], str] = {}
    first: tuple[str, int] | None = None
    for path in files:
        one = _read_upload(path, n_items)
        if (one.client, one.round) in seen:
            got = f"{seen[one.client, one.round]} and {path.name} are both of client {one.client!r}, round {one.round}"
            raise InputError(got, "one file for each client and round", "keep one of them")
        first = first or (path.name, one.values.shape[1])
        if one.values.shape[1] != first[1]:
            got = f"{path.name} has rows of width {one.values.shape[1]}, {first[0]} of {first[1]}"
            raise InputError(got, "rows of one width", "audit the uploads of one model at a time")
        seen[one.client, one.round] = path.name
        yield path, one


def _read_upload(path: Path, n_items: int) -> Upload:
    from safetensors import SafetensorError, safe_open

    def refuse(got: str, accepted: str, todo: str = "save the client's reply as it was sent") -> InputError:
        return InputError(f"{path.name} {got}", accepted, todo)

    try:
        with safe_open(path, framework="np") as handle:
            about, held = handle.metadata() or {}, [*handle.keys()]
            found = {name: np.asarray(handle.get_tensor(name)) for name in ("rows", "values", "item") if name in held}
    except (SafetensorError, OSError, TypeError, ValueError):
        accepted = f"a {ENDING} file of float16, float32 or float64"
        raise refuse("is no whole file of tensors that numpy knows", accepted, "save it again") from None
    client, _, number = path.name.removesuffix(ENDING).rpartition(".")
    client, number = about.get("client", client), about.get("round", number)
    if not client or not number.isdecimal():
        accepted = f"CLIENT.ROUND{ENDING}, or `client` and `round` in its metadata"
        raise refuse("does not say which client and round it is of", accepted, "rename it")
    if "rows" in found and "values" in found:
        rows, values = found["rows"], found["values"]
        if rows.dtype.kind not in "iu" or rows.ndim != 1 or values.ndim != 2 or len(values) != len(rows):
            got = f"has rows {rows.dtype} {rows.shape} and values {values.dtype} {values.shape}"
            raise refuse(got, "whole numbers (R,) and floats (R, d)")
    elif "item" in found:
        rows, values = np.arange(n_items), found["item"]
        if values.ndim != 2 or len(values) != n_items:
            got = f"has a table of shape {values.shape}, the catalogue {plural(n_items, 'item')}"
            raise refuse(got, "one row for each item", "hand in the catalogue of these uploads")
    else:
        raise refuse(f"holds {', '.join(map(repr, held)) or 'nothing'}", "`rows` and `values`, or `item`")
    if values.dtype.kind != "f" or not values.shape[1]:
        raise refuse(f"holds {values.dtype} of shape {values.shape}", "floats, one row for each item")
    if not np.isfinite(values).all():
        todo = "find where the client diverged, or leave its file out"
        raise refuse("holds values that are not finite", "finite floats", todo)
    if len(rows) and (rows.min() < 0 or rows.max() >= n_items):
        outside = int(((rows < 0) | (rows >= n_items)).sum())
        accepted = f"row numbers from 0 to {n_items - 1}"
        raise refuse(f"names {plural(outside, 'row')} outside the catalogue", accepted, "hand in the whole catalogue")
    if again := len(rows) - len(np.unique(rows)):
        raise refuse(f"names {plural(again, 'row')} twice", "each row once", "add up the gradients of one row")
    touched = values.any(axis=1)
    return Upload(client, str(int(number)), rows[touched].astype(np.int64), values[touched])


def _read_items(config: UpdatesConfig) -> tuple[str, dict[str, int]]:
    """Return the name of the catalogue and the row of each item."""
    table = open_columns(config.items, config.encoding, argument="items")
    names = {"item": table.header[0]} if len(table.header) == 1 else {}
    items = read_columns(table, {"item": Column("id", unique=True)}, names)["item"].to_list()
    return table.name, {item: row for row, item in enumerate(items)}


def _read_truth(config: UpdatesConfig, catalogue: str, place: Mapping[str, int]) -> dict[tuple[str, str], set[int]]:
    """Return the rows that were trained on by client and round; the round is "" where the table has none."""
    wanted = {"client": Column("id", option="--client"), "item": Column("id"), "round": Column("id", optional=True)}
    names = {name: own for name in ("client", "item") if (own := getattr(config, name)) is not None}
    table = read_columns(config.truth, wanted, names, encoding=config.encoding, argument="truth")
    rows = np.array([place.get(item, -1) for item in table["item"]], dtype=np.int64)
    if len(bad := np.flatnonzero(rows < 0)):
        got = f"{plural(len(bad), 'item')} that {catalogue} does not hold"
        raise table.refuse(bad, got, "items of the catalogue", "correct them, or hand in the whole catalogue")
    rounds = table["round"].to_list() if "round" in table else [""] * len(table)
    found: dict[tuple[str, str], set[int]] = {}
    for client, number, row in zip(table["client"], rounds, rows.tolist(), strict=True):
        found.setdefault((client, number.lstrip("0") or number[:1]), set()).add(row)
    return found


# -- numbers --------------------------------------------------------------------------------------------------------


def row_scores(values: NDArray[np.floating[Any]]) -> tuple[Array, int, float]:
    """Return ``V v_1`` with fewer rows above 0 than below, the rank of V, and ``s_1^2 / sum s^2``.

    Parameters
    ----------
    values : ndarray, shape (R, d)
        V, gradients of item rows. Singular values up to ``max(R, d) s_1`` times the rounding of its type count as none.

    Returns
    -------
    score : ndarray, shape (R,)
        Higher for rows that look trained on as positive.
    rank : int
    leading : float
        NaN without a row.
    """
    v = values.astype(np.float64)
    if not len(v):
        return np.zeros(0), 0, math.nan
    _, size, right = np.linalg.svd(v / np.abs(v).max(), full_matrices=False)
    along = v @ right[0]
    turn = -np.sign(np.sign(along).sum()) or -np.sign(along.sum()) or 1.0
    rank = int((size > max(v.shape) * np.finfo(values.dtype).eps * size[0]).sum())
    return np.asarray(turn * along), rank, float(size[0] ** 2 / (size * size).sum())


def _level(auc: Array, seed: int) -> tuple[Level, dict[str, float]]:
    """Return the distance of the mean AUC from 1/2, and the ends of the interval of that mean."""
    known = auc[~np.isnan(auc)]
    n = len(known)
    about: dict[str, Any] = {"statistic": "leakage:auc", "metric": "auc", "arm": YOURS, "better": "lower"}
    about |= {"label": "Leakage of what a client trained on", "n_units": n, "n_undefined": len(auc) - n}
    if n < FEWEST:
        return Level(**about, value=abs(_mean(known) - 0.5)), {"low": math.nan, "high": math.nan}
    # of each client AUC beside 1 - AUC: under chance the two change places, and their gap is 2 AUC - 1
    table, group = np.r_[known, 1.0 - known][None, :, None], np.repeat([0, 1], n)[None]
    rng = np.random.default_rng(stream(seed, "audit", "null"))
    found = compare_groups(table, group, np.tile(np.arange(n), 2), 2, rng=rng)
    size = {name: x if name == "p" else x / 2 for name, x in found.numbers(0).items()}
    size |= {"low": max(size["low"], 0.0), "high": min(size["high"], 0.5)}
    ends = {"low": (1 + max(float(found.low[0]), -1.0)) / 2, "high": (1 + min(float(found.high[0]), 1.0)) / 2}
    return Level(**about, **size), ends


# -- the audit ------------------------------------------------------------------------------------------------------


@audit(
    "updates",
    config=UpdatesConfig,
    report=[
        Noted(
            "What an upload holds: medians over clients",
            "holds",
            [
                "Rank 1: all rows are multiples of one vector, the client's own, and their sign parts what it trained "
                "on from what it drew."
            ],
            names={
                "touched_rows": "touched rows",
                "named_share": "share of the catalogue that they name",
                "rank": "rank of the rows",
                "leading_share": "share of the squares along one direction",
                "rank_one": "share of the clients whose rows are multiples of one vector",
            },
        ),
        Intervals(
            "How well rows tell what a client trained on",
            "mean:auc",
            ["1 is certainty, 0.5 is guessing. Rows in the truth against the other touched rows, client by client."],
        ),
    ],
    limits=[
        "Sharpness-aware training hides nothing: at the perturbed point rows are multiples of the client's vector too, "
        "with the same signs.",
        "Noise that the server adds to the sum protects the published model and not the upload, which the server sees "
        "before. Noise that the device adds before it sends changes the upload, and this audit shows what it leaves.",
        "Row numbers name items by themselves. Padding hides which of them were trained on as far as the AUC says, in "
        "which padding rows count as not trained on. Rows of zeros are no padding, they name themselves.",
        "One attack was tried, on one upload at a time. Several rounds tell more: what a client trained on comes back "
        "in each, what it drew does not. Layers that all items share were not looked at.",
        "A low AUC is no guarantee, such as differential privacy gives.",
    ],
)
def read_updates(config: UpdatesConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit what clients of a federation send: how many items an upload names, and which of them were trained on.

    No item, and no row number, is kept.

    Raises
    ------
    InputError
        For everything that is wrong with the files.
    """
    margin = margins_of({"auc": METRICS["auc"].margin}, margins)["auc"]
    catalogue, place = _read_items(config)
    truth = _read_truth(config, catalogue, place) if config.truth is not None else {}
    parts: dict[str, list[dict[str, float]]] = {}
    digest, used, lost, full = hashlib.sha256(), set[tuple[str, str]](), 0, 0
    for path, one in read_uploads(config.folder, len(place)):
        digest.update(path.name.encode() + path.read_bytes())
        score, rank, leading = row_scores(one.values)
        key = next((key for key in ((one.client, one.round), (one.client, "")) if key in truth), None)
        used |= {key} if key else set()
        own, n = truth[key] if key else set(), len(one.rows)
        positive = np.isin(one.rows, [*own])
        lost, full = lost + len(own) - int(positive.sum()), full + (n == len(place))
        auc = float(ranks.auc(score, np.ones(n), positive))
        row = {"auc": auc, "touched_rows": n, "named_share": n / len(place), "rank": rank, "leading_share": leading}
        parts.setdefault(one.client, []).append(row)
    if config.truth is not None:
        _require_uploads(config, truth.keys() - used, used)

    clients = [*parts]
    kept = [m for m in METRICS if m != "auc" or config.truth is not None]
    values = {m: np.array([_mean([row[m] for row in own]) for own in parts.values()]) for m in kept}
    scores = UnitScores("client", clients, values)
    found = levels_of(scores, [f"mean:{m}" for m in kept], METRICS, draws=draws, seed=seed)
    for level in found["levels"]:
        if len(clients) < 2:
            level["low"] = level["high"] = math.nan
        elif level["metric"] != "auc" and np.ptp(values[level["metric"]]) == 0:  # a rank of 1 is no rate of 1
            level["low"] = level["high"] = level["value"]
    _judge(found, values, seed, margin)

    single = (values["rank"] <= 1) & (values["touched_rows"] > 1)
    holds = {m: float(np.median(known)) for m in kept if len(known := values[m][~np.isnan(values[m])])}
    unknown = int(np.isnan(values["auc"]).sum()) if "auc" in values else 0
    wrong = values["auc"][single & (values["auc"] < 0.5)] if "auc" in values else np.zeros(0)
    left = len(truth) - len(used)
    others = sum(path.suffix != ENDING for path in Path(config.folder).expanduser().iterdir())
    warnings = [
        (
            single.sum(),
            f"{plural(single.sum(), 'client')} whose rows are multiples of one vector: one sign is the positives'.",
        ),
        (
            len(wrong),
            f"{plural(len(wrong), 'client')} of these with an AUC below 0.5, turned the wrong way: few negatives were "
            f"left or drawn. The other way round their mean AUC is {1 - _mean(wrong):.2f}.",
        ),
        (full, f"{plural(full, 'upload')} with every row of the catalogue: numbers of rows name nothing."),
        (unknown, f"{plural(unknown, 'client')} without an AUC: without truth, or with rows of one kind alone."),
        (lost, f"{plural(lost, 'row')} of the truth not among the rows that were sent, and not counted."),
        (left, f"{plural(left, 'client')} of the truth without an upload left out (missing='ignore')."),
        (others, f"{plural(others, 'file')} not read: only {ENDING} files are."),
    ]
    name = name_of(config.folder)
    return Answer(
        title=f"Audit of the uploads in {name}",
        arm_title="your uploads",
        asks="what an upload says about the items of its client",
        data={
            "name": name,
            "clients": len(clients),
            "uploads": sum(map(len, parts.values())),
            "items": len(place),
            "truth": "none" if config.truth is None else name_of(config.truth),
            "fingerprint": digest.hexdigest(),
        },
        scores=scores,
        metrics=METRICS,
        facts={"holds": {**holds, "rank_one": float(single.mean())}},
        warnings=[text for count, text in warnings if count],
        evidence=found,
    )


def _mean(values: Iterable[float]) -> float:
    """Return the mean of what is defined."""
    known = [x for x in values if not math.isnan(x)]
    return float(np.mean(known)) if known else math.nan


def _require_uploads(config: UpdatesConfig, keys: Iterable[tuple[str, str]], used: set[tuple[str, str]]) -> None:
    """Refuse a truth of which nothing, or not everything, was sent."""
    lacking = sorted(f"{client}, round {number}" if number else client for client, number in keys)
    if lacking and (config.missing == "error" or not used):
        got = f"{plural(len(lacking), 'client')} of {name_of(config.truth)} without an upload: {some(lacking)}"
        todo = "correct the names" + (", or leave them out with --missing ignore" if used else "")
        raise InputError(got, f"clients with a file in {name_of(config.folder)}", todo)


def _judge(found: dict[str, Any], values: Mapping[str, Array], seed: int, margin: float) -> None:
    """Add the verdict to evidence and, where the truth is known, what rows tell of it."""
    by = {level["metric"]: level for level in found["levels"]}
    rows, rank, share = (by[m]["value"] for m in ("touched_rows", "rank", "named_share"))
    held = f"In the mean {rows:.1f} touched rows of rank {rank:.1f}, {share:.1%} of the catalogue."
    text, step, primary, pairs = f"{held} Without the truth no AUC is stated.", "", "mean:touched_rows", list[Level]()
    found["headline"] = by["touched_rows"]
    if "auc" in values:
        level, ends = _level(values["auc"], seed)
        by["auc"].update(ends, p=level.p)
        found["levels"].append(level.row())
        found["headline"], primary, pairs = level.row(), level.statistic, [level]
        text = f"The mean AUC is {by['auc']['value']:.3f}. " if level.n_units else "No client has an AUC. "
        text, step = f"{text}Fewer than {FEWEST} clients show no interval.", f"Hand in {FEWEST} clients or more."
    said = audit_verdict("leak shown", pairs, margin=margin, unit="client")
    found["verdict"] = said.row() | {"primary": primary}
    if said.word == "measured":
        steps = [step or "Hand in what clients trained on: --truth FILE."]
        found["verdict"] |= {"sentence": text, "lines": {"effect": text}, "next_steps": steps}
    if "auc" in values:
        found["verdict"]["lines"] = {**found["verdict"]["lines"], "uploads": held}
