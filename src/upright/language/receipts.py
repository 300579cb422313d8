"""Receipts: what can be shown about one request to forget, and what cannot.

A receipt is the line that the request left in the ledger, its number and hash, and what has happened since. It holds
aggregates alone: no text, no score of one record, no path beyond a folder's own name. Records appear as
``HMAC-SHA-256(salt, digest)`` in sorted order; whoever holds the record *and* the salt can check that it was meant, and
after `purge` nobody can.

Levels
------
``exact retrain``
    The model was trained anew without the records. No function of this desk does that, so no receipt claims it.
``approximate, empirical evidence only``
    The model was trained against the records until the loss of each reached a level, or for a number of epochs. Then
    named tests were tried, and the receipt says what they found. The level names the kind of evidence, not its outcome:
    a request that failed has the same one. No method for language models gives a certificate; another test may find
    the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.data.forget import Record, read_records, unique_records
from upright.language.disk import Request, request_of, write_json, write_text
from upright.language.pages import page
from upright.ledger import Ledger, canonical

__all__ = [
    "APPROXIMATE",
    "DESTROYED",
    "artefacts",
    "body_of",
    "code",
    "destroyed",
    "difference",
    "limits",
    "name_of",
    "open_ledger",
    "receipt_of",
    "records_of",
]

APPROXIMATE = "approximate, empirical evidence only"
DESTROYED = "meaningless: the model is destroyed"
"""The verdict on a model that knows nothing any more."""
_NOTHING = 0.01  # mean probability a token below which nothing is known
_PURGES = "; purge destroys it"
_PACKAGES = ("upright", "torch", "transformers", "accelerate", "peft")


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
    """List what still holds the data, as far as a desk can know.

    Parameters
    ----------
    plan : mapping
        Of the request; names of files and folders alone are taken.
    """
    rows = [("source model folder", plan["model"], "a model trained on the records"),
            ("forget file", plan["forget"], "the records themselves")]  # fmt: skip
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


def body_of(ledger: Ledger, request: str) -> dict[str, Any]:
    """Return the ledger line of a finished request.

    Raises
    ------
    InputError
        When the request left none: it was interrupted, or only scored.
    """
    own = [line for line in ledger.lines() if line["kind"] == "unlearned" and line["body"]["request"] == request]
    if not own:
        raise InputError(f"request {request} that did not end", "a request that unlearn finished",
                         "run unlearn again: what was interrupted left no model")  # fmt: skip
    return own[-1]


def receipt_of(desk: Path, name: str, *, ledger: Ledger) -> dict[str, Any]:
    """Write ``receipt.json`` and ``receipt.txt`` of a request, and return the receipt.

    Raises
    ------
    InputError
        When there is no such request, it did not end, or the ledger was tampered with: nothing is vouched for then.
    """
    request = request_of(desk, name)
    found = ledger.verify()
    if not found.intact:
        raise InputError(f"a ledger that is broken at line {found.broken}: {found.reason}", "an intact ledger",
                         "see: upright forget verify")  # fmt: skip
    out = _rebuilt(body_of(ledger, name), ledger.lines())
    write_json(request.folder / "receipt.json", out)
    write_text(request.folder / "receipt.txt", page(out))
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


def difference(ledger: Ledger, receipt: Any) -> str:
    """Say in what a receipt differs from the ledger, nothing when it does not.

    The receipt is built anew from the chain up to the head that it names, and must be that one in every part.

    Parameters
    ----------
    ledger : Ledger
        Verified.
    receipt : Any
        As it was read.

    Raises
    ------
    InputError
        When it does not say where in the ledger it stands, or names a line that is not there. A ledger that lost the
        head was cut off or written anew; that is a difference, and no fault of the receipt.
    """
    place = receipt.get("ledger") if isinstance(receipt, Mapping) else None
    if not isinstance(place, Mapping) or not all(isinstance(place.get(k), str) for k in ("hash", "head")):
        raise InputError("a receipt without its place in the ledger", "receipt.json of a desk", "check --receipt")
    if not (found := ledger.verify(head=place["head"])).intact:
        return found.reason
    lines = ledger.lines()
    own = next((x for x in lines if x["hash"] == place["hash"]), None)
    end = next((x for x in lines if x["hash"] == place["head"]), None)
    if own is None or end is None or end["n"] < own["n"] or own["kind"] != "unlearned":
        raise InputError(
            f"a receipt of line {place['hash'][:12]}... up to {place['head'][:12]}...",
            "the hash of a finished request in this ledger, and a head that is not before it",
            "take receipt.json from the desk again: upright forget receipt ID",
        )  # fmt: skip
    expected = _rebuilt(own, lines[: end["n"]])
    if odd := sorted(set(map(str, receipt)) ^ set(expected)):
        return f"the receipt {'lacks' if odd[0] in expected else 'adds'} {odd[0]!r}"
    wrong = [k for k in expected if canonical(receipt[k]) != canonical(expected[k])]
    return f"the receipt says something else than line {own['n']} and what followed about {wrong[0]}" if wrong else ""


# -- what every verb begins with ------------------------------------------------------------------------------------


def open_ledger(desk: Path, key: Path | None = None) -> Ledger:
    """Return the ledger of a desk after checking it.

    Raises
    ------
    InputError
        When it is torn or was tampered with: nothing is added to what does not hold.
    """
    ledger = Ledger(desk / "ledger.jsonl", key=key)
    found = ledger.verify()
    if not found.intact:
        raise InputError(
            f"a ledger that is broken at line {found.broken}: {found.reason}", "an intact ledger",
            "see upright forget verify: a torn end is mended by --mend, else take the file from a copy",
        )  # fmt: skip
    return ledger


def records_of(name: str, file: Path | None, notes: list[str]) -> list[Record]:
    """Read one file; repetitions are counted once."""
    if file is None:
        return []
    records, repeated = unique_records(read_records(file))
    if repeated:
        notes.append(f"{repeated} repeated records of the {name} file count once")
    return records


def name_of(path: Path | None) -> str | None:
    """Return the own name of a folder or file: receipts hold no path."""
    return None if path is None else path.resolve().name
