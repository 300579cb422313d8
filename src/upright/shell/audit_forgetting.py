"""Audit of a language model: what it still knows of records that it should have forgotten, and what it kept.

====================  ===============================================================================================
what is asked         how it is told
====================  ===============================================================================================
are they still known  probability, ROUGE-L, memorisation of forgotten answers, beside held-out answers
who can tell          AUC of membership scores, forgotten against held-out records
as if never seen      with a retain-only reference: the same numbers of a model that never saw the records, the
                      distance of the truth ratios, and the mean distance record by record
what it cost          probability, ROUGE-L, truth ratio of retained records, and their harmonic mean
====================  ===============================================================================================

Good is the level of a model that never saw the records, not the lowest number: a model that was pushed below it gives
the records away as well. So over-unlearning is reported as a failure. Without a reference nothing is shown about
forgetting. `docs/audit-forgetting.md` has files, numbers and errors.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.data.forget import Record, fingerprint, read_records, refuse_overlap, unique_records
from upright.maths import intervals
from upright.metrics import forgetting as metrics_of
from upright.metrics import membership
from upright.shell.audit import DETECTABLE, MIN_GROUP, YOURS, Audit, suppress_small, write_audit
from upright.shell.audit_lists import plural
from upright.shell.evidence import DRAWS, evidence
from upright.shell.forgetting import PAIRED, RETRAIN, SET, widest
from upright.shell.places import require_folder
from upright.shell.statistics import CONFIDENCE, Samples, computable, parse
from upright.shell.units import Block, Units

__all__ = ["NO_REFERENCE", "audit_forgetting", "numbers_of"]

Array = NDArray[np.float64]
Row = dict[str, Any]
NO_REFERENCE = "No retain-only reference: levels only, nothing is shown about forgetting."
METRICS: Mapping[str, Metric] = {
    **metrics_of.METRICS, **membership.METRICS,
    "holdout_probability": Metric("holdout_probability", "higher", 0.0, 1.0, 0.01, "Probability of held-out answers"),
}  # fmt: skip
MARGIN = METRICS["forget_probability"].margin
FAR = 0.1  # an AUC so far below that of the reference is over-unlearning
MOST_AUTHORS = 50  # shown, those that are known best
_MAIN = "mean:forget_probability"
_TRUTH = "forget_truth_probability"
_GRID = 101  # places of a distribution function that a report draws: no value of a single record


def audit_forgetting(
    model: Path | str, *,
    forget: Path | str, retain: Path | str, holdout: Path | str | None = None, reference: Path | str | None = None,
    template: str = "auto", generate: bool = True, batch_size: int = 16, out: Path | str, seed: int = 0,
    draws: int = DRAWS, command: str | None = None,
) -> Path:  # fmt: skip
    """Ask a model about forgotten, retained and held-out records, and return the folder of the audit.

    Parameters
    ----------
    model : Path
        Folder of a causal language model with its tokenizer, as `save_pretrained` writes it. Nothing is downloaded.
    forget, retain : Path
        JSON lines as `upright.data.forget.read_records` reads them: what should be forgotten, and what should be kept.
    holdout : Path, optional
        Records of the same kind that the model never saw, for membership.
    reference : Path, optional
        Folder of a model that was trained without the forgotten records: the level at which nothing is left of them.
        Both models are in memory at once.
    template : {"auto", "chat", "plain"}
        As of `upright.language.encoding.encode`.
    generate : bool
        Whether answers are written, for ROUGE-L; it takes most of the time.
    batch_size : int
        Records at once; changes no result.
    out : Path
        Folder in which the audit's folder is made.
    seed, draws : int
        Of the bootstrap and the permutations.
    command : str, optional
        What the report says to repeat it.

    Returns
    -------
    Path
        ``summary.json`` (``kind`` is ``audit``), ``units.parquet``, ``config.json``, ``run.json``. No text and no id of
        a record is in them: records and authors are numbered in the order of the files.

    Raises
    ------
    InputError
        For everything that is wrong with the files and the models; no folder is made then.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise InputError(f"draws = {draws!r}", "a whole number of at least 2", "set draws to at least 2")
    if template not in ("auto", "chat", "plain"):
        raise InputError(f"template {template!r}", "auto, chat or plain", "name one of them")
    require_folder(Path(out))
    warnings: list[str] = []
    files = {"forget": forget, "retain": retain} | ({"holdout": holdout} if holdout is not None else {})
    sets = {side: _records(Path(path), side, warnings) for side, path in files.items()}
    refuse_overlap(**sets)
    if generate:
        metrics_of.rouge_l_recall(["a"], ["a"])  # says now, not after an hour, that a package is missing
    values, other = _ask(Path(model), reference, sets, template, generate, batch_size)
    arms = [(YOURS, values)] + ([(RETRAIN, other)] if other is not None else [])
    lost = [m for m in values if all(np.isnan(own.get(m, np.array([np.nan]))).all() for _, own in arms)]
    kept = {name: {m: v for m, v in own.items() if m not in lost} for name, own in arms}
    warnings += _remarks(sets, lost, reference is not None, holdout is not None)

    by = _groupings(sets, warnings)
    ids = [f"{side}-{i + 1}" for side, records in sets.items() for i in range(len(records))]
    scores = {name: UnitScores("record", ids, own, by) for name, own in kept.items()}
    titles = {YOURS: "your model", RETRAIN: "retain-only reference"}
    units = Units([Block("audit_forgetting", name, seed, one) for name, one in scores.items()])
    roles = [Arm(YOURS, "baseline", title=titles[YOURS])]
    roles += [Arm(RETRAIN, "rival", title=titles[RETRAIN])] if other is not None else []
    statistics = [s for s in _statistics(kept[YOURS]) if computable(s, units)]
    found = evidence(units, arms=roles, statistics=statistics, metrics=METRICS, draws=draws, seed=seed)
    found["levels"] = _mend(found["levels"], {side: len(records) for side, records in sets.items()})
    samples = Samples(units, draws, seed)
    facts: Row = {
        "records": {side: len(records) for side, records in sets.items()}, "reference": other is not None,
        "membership": _membership(found["levels"], samples), "changes": _changes(statistics, samples),
        "truth": _truth(found["levels"], units), "utility": _utility(found["levels"]),
        "authors": _authors(units, roles, by, draws, seed),
    }  # fmt: skip
    found["verdict"] |= _verdict(found["levels"], facts)
    passed = {"model": Path(model).name, **{side: Path(p).name for side, p in files.items()},
              **({"reference": Path(reference).name} if reference is not None else {})}  # fmt: skip
    name = Path(model).name
    return write_audit(
        Audit(
            kind="forgetting", title=f"Audit of what {name} has forgotten", arm_title=titles[YOURS],
            asks="what is left of records that should be forgotten, and of those that should stay",
            data={"name": name, **{f"{side}_records": len(records) for side, records in sets.items()},
                  "reference": Path(reference).name if reference is not None else "none",
                  "fingerprint": fingerprint(r for records in sets.values() for r in records)},
            passed=passed,
            resolved={"template": template, "generate": generate, "batch_size": batch_size, "draws": draws},
            scores=scores[YOURS], metrics=METRICS, statistics=(), compared=(), facts=facts, warnings=warnings,
            command=command or _command(Path(model), files, reference, template, generate, batch_size, seed),
            evidence=found, others=[(RETRAIN, titles[RETRAIN], scores[RETRAIN])] if other is not None else [],
        ),
        Path(out), seed=seed, draws=draws,
    )  # fmt: skip


# -- files and models -----------------------------------------------------------------------------------------------


def _records(path: Path, side: str, warnings: list[str]) -> list[Record]:
    """Read one set without repetitions."""
    records, again = unique_records(read_records(path))
    if again:
        warnings.append(f"{path.name}: {plural(again, 'repeated record')} left out.")
    if len(records) < MIN_GROUP:
        raise InputError(
            f"{path.name} with {plural(len(records), 'record')}", f"{MIN_GROUP} different records or more",
            f"audit the {side} sets of several requests together: fewer records show nothing",
        )  # fmt: skip
    return records


def _ask(
    model: Path, reference: Path | str | None, sets: Mapping[str, Sequence[Record]], template: Any, generate: bool,
    batch_size: int,
) -> tuple[dict[str, Array], dict[str, Array] | None]:  # fmt: skip
    """Return scores of the model and of the reference, shape (U,) each, forgotten records first."""
    from upright.language.encoding import refuse_mismatch
    from upright.language.evaluation import Speaker
    from upright.models.hub import load_language_model

    own = load_language_model(model)
    speaker = Speaker(*own, template=template, batch_size=batch_size)
    for records in sets.values():
        speaker.encode(records)  # a record that is too long is named before the first one is scored
    other, readings = None, {}
    if reference is not None:
        beside = load_language_model(reference)
        refuse_mismatch(own[1], own[0], reference=beside[1])
        second = Speaker(*beside, template=template, batch_size=batch_size)
        readings = {side: second.read(records) for side, records in sets.items()}
        other = _scores(second, sets, readings, {}, generate)
        del second, beside
    return _scores(speaker, sets, {s: speaker.read(r) for s, r in sets.items()}, readings, generate), other


def _scores(
    speaker: Any, sets: Mapping[str, Sequence[Record]], own: Mapping[str, Any], reference: Mapping[str, Any],
    generate: bool,
) -> dict[str, Array]:  # fmt: skip
    """Score every set; a metric is NaN in sets that it is not of."""
    from upright.language.evaluation import score_records

    ends = np.cumsum([0, *(len(records) for records in sets.values())])
    out: dict[str, Array] = {}
    for (side, records), begin, end in zip(sets.items(), ends[:-1], ends[1:], strict=True):
        kind: Any = side
        found = score_records(speaker, records, side=kind, reading=own[side], rouge=generate,
                              reference=None if side == "retain" else reference.get(side))  # fmt: skip
        if side == "holdout":
            found["holdout_probability"] = metrics_of.probability(own[side].mean_nll)
        for metric, values in found.items():
            out.setdefault(metric, np.full(int(ends[-1]), np.nan))[begin:end] = values
    return out


def _remarks(sets: Mapping[str, Sequence[Record]], lost: Sequence[str], reference: bool, holdout: bool) -> list[str]:
    found = [] if reference else [NO_REFERENCE]
    if not holdout:
        found.append("No held-out records: whether forgotten records stand out from unseen ones is not measured.")
    for side in ("forget", "retain"):
        few = sum(not (r.paraphrases and r.perturbed) for r in sets[side])
        if few:
            what = "has no truth ratio" if f"{side}_truth_ratio" in lost else f"has none for {plural(few, 'record')}"
            found.append(f"The {side} set {what}: records need paraphrased_answer and perturbed_answer.")
    return found


def _groupings(sets: Mapping[str, Sequence[Record]], warnings: list[str]) -> dict[str, list[str]]:
    """Return the set of each record, and the author of forgotten ones as a number in the order of the file."""
    by = {SET: [side for side, records in sets.items() for _ in records]}
    names = [r.author for r in sets["forget"]]
    place = {name: str(i + 1) for i, name in enumerate(dict.fromkeys(n for n in names if n))}
    labels, small = suppress_small([place.get(n, "") for n in names], np.ones(len(names), dtype=bool))
    if small:
        warnings.append(f"{plural(len(small), 'author')} with fewer than {MIN_GROUP} forgotten records not shown.")
    if any(labels):
        by["author"] = labels + [""] * (len(by[SET]) - len(labels))
    return by


# -- numbers --------------------------------------------------------------------------------------------------------


def _statistics(values: Mapping[str, Array]) -> list[str]:
    """Return what the evidence holds, the deciding one first."""
    means = [m for m in METRICS if m in values and not m.startswith("mia_")]
    found = [_MAIN, *(f"mean:{m}" for m in means if m != "forget_probability"), "utility:retain"]
    found += [f"membership:{m}" for m in membership.METRICS if m in values]
    return [*found, "memory_gap:forget_probability", f"ks_distance:{_TRUTH}", f"forget_quality:{_TRUTH}"]


def _mend(levels: Sequence[Row], sizes: Mapping[str, int]) -> list[Row]:
    """Leave out the reference's distance from itself, count undefined records in their set, add what can be seen."""
    found = []
    for level in levels:
        name = level["statistic"].split(":")[0]
        if level["arm"] == RETRAIN and (name in PAIRED or math.isnan(level["value"])):
            continue  # no reference is compared with itself
        if name == "mean":
            side = level["metric"].split("_")[0]
            level["n_undefined"] = sizes[side if side in sizes else "forget"] - level["n_units"]
        spread = (level["high"] - level["low"]) / (2 * 1.96)
        if name == "membership":
            level["smallest_detectable"] = (
                DETECTABLE * level["null"]["high"] / 1.96
            )  # the null is that of an AUC of 1/2
        elif name == "ks_distance":
            level["smallest_detectable"] = level["null"]["high"] + (DETECTABLE - 1.96) * spread
        elif name == "memory_gap":
            level["smallest_detectable"] = DETECTABLE * spread
        found.append(level)
    return found


def _level(levels: Sequence[Row], statistic: str, arm: str = YOURS) -> Row | None:
    return next((x for x in levels if x["statistic"] == statistic and x["arm"] == arm), None)


def _change(one: Array, two: Array) -> Row:
    """Return the difference of two statistics on the same draws."""
    change = one - two
    low, high = intervals.percentile(change[1:], CONFIDENCE)
    spread = float(np.nanstd(change[1:])) if np.isfinite(change[1:]).any() else math.nan
    return {"value": float(change[0]), "low": low, "high": high, "smallest_detectable": DETECTABLE * spread}


def _changes(statistics: Sequence[str], samples: Samples) -> list[Row]:
    """Return every mean and the utility minus that of the reference; nothing without one."""
    if RETRAIN not in samples.units.arms:
        return []
    rows = []
    for text in statistics:
        one = parse(text, samples.units)
        if one.name in ("mean", "utility"):
            about = METRICS.get(one.metric, Metric(one.metric))
            ends = [samples.of(one, arm, None) for arm in (YOURS, RETRAIN)]
            rows.append({"statistic": text, "label": one.label(about, [], None), "yours": float(ends[0][0]),
                         "reference": float(ends[1][0]), **_change(*ends)})  # fmt: skip
    return rows


def _membership(levels: Sequence[Row], samples: Samples) -> list[Row]:
    """Return the AUC of each membership score, what chance shows, and whether records stand out on either side."""
    units, rows = samples.units, []
    for level in levels:
        if not level["statistic"].startswith("membership:") or level["arm"] != YOURS:
            continue
        metric, high = level["metric"], level["null"]["high"]
        values, sets = units.values(YOURS, metric)[0], units.by[SET][0]
        exact = membership.membership_auc(values[sets == "forget"], values[sets == "holdout"])
        row = {"score": metric, "title": METRICS[metric].title.partition(": ")[2], "auc": level["auc"],
               "low": level["auc_low"], "high": level["auc_high"], "chance_low": 0.5 - high,
               "chance_high": 0.5 + high, "standard_error": exact.standard_error,
               "smallest_detectable": level["smallest_detectable"]}  # fmt: skip
        beside = samples.forgetting.auc(metric, RETRAIN) if RETRAIN in units.arms else np.full(1, np.nan)
        if math.isfinite(beside[0]):
            change = _change(samples.forgetting.auc(metric, YOURS), beside)
            low, top = intervals.percentile(beside[1:], CONFIDENCE)
            row |= {"reference": {"auc": float(beside[0]), "low": low, "high": top}, "change": change,
                    "privleak": membership.privleak(level["auc"], float(beside[0]))}  # fmt: skip
            over = change["value"] <= -FAR and change["high"] < 0
            known = change["low"] > 0
        else:
            over, known = membership.over_unlearned(exact), level["auc"] - 0.5 > high
        rows.append(row | {"state": "over-unlearned" if over else "told apart" if known else "not told apart"})
    return rows


def _truth(levels: Sequence[Row], units: Units) -> Row | None:
    """Return both distribution functions of the share of the true answer on a grid, and where they differ most."""
    level, quality = _level(levels, f"ks_distance:{_TRUTH}"), _level(levels, f"forget_quality:{_TRUTH}")
    own = units.values(YOURS, _TRUTH)[0] if _TRUTH in units.metrics else np.array([math.nan])
    if np.isnan(own).all():
        return None
    grid = np.linspace(0.0, 1.0, _GRID)
    found: Row = {"x": grid.tolist(), "yours": _shares(own, grid), "n": int((~np.isnan(own)).sum())}
    if level is None or quality is None or not math.isfinite(level["value"]):
        return found
    other = units.values(RETRAIN, _TRUTH)[0]
    x, first, second = widest(own, other)
    return found | {
        "reference": _shares(other, grid), "at": round(x, 2), "ends": [first, second], "distance": level["value"],
        "low": level["low"], "high": level["high"], "chance": level["null"]["high"], "p": quality["value"],
        "smallest_detectable": level["smallest_detectable"],
    }  # fmt: skip


def _shares(values: Array, grid: Array) -> list[float]:
    """Return the share of values up to each place of a grid."""
    known = np.sort(values[~np.isnan(values)])
    shares: list[float] = (np.searchsorted(known, grid, side="right") / len(known)).tolist()
    return shares


def _utility(levels: Sequence[Row]) -> Row:
    rows = [x for x in levels if x["statistic"] == "utility:retain"]
    return {x["arm"]: {"value": x["value"], "low": x["low"], "high": x["high"], "parts": x["parts"]} for x in rows}


def _authors(
    units: Units, roles: Sequence[Arm], by: Mapping[str, Sequence[str]], draws: int, seed: int
) -> dict[str, Any] | None:  # fmt: skip
    """Return means by author of the forgotten records, those that are known best first."""
    if "author" not in by:
        return None
    texts = [f"mean:{m}:author" for m in ("forget_probability", "extraction_strength") if m in units.metrics]
    levels = evidence(units, arms=roles, statistics=texts, metrics=METRICS, draws=draws, seed=seed)["levels"]
    rows: dict[str, Row] = {}
    for x in levels:
        row = rows.setdefault(x["group"], {"author": x["group"], "n": x["n_units"]})
        row.setdefault(x["metric"], {})[x["arm"]] = {k: x[k] for k in ("value", "low", "high")}
    order = sorted(rows.values(), key=lambda r: -r["forget_probability"][YOURS]["value"])
    return {"rows": order[:MOST_AUTHORS], "authors": len(order)}


# -- words ----------------------------------------------------------------------------------------------------------


def _ends(row: Mapping[str, Any], sign: bool = False) -> str:
    form = "+.4f" if sign else ".4f"
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def _verdict(levels: Sequence[Row], facts: Mapping[str, Any]) -> Row:
    """Return word, sentence and notes: still known, over-unlearned, told apart, or no trace shown."""
    main = next(x for x in levels if x["statistic"] == _MAIN and x["arm"] == YOURS)
    change = next((c for c in facts["changes"] if c["statistic"] == _MAIN), None)
    loss = next((m for m in facts["membership"] if m["score"] == "mia_loss"), None)
    truth = facts["truth"] if facts["reference"] else None
    sentences, states = [], []
    if change is None:
        sentences.append(f"Forgotten answers have a probability of {_ends(main)}. {NO_REFERENCE}")
    else:
        state = "known" if change["low"] > MARGIN else "over" if change["high"] < -MARGIN else "open"
        states.append(state)
        words = {"known": "above", "over": "below", "open": "which is not told from"}[state]
        sentences.append(
            f"Forgotten answers have a probability of {main['value']:.4f}, {words} the {change['reference']:.4f} of a "
            f"model that never saw them (difference {_ends(change, True)})."
        )
    if loss is not None:
        states.append({"over-unlearned": "over", "told apart": "apart", "not told apart": "open"}[loss["state"]])
        beside = f"that of the reference is {loss['reference']['auc']:.4f}" if "reference" in loss else (
            f"by chance {loss['chance_low']:.4f} to {loss['chance_high']:.4f}")  # fmt: skip
        sentences.append(
            f"The AUC of their loss against held-out records is {loss['auc']:.4f} "
            f"[{loss['low']:.4f}, {loss['high']:.4f}]; {beside}."
        )
    if truth is not None and "distance" in truth:
        apart = truth["distance"] > truth["chance"]
        states.append("apart" if apart else "open")
        side = "beyond" if apart else "within"
        sentences.append(
            f"Truth ratios are {truth['distance']:.4f} apart (forget quality p = {truth['p']:.2g}), {side} chance."
        )
    word = _word(states, facts["reference"])
    if word == "over-unlearned":
        sentences.insert(0, "Over-unlearned, which is a failure: forgotten records are pushed below the level of "
                            "unseen ones and stand out by that.")  # fmt: skip
    return {
        "word": word, "sentence": " ".join(sentences), "cost": _cost(levels, facts),
        "notes": _notes(levels, facts, change), "not_significant": _quiet(facts), "primary": _MAIN,
        "cost_statistic": "utility:retain",
    }  # fmt: skip


def _word(states: Sequence[str], reference: bool) -> str:
    """Return the banner's word; without a reference only a failure is named."""
    if "over" in states:
        return "over-unlearned"
    if "known" in states:
        return "still known"
    if "apart" in states:
        return "told apart"
    return "no trace shown" if reference else "measured"


def _cost(levels: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Say what is left of the retained records."""
    useful = _level(levels, "utility:retain")
    if useful is None:
        return ""
    row = next((c for c in facts["changes"] if c["statistic"] == "utility:retain"), None)
    against = f"; minus that of the reference {_ends(row, True)}" if row else ""
    return f"{useful['label']}: {_ends(useful)}{against}."


def _notes(levels: Sequence[Row], facts: Mapping[str, Any], change: Row | None) -> list[str]:
    notes = []
    if change is not None:
        gap = _level(levels, "memory_gap:forget_probability")
        each = f"; record by record the two are {_ends(gap)} apart" if gap else ""
        notes.append(f"The smallest difference in probability from the reference that could have been shown is "
                     f"{change['smallest_detectable']:.4f} (80 % power, 5 % two-sided){each}.")  # fmt: skip
    over = [m["title"] for m in facts["membership"] if m["state"] == "over-unlearned"]
    if over:
        notes.append(f"Over-unlearned by these membership scores: {', '.join(over)}.")
    return notes


def _quiet(facts: Mapping[str, Any]) -> list[str]:
    """Return every comparison that shows nothing, with the smallest effect that it could have shown."""
    found = [(f"{c['label']}, your model minus the reference: {_ends(c, True)}", c) for c in facts["changes"]
             if c["low"] <= 0 <= c["high"]]  # fmt: skip
    found += [(f"Membership by {m['title']}: AUC {m['auc']:.4f} [{m['low']:.4f}, {m['high']:.4f}]", m)
              for m in facts["membership"] if m["state"] == "not told apart"]  # fmt: skip
    truth = facts["truth"]
    if truth is not None and "distance" in truth and truth["distance"] <= truth["chance"]:
        found.append(
            (f"Distance of truth ratios: {truth['distance']:.4f}, by chance up to {truth['chance']:.4f}", truth)
        )
    return [f"{text}; smallest detectable {row['smallest_detectable']:.4f}" for text, row in found]


def numbers_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the levels of a summary as a terminal shows them."""
    titles = {a["name"]: a["title"] for a in summary["arms"]}
    rows = []
    for x in summary["evidence"]["levels"]:
        chance = (x["null"] or {}).get("high")
        ends = "none" if x["low"] is None else f"{x['low']:.4f} to {x['high']:.4f}"
        form = ".3g" if x["statistic"].startswith("forget_quality") else ".4f"  # a p-value may be 1e-20
        rows.append({"number": x["label"], "of": titles[x["arm"]],
                     "value": "undefined" if x["value"] is None else f"{x['value']:{form}}", "interval": ends,
                     "by chance": "" if chance is None else f"up to {chance:.4f}"})  # fmt: skip
    return rows


def _command(
    model: Path, files: Mapping[str, Path | str], reference: Path | str | None, template: str, generate: bool,
    batch_size: int, seed: int,
) -> str:  # fmt: skip
    words = ["upright", "audit", "forgetting", model.name]
    for side, path in files.items():
        words += [f"--{side}", Path(path).name]
    words += ["--reference", Path(reference).name] if reference is not None else []
    words += ["--template", template, *([] if generate else ["--no-generate"])]
    return shlex.join([*words, "--batch-size", str(batch_size), "--seed", str(seed)])
