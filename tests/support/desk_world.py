"""A tiny model with its files, a finished request, a search for what a text gives away: for tests of the desk."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from upright.data.forget import tofu_records
from upright.language import attacks, desk, disk, intake, measures, pages, receipts, remedies
from upright.language.encoding import encode_all
from upright.language.pretraining import teach
from upright.models.tiny import tiny_llama, tiny_tokenizer

ROOT = Path(desk.__file__).parent
FAST = desk.Settings(
    learning_rate=1e-3, epochs=3, batch_size=8, sampling="uniform", rouge=False, utility_floor=0.5, relearn_steps=0
)


def write_records(path: Path, records, **changes) -> Path:
    rows = [
        {"question": r.prompt, "answer": r.answer, "id": r.id, "paraphrased_answer": list(r.paraphrases[:1]),
         "perturbed_answer": list(r.perturbed[:2]), **changes}
        for r in records
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class World:
    """What a user has: a model, a reference, files."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        folder = self.root / name
        return folder if folder.is_dir() else self.root / f"{name}.jsonl"


def make_world(root: Path) -> World:
    """Train the two models and write the files."""
    everything = tofu_records()
    forget, retain, unseen = everything[:10], everything[20:34], everything[800:808]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in everything[:40]], vocabulary=400)
    for name, records in (("model", [*forget, *retain]), ("reference", retain)):
        model = tiny_llama(tokenizer, hidden=24, layers=2, heads=2, context=256)
        teach(model, encode_all(tokenizer, records), epochs=35, batch_size=8, learning_rate=1e-2)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for name, records in (("forget", forget), ("retain", retain), ("holdout", unseen)):
        write_records(root / f"{name}.jsonl", records)
    return World(root)


_MADE: dict[str, object] = {}


def world_of(factory) -> World:
    """Make the world once for all files of tests."""
    if "world" not in _MADE:
        _MADE["world"] = make_world(factory.mktemp("world"))
    return _MADE["world"]


def finished_of(factory) -> tuple[Path, dict]:
    """One request with everything given, and what it returned; made once."""
    if "finished" not in _MADE:
        world, place = world_of(factory), factory.mktemp("finished")
        more = {"reference": world.reference, "holdout": world.holdout, "settings": FAST.replace(sampling="difficulty")}
        found = start(world, place, **more)
        _MADE["finished"] = place, found
    return _MADE["finished"]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def start(world, place, **changes):
    """Unlearn, with what is changed."""
    given = {"model": world.model, "forget": world.forget, "retain": world.retain, "out": place / "new",
             "desk": place / "desk", "settings": FAST, **changes}  # fmt: skip
    return desk.unlearn(given.pop("model"), given.pop("forget"), given.pop("retain"), **given)


def no_training(request, given, *_):
    """Stand in for training: all logits shrink a little, so that something moved."""
    with torch.no_grad():
        given.speaker.model.model.norm.weight.mul_(0.98)
    return None, {"reasons": [], "facts": {"steps": 0, "stopped": ""}, "warnings": []}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


@functools.cache
def vocabulary() -> frozenset[str]:
    """What the desk itself can say, and the words of the settings."""
    modules = (desk, disk, intake, remedies, attacks, measures, pages, receipts)
    files = [*(Path(m.__file__) for m in modules),
             ROOT / "difficulty.py", ROOT / "trainer.py", ROOT.parent / "metrics" / "membership.py"]  # fmt: skip
    return frozenset(w for file in files for w in words(file.read_text()))


def telling(text: str, records, known: set[str] = frozenset()) -> list[str]:
    """Return what a text gives away of records: three words in a row, or a word that the desk does not use itself."""
    own = words(text)
    runs, single = set(zip(own, own[1:], own[2:], strict=False)), set(own)
    found = []
    for record in records:
        for part in (record.prompt, record.answer, *record.paraphrases, *record.perturbed):
            theirs = words(part)
            found += [" ".join(run) for run in zip(theirs, theirs[1:], theirs[2:], strict=False) if run in runs]
            found += [w for w in theirs if len(w) > 3 and not w.isdigit() and w in single and w not in known]
    return found


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, float) else []
