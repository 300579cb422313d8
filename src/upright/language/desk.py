"""The forgetting desk: a user's own model folder, requests to forget, and what can be shown of each afterwards.

One request is `score` (how hard), `unlearn` (train, guard, write), `evaluate` (measure), `receipt` (show), `purge`
(destroy what ties the receipt to records). A desk is a folder with ``ledger.jsonl`` and ``requests/``; the model folder
that was given is read and never written to.

Order of a request, so that a kill at any point leaves the source as it was: everything a person can have got wrong is
checked before anything is computed; the request is opened in the ledger; the model is trained, measured and guarded in
memory; the new folder is made under another name and renamed; its line follows. A request without that line was
interrupted, and a model beside it is not vouched for.

An unlearned model is never certified. Its receipt says which tests were tried and what they found.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.forget import Record
from upright.language import disk, intake, receipts
from upright.language.afterwards import listing, purge, receipt, reevaluate, reevaluated, verify
from upright.language.difficulty import DEFAULT_SIGMA, Difficulty, score_difficulty
from upright.language.disk import Request, plain
from upright.language.hardening import hardened
from upright.language.intake import Inputs, Settings, inputs
from upright.language.measures import (
    LEAST,
    Look,
    compared,
    difficulty_of,
    guards,
    limits_of,
    look,
    still_known,
    verdict,
)
from upright.language.receipts import name_of, open_ledger, records_of

__all__ = ["Settings", "evaluate", "listing", "purge", "receipt", "reevaluate", "score", "unlearn", "verify"]

Array = NDArray[np.float64]
_NAN = "not a number"


# -- score ----------------------------------------------------------------------------------------------------------


def score(
    model_dir: Path, forget_file: Path, *, desk: Path, sigma: str | float = DEFAULT_SIGMA,
    probes: int | Literal["auto"] = "auto", batch_size: int = 8, seed: int = 0, key: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score how hard each record is to forget; one number a record stays in the desk, aggregates are returned.

    Parameters
    ----------
    model_dir, forget_file : Path
    desk : Path
        Folder of ledger and requests.
    sigma, probes, batch_size, seed
        Of `score_difficulty`.
    key : Path, optional
        Of `Ledger`.

    Returns
    -------
    dict
        ``request``, ``difficulty`` (aggregates, reliability, warnings) and ``ledger`` (number of the line).

    Raises
    ------
    InputError
        As for `unlearn`.
    """
    intake.refuse_place(desk, [model_dir])
    ledger = open_ledger(desk, key)
    given = inputs(model_dir, forget_file, batch_size=batch_size)
    found = score_difficulty(given.speaker.model, given.speaker.encode(given.forget), sigma=sigma,
                             probes=probes, batch_size=batch_size, seed=seed, pad=given.speaker.pad)  # fmt: skip
    request = Request.new(desk)
    request.note(status="scored", model=name_of(model_dir), forget=name_of(forget_file), records=len(given.forget))
    _keep_scores(request, given.forget, found)
    summary = plain(difficulty_of(found, seed=seed, authors=[r.author for r in given.forget]))
    line = ledger.append("scored", {"request": request.id, "model": name_of(model_dir), "difficulty": summary})
    return {"request": request.id, "difficulty": summary, "notes": given.notes, "ledger": line["n"]}


def _keep_scores(request: Request, records: Sequence[Record], found: Difficulty) -> None:
    """Store one row a record beside the salt: ids and numbers, no text."""
    tables = {"mrd": found.mrd, "signed": found.signed, "standard_error": found.standard_error, "tokens": found.tokens,
              "nll": found.nll}  # fmt: skip
    rows = {"id": [r.id for r in records], "hash": request.hashes(records), **tables}
    disk.write_json(request.folder / "scores.json", rows)


# -- unlearn --------------------------------------------------------------------------------------------------------


def unlearn(
    model_dir: Path, forget_file: Path, retain_file: Path, *, out: Path, desk: Path, settings: Settings | None = None,
    reference: Path | None = None, holdout: Path | None = None, earlier: Sequence[Path] = (), keep_failed: bool = False,
    dry_run: bool = False, key: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn records and write the new model beside the old one, or say why not.

    Parameters
    ----------
    model_dir : Path
        Read only.
    forget_file, retain_file, holdout : Path
        JSON lines: what must go, what must stay, what no model ever saw.
    out : Path
        New folder; written only when every guard passed, or with `keep_failed`.
    desk : Path
        Folder of ledger and requests.
    reference : Path, optional
        Model trained without the records: the level that forgetting aims at, and what it is judged by.
    earlier : sequence of Path
        Files with records of earlier requests, which are then measured again on the new model.
    dry_run : bool
        Check everything, change nothing, return what it would take.

    Returns
    -------
    dict
        The receipt, with ``reevaluated``; or the expectation of a dry run.

    Raises
    ------
    InputError
        For input that cannot be right; the model folder is as it was, and nothing else was written.
    """
    settings = settings or Settings()
    intake.refuse_place(desk, [m for m in (model_dir, reference) if m is not None], out)
    intake.refuse_loss(settings.loss)
    ledger = open_ledger(desk, key)
    before_sum = disk.checksum(model_dir)
    given = inputs(model_dir, forget_file, retain_file, holdout=holdout, reference=reference,
                   batch_size=settings.batch_size)  # fmt: skip
    old = [r for file in earlier for r in records_of("earlier", file, [])]
    size = sum(p.numel() * p.element_size() for p in given.speaker.model.parameters())
    given.notes += [f"{name} beside --out was left by a killed run: remove it" for name in disk.leftovers(out)]
    disk.refuse_full(out, max(size, disk.weight_bytes(model_dir)))
    if dry_run:
        return {"dry_run": True, **intake.expectation(given, settings), "notes": given.notes}
    request = Request.new(desk)
    request.note(
        status="started", model=name_of(model_dir), forget=name_of(forget_file), retain=name_of(retain_file),
        holdout=name_of(holdout), reference=name_of(reference), out=name_of(out), earlier=[name_of(f) for f in earlier],
        settings=settings.as_dict(),
    )  # fmt: skip
    ledger.append("opened", {"request": request.id, "model": name_of(model_dir), "records": len(given.forget)})
    with _closing(request):
        body = _unlearned(request, given, settings)
        body["model"] |= {"source": name_of(model_dir), "before": before_sum}
        body["reference"] = name_of(reference) or "none available"
        if disk.checksum(model_dir) != before_sum:
            body["warnings"].append("the source model folder changed meanwhile, by another program")
        body["artefacts"] = receipts.artefacts(request, request.plan)
        written = body["status"] == "done" or keep_failed
        measurable = written and not _not_a_number(body["reasons"])
        if earlier and not measurable:
            body["warnings"].append("earlier requests: not measured, because the request failed")
        if written:
            with disk.new_folder(out, size) as part:
                given.speaker.model.save_pretrained(part)
                given.speaker.tokenizer.save_pretrained(part)
                body["model"] |= {"output": name_of(out), "after": disk.checksum(part)}
        try:
            ledger.append("unlearned", plain(body))
        except BaseException:
            if written:
                shutil.rmtree(out, ignore_errors=True)  # no model without a line that tells of it
            raise
    request.note(status=body["status"])
    again: dict[str, Any] = {"requests": [], "ledger": None}
    if measurable:
        supplied = [*given.forget, *given.retain, *given.holdout, *old]
        again = reevaluated(desk, ledger, given.speaker, supplied, kept=given.retain, source=before_sum,
                            model=name_of(out), skip=request.id, seed=settings.seed)  # fmt: skip
    return {**receipts.receipt_of(desk, request.id, ledger=ledger), "reevaluated": again}


@contextlib.contextmanager
def _closing(request: Request) -> Iterator[None]:
    """Delete what training left, and note an end that was none."""
    try:
        yield
    except BaseException as error:
        request.note(status="interrupted", why=type(error).__name__)
        if disk.is_full(error):
            raise InputError(
                f"a full disk while keeping request {request.id}", "room at --desk and at --out",
                "free some space, then run this again; no model was written",
            ) from None  # fmt: skip
        raise
    finally:
        shutil.rmtree(request.folder / "cache" / "training", ignore_errors=True)
        request.lock()


def _unlearned(request: Request, given: Inputs, settings: Settings) -> dict[str, Any]:
    """Measure, train, measure again; returns what the ledger will hold."""
    seed = settings.seed
    sides: dict[str, Any] = {"retain": given.retain, "holdout": given.holdout, "rouge": settings.rouge}
    known = None if given.reference is None else given.reference.read(given.forget)
    other = None if given.reference is None else look(given.reference, given.forget, **sides)
    given.reference = None  # its memory is wanted for training
    before = look(given.speaker, given.forget, reference=known, **sides)
    levels, level = _levels(given, before, other)
    found, trained = _train(request, given, settings, levels)
    reasons, checks, measured = list(trained["reasons"]), [], {"before": before}
    reached = None
    if not reasons:
        after = look(given.speaker, given.forget, reference=known, **sides)
        measured["after"] = after
        if levels is not None and len(levels) >= LEAST:
            reached = int((after.reading.mean_nll >= levels).sum())
        checks = guards(before, after, other, utility_floor=settings.utility_floor)
        reasons += [f"{one.name}: {one.detail}" for one in checks if one.state == "failed"]
    if other is not None:
        measured["reference"] = other
    metrics = compared(measured, seed=seed)
    lost = receipts.destroyed(metrics)
    authors = before.authors["forget"]
    summary = None if found is None else difficulty_of(found, seed=seed, authors=authors)
    return {
        "schema": 1, "request": request.id, "status": "failed" if reasons else "done", "reasons": reasons,
        "forgotten": receipts.DESTROYED if lost else verdict(metrics, "after", before="before").sentence,
        "level": receipts.APPROXIMATE,
        "records": {"forget": len(given.forget), "retain": len(given.retain), "holdout": len(given.holdout)},
        "hashing": "HMAC-SHA-256 under a secret salt of this request",
        "hashes": sorted(request.hashes(given.forget)),
        "dataset": {"before": request.hash_of_set([*given.forget, *given.retain]),
                    "after": request.hash_of_set(given.retain)},
        "model": {"output": None, "after": None, "dtype": str(next(given.speaker.model.parameters()).dtype)},
        "method": settings.as_dict(), "code": receipts.code(), "seeds": {"all": seed},
        "early_stop": level, "at_level": reached, "training": trained["facts"],
        "difficulty": summary,
        "notes": [*receipts.limits(reference=other is not None, holdout=bool(given.holdout), retain=bool(given.retain)),
                  *limits_of(before)],
        "guards": [vars(one) for one in checks], "metrics": metrics,
        "warnings": [*given.notes, *([] if lost else still_known(metrics, "after")),
                     *((summary or {}).get("warnings") or [])],
    }  # fmt: skip


def _not_a_number(reasons: Sequence[str]) -> bool:
    return any(reason.startswith(_NAN) for reason in reasons)


def _levels(given: Inputs, before: Look, other: Look | None) -> tuple[Array | None, str]:
    """Return the loss per token from which each record counts as forgotten, shape (n,), and where it comes from."""
    if other is not None:
        return other.reading.mean_nll, "loss of each record under the reference"
    if given.holdout:
        level = -float(before.holdout["mia_loss"].mean())
        return np.full(len(given.forget), level), "mean loss of the held-out records before"
    return None, "none available: neither a reference nor held-out records; every record was trained to the end"


def _train(
    request: Request, given: Inputs, settings: Settings, levels: Array | None
) -> tuple[Difficulty | None, dict[str, Any]]:
    """Score and train in place; a run that diverges is a reason to fail, not an error of the person."""
    from transformers import PrinterCallback, TrainingArguments

    from upright.language.trainer import UnlearnTrainer

    speaker, found = given.speaker, None
    forget, retain = speaker.encode(given.forget), speaker.encode(given.retain)
    more: dict[str, Any] = {}
    if settings.sampling == "difficulty":
        found = score_difficulty(speaker.model, forget, batch_size=settings.batch_size, seed=settings.seed,
                                 pad=speaker.pad)  # fmt: skip
        _keep_scores(request, given.forget, found)
        more = {"difficulty": found}
    folder = request.cache / "training"
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size, per_device_eval_batch_size=settings.batch_size,
        lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        seed=settings.seed, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = UnlearnTrainer(
        speaker.model, forget, retain, args=arguments, processing_class=speaker.tokenizer, loss=settings.loss,
        sampling="mrd" if found else "uniform", targets=levels, cache_dir=request.cache, **more,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it writes to where a machine reads JSON
    reasons = []
    try:
        trainer.train()
    except InputError as error:
        if "finite" not in error.accepted:
            raise
        reasons.append(f"{_NAN}: {error.got}")
    if not reasons and not all(bool(torch.isfinite(p).all()) for p in speaker.model.parameters()):
        reasons.append(f"{_NAN}: weights that are not finite")
    speaker.model.eval()
    facts = {"steps": int(trainer.state.global_step), "stopped": trainer.stopped}
    return found, {"reasons": reasons, "facts": facts}


# -- evaluate -------------------------------------------------------------------------------------------------------


def evaluate(
    model_dir: Path, forget_file: Path, retain_file: Path | None = None, *, holdout: Path | None = None,
    reference: Path | None = None, out: Path | None = None, rouge: bool = True, batch_size: int = 8, seed: int = 0,
    robust: bool = False, before: Path | None = None, desk: Path | None = None, other: Sequence[Path | None] = (),
) -> dict[str, Any]:  # fmt: skip
    """Measure a model on records, with intervals, against a reference where there is one; changes nothing.

    Parameters
    ----------
    out : Path, optional
        JSON file to write: a new one, or one that an evaluation wrote.
    robust : bool
        Whether to attack copies of the model too, see `upright.language.hardening`.
    before : Path, optional
        The model before unlearning, for the share of what was removed that an attack brings back.
    desk, other
        Folder and files of the same call that `out` must not touch.

    Returns
    -------
    dict
        Aggregates of `compared` under ``metrics``, of attacks under ``robustness``, and how many records there were.

    Raises
    ------
    InputError
        As for `unlearn`.
    """
    if out is not None:
        intake.refuse_report(out, folders=[model_dir, reference, before, desk],
                             files=[forget_file, retain_file, holdout, *other])  # fmt: skip
    given = inputs(model_dir, forget_file, retain_file, holdout=holdout, reference=reference, before=before,
                   batch_size=batch_size)  # fmt: skip
    sides: dict[str, Any] = {"retain": given.retain, "holdout": given.holdout, "rouge": rouge}
    known = None if given.reference is None else given.reference.read(given.forget)
    looks = {"model": look(given.speaker, given.forget, reference=known, **sides)}
    if given.reference is not None:
        looks["reference"] = look(given.reference, given.forget, **sides)
    found = plain({
        "kind": intake.REPORT, "model": {"name": name_of(model_dir), "sha256": disk.checksum(model_dir)},
        "reference": name_of(reference) or "none available", "code": receipts.code(), "seed": seed,
        "records": {"forget": len(given.forget), "retain": len(given.retain), "holdout": len(given.holdout)},
        "metrics": compared(looks, seed=seed), "notes": [*given.notes, *limits_of(looks["model"])],
        "robustness": hardened(given, before=before, seed=seed) if robust else None,
    })  # fmt: skip
    if out is not None:
        disk.write_json(out, found, private=False)
    return dict(found)
