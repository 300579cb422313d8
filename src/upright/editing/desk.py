"""The editing desk: corrections of single facts, each a private file beside a model folder that is never written to.

A desk is a folder with ``ledger.jsonl``, ``salt`` and ``edits/ID.safetensors``. The ledger alone says which edits are
in force, and in which order. It holds numbers, and of question and target ``HMAC-SHA-256(salt, text)``: a plain hash
of the name of a city can be guessed. Texts and picture are in the file of the edit.

Whatever a kill cuts off, the desk is as before an edit or as after it: input is checked before anything is trained or
written; an edit is made and measured in memory; its file is written as a whole; its line follows. A file without a line
was never in force, and the next command that writes removes it. The same `apply` again passes over what is in force.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import io
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from upright.contract import Config, InputError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from upright.language import disk, receipts
from upright.language.disk import plain
from upright.lazy import LazyModule
from upright.ledger import Ledger, canonical, new_id, open_desk

if TYPE_CHECKING:  # lists and checks must not wait for torch
    import torch

    from upright.data import forget
    from upright.editing import edits, environments, invariant, measures, prompts
    from upright.editing.environments import EditRequest, Environments
    from upright.language import intake
    from upright.models import hub

    Edits = dict[str, edits.Edit]
else:
    torch, forget, hub = LazyModule("torch"), LazyModule("upright.data.forget"), LazyModule("upright.models.hub")
    edits, environments = LazyModule("upright.editing.edits"), LazyModule("upright.editing.environments")
    invariant, measures = LazyModule("upright.editing.invariant"), LazyModule("upright.editing.measures")
    prompts, intake = LazyModule("upright.editing.prompts"), LazyModule("upright.language.intake")

__all__ = ["Opened", "Settings", "apply", "diff", "export", "judge", "listing", "revert", "show", "verify"]

Share = Annotated[float, Range(ge=0, le=1)]
Lines = Sequence[Mapping[str, Any]]
_WROTE, _VERIFY, _LIST = "upright edit apply", "upright edit verify", "see all of them with: upright edit list"
_BESIDE = 8  # most questions that are kept in training beside those of the request
_KINDS = {
    "reliability": ["reliability_written"],
    "generality": [f"{kind}_generality_written" for kind in ("text", "image", "joint")],
    "locality": ["text_locality_written", "image_locality_written"],
    "retention": ["retention_written"],
}


class Settings(Config):
    """How an edit is made, and what it must reach."""

    editor: Literal["lora", "dense", "gated"] = "lora"
    """Low rank, a dense change, or low rank behind a gate."""
    rank: PositiveInt = 8
    """Of lora and gated."""
    steps: PositiveInt = 80
    """Most steps; an edit ends earlier where it is learnt."""
    learning_rate: PositiveFloat = 1e-2
    """Of Adam."""
    tv: NonNegativeFloat = 0.1
    """Weight of the invariance penalty."""
    seed: NonNegativeInt = 0
    """Of weights, wordings and views."""
    reliability: Share = 1.0
    """Share of the request itself that must be answered with the target."""
    generality: Share = 0.7
    """Share of its held-out wordings and views."""
    locality: Share = 0.7
    """Share of unrelated held-out answers that must stay."""
    retention: Share = 1.0
    """Share of earlier edits that must still be answered."""


def judge(
    values: Mapping[str, float], budgets: Settings, then: Mapping[str, float] = MappingProxyType({})
) -> tuple[str, list[str]]:
    """Return accepted, warning or rejected, and why, from values that were written out, and those before the edit.

    Rejected: reliability below its budget, or another below half of its own. A warning: another below its budget, or
    generality or locality not measured. Each is the mean of its kinds; without earlier edits there is no retention.
    Locality is that of all edits together: what it had lost before this edit is a warning, and no reason to reject it.
    """
    reasons, failed = list[str](), False
    for name, kinds in _KINDS.items():
        now, was = ([one[kind] for kind in kinds if math.isfinite(one.get(kind, math.nan))] for one in (values, then))
        value, budget = fmean(now) if now else math.nan, getattr(budgets, name)
        if now and value < budget:
            before = name == "locality" and was and value >= fmean(was)
            reasons.append(f"{name} {value:.2f}{' as before this edit' * bool(before)}, the budget is {budget:.2f}")
            failed |= not before and (name == "reliability" or value < budget / 2)
        elif not now and name != "retention":
            reasons.append(f"{name} not measured")
    return "rejected" if failed else "warning" if reasons else "accepted", reasons


# -- what a desk holds ----------------------------------------------------------------------------------------------


def _states(lines: Lines) -> dict[str, dict[str, Any]]:
    """Return what the lines say of each edit, in order, with its ``state``: in force, rejected, reverted, replaced."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        kind, body = line["kind"], line["body"]
        if kind in ("applied", "rejected"):
            state = "in force" if kind == "applied" else kind
            found[body["edit"]] = {**body, "state": state, "line": line["n"], "time": line["time"]}
        if kind == "applied" and body["replaces"]:
            found[body["replaces"]]["state"] = f"replaced by {body['edit']}"
        elif kind == "reverted":
            found[body["edit"]]["state"] = kind
    return found


def _in_force(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name, one in states.items() if one["state"] == "in force"]


def _one(desk: Path, states: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in states:
        known = ", ".join(list(states)[-3:]) or "none yet"
        raise InputError(f"edit {name!r} at the desk {desk.name}", f"one of its edits: {known}", _LIST)
    return states[name]


def _file(desk: Path, one: Mapping[str, Any]) -> Path:
    """Return the file of an edit, which must be what its line says: nothing else is opened."""
    place, name = desk / "edits" / f"{one['edit']}.safetensors", one["edit"]
    if one["file"] is None:
        raise InputError(f"edit {name}, which was rejected and not kept", "an edit that was applied", _LIST)
    data = place.read_bytes() if place.is_file() else None
    if data is None or hashlib.sha256(data).hexdigest() != one["file"]:
        got = "without its file" if data is None else f"whose file is damaged: line {one['line']} tells of another"
        todo = f"take it from a copy, or: upright edit revert {name}"
        raise InputError(f"edit {name} {got}", "the file that apply wrote", todo)
    return place


def _facts(desk: Path, one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an edit, without torch."""
    from safetensors import safe_open

    with safe_open(_file(desk, one), "np") as file:
        return dict(json.loads(json.loads(file.metadata()["upright-edit"])["body"])["facts"])


def _salt(desk: Path, lines: Lines) -> bytes:
    """Return the salt of a desk; a new one where nothing was written yet."""
    place = desk / "salt"
    if not place.is_file() and lines:
        raise InputError(f"the desk {desk.name} without its salt", "the file salt that it wrote", "take it from a copy")
    return place.read_bytes() if place.is_file() else secrets.token_bytes(32)


@contextlib.contextmanager
def _writing(desk: Path, ledger: Ledger, seen: Lines, salt: bytes) -> Iterator[Path]:
    """Hold a desk alone, remove what a kill left, yield the folder of edits; refuses other lines than were seen."""
    folder = open_desk(desk, "edits")
    handle = os.open(desk, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = ledger.lines() == list(seen)
        except BlockingIOError:
            free = False
        if not free:
            got = f"the desk {desk.name}, at which another command writes"
            raise InputError(got, "one at a time", "wait for it, then run this again")
        if not (desk / "salt").is_file():
            disk.write_bytes(desk / "salt", salt)
        for name in _left(desk, _states(seen)):
            (folder / name).unlink()
        yield folder
    finally:
        os.close(handle)  # and with it the lock


def _left(desk: Path, states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    kept = {f"{name}.safetensors" for name, one in states.items() if one["file"]}
    return sorted({one.name for one in (desk / "edits").glob("*")} - kept)


class Opened:
    """A desk with a model: read and checked, nothing written.

    An `InputError` for a ledger that does not hold, a desk inside the model folder, as `load_editable`, and for other
    weights than those that the edits of this desk were made for.
    """

    def __init__(self, desk: Path, folder: Path, *, device: str = "auto", key: Path | None = None) -> None:
        intake.refuse_place(desk, [folder])
        self.desk, self.folder, self.name = desk, folder, receipts.name_of(folder)
        self.ledger = receipts.open_ledger(desk, key, verify=_VERIFY)
        self.lines = self.ledger.lines()
        self.states, self.salt = _states(self.lines), _salt(desk, self.lines)
        model, self.processor = hub.load_editable(folder)
        self.base, self.model = edits.base_checksum(model), model.to(intake.device_of(device))
        for other in {one["base"] for one in self.states.values()} - {self.base}:
            got = f"{self.name} with the weights {self.base[:12]}"
            accepted = f"those that the edits of the desk {desk.name} were made for, {other[:12]}"
            raise InputError(got, accepted, "take that model, or begin another desk: --desk")

    def edit(self, name: str) -> edits.Edit:
        """Return an edit of the desk."""
        return edits.load_edit(_file(self.desk, _one(self.desk, self.states, name)))

    def some(self, name: str | None) -> Edits:
        """Return one edit, or all in force, in the order in which they were made."""
        found = {one: self.edit(one) for one in ([name] if name else _in_force(self.states))}
        if not found:
            raise InputError(f"no edit in force at the desk {self.desk.name}", "at least one", "name an edit")
        return found

    def writing(self) -> contextlib.AbstractContextManager[Path]:
        """Hold the desk alone, as it was read."""
        return _writing(self.desk, self.ledger, self.lines, self.salt)

    def keyed(self, *parts: str) -> str:
        """HMAC-SHA-256 of texts under the salt of the desk, 64 hex digits."""
        return hmac.new(self.salt, canonical(parts).encode(), hashlib.sha256).hexdigest()


# -- apply ----------------------------------------------------------------------------------------------------------


def apply(
    at: Opened, requests_file: Path, *, settings: Settings | None = None, replaces: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Make an edit of each request, measure it on prompts that no training saw, put it in force unless rejected.

    With `replaces` an edit may take the place of one with another target for the same question. A `dry_run` trains and
    writes nothing. Returns a row for each of ``requests``, with what is ``to_do``, and of the ``edits``; how many are
    ``in_force``, and the ``head`` of the ledger. An `InputError` comes before anything is trained or written.
    """
    settings = settings or Settings()
    requests = environments.read_requests(requests_file, text_only=not hasattr(at.processor, "image_processor"))
    if not requests:
        raise InputError(f"{requests_file.name} without a request", "a line for each edit", "check the file")
    force = {name: at.edit(name) for name in _in_force(at.states)}
    given = {one.id: environments.environments(one, seed=settings.seed) for one in requests}
    plans = [_plan(at, one, given[one.id], force) for one in requests]
    out: dict[str, Any] = {"model": at.name, "dry_run": dry_run, "requests": plans, "edits": []}
    if dry_run:
        return out
    for plan in plans:
        if plan["to_do"] == "nothing: answered already":
            got = f"request {plan['request']} with the target {plan['target']!r}, which the model answers already"
            way = "leave the request out" if plan["old"] is None else f"upright edit revert {plan['old']}"
            got += f" without edit {plan['old']}" if plan["old"] else ""
            raise InputError(got, "an answer that it does not give yet", way)
        if plan["to_do"] == "replace" and not replaces:
            got = f"request {plan['request']} with another target than edit {plan['old']} for the same question"
            raise InputError(got, "one target for a question about a picture", "pass --replace, or leave it out")
    todo = [(one, plan) for one, plan in zip(requests, plans, strict=True) if plan["to_do"] in ("edit", "replace")]
    asked = {name: name for name in force}  # under which name an edit is asked about
    tests = {name: _asked(one) for name, one in force.items()} | {one.id: given[one.id] for one, _ in todo}
    was, head = measures.before(at.model, at.processor, tests), at.lines[-1]["hash"] if at.lines else None
    folder = {"name": at.name, "weights": disk.checksum(at.folder), "settings": disk.settings_checksum(at.folder)}
    with at.writing() as place:
        for request, plan in todo:
            print(f"request {request.id}: {len(out['edits']) + 1} of {len(todo)}", file=sys.stderr, flush=True)
            beside = {name: one for name, one in force.items() if name != plan["old"]}
            own = _keeping(given[request.id], [one for one in requests if one is not request], beside)
            edit, body = _made(at, request, own, beside, {asked[one]: one for one in beside}, was, settings)
            body |= {**plan["hashes"], "replaces": plan["old"], "model": folder, "code": receipts.code()}
            file, kept = place / f"{body['edit']}.safetensors", body["verdict"] != "rejected"
            body["file"] = edit.save(file) if kept else None
            try:
                line = at.ledger.append("applied" if kept else "rejected", plain(body))
            except InputError:  # there is no line
                file.unlink(missing_ok=True)
                raise
            if kept:
                force, asked[body["edit"]] = {**beside, body["edit"]: edit}, request.id
            out["edits"].append({**plain(body), **plan, "line": line["n"]})
            head = line["hash"]
    seen = [measures.measure(at.model, at.processor, was)] if todo else []
    with edits.applied(at.model, list(force.values())):
        seen += [measures.measure(at.model, at.processor, was)] if todo else []
    new = [i for i, name in enumerate(seen[0].edit) if name in {one.id for one, _ in todo}] if todo else []
    out |= {"right": [int(one.written[new].sum()) for one in seen], "of": len(new)}
    return {**out, "in_force": len(force), "head": head, "left_out": list(was.left_out)}


def _plan(at: Opened, request: EditRequest, given: Environments, force: Edits) -> dict[str, Any]:
    """Say what is to be done with a request, beside the edits in force."""
    own, key = request.edit, environments.question_key
    hashes = {"question": at.keyed(*key(own)), "target": at.keyed(*key(prompts.Question(own.answer, "")))}
    old = next((name for name in force if at.states[name]["question"] == hashes["question"]), None)
    with edits.applied(at.model, [one for name, one in force.items() if name != old]):
        present = measures.present(at.model, at.processor, {request.id: given})[request.id]
    to_do = "edit" if old is None else "replace"
    if old is not None and at.states[old]["target"] == hashes["target"]:
        to_do = "nothing: in force already"
    elif present.strip().casefold() == own.answer.strip().casefold():
        to_do = "nothing: answered already"
    return {"request": request.id, "prompt": own.prompt, "present": present, "target": own.answer, "to_do": to_do,
            "old": old, "hashes": hashes}  # fmt: skip


def _keeping(given: Environments, others: Sequence[EditRequest], beside: Edits) -> Environments:
    """Return environments that keep in training what earlier edits answer and what other requests ask to keep."""
    sides, train = (*given.train.values(), *given.test.values()), dict(given.train)
    known = {environments.question_key(one) for some in sides for one in some}
    pool = [_asked(one).test["edit"][0] for one in reversed(list(beside.values()))]
    pool += [one for other in others for one in (*other.loc, *other.m_loc)]
    for one in [one for one in pool if environments.question_key(one) not in known][:_BESIDE]:
        kind = "unrelated_text" if one.image is None else "unrelated_image"
        train[kind] = (*train.get(kind, ()), replace(one, answer=""))
    return environments.Environments(train, given.test)


def _made(
    at: Opened, request: EditRequest, given: Environments, beside: Edits, earlier: Mapping[str, str],
    was: measures.Before, settings: Settings
) -> tuple[edits.Edit, dict[str, Any]]:  # fmt: skip
    """Train and measure one edit beside others, which are asked about as `earlier` says; returns its line too."""
    name, held, own = new_id(), dict[str, Any](), request.edit
    loop = {one: getattr(settings, one) for one in ("editor", "rank", "steps", "learning_rate", "tv", "seed")}
    with edits.applied(at.model, list(beside.values())):
        then = measures.measure(at.model, at.processor, was, request.id)
        found = invariant.odedit(at.model, at.processor, given, **loop, id=name, facts={"base": at.base})
    with edits.applied(at.model, [*beside.values(), found.edit]):
        now = measures.measure(at.model, at.processor, was, request.id)
        if beside:
            again = [one for one in was.questions if one.edit in earlier and one.environment in ("edit", "text")]
            names, values = measures.measure(at.model, at.processor, replace(was, questions=tuple(again))).values()
            told = ("reliability_written", "text_generality_written")
            held = {earlier[one]: {kind: float(values[kind][i]) for kind in told} for i, one in enumerate(names)}
    scores = {when: {kind: float(one[0]) for kind, one in seen.values()[1].items() if math.isfinite(one[0])}
              for when, seen in (("before", then), ("after", now))}  # fmt: skip
    kept = {"retention_written": fmean(one["reliability_written"] for one in held.values())} if held else {}
    verdict, reasons = judge({**scores["after"], **kept}, settings, scores["before"])
    row: dict[str, Any] = {"id": request.id, "prompt": own.prompt, "target": own.answer}  # as in a file of requests
    row |= {"rephrase": [one.prompt for one in given.test.get("text", ())]}
    if own.image is not None:
        own.image.save(png := io.BytesIO(), "PNG")
        row["image"] = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    shared = {"parent": next(reversed(list(beside)), None), "scores": scores, "verdict": verdict}
    facts = {"id": name, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "request": row}
    facts["nonce"] = secrets.token_hex(16)  # who guesses the request cannot make the file, and so its SHA-256, again
    body = {
        "edit": name,
        "base": at.base,
        **shared,
        "reasons": reasons,
        "stopped": found.stopped,
        "retention": held,
        "settings": settings.as_dict(),
    }
    return replace(found.edit, facts={**found.edit.facts, **shared, **facts}), body


def _asked(edit: edits.Edit) -> Environments:
    """Return the question of an edit and its held-out wordings, from its own file."""
    from PIL import Image

    row, picture = edit.facts["request"], None
    if "image" in row:
        picture = Image.open(io.BytesIO(base64.b64decode(row["image"].partition(",")[2]))).convert("RGB")
    own = prompts.Question(row["prompt"], row["target"], picture)
    others = tuple(replace(own, prompt=one) for one in row["rephrase"])
    return environments.Environments({}, {"edit": (own,), **({"text": others} if others else {})})


# -- afterwards -----------------------------------------------------------------------------------------------------


def listing(desk: Path) -> list[dict[str, Any]]:
    """Return one row an edit, the oldest first, with texts where its file is whole."""
    rows = []
    for one in _states(receipts.standing(desk, wrote=_WROTE).lines()).values():
        row = {key: one[key] for key in ("edit", "time", "verdict", "state", "line", "scores")}
        facts: Mapping[str, Any] = {}
        with contextlib.suppress(InputError):
            facts = _facts(desk, one)
        damaged = one["file"] is not None and not facts
        rows.append({**row, "prompt": facts.get("prompt"), "target": facts.get("target"), "damaged": damaged})
    return rows


def show(desk: Path, name: str) -> dict[str, Any]:
    """Return the line of an edit, its state, and what is in its file; a rejected one has none."""
    one = _one(desk, _states(receipts.standing(desk, wrote=_WROTE).lines()), name)
    return {**one, "facts": None if one["file"] is None else _facts(desk, one)}


def revert(desk: Path, name: str, *, key: Path | None = None) -> dict[str, Any]:
    """Take an edit out of force. Its file stays; what it replaced stays out; ``later`` were made with it applied."""
    receipts.standing(desk, wrote=_WROTE)
    ledger = receipts.open_ledger(desk, key, verify=_VERIFY)
    states = _states(lines := ledger.lines())
    if (state := _one(desk, states, name)["state"]) != "in force":
        raise InputError(f"edit {name}, which is {state}", "an edit in force", _LIST)
    with _writing(desk, ledger, lines, _salt(desk, lines)):
        line = ledger.append("reverted", {"edit": name})
    order = _in_force(states)
    later = order[order.index(name) + 1 :]
    return {"edit": name, "in_force": len(order) - 1, "later": later, "line": line["n"], "head": line["hash"]}


def diff(at: Opened, name: str | None = None, *, probes: Path | None = None) -> dict[str, Any]:
    """Return answers before and after: of one edit beside those in force, else of all in force together.

    Probes are JSON lines with ``prompt``, and ``image`` as in a request; without them, what each edit is about.
    """
    own = at.some(name)
    beside = at.some(None) if name and _in_force(at.states) else {}
    both, beside = {**beside, **own}, {one: edit for one, edit in beside.items() if one not in own}
    asked = [] if probes else [one for edit in own.values() for some in _asked(edit).test.values() for one in some]
    home = Path() if probes is None else probes.resolve().parent
    for where, row in forget.object_rows(probes, "prompt, image") if probes else ():
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise InputError(f"{where} without a prompt", "prompt, and image where it is about one", "correct the line")
        image = environments.read_image(str(row["image"]), home) if row.get("image") else None
        asked.append(prompts.Question(row["prompt"], "", image))
    encoded, said = [prompts.encode(at.processor, replace(one, answer="")) for one in asked], []
    for some in (beside, {one: both[one] for one in at.states if one in both}):
        with edits.applied(at.model, list(some.values())):
            said.append(prompts.answers(at.model, at.processor, encoded))
    rows = [{"prompt": one.prompt, "pictured": one.image is not None, "before": then, "after": now}
            for one, then, now in zip(asked, *said, strict=True)]  # fmt: skip
    changed = sum(one["before"] != one["after"] for one in rows)
    return {"model": at.name, "edits": list(own), "answers": rows, "changed": changed}


def export(at: Opened, out: Path, name: str | None = None, *, merged: bool = False) -> dict[str, Any]:
    """Write one edit, or all in force together, as a new folder: an adapter of peft, or a copy of the model with it."""
    intake.refuse_place(at.desk, [at.folder], out)
    some = at.some(name)
    with at.writing():
        if merged:
            edits.merged_copy(at.model, list(some.values()), out, at.processor)
        else:
            _together(list(some.values())).to_peft(out, at.model)
        told = {"edits": list(some), "merged": merged, "weights": disk.checksum(out)}
        line = at.ledger.append("exported", told)
    return {"out": out.name, **told, "line": line["n"], "head": line["hash"]}


def _together(some: Sequence[edits.Edit]) -> edits.Edit:
    """Return edits of low rank as one, their ranks added up; else one that is no adapter, which `to_peft` refuses."""
    for one in some:
        if one.gate is not None or not all(isinstance(pair, tuple) for pair in one.factors.values()):
            return one
    parts = {site: [one.factors[site] for one in some] for site in some[0].factors}
    joined = {site: (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], 1)) for site, own in parts.items()}
    return edits.Edit(joined, some[0].facts)


def verify(
    desk: Path, *, head: str | None = None, model: Path | None = None, key: Path | None = None, mend: bool = False
) -> dict[str, Any]:
    """Check the ledger, the file of every edit against its line, and that a model folder is what they were made for.

    Returns what `Ledger.verify` does, with the first thing that is wrong as ``reason``; ``files`` that were checked;
    ``left`` by a kill; ``model`` by name where it holds; ``mended``, as of `upright.language.receipts.verify`.
    """
    ledger = receipts.standing(desk, key, wrote=_WROTE)
    mended = ledger.mend() is not None if mend else False
    found = ledger.verify(head=head)
    states, reason = _states(ledger.lines()) if found.intact else {}, found.reason
    files = [one for one in states.values() if one["file"]]
    try:
        for one in files:
            _file(desk, one)
    except InputError as error:
        reason = error.got
    if model is not None and not reason:
        own = {"weights": disk.checksum(model), "settings": disk.settings_checksum(model)}
        if any({key: one["model"][key] for key in own} != own for one in states.values()):
            reason = f"{receipts.name_of(model)} is not the folder that the edits were made for"
    return {**vars(found), "intact": not reason, "reason": reason, "mended": mended, "files": len(files),
            "left": _left(desk, states) if found.intact else [], "in_force": len(_in_force(states)),
            "model": receipts.name_of(model) if model and not reason else None}  # fmt: skip
