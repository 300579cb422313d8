"""What can be done with a request afterwards: its receipt, a second look, destruction of what is secret, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upright.contract import InputError
from upright.data.forget import Record, unique_records
from upright.language import disk, receipts
from upright.language.disk import Request, plain
from upright.language.pages import in_short
from upright.language.receipts import name_of, open_ledger, records_of
from upright.ledger import Ledger

if TYPE_CHECKING:  # receipts and checks must not wait for torch
    from upright.language.evaluation import Speaker

__all__ = ["ancestors", "listing", "purge", "receipt", "reevaluate", "reevaluated", "verify"]

APART = "not comparable"
"""State of an earlier request whose new model is no ancestor of the model at hand."""
PURGE_NOTE = "overwritten once and deleted; an SSD, a copying file system or a backup may still hold the old blocks"

# -- earlier requests -----------------------------------------------------------------------------------------------


def reevaluated(
    desk: Path, ledger: Ledger, speaker: Speaker, records: Sequence[Record], *, kept: Sequence[Record] = (),
    source: str, model: str | None = None, skip: str = "", seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure earlier requests on a model, where all their records are here, and note it in the ledger.

    Only a model that is the new model of a request, or descends from it, can show what became of that request. Any
    other one may never have forgotten the records, so it is not measured, and nothing is noted.

    A request of which some records are missing is not measured: two means over sets that differ in one record would
    give that record's score away. For the same reason counts below `LEAST` are not stated.

    Later training can bring back what was forgotten. ``came_back``: the interval of the mean probability now lies above
    the interval right after the request.

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


def ancestors(requests: Sequence[Mapping[str, Any]], model: str) -> set[str]:
    """Return the checksums of a model and of all models that it came from, by the requests of a ledger.

    Parameters
    ----------
    requests : sequence of mapping
        Bodies of finished requests: ``model`` with the checksums ``before`` and ``after``.
    model : str
        Checksum.
    """
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
    from upright.language.measures import LEAST, aggregate

    wanted = set(body["hashes"])
    own = [r for r, h in zip(records, request.hashes(records), strict=True) if h in wanted]
    taught = sum(h in wanted for h in request.hashes(kept))
    row["kept_again"] = None if 0 < taught < LEAST else taught
    if len(own) < len(wanted):
        some = str(len(own)) if len(own) >= LEAST else f"fewer than {LEAST}"
        why = f"{some} of its {len(wanted)} records were supplied: pass all" if own else "its records were not supplied"
        return {**row, "state": "not re-evaluable", "why": why}
    scores = score_records(speaker, own, side="forget", rouge=False, truth=False)
    found = aggregate(scores, seed=seed, authors=[r.author for r in own])
    now, then = found["forget_probability"], body["metrics"]["forget"]["forget_probability"].get("after")
    return {
        **row, "state": "re-evaluated", "why": "", "matched": len(own), "probability": now, "metrics": found,
        "came_back": None if now is None or then is None else bool(now["low"] > then["high"]),
    }  # fmt: skip


def reevaluate(
    desk: Path, model_dir: Path, files: Sequence[Path], *, batch_size: int = 8, key: Path | None = None
) -> dict[str, Any]:
    """Measure all earlier requests whose records are all supplied again on a model; list the others.

    Parameters
    ----------
    files : sequence of Path
        Records in any order, of any number of requests: each is recognised by its salted hash.

    Returns
    -------
    dict
        ``requests``: one row an earlier request; ``ledger``: number of the line.
    """
    from upright.language.evaluation import Speaker
    from upright.models.hub import load_language_model

    ledger = open_ledger(desk, key)
    notes: list[str] = []
    records = [r for file in files for r in records_of("earlier", file, notes)]
    model, tokenizer = load_language_model(model_dir)
    speaker = Speaker(model, tokenizer, batch_size=batch_size)
    return reevaluated(desk, ledger, speaker, records, source=disk.checksum(model_dir), model=name_of(model_dir))


def receipt(desk: Path, request: str, *, key: Path | None = None) -> dict[str, Any]:
    """Write the receipt of a request beside its salt, as JSON and as a page of text, and return it."""
    return receipts.receipt_of(desk, request, ledger=Ledger(desk / "ledger.jsonl", key=key))


def purge(desk: Path, request: str, *, key: Path | None = None) -> dict[str, Any]:
    """Destroy salt, scores and caches of a request; its lines stay in the ledger, which still verifies.

    The overwritten blocks may survive on an SSD, a copying file system, or in a backup: no program can promise more.
    """
    ledger, own = open_ledger(desk, key), disk.request_of(desk, request)
    gone = own.purge()
    line = ledger.append("purged", {"request": request, "destroyed": gone})
    own.note(purged=line["n"])
    return {"request": request, "destroyed": gone, "ledger": line["n"], "note": PURGE_NOTE}


def listing(desk: Path) -> list[dict[str, Any]]:
    """Return one row a request: how it ended, whether attacks find the records, and where that stands in the ledger.

    Raises
    ------
    InputError
        When there is no desk.
    """
    ledger, requests = Ledger(desk / "ledger.jsonl"), disk.requests_of(desk)
    if not requests:
        _refuse_nowhere(desk, ledger)
    lines = {x["body"]["request"]: x for x in ledger.lines() if x["kind"] == "unlearned"}
    rows = []
    for one in requests:
        plan, line = one.plan, lines.get(one.id)
        status = plan.get("status", "unknown")
        rows.append({
            "request": one.id, "status": "running or interrupted" if status == "started" else status,
            "forgotten": in_short(line["body"]["forgotten"]) if line else None,
            "model": plan.get("model"), "out": line["body"]["model"]["output"] if line else None,
            "purged": one.salt is None, "line": line["n"] if line else None,
        })  # fmt: skip
    return rows


def _refuse_nowhere(desk: Path, ledger: Ledger) -> None:
    if not ledger.path.exists():
        raise InputError(f"no ledger at the desk {desk.name}", "a folder that score or unlearn wrote", "check --desk")


def verify(
    desk: Path,
    *,
    head: str | None = None,
    receipt_file: Path | None = None,
    key: Path | None = None,
    mend: bool = False,
) -> dict[str, Any]:
    """Check the whole ledger, and that it still holds the line and the head that a receipt names.

    Parameters
    ----------
    head : str, optional
        Hash of a line, kept elsewhere.
    receipt_file : Path, optional
        ``receipt.json``; all it says must be what its line and the lines up to its head say.
    mend : bool
        Take a torn end out first; the bytes are kept and a line tells of it.
    """
    ledger = Ledger(desk / "ledger.jsonl", key=key)
    _refuse_nowhere(desk, ledger)
    mended = ledger.mend() is not None if mend else False
    found = ledger.verify(head=head)
    reason = found.reason
    if found.intact and receipt_file is not None:
        reason = receipts.difference(ledger, disk.read_json(receipt_file))
    return {**vars(found), "intact": not reason, "reason": reason, "mended": mended}
