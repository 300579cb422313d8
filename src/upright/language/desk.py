"""The forgetting desk: a user's own model folder, requests to forget, and what can be shown of each afterwards.

One request is `score` (how hard), `unlearn` or `retrain` (train, guard, write), `evaluate` (measure), `receipt` (show),
`purge` (destroy what ties the receipt to records). A desk is a folder with ``ledger.jsonl`` and ``requests/``; the
model folder that was given is read and never written to.

Order of a request, so that a kill at any point leaves the source as it was: everything a person can have got wrong is
checked before anything is computed, and everything about saving is tried; the request is opened in the ledger; the
model is trained, measured and guarded in memory; the new folder is made under another name and renamed; its line
follows. A request without that line was interrupted, and a model beside it is not vouched for.

An unlearned model is never certified. Its receipt says which tests were tried and what they found.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.forget import Record
from upright.language import disk, intake, receipts, remedies
from upright.language.attacks import RATE, STEPS, hardened, stronger
from upright.language.difficulty import DEFAULT_SIGMA, Difficulty, score_difficulty
from upright.language.disk import Request, plain
from upright.language.encoding import Template, refuse_mismatch
from upright.language.evaluation import Speaker
from upright.language.intake import Inputs, Recipe, Settings, inputs
from upright.language.measures import (
    LEAST,
    Guard,
    Look,
    compared,
    difficulty_of,
    guards,
    limits_of,
    look,
    still_known,
    verdict,
)
from upright.language.receipts import (
    listing,
    name_of,
    open_ledger,
    purge,
    receipt,
    records_of,
    reevaluate,
    reevaluated,
    verify,
)
from upright.language.references import checksum
from upright.language.remedies import NOT_A_NUMBER
from upright.ledger import Ledger
from upright.models.hub import is_adapter, load_language_model

__all__ = ["Recipe", "Settings", "evaluate", "listing", "purge", "receipt", "reevaluate", "retrain", "score", "unlearn",
           "verify"]  # fmt: skip

Array = NDArray[np.float64]
_STILL = 0.01  # change of the mean loss a token below which nothing moved: 1 % of the probability
_REMEDY = "The reference is the remedy: it was trained without the records; what is written here only comes near it."


class Progress:
    """One line a phase, in the log of a request and on stderr: when, what, on which device, of how much.

    Parameters
    ----------
    request : Request
        ``cache/log.txt`` in its folder is added to; a purge destroys it.
    """

    def __init__(self, request: Request) -> None:
        self.file = request.cache / "log.txt"
        self.devices: dict[str, str] = {}

    def __call__(self, phase: str, speaker: Speaker, what: str) -> None:
        """Note that a phase begins, on the device where its model is."""
        self.devices[phase] = str(speaker.model.device)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} {phase} on {self.devices[phase]}: {what}"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)


# -- score ----------------------------------------------------------------------------------------------------------


def score(
    model_dir: Path, forget_file: Path, *, desk: Path, sigma: str | float = DEFAULT_SIGMA,
    probes: int | Literal["auto"] = "auto", batch_size: int = 8, seed: int = 0, base: Path | None = None,
    device: str = "auto", cluster: str = "author", key: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score how hard each record is to forget; one number a record stays in the desk, aggregates are returned.

    Parameters
    ----------
    model_dir, forget_file : Path
    desk : Path
        Folder of ledger and requests.
    sigma, probes, batch_size, seed
        Of `score_difficulty`.
    base, device, cluster, key
        As for `unlearn` and its settings.

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
    given = inputs(model_dir, forget_file, batch_size=batch_size, base=base, device=device, cluster=cluster)
    request = Request.new(desk)
    Progress(request)("score", given.speaker, f"{len(given.forget)} records")
    found = score_difficulty(given.speaker.model, given.speaker.encode(given.forget), sigma=sigma,
                             probes=probes, batch_size=batch_size, seed=seed, pad=given.speaker.pad)  # fmt: skip
    request.note(status="scored", model=name_of(model_dir), forget=name_of(forget_file), records=len(given.forget))
    _keep_scores(request, given.forget, found)
    request.lock()
    summary = plain(difficulty_of(found, seed=seed, authors=[r.author for r in given.forget]))
    line = ledger.append("scored", {"request": request.id, "model": name_of(model_dir), "difficulty": summary})
    return {"request": request.id, "difficulty": summary, "notes": given.notes, "ledger": line["n"]}


def _keep_scores(request: Request, records: Sequence[Record], found: Difficulty) -> None:
    """Store one row a record beside the salt: ids and numbers, no text."""
    low, high = found.interval
    tables = {"mrd": found.mrd, "low": low, "high": high, "signed": found.signed,
              "standard_error": found.standard_error, "tokens": found.tokens, "nll": found.nll}  # fmt: skip
    rows = {"id": [r.id for r in records], "hash": request.hashes(records), **tables}
    disk.write_json(request.folder / "scores.json", rows)


# -- unlearn --------------------------------------------------------------------------------------------------------


def unlearn(
    model_dir: Path, forget_file: Path, retain_file: Path, *, out: Path, desk: Path, settings: Settings | None = None,
    reference: Path | None = None, holdout: Path | None = None, earlier: Sequence[Path] = (), base: Path | None = None,
    device: str = "auto", keep_failed: bool = False, dry_run: bool = False, key: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn records and write the new model beside the old one, or say why not.

    Parameters
    ----------
    model_dir : Path
        Read only. An adapter with its `base` is trained as such, and an adapter is written.
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
    base : Path, optional
        The model under `model_dir` and `reference`, where they are adapters.
    device : str
        Of `intake.device_of`; every phase runs there.
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
    intake.refuse_place(desk, [m for m in (model_dir, reference, base) if m is not None], out)
    ledger = open_ledger(desk, key)
    given = inputs(model_dir, forget_file, retain_file, holdout=holdout, reference=reference, base=base, device=device,
                   **_reading(settings))  # fmt: skip
    receipts.refuse_base(ledger, model_dir, base)
    given.speaker.model = remedies.with_adapter(given.speaker.model, settings.lora, settings.seed)
    old = [r for file in earlier for r in records_of("earlier", file, [], cluster=settings.cluster)]
    given.notes += [f"{name} beside --out was left by a killed run: remove it" for name in disk.leftovers(out)]
    saving = _Saving(given.speaker, out, model_dir)
    if dry_run:
        return {"dry_run": True, **remedies.expectation(given, settings), "notes": given.notes}
    before_sum = _sums(model_dir, "before")
    places = {"model": model_dir, "forget": forget_file, "retain": retain_file, "holdout": holdout,
              "reference": reference, "base": base, "out": out}  # fmt: skip
    request = _opened(desk, ledger, places, len(given.forget))
    request.note(status="started", earlier=[name_of(f) for f in earlier], settings=settings.as_dict())
    with _closing(request):
        body = _unlearned(request, given, settings)
        odd = any(reason.startswith(NOT_A_NUMBER) for reason in body["reasons"])
        measurable = (body["status"] == "done" or keep_failed) and not odd
        if earlier and not measurable:
            body["warnings"].append("earlier requests: not measured, because the request failed")
        body["reference"] = name_of(reference) or "none available"
        under = base if is_adapter(model_dir) else model_dir if saving.adapter else None
        _write(request, ledger, body, saving, model_dir, before_sum, base=under, keep_failed=keep_failed)
    again: dict[str, Any] = {"requests": [], "ledger": None}
    if measurable:
        supplied = [*given.forget, *given.retain, *given.holdout, *old]
        again = reevaluated(desk, ledger, given.speaker, supplied, kept=given.retain, source=before_sum["before"],
                            model=name_of(out), skip=request.id, seed=settings.seed)  # fmt: skip
    return {**receipts.receipt_of(desk, request.id, ledger=ledger), "reevaluated": again}


def _opened(desk: Path, ledger: Ledger, places: Mapping[str, Path | None], records: int) -> Request:
    """Open a request in desk and ledger; its plan names folders and files, without their paths."""
    request, names = Request.new(desk), {what: name_of(place) for what, place in places.items()}
    request.note(**names)
    ledger.append("opened", {"request": request.id, "model": names["model"], "records": records})
    return request


def _reading(settings: Settings | Recipe) -> dict[str, Any]:
    """Return what `inputs` is told by the settings of a training."""
    return {name: getattr(settings, name) for name in ("batch_size", "template", "cluster", "allow_similar")}


class _Saving:
    """How a model will be written: all of it but the weights is tried at once, and put back before the weights follow.

    Training changes settings on the way (special tokens, the cache); what was tried is what is written.

    Parameters
    ----------
    speaker : Speaker
    out : Path
        Where room is looked for.
    source : Path
        Named where it cannot be saved.

    Raises
    ------
    InputError
        When config, generation settings or tokenizer cannot be saved, or there is no room.
    """

    def __init__(self, speaker: Speaker, out: Path, source: Path) -> None:
        self.adapter = hasattr(speaker.model, "disable_adapter")  # then the adapter alone is written
        self.speaker, self.out = speaker, out
        parts = (p for p in speaker.model.parameters() if p.requires_grad or not self.adapter)
        self.size = sum(p.numel() * p.element_size() for p in parts)
        self.settings = copy.deepcopy((speaker.model.config, speaker.model.generation_config))
        try:
            with tempfile.TemporaryDirectory() as scratch:
                self._save(scratch, **({} if self.adapter else {"state_dict": {}}))
        except (ValueError, TypeError, OSError) as error:
            lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
            raise InputError(
                f"{source.name}, which cannot be saved: {' '.join(lines[:2]) or type(error).__name__}",
                "config, generation settings and tokenizer that save_pretrained takes",
                "correct that file of the model",
            ) from None
        disk.refuse_full(out, max(self.size, 0 if self.adapter else disk.weight_bytes(source)))

    def write(self) -> dict[str, str]:
        """Write the model, or its adapter alone, then the tokenizer; returns the checksums."""
        if not self.adapter:
            self.speaker.model.config, self.speaker.model.generation_config = self.settings
        with disk.new_folder(self.out, self.size) as part:
            self._save(part)
            (part / "README.md").unlink(missing_ok=True)  # of peft: an empty card with the path of the base
            return _sums(part, "after")

    def _save(self, folder: Path | str, **more: Any) -> None:
        import transformers

        logging: Any = transformers.utils.logging
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # a request has one line a phase
        try:
            self.speaker.model.save_pretrained(folder, **more)
            self.speaker.tokenizer.save_pretrained(folder)
        finally:
            if shown:
                logging.enable_progress_bar()


def _write(
    request: Request,
    ledger: Ledger,
    body: dict[str, Any],
    saving: _Saving,
    source: Path,
    before: Mapping[str, str],
    *,
    base: Path | None,
    keep_failed: bool,
) -> None:
    """Write the model where it may be, then the line of the ledger: no model without a line that tells of it."""
    body["model"] |= {"source": name_of(source), **before}
    if base is not None:
        body["model"] |= {"base": name_of(base), "base_sum": disk.checksum(base)}
    if _sums(source, "before") != before:
        body["warnings"].append("the source model folder changed meanwhile, by another program")
    body["artefacts"] = receipts.artefacts(request, request.plan)
    written = body["status"] == "done" or keep_failed
    if written:
        body["model"] |= {"output": name_of(saving.out), **saving.write()}
    try:
        ledger.append("unlearned", plain(receipts.sealed(body)))
    except BaseException:
        if written:
            shutil.rmtree(saving.out, ignore_errors=True)
        raise
    request.note(status=body["status"])


def _sums(folder: Path, when: str) -> dict[str, str]:
    """Return both checksums of a model folder, under the names of the ledger."""
    return {when: disk.checksum(folder), f"{when}_settings": disk.settings_checksum(folder)}


@contextlib.contextmanager
def _closing(request: Request, *, resumable: bool = False) -> Iterator[None]:
    """Delete what training left, unless it can go on from there, and note an end that was none."""
    kept = False
    try:
        yield
    except BaseException as error:
        kept = resumable
        request.note(status="interrupted", why=type(error).__name__)
        if disk.is_full(error):
            raise InputError(
                f"a full disk while keeping request {request.id}", "room at --desk and at --out",
                "free some space, then run this again; no model was written",
            ) from None  # fmt: skip
        raise
    finally:
        if not kept:
            shutil.rmtree(request.folder / "cache" / "training", ignore_errors=True)
        request.lock()


def _look(given: Inputs, speaker: Speaker, known: Any, settings: Settings | Recipe) -> Look:
    """Measure a model with every attack."""
    sides = {"retain": given.retain, "holdout": given.holdout}
    more = stronger(speaker, given.forget, given.holdout, steps=settings.relearn_steps, seed=settings.seed)
    return look(speaker, given.forget, **sides, reference=known, rouge=settings.rouge, more=more)


def _looking(given: Inputs, settings: Settings | Recipe, progress: Progress) -> Any:
    """Return a function that measures a model with every attack, as all models of a request are measured."""

    def measure(phase: str, speaker: Speaker, reference: Any = None) -> Look:
        sizes = (len(given.forget), len(given.retain), len(given.holdout))
        progress(phase, speaker, "{} records to forget, {} to keep, {} held out".format(*sizes))
        return _look(given, speaker, reference, settings)

    return measure


def _unlearned(request: Request, given: Inputs, settings: Settings) -> dict[str, Any]:
    """Measure, train, measure again; returns what the ledger will hold."""
    progress = Progress(request)
    measure = _looking(given, settings, progress)
    known = None if given.reference is None else given.reference.read(given.forget)
    other = None if given.reference is None else measure("reference", given.reference)
    given.reference = None  # its memory is wanted for training
    looks = {"before": measure("before", given.speaker, known)}
    levels, level = _levels(given, looks["before"], other)
    start = checksum(given.speaker.model)
    found, trained = _train(request, given, settings, levels, looks["before"], other)
    progress.devices |= trained.get("devices", {})
    reasons, checks, reached = list(trained["reasons"]), [], None
    if not reasons:
        after = looks["after"] = measure("after", given.speaker, known)
        if levels is not None and len(levels) >= LEAST:
            reached = int((after.reading.mean_nll >= levels).sum())
        changed = checksum(given.speaker.model) != start
        checks = [
            *guards(looks["before"], after, other, utility_floor=settings.utility_floor),
            _moved(looks["before"], after, changed, trained["facts"]),
        ]
    if other is not None:
        looks["reference"] = other
    summary = None
    if found is not None:
        summary = difficulty_of(found, seed=settings.seed, authors=looks["before"].authors["forget"])
    body = _body(request, given, settings, looks, level=receipts.APPROXIMATE, reasons=reasons, checks=checks)
    body.update(early_stop=level, at_level=reached, training=trained["facts"], difficulty=summary)
    body["devices"] = progress.devices
    body["method"] |= trained.get("method", {})
    body["warnings"] += (summary or {}).get("warnings") or []
    if other is not None:
        body["remedy"] = _REMEDY
    return body


def _body(
    request: Request,
    given: Inputs,
    settings: Settings | Recipe,
    looks: Mapping[str, Look],
    *,
    level: str,
    reasons: Sequence[str],
    checks: Sequence[Guard],
) -> dict[str, Any]:
    """Return the part of a ledger line that every kind of remedy has."""
    metrics = compared(looks, seed=settings.seed)
    lost = receipts.destroyed(metrics)
    reasons = [*reasons, *(f"{one.name}: {one.detail}" for one in checks if one.state == "failed")]
    said = receipts.DESTROYED if lost else verdict(metrics, "after", before="before").sentence
    return {
        "schema": 1, "request": request.id, "status": "failed" if reasons else "done", "reasons": reasons,
        "forgotten": said, "level": level,
        "records": {"forget": len(given.forget), "retain": len(given.retain), "holdout": len(given.holdout)},
        "hashing": "HMAC-SHA-256 under a secret salt of this request",
        "hashes": sorted(request.hashes(given.forget)),
        "dataset": {"before": request.hash_of_set([*given.forget, *given.retain]),
                    "after": request.hash_of_set(given.retain)},
        "model": {"output": None, "after": None, "dtype": str(next(given.speaker.model.parameters()).dtype)},
        "method": {**settings.as_dict(), "relearn_rate": RATE}, "code": receipts.code(),
        "seeds": {"all": settings.seed},
        "notes": [*receipts.limits(reference="reference" in looks, holdout=bool(given.holdout),
                                   retain=bool(given.retain)), *limits_of(looks["before"])],
        "guards": [vars(one) for one in checks], "metrics": metrics,
        "warnings": [*given.notes, *([] if lost else still_known(metrics, "after"))],
    }  # fmt: skip


def _moved(before: Look, after: Look, weights: bool, facts: Mapping[str, Any]) -> Guard:
    """Check that a request did something: weights changed, and with them the mean loss of the forget records."""
    change = float(after.reading.mean_nll.mean() - before.reading.mean_nll.mean())
    many = len(after.reading.mean_nll) >= LEAST  # of fewer records it could be that of one
    changed = "the mean loss a token of the forget records changed" + (f" by {change:+.4f}" if many else "")
    if not weights:
        why = "nothing moved: the weights are those before" + (f", {facts['stopped']}" if facts.get("stopped") else "")
    elif abs(change) < _STILL:
        why = f"nothing moved: {changed}, less than {_STILL:g}: raise the learning rate or train longer"
        why = (many and facts.get("unmoved")) or why
    else:
        return Guard("effect", "passed", changed)
    return Guard("effect", "failed", why)


def _levels(given: Inputs, before: Look, other: Look | None) -> tuple[Array | None, str]:
    """Return the loss per token from which each record counts as forgotten, shape (n,), and where it comes from."""
    if other is not None:
        return other.reading.mean_nll, "loss of each record under the reference"
    if given.holdout:
        level = -float(before.holdout["mia_loss"].mean())
        return np.full(len(given.forget), level), "mean loss of the held-out records before"
    return None, "none available: neither a reference nor held-out records; every record was trained to the end"


def _train(
    request: Request, given: Inputs, settings: Settings, levels: Array | None, before: Look, other: Look | None
) -> tuple[Difficulty | None, dict[str, Any]]:
    """Choose a rate where none is given, score where scores are asked for, and train in place."""
    progress, speaker, found = Progress(request), given.speaker, None
    folder, rate, method = request.cache / "training", settings.learning_rate, {}
    aim = "no level" if levels is None else f"level {levels.mean():.4f} a token on average"
    if levels is not None and len(levels) < LEAST:
        aim = "a level"
    if rate == "auto":
        progress("rates", speaker, f"three of them; {aim}")
        rate, tried = remedies.choose_rate(given, settings, levels, before, folder)
        method = {"learning_rate": rate, "tried": "; ".join(map(_tried, tried))}
    if settings.sampling == "difficulty":
        progress("score", speaker, f"{len(given.forget)} records")
        found = score_difficulty(speaker.model, speaker.encode(given.forget), batch_size=settings.batch_size,
                                 seed=settings.seed, pad=speaker.pad)  # fmt: skip
        _keep_scores(request, given.forget, found)
    progress("training", speaker, f"{settings.epochs} epochs at most at {rate:g}; {aim}")
    watch = remedies.Watch(given, settings, before, other)
    run = remedies.train(speaker, given.forget, given.retain, settings, rate=rate, folder=folder, levels=levels,
                         difficulty=found, watch=watch)  # fmt: skip
    return found, {**run, "method": method, "devices": progress.devices}


def _tried(row: Mapping[str, Any]) -> str:
    loss = "" if row["loss"] is None else f"loss {row['loss']:.4f}, "
    return f"{row['rate']:g} ({loss}{'failed: ' + row['failed'] if row['failed'] else 'passed'})"


# -- retrain --------------------------------------------------------------------------------------------------------


def retrain(
    base: Path,
    retain_file: Path,
    *,
    model_dir: Path,
    forget_file: Path,
    out: Path,
    desk: Path,
    recipe: Recipe | None = None,
    holdout: Path | None = None,
    device: str = "auto",
    keep_failed: bool = False,
    key: Path | None = None,
) -> dict[str, Any]:
    """Do the fine-tuning stage again without the records, from the model before it, and write what comes out.

    The same call after a kill goes on where it was: the request that did not end, with the same base, records and
    recipe, is found in the desk, and the weights are those of a run without a break.

    Parameters
    ----------
    base : Path
        Model before the stage; read only.
    retain_file : Path
        JSON lines: what the stage was trained on, without the records.
    model_dir : Path
        Model after the stage with the records, an adapter on `base` or a whole one: it is measured as ``before``.
    forget_file, holdout : Path
        JSON lines: what must go, what no model ever saw.
    out, desk, device, keep_failed, key
        As for `unlearn`. With an adapter in the recipe an adapter is written.
    recipe : Recipe, optional
        How the stage was done. It is kept in the plan of the request and in the ledger.

    Returns
    -------
    dict
        The receipt.

    Raises
    ------
    InputError
        As for `unlearn`.
    """
    recipe = recipe or Recipe()
    intake.refuse_place(desk, [base, model_dir], out)
    ledger = open_ledger(desk, key)
    under = base if is_adapter(model_dir) else None
    given = inputs(model_dir, forget_file, retain_file, holdout=holdout, base=under, device=device, **_reading(recipe))
    receipts.refuse_base(ledger, model_dir, under)
    beginning = _beginning(given.speaker, base, recipe)
    saving = _Saving(beginning, out, base)
    before = _sums(model_dir, "before")
    stage = {"recipe": recipe.as_dict(), "base": disk.checksum(base), **before, "out": name_of(out)}
    request = _unfinished(desk, stage, [*given.forget, *given.retain])
    if request is None:
        places = {"model": model_dir, "base": base, "out": out, "forget": forget_file, "retain": retain_file,
                  "holdout": holdout}  # fmt: skip
        request = _opened(desk, ledger, places, len(given.forget))
        records = request.hash_of_set([*given.forget, *given.retain])
        request.note(level=receipts.EXACT, stage=stage, records=records)
    request.begin()
    request.note(status="started")
    with _closing(request, resumable=True):
        progress = Progress(request)
        measure = _looking(given, recipe, progress)
        looks = {"before": measure("before", given.speaker)}
        given.speaker = beginning
        start = checksum(given.speaker.model)
        progress("training", beginning, f"{recipe.epochs} epochs of {len(given.retain)} records")
        run = remedies.anew(given.speaker, given.retain, recipe, request.cache / "training")
        checks, reasons = [], list(run["reasons"])
        if not reasons:
            looks["after"] = measure("after", given.speaker)
            checks = _checks(looks, recipe, moved=checksum(given.speaker.model) != start)
        body = _body(request, given, recipe, looks, level=receipts.EXACT, reasons=reasons, checks=checks)
        body.update(at_level=None, difficulty=None, training=run["facts"], devices=progress.devices)
        body.update(early_stop="none: trained anew on the retained records", reference="none available")
        _write(request, ledger, body, saving, model_dir, before, base=base, keep_failed=keep_failed)
    return receipts.receipt_of(desk, request.id, ledger=ledger)


def _beginning(speaker: Speaker, base: Path, recipe: Recipe) -> Speaker:
    """Return the model before the stage, where the other one was, with a new adapter if one is asked for."""
    device = speaker.model.device
    model, tokenizer = load_language_model(base)
    model = remedies.with_adapter(model.to(device), recipe.lora, recipe.seed)
    return Speaker(model, tokenizer, template=recipe.template, batch_size=recipe.batch_size)


def _checks(looks: Mapping[str, Look], recipe: Recipe, *, moved: bool) -> list[Guard]:
    """Return the guards of a model that never saw the records: it may be far from held-out ones, and that is right."""
    floor, over = guards(looks["before"], looks["after"], None, utility_floor=recipe.utility_floor)
    if over.state == "failed":
        over = Guard(over.name, "not checked", f"the model never saw the records, whatever they cost it: {over.detail}")
    effect = ("passed", "the weights are other than those of the base") if moved else ("failed", "nothing moved")
    return [floor, over, Guard("effect", *effect)]


def _unfinished(desk: Path, stage: Mapping[str, Any], records: Sequence[Record]) -> Request | None:
    """Return the newest request that was to train this stage on these records and did not end.

    Raises
    ------
    InputError
        When it is running.
    """
    for request in reversed(disk.requests_of(desk)):
        plan = request.plan
        begun = plan.get("status") in ("started", "interrupted") and request.salt is not None
        if begun and plan.get("stage") == plain(stage) and plan.get("records") == request.hash_of_set(records):
            state, why = request.state()
            if state == "running":
                got = f"request {request.id}, which trains this stage already: {why}"
                raise InputError(got, "one process a request", "wait for it, or end its process")
            return request
    return None


# -- evaluate -------------------------------------------------------------------------------------------------------


def evaluate(
    model_dir: Path, forget_file: Path, retain_file: Path | None = None, *, holdout: Path | None = None,
    reference: Path | None = None, out: Path | None = None, rouge: bool = True, batch_size: int = 8, seed: int = 0,
    robust: bool = False, before: Path | None = None, base: Path | None = None, template: Template = "auto",
    device: str = "auto", cluster: str = "author", allow_similar: bool = False, desk: Path | None = None,
    other: Sequence[Path | None] = (),
) -> dict[str, Any]:  # fmt: skip
    """Measure a model on records, with intervals, against a reference where there is one; changes nothing.

    Parameters
    ----------
    out : Path, optional
        JSON file to write: a new one, or one that an evaluation wrote.
    robust : bool
        Whether to attack copies of the model too, see `upright.language.attacks`.
    before : Path, optional
        The model before unlearning, for the share of what was removed that an attack brings back.
    base, template, device, cluster, allow_similar
        As for `unlearn` and its settings.
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
        intake.refuse_report(out, folders=[model_dir, reference, before, base, desk],
                      files=[forget_file, retain_file, holdout, *other])  # fmt: skip
    given = inputs(model_dir, forget_file, retain_file, holdout=holdout, reference=reference, before=before, base=base,
                   batch_size=batch_size, template=template, device=device, cluster=cluster,
                   allow_similar=allow_similar)  # fmt: skip
    settings = Settings(relearn_steps=STEPS if robust else 0, rouge=rouge, seed=seed)
    known = None if given.reference is None else given.reference.read(given.forget)
    looks = {"model": _look(given, given.speaker, known, settings)}
    if given.reference is not None:
        looks["reference"] = _look(given, given.reference, None, settings)
    strong = None
    if robust:
        old = None
        if before is not None:
            model, tokenizer = load_language_model(before, base=base)
            refuse_mismatch(given.speaker.tokenizer, given.speaker.model, reference=tokenizer)
            old = Speaker(model.to(given.speaker.model.device), tokenizer, template=template, batch_size=batch_size)
        strong = hardened(
            given.speaker, given.forget, retain=given.retain, reference=given.reference, before=old, seed=seed
        )
    found = plain({
        "kind": intake.REPORT, "model": {"name": name_of(model_dir), "sha256": disk.checksum(model_dir)},
        "reference": name_of(reference) or "none available", "code": receipts.code(), "seed": seed,
        "device": str(given.speaker.model.device), "template": template, "cluster": cluster,
        "records": {"forget": len(given.forget), "retain": len(given.retain), "holdout": len(given.holdout)},
        "metrics": compared(looks, seed=seed), "notes": [*given.notes, *limits_of(looks["model"])],
        "robustness": strong,
    })  # fmt: skip
    if out is not None:
        disk.write_json(out, found, private=False)
    return dict(found)
