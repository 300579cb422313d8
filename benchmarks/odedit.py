"""What an edit costs: to make, to apply, to undo, and a hundred of them one after another.

    python benchmarks/odedit.py [--rounds N] [--edits N]

================  =================================================================================  ===============
name              what                                                                               bar
================  =================================================================================  ===============
``edit``          CPU time of an edit by ODEdit over that of the target alone, at equal steps        at most 4
``odedit``        the same over that of re-phrasings with KL                                         at most 1.2
``base reads``    forward passes over the questions beside those of the steps                        at most 1
``kept``          most bytes kept for backward in a step, over those of re-phrasings with KL         at most 1.3
``enter``         CPU time to enter and leave an edit, over that of a pass over 32 prompts           at most 0.05
``applied``       CPU time of that pass with a low-rank edit on, over that without                   at most 1.15
``revert``        CPU seconds in which a desk takes 50 edits out of force                            at most 1
``slope``         resident memory that each of many edits adds, the earlier ones applied, over the   at most 3
                  bytes of its own factors: Theil and Sen's slope, after the first fifth
``sites``         CPU seconds to find the sites of all image-text families, from their default       at most 120
                  configs without memory
``built``         CPU seconds to build these models                                                  none
``families``      how many can be built so                                                           none
================  =================================================================================  ===============

Edits are those of a small world of flags, which is taught in 15 CPU-seconds or taken from the cache, with two
re-phrasings, two views, four questions to keep in text, four with a picture and two about its own. Kinds are
interleaved and medians compared. Bytes kept are those of saved tensors, each once, the model's weights left out:
resident memory of so small a model is noise. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import theilslopes

from u2a import timed
from upright.contract import InputError
from upright.editing import desk, flags
from upright.editing.edits import Edit, applied
from upright.editing.environments import Environments
from upright.editing.invariant import odedit
from upright.editing.layers import sites
from upright.editing.prompts import collate, encode
from upright.experiment.folders import ArmRun
from upright.models.tiny import tiny_llama, tiny_tokenizer, transformers
from upright.tasks.edit import Edit as EditTask
from upright.tasks.edit import EditConfig

AT_MOST = {
    "edit": 4.0, "odedit": 1.2, "base reads": 1.0, "kept": 1.3, "enter": 0.05, "applied": 1.15, "revert": 1.0,
    "slope": 3.0, "sites": 120.0,
}  # fmt: skip
PRINTED = ("built", "families")
STEPS, PROMPTS, REVERTED = 20, 32, 50
ARMS: dict[str, dict[str, Any]] = {
    "ft": {"weights": (1.0, 0.0, 0.0), "tv": 0.0},
    "aug_kl": {"weights": (1.0, 1.0, 0.0), "tv": 0.0},
    "odedit": {},
}


class World:
    """A taught model and what trains one edit of it."""

    def __init__(self) -> None:
        task, run = EditTask(EditConfig(test=1, valid=0, unrelated=2)), ArmRun(None, 0, "benchmark")
        self.model, self.processor = task.model(run)
        (given,) = task.given(run).values()
        alone = {name: some for name, some in given.train.items() if name not in ("text", "image")}
        self.given = {"ft": Environments(alone, {}), "aug_kl": given, "odedit": given}
        self.known = flags.world(0, small=True)

    def edit(self, arm: str, steps: int = STEPS) -> Edit:
        """Make an edit that takes all its steps."""
        more = {"steps": steps, "warmup": 0, "target": 1.0, "budget": 1e9, "facts": {"base": ""}}
        found = odedit(self.model, self.processor, self.given[arm], **more, **ARMS[arm])
        if len(found.trace) != steps + 1:
            raise SystemExit(f"{arm} ended after {len(found.trace) - 1} steps of {steps}: not to be compared")
        return found.edit


# -- making -----------------------------------------------------------------------------------------------------------


def measure_making(world: World, rounds: int) -> dict[str, float]:
    """Return ratios of CPU time, and how often the base is read."""
    median = timed({arm: lambda arm=arm: world.edit(arm) for arm in ARMS}, rounds, time.process_time)  # type: ignore[misc]
    passes = Counter[str]()
    hook = world.model.register_forward_pre_hook(lambda *_: passes.update(("all",)))
    world.edit("odedit")
    hook.remove()
    reads = passes["all"] / 2 - (STEPS + 1)  # questions with a picture in one pass, without in another
    over = {"edit": median["odedit"] / median["ft"], "odedit": median["odedit"] / median["aug_kl"]}
    return over | {"base reads": reads}


class Kept:
    """Counts bytes of tensors that autograd keeps, a storage once; ``most`` is their largest sum."""

    def __init__(self, without: Any) -> None:
        self.without = {p.untyped_storage().data_ptr() for p in without}
        self.uses, self.now, self.most = Counter[int](), 0, 0

    def pack(self, tensor: torch.Tensor) -> Any:
        """Count a tensor until autograd drops it."""
        counts, storage = self, tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()

        class Held:
            def __init__(self) -> None:
                self.tensor = tensor
                counts.uses[place] += 1
                if counts.uses[place] == 1 and place not in counts.without:
                    counts.now += size
                    counts.most = max(counts.most, counts.now)

            def __del__(self) -> None:
                counts.uses[place] -= 1
                if counts.uses[place] == 0 and place not in counts.without:
                    counts.now -= size

        return Held()


def measure_kept(world: World) -> float:
    """Return the most bytes kept by ODEdit over those kept by re-phrasings with KL."""
    most = {}
    for arm in ("aug_kl", "odedit"):
        counts = Kept(world.model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(counts.pack, lambda held: held.tensor):
            world.edit(arm, steps=1)
        most[arm] = counts.most
    return most["odedit"] / most["aug_kl"]


# -- applying and undoing ---------------------------------------------------------------------------------------------


def measure_applied(world: World, rounds: int) -> dict[str, float]:
    """Return what entering an edit, and a pass with it on, cost in passes without."""
    draw = np.random.default_rng(0)
    asked = [q for _ in range(3) for q in flags.questions(world.known, draw, "capital", image=True, held_out=True)]
    encoded = [encode(world.processor, one) for one in asked[:PROMPTS]]
    batch, edit = collate(encoded, pad=world.processor.tokenizer.pad_token_id), world.edit("odedit", steps=1)

    def read() -> None:
        with torch.no_grad():
            for _ in range(5):
                world.model(**batch, use_cache=False)

    def read_edited() -> None:
        with edit.applied(world.model):
            read()

    def enter() -> None:
        for _ in range(5):
            with edit.applied(world.model):
                pass

    ways: dict[str, Callable[[], Any]] = {"read": read, "applied": read_edited, "enter": enter}
    median = timed(ways, 3 * rounds, time.process_time)
    return {name: median[name] / median["read"] for name in ("applied", "enter")}


def measure_revert() -> float:
    """Return the CPU seconds in which a desk of a model of text alone takes its edits out of force."""
    rows = [{"prompt": f"what is the name of thing {i}?", "target": f"word {i + 1}"} for i in range(REVERTED)]
    tokenizer = tiny_tokenizer([f"{row['prompt']} {row['target']}" for row in rows], vocabulary=300)
    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder) / "desk", Path(folder) / "model"
        transformers().utils.logging.disable_progress_bar()
        tiny_llama(tokenizer).save_pretrained(model)
        tokenizer.save_pretrained(model)
        (requests := Path(folder) / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        free = desk.Settings(steps=1, reliability=0.0, generality=0.0, locality=0.0, retention=0.0)
        with contextlib.redirect_stderr(io.StringIO()):
            made = desk.apply(desk.Opened(place, model, device="cpu"), requests, settings=free)["edits"]
        start = time.process_time()
        for one in reversed(made):
            desk.revert(place, one["edit"])
        return time.process_time() - start


def measure_slope(world: World, edits: int) -> float | None:
    """Return how resident memory grows from edit to edit, in the bytes of one; nothing where it cannot be read."""
    status, made, seen = Path("/proc/self/statm"), list[Edit](), list[float]()
    if not status.exists():
        return None
    for _ in range(edits):
        with applied(world.model, made):
            made.append(world.edit("odedit", steps=2))
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what was freed and not given back is no growth
        seen.append(float(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    own = sum(t.numel() * t.element_size() for some in made[0].factors.values() for t in some)
    return float(theilslopes(seen[edits // 5 :])[0]) / own


# -- families ---------------------------------------------------------------------------------------------------------


def measure_sites() -> dict[str, float]:
    """Return CPU seconds over all image-text families of transformers."""
    library = transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as REGISTERED

    library.utils.logging.set_verbosity_error()
    found = {"sites": 0.0, "built": 0.0, "families": 0.0}
    for name in REGISTERED:
        start = time.process_time()
        try:
            with warnings.catch_warnings(action="ignore"), torch.device("meta"):
                model = library.AutoModelForImageTextToText.from_config(library.CONFIG_MAPPING[name]())
        except Exception:  # default configs that lack a size, or families that want another package
            continue
        built = time.process_time()
        with contextlib.suppress(InputError):
            sites(model)
        found["sites"] += time.process_time() - built
        found["built"] += built - start
        found["families"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--edits", type=int, default=100, help="one after another, for the slope")
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = World()
    found = measure_making(world, given.rounds) | measure_applied(world, given.rounds)
    found |= {"kept": measure_kept(world)}
    if (slope := measure_slope(world, given.edits)) is not None:
        found["slope"] = slope
    found |= {"revert": measure_revert()} | measure_sites()
    for name in (*AT_MOST, *PRINTED):
        said = f"{found[name]:9.3g}" if name in found else "not measured"
        print(f"{name:12} {said}" + (f"  (at most {AT_MOST[name]:g})" if name in AT_MOST else ""))
    return int(any(found[name] > bar for name, bar in AT_MOST.items() if name in found))


if __name__ == "__main__":
    sys.exit(main())
