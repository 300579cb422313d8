"""Receipts: what can be shown about one request to forget, what happened to it afterwards, and what cannot be shown.

A receipt is the line that the request left in the ledger, its number and hash, and what has happened since. It holds
aggregates alone: no text, no score of one record, no path beyond a folder's own name. Records appear as
``HMAC-SHA-256(salt, digest)`` in sorted order; whoever holds the record *and* the salt can check that it was meant, and
after `purge` nobody can.

Levels
------
``exact retrain of this stage``
    The stage of training that saw the records was run anew without them. What the model it began from had seen before
    is not known here.
``approximate, empirical evidence only``
    The model was trained against the records until the loss of each reached a level, or for a number of epochs. Then
    named tests were tried, and the receipt says what they found. The level names the kind of evidence, not its outcome:
    a request that failed has the same one. No method for language models gives a certificate; another test may find
    the records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upright.contract import InputError
from upright.data.forget import Record, read_records, unique_records
from upright.language import disk
from upright.language.disk import Request, plain
from upright.language.pages import EXACT, LEAST, UNMEASURABLE, in_short, page, place_on
from upright.ledger import Ledger, canonical

if TYPE_CHECKING:  # receipts and checks must not wait for torch
    from upright.language.evaluation import Speaker

__all__ = [
    "APPROXIMATE",
    "DESTROYED",
    "EXACT",
    "ancestors",
    "artefacts",
    "code",
    "destroyed",
    "limits",
    "listing",
    "name_of",
    "open_ledger",
    "purge",
    "receipt",
    "receipt_of",
    "records_of",
    "reevaluate",
    "reevaluated",
    "refuse_base",
    "sealed",
    "standing",
    "verify",
]

APPROXIMATE = "approximate, empirical evidence only"
DESTROYED = "meaningless: the model is destroyed"
"""The verdict on a model that knows nothing any more."""
APART = "not comparable"
"""State of an earlier request whose new model is no ancestor of the model at hand."""
PURGE_NOTE = "overwritten once and deleted; an SSD, a copying file system or a backup may still hold the old blocks"
_NOTHING = 0.01  # mean probability a token below which nothing is known
_PURGES = "; purge destroys it"
_PACKAGES = ("upright", "torch", "transformers", "accelerate", "peft")

# -- what goes into the line of a request ---------------------------------------------------------------------------


def code() -> dict[str, str]:
    """Return versions of the packages that the result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def artefacts(request: Request, plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """List what still holds the data, as far as a desk can know; of a plan, names of files and folders alone."""
    if plan.get("level") == EXACT:
        rows = [("the model that is replaced, wherever it stands", "not known", "a model trained on the records")]
    else:
        rows = [("source model folder", plan["model"], "a model trained on the records")]
    if plan.get("forget"):
        rows.append(("forget file", plan["forget"], "the records themselves"))
    rows += [("file of earlier requests", name, "records of earlier requests") for name in plan.get("earlier", ())]
    kept = (("salt", "salt", "what ties the hashes of this receipt to records"),
            ("scores", "scores.json", "one number a record, which marks the forget set"),
            ("cache", "cache", "log-probabilities of the records under the source model"))  # fmt: skip
    rows += [(what, name, f"{holds}{_PURGES}") for what, name, holds in kept if (request.folder / name).exists()]
    rows += [("half-written file", name, f"what a killed run left{_PURGES}") for name in request.torn()]
    rows.append(("checkpoints and optimizer state", "none", "written to a temporary folder that was deleted"))
    rows.append(("logs, backups, copies, caches of other programs", "not known", "look for them: a desk cannot"))
    return [{"what": what, "name": name, "holds": holds} for what, name, holds in rows]


def limits(*, reference: bool, holdout: bool, retain: bool) -> list[str]:
    """Say of which numbers of a request the records that judge it were also the ones that steered it."""
    out = []
    if holdout and not reference:
        out.append(
            "without a reference the held-out records set the level at which a record counts as forgotten and "
            "are then the judge of the attacks: pass other held-out records to eval, or a reference"
        )
    if retain:
        out.append(
            "the utility floor is judged on the retained records that were trained on: it is no evidence about "
            "any other text"
        )
    return out


def destroyed(metrics: Mapping[str, Any]) -> bool:
    """Whether a model has lost what it should keep along with what it should forget; attacks then mean nothing.

    Both mean probabilities are below 0.01, and the kept one is less than a tenth of what it was. False where there are
    too few records for either mean.
    """
    gone = (metrics.get("forget") or {}).get("forget_probability") or {}
    kept = (metrics.get("retain") or {}).get("retain_probability") or {}
    if any(one is None for one in (gone.get("after"), kept.get("after"), kept.get("before"))):
        return False
    lost = max(gone["after"]["value"], kept["after"]["value"]) < _NOTHING
    return bool(lost and kept["after"]["value"] < kept["before"]["value"] / 10)


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a line without what would tell of one record, where one to four are to go.

    Of so few records every measure is one of few, and the steps of training say when the loss of a record reached its
    level. Utility, guards, checksums and hashes stay as ever.
    """
    few, metrics = body["records"]["forget"], body["metrics"]
    if few >= LEAST:
        return dict(body)
    nothing = {
        "forget": {name: dict.fromkeys(row) for name, row in (metrics.get("forget") or {}).items()},
        "membership": dict.fromkeys(metrics.get("membership") or {}),
        "forget_quality": None,
    }
    return {
        **body,
        "forgotten": f"{UNMEASURABLE}: {few} of at least {LEAST} records",
        "metrics": {**metrics, **nothing},
        **dict.fromkeys(("training", "at_level", "difficulty")),
    }


# -- receipts -------------------------------------------------------------------------------------------------------


def receipt(desk: Path, request: str, *, key: Path | None = None) -> dict[str, Any]:
    """Write the receipt of a request beside its salt, as JSON and as a page of text, and return it."""
    return receipt_of(desk, request, ledger=open_ledger(desk, key))


def receipt_of(desk: Path, name: str, *, ledger: Ledger) -> dict[str, Any]:
    """Write ``receipt.json`` and ``receipt.txt`` of a request, and return the receipt.

    Parameters
    ----------
    ledger : Ledger
        As `open_ledger` gives it: nothing is vouched for by one that was tampered with.

    Raises
    ------
    InputError
        When there is no such request, or it left no line: it runs, is dead, or was only scored.
    """
    request, lines = disk.request_of(desk, name), ledger.lines()
    own = [x for x in lines if x["kind"] == "unlearned" and x["body"]["request"] == name]
    if not own:
        state, why = request.state()
        raise InputError(
            f"request {name} that did not end: {state}{why and f', {why}'}",
            "a request that finished",
            "wait for one that runs; of any other, run unlearn again: it left no model",
        )
    out = _rebuilt(own[-1], lines)
    disk.write_json(request.folder / "receipt.json", out)
    disk.write_text(request.folder / "receipt.txt", page(out))
    return out


def _rebuilt(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the receipt of a line as it was when the last of `lines` was the head.

    It comes from the ledger alone, so that whoever checks a receipt gets every part of it again. What purge destroys
    is left out of what still holds the data once a purge is noted.
    """
    name = line["body"]["request"]
    later = [x for x in lines if x["n"] > line["n"]]
    since = [
        {"line": x["n"], "time": x["time"], **row}
        for x in later if x["kind"] == "re-evaluated"
        for row in x["body"]["requests"] if row["request"] == name
    ]  # fmt: skip
    purged = [x["n"] for x in later if x["kind"] == "purged" and x["body"]["request"] == name]
    held = [a for a in line["body"].get("artefacts", ()) if not (purged and a["holds"].endswith(_PURGES))]
    return {
        **line["body"], "artefacts": held, "since": since, "purged": purged[-1] if purged else None,
        "ledger": {"line": line["n"], "time": line["time"], "hash": line["hash"], "head": lines[-1]["hash"],
                   "signed": "signature" in line},
    }  # fmt: skip


# -- checks ---------------------------------------------------------------------------------------------------------


def verify(
    desk: Path,
    *,
    head: str | None = None,
    receipt_file: Path | None = None,
    model: Path | None = None,
    key: Path | None = None,
    mend: bool = False,
) -> dict[str, Any]:
    """Check the whole ledger, a receipt against it, and that a model folder is one that a request wrote.

    Parameters
    ----------
    head : str, optional
        Hash of a line, kept elsewhere.
    receipt_file : Path, optional
        ``receipt.json`` or ``receipt.txt``; all it says must be what its line and the lines up to its head say.
    model : Path, optional
        Folder whose weights and other files must be those that a line calls ``after``: that of the receipt where one
        is given, else any.
    mend : bool
        Take a torn end out first; the bytes are kept and a line tells of it.

    Returns
    -------
    dict
        As `Ledger.verify`, with the first thing that is wrong as ``reason``; ``mended``; ``receipt``: number of its
        line; ``model``: ``name``, ``line``, ``request``, ``status``, ``forgotten`` and whether ``settings`` could be
        compared: lines of earlier versions do not hold them. None for what was not asked or did not hold.
    """
    ledger = standing(desk, key)
    mended = ledger.mend() is not None if mend else False
    found = ledger.verify(head=head)
    out: dict[str, Any] = {"mended": mended, "receipt": None, "model": None}
    reason, lines = found.reason, ledger.lines() if found.intact else []
    if found.intact and receipt_file is not None:
        reason, lines = _checked(ledger, receipt_file)
        out["receipt"] = None if reason else lines[0]["n"]
    if found.intact and not reason and model is not None:
        reason, out["model"] = _recognised(desk, lines, model)
    return {**vars(found), **out, "intact": not reason, "reason": reason}


def _checked(ledger: Ledger, file: Path) -> tuple[str, list[dict[str, Any]]]:
    """Say in what a receipt differs from the ledger, nothing when it does not; with the line that it is of.

    The receipt is built anew from the chain up to the head that it names, and must be that one in every part.

    Raises
    ------
    InputError
        When it does not say where in the ledger it stands, or names a line that is not there. A ledger that lost the
        head was cut off or written anew; that is a difference, and no fault of the receipt.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        shown = json.loads(text) if text.lstrip()[:1] in "{[" else None
        place: Any = place_on(text) if shown is None else shown["ledger"]
        if shown is None and place is None:
            return "the page was edited: its last line is not the SHA-256 of what stands above it", []
        own_hash, head = (str(place[k]) for k in ("hash", "head"))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{file.name} without its place in the ledger ({type(error).__name__})",
            "receipt.json or receipt.txt of a desk",
            "check --receipt",
        ) from None
    if lost := ledger.verify(head=head).reason:
        return lost, []
    lines = ledger.lines()
    own, end = (next((x for x in lines if x["hash"] == one), None) for one in (own_hash, head))
    if own is None or end is None or end["n"] < own["n"] or own["kind"] != "unlearned":
        raise InputError(
            f"a receipt of line {own_hash[:12]}... up to {head[:12]}...",
            "the hash of a finished request in this ledger, and a head that is not before it",
            "take the receipt from the desk again: upright forget receipt ID",
        )
    expected = _rebuilt(own, lines[: end["n"]])
    if shown is None:
        odd = ["its text"] if text.split() != page(expected).split() else []
    else:
        if more := sorted(set(map(str, shown)) ^ set(expected)):
            return f"the receipt {'lacks' if more[0] in expected else 'adds'} {more[0]!r}", [own]
        odd = [k for k in expected if canonical(shown[k]) != canonical(expected[k])]
    said = f"the receipt says something else than line {own['n']} and what followed about"
    return f"{said} {odd[0]}" if odd else "", [own]


def _recognised(desk: Path, lines: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, dict[str, Any] | None]:
    """Say why a folder is not what one of the lines wrote, nothing when it is; with that line in short.

    Raises
    ------
    InputError
        When there are no weights in it, or something cannot be read.
    """
    name = name_of(folder)
    try:
        size, weights, settings = disk.weight_bytes(folder), disk.checksum(folder), disk.settings_checksum(folder)
    except OSError as error:
        raise InputError(f"--model {name}: {error.strerror}", "a folder that you may read", "check --model") from None
    if not size:
        raise InputError(f"--model {name} without weights", "a model folder with *.safetensors", "check --model")
    own = [(x, x["body"]["model"]) for x in lines if x["kind"] == "unlearned"]
    wrote = [(x, model) for x, model in own if model.get("after") == weights]
    for x, model in reversed(wrote):
        if model.get("after_settings") in (None, settings):
            row = {k: x["body"].get(k) for k in ("request", "status", "forgotten")}
            return "", {"name": name, "line": x["n"], "settings": "after_settings" in model, **row}
    if wrote:
        what = "config, tokenizer, chat template, generation config or adapter"
        return f"{name} has the weights of line {wrote[-1][0]['n']}, but other files were changed: {what}", None
    for x, model in own:
        if model.get("before") == weights:
            return f"{name} has the weights from before request {x['body']['request']}, not those after it", None
    reason = f"{name} has weights that no such line wrote: they were changed, or come from elsewhere"
    for one in disk.requests_of(desk):
        if one.plan.get("out") == name and (state := one.state()[0]) != "done":
            reason += f"; request {one.id}, which was to write {name}, is {state}"
    return reason, None


def standing(desk: Path, key: Path | None = None, *, wrote: str = "score or unlearn") -> Ledger:
    """Return the ledger of a desk that is there, unchecked; `wrote` names the verbs that make one."""
    ledger = Ledger(desk / "ledger.jsonl", key=key)
    if not ledger.path.exists():
        raise InputError(f"no ledger at the desk {desk.name}", f"a folder that {wrote} wrote", "check --desk")
    return ledger


def open_ledger(desk: Path, key: Path | None = None, *, verify: str = "upright forget verify") -> Ledger:
    """Return the ledger of a desk, new or there already, after checking it; `verify` is the command that tells more.

    Raises
    ------
    InputError
        When it is torn or was tampered with: nothing is added to what does not hold, and nothing vouched for by it.
    """
    ledger = Ledger(desk / "ledger.jsonl", key=key)
    found = ledger.verify()
    if not found.intact:
        raise InputError(
            f"a ledger that is broken at line {found.broken}: {found.reason}", "an intact ledger",
            f"see {verify}: a torn end is mended by --mend, else take the file from a copy",
        )  # fmt: skip
    return ledger


def records_of(name: str, file: Path | None, notes: list[str], *, cluster: str = "author") -> list[Record]:
    """Read one file, with the `cluster` of `read_records`; repetitions are counted once."""
    if file is None:
        return []
    records, repeated = unique_records(read_records(file, cluster=cluster))
    if repeated:
        notes.append(f"{repeated} repeated records of the {name} file count once")
    return records


def name_of(path: Path | None) -> str | None:
    """Return the own name of a folder or file: receipts hold no path."""
    return None if path is None else path.resolve().name


# -- the end of a request, and the list of all ----------------------------------------------------------------------


def purge(desk: Path, request: str, *, key: Path | None = None) -> dict[str, Any]:
    """Destroy salt, scores and caches of a request; its lines stay in the ledger, which still verifies.

    The overwritten blocks may survive on an SSD, a copying file system, or in a backup: no program can promise more.

    Raises
    ------
    InputError
        When there is no such request, or it runs and would end without its salt.
    """
    ledger, own = open_ledger(desk, key), disk.request_of(desk, request)
    state, why = own.state()
    if state == "running":
        raise InputError(
            f"request {request}, which is running: {why}",
            "a request that ended or is dead",
            "wait for it, or end its process",
        )
    gone = own.purge()
    line = ledger.append("purged", {"request": request, "destroyed": gone})
    own.note(purged=line["n"])
    return {"request": request, "destroyed": gone, "ledger": line["n"], "note": PURGE_NOTE}


def listing(desk: Path) -> list[dict[str, Any]]:
    """Return one row a request: how it ended, whether attacks find the records, and where that stands in the ledger.

    ``status`` and ``why`` are those of its line, else of `Request.state`.

    Raises
    ------
    InputError
        When there is no desk.
    """
    requests = disk.requests_of(desk)
    ledger = Ledger(desk / "ledger.jsonl") if requests else standing(desk)
    lines = {x["body"]["request"]: x for x in ledger.lines() if x["kind"] == "unlearned"}
    rows = []
    for one in requests:
        plan, line = one.plan, lines.get(one.id)
        state, why = (line["body"]["status"], "") if line else one.state()
        rows.append({
            "request": one.id, "status": state, "why": why,
            "forgotten": in_short(line["body"]["forgotten"]) if line else None,
            "model": plan.get("model"), "out": line["body"]["model"]["output"] if line else None,
            "purged": one.salt is None, "line": line["n"] if line else None,
        })  # fmt: skip
    return rows


# -- earlier requests -----------------------------------------------------------------------------------------------


def reevaluated(
    desk: Path, ledger: Ledger, speaker: Speaker, records: Sequence[Record], *, kept: Sequence[Record] = (),
    source: str, model: str | None = None, skip: str = "", seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure earlier requests on a model, where all their records are here, and note it in the ledger.

    Only the new model of a request, or one that descends from it, can show what became of that request: any other may
    never have forgotten the records. A request of which some records are missing is not measured: two means over sets
    that differ in one record would give that record's score away, as would counts below `LEAST`. ``came_back``: the
    interval of the mean probability now lies above the interval right after the request.

    Parameters
    ----------
    records : sequence of Record
        Whatever was supplied; each is matched by its salted hash.
    kept : sequence of Record
        Retained by the present request: an earlier record among them was taught again.
    source : str
        Checksum of the model at hand or, in a request, of the model that it began with.
    skip : str
        The present request.

    Returns
    -------
    dict
        ``requests`` with a row each: ``state`` (``re-evaluated``, ``not re-evaluable``, ``not comparable``), ``why``,
        ``matched``, ``of``, ``probability``, ``metrics``, ``came_back``, ``kept_again`` (None for fewer than `LEAST`,
        but not 0); ``ledger``: number of the line, None when there was nothing to note.
    """
    last = {x["body"]["request"]: x["body"] for x in ledger.lines() if x["kind"] == "unlearned"}
    line_of_models = ancestors(list(last.values()), source)
    last.pop(skip, None)
    known = unique_records(records)[0]
    rows = []
    for name, body in last.items():
        after = body["model"].get("after")
        if after is not None and after not in line_of_models:
            rows.append({"request": name, "of": len(body["hashes"]), "state": APART, "why": "another line of models"})
        else:
            rows.append(plain(_again(desk, body, speaker, known, kept, seed)))
    noted = [row for row in rows if row["state"] != APART]
    line = ledger.append("re-evaluated", {"model": model, "by": skip or None, "requests": noted}) if noted else None
    return {"requests": rows, "ledger": line["n"] if line else None}


def refuse_base(ledger: Ledger, adapter: Path, base: Path | None) -> None:
    """Refuse a base that is not the one on which a request wrote this adapter: together they are another model.

    Raises
    ------
    InputError
    """
    if base is None:
        return
    own, under = disk.checksum(adapter), disk.checksum(base)
    for line in ledger.lines():
        model = line["body"]["model"] if line["kind"] == "unlearned" else {}
        if model.get("after") == own and model.get("base_sum") not in (None, under):
            raise InputError(
                f"--base {base.name}, which is not the model under {adapter.name}",
                f"the base of request {line['body']['request']}: {model['base']}",
                "pass that folder as --base",
            )


def ancestors(requests: Sequence[Mapping[str, Any]], model: str) -> set[str]:
    """Return the checksums of a model and of all models that it came from, by the bodies of finished requests."""
    found, new = {model}, {model}
    while new:
        new = {one["model"]["before"] for one in requests if one["model"].get("after") in new} - found
        found |= new
    return found


def _again(
    desk: Path, body: Mapping[str, Any], speaker: Speaker, records: Sequence[Record], kept: Sequence[Record], seed: int
) -> dict[str, Any]:
    """Return the row of one earlier request."""
    row: dict[str, Any] = {"request": body["request"], "of": len(body["hashes"])}
    folder = desk / "requests" / body["request"]
    request = Request(folder)
    if body["model"]["output"] is None:
        return {**row, "state": "not re-evaluable", "why": "it failed and left no model"}
    if request.salt is None:
        why = "it was purged" if folder.is_dir() else "its folder is gone"
        return {**row, "state": "not re-evaluable", "why": f"{why}: no hash can be tied to a record"}
    from upright.language.evaluation import score_records
    from upright.language.measures import aggregate

    wanted = set(body["hashes"])
    own = [r for r, h in zip(records, request.hashes(records), strict=True) if h in wanted]
    taught = sum(h in wanted for h in request.hashes(kept))
    row["kept_again"] = None if 0 < taught < LEAST else taught
    if not own or len(own) < len(wanted):
        some = str(len(own)) if len(own) >= LEAST else f"fewer than {LEAST}"
        why = f"{some} of its {len(wanted)} records were supplied: pass all" if own else "its records were not supplied"
        return {**row, "state": "not re-evaluable", "why": why}
    asking = speaker.asking(body.get("method", {}).get("template", "auto"))  # as the request itself was measured
    scores = score_records(asking, own, side="forget", rouge=False, truth=False)
    found = aggregate(scores, seed=seed, authors=[r.author for r in own])
    now, then = found["forget_probability"], body["metrics"]["forget"]["forget_probability"].get("after")
    return {
        **row, "state": "re-evaluated", "why": "", "matched": len(own), "probability": now, "metrics": found,
        "came_back": None if now is None or then is None else bool(now["low"] > then["high"]),
    }  # fmt: skip


def reevaluate(
    desk: Path, model_dir: Path, files: Sequence[Path], *, base: Path | None = None, batch_size: int = 8,
    cluster: str = "author", device: str = "auto", key: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure all earlier requests whose records are all supplied again on a model; list the others.

    Parameters
    ----------
    files : sequence of Path
        Records in any order, of any number of requests: each is recognised by its salted hash.
    base, cluster, device
        As for `upright.language.desk.unlearn` and its settings.

    Returns
    -------
    dict
        As `reevaluated`.

    Raises
    ------
    InputError
        As for `refuse_base`, and where a folder or a file cannot be read.
    """
    from upright.language.evaluation import Speaker
    from upright.language.intake import device_of
    from upright.models.hub import load_language_model

    ledger, place = open_ledger(desk, key), device_of(device)
    records = [r for file in files for r in records_of("earlier", file, [], cluster=cluster)]
    refuse_base(ledger, model_dir, base)
    model, tokenizer = load_language_model(model_dir, base=base)
    speaker = Speaker(model.to(place), tokenizer, batch_size=batch_size)
    return reevaluated(desk, ledger, speaker, records, source=disk.checksum(model_dir), model=name_of(model_dir))
