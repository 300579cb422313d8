"""What a sharpness-aware step costs against a plain one, and what titles cost in a language model.

    python benchmarks/eisam.py [--steps N] [--model FOLDER]

=================  ==================================================================  =====
name               what, in CPU time                                                   bar
=================  ==================================================================  =====
``sam``            SAM: a step of `EISAM` with constant weights over a plain step      2.3
``shared``         the present direction: a backward pass more                         2.75
``lagged``         the direction of the last step                                      2.1
``subset``         the same, second pass for the rarest half of the targets            1.85
``outside``        of ``lagged``: what is neither a pass nor the base's own step,      0.05
                   over the step; wall time, of steps of their own
``peer``           ``sam`` over `pytorch_optimizer.SAM`, where that is installed       1.05
``title``          CPU-s a title of `prior_scores`, 1,349 titles                       0.1
``trie``           beams within the titles over unconstrained beams                    1.3
=================  ==================================================================  =====

Steps of all kinds are interleaved, and medians are compared, on SASRec with 1,349 items, width 32, 20 places, 128
windows, a target at every place. The last two need a folder of SmolLM2 and are named as not measured without it. Exit
status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from upright.maths.sharpness_optimiser import EISAM
from upright.models.sequential import SASRec

BARS = {
    "sam": 2.3,
    "shared": 2.75,
    "lagged": 2.1,
    "subset": 1.85,
    "outside": 0.05,
    "peer": 1.05,
    "title": 0.1,
    "trie": 1.3,
}
ITEMS, PLACES, WINDOWS = 1349, 20, 128


def batches() -> tuple[list[torch.Tensor], np.ndarray]:
    """Return windows of items with a Zipf law, shape (128, 21) each, and the counts of their targets."""
    law = 1.0 / torch.arange(1, ITEMS + 1.0) ** 0.8
    draw = torch.Generator().manual_seed(0)
    found = [torch.multinomial(law.expand(WINDOWS, -1), PLACES + 1, generator=draw) for _ in range(4)]
    return found, np.bincount(torch.cat([b[:, 1:] for b in found]).flatten().numpy(), minlength=ITEMS)


class Kind:
    """A kind of step with a model of its own."""

    def __init__(self, count: np.ndarray, *, watched: bool = False, **settings: Any) -> None:
        self.model = SASRec(ITEMS, 32, length=PLACES, generator=torch.Generator().manual_seed(0))
        self.base = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.opt = EISAM(self.base, count, **settings) if settings else None
        self.watched, self.inside = watched, 0.0
        if watched:
            self.base.step = self._base_step  # type: ignore[method-assign, assignment]

    def _timed(self, f: Callable[[], Any]) -> Any:
        if not self.watched:
            return f()
        start = time.perf_counter()  # asking for CPU time costs as much as what is to be seen
        found = f()
        self.inside += time.perf_counter() - start
        return found

    def step(self, batch: torch.Tensor, masks: int) -> None:
        """Make one step; `inside` grows by what passes and the base's own step take."""
        history, target = batch[:, :-1], batch[:, 1:]
        if self.opt is None:
            self.base.zero_grad()
            self.model.target_losses(history, target, masks=masks)[0].mean().backward()
            self.base.step()
        elif self.opt.mode == "shared":
            self.opt.step(lambda: self.model.target_losses(history, target, masks=masks))
        else:
            self.opt.zero_grad()
            losses, items = self._timed(lambda: self.model.target_losses(history, target, masks=masks))
            self._timed(self.opt.plain(losses, items).backward)
            if self.opt.mode == "subset":
                target = torch.where(self.opt.selected(target), target, -1)
            with self.opt.ascent():
                losses, items = self._timed(lambda: self.model.target_losses(history, target, masks=masks))
                self._timed(self.opt.penalty(losses, items).backward)
            self.opt.merge()
            self.opt.step()

    def _base_step(self) -> Any:
        return self._timed(lambda: type(self.base).step(self.base))


class Peer(Kind):
    """SAM of `pytorch_optimizer`: two passes, the first for the direction."""

    def __init__(self, count: np.ndarray) -> None:
        super().__init__(count)
        from pytorch_optimizer import SAM

        self.peer = SAM(self.model.parameters(), torch.optim.Adam, rho=0.05, lr=1e-3)

    def step(self, batch: torch.Tensor, masks: int) -> None:
        """Make one step."""
        for last in (False, True):
            self.model.target_losses(batch[:, :-1], batch[:, 1:], masks=masks)[0].mean().backward()
            (self.peer.second_step if last else self.peer.first_step)(zero_grad=True)


def measure_steps(steps: int) -> dict[str, float]:
    """Return the ratios of medians."""
    windows, count = batches()
    kinds: dict[str, Kind] = {
        "plain": Kind(count),
        "sam": Kind(count, mode="shared", weight="constant", lam=1.0),
        **{mode: Kind(count, mode=mode) for mode in ("shared", "lagged", "subset")},
        "outside": Kind(count, mode="lagged", watched=True),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        kinds["peer"] = Peer(count)
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    outside = []
    for number in range(steps + 1):
        for name, kind in kinds.items():
            clock = time.perf_counter if kind.watched else time.process_time
            kind.inside, start = 0.0, clock()
            kind.step(windows[number % 4], number)
            if number:  # the first one warms up
                spent[name].append(clock() - start)
                outside += [1.0 - kind.inside / spent[name][-1]] if kind.watched else []
    median = {name: statistics.median(own) for name, own in spent.items()}
    found = {name: median[name] / median["plain"] for name in ("sam", "shared", "lagged", "subset")}
    found["outside"] = statistics.median(outside)
    return found | ({"peer": median["sam"] / median["peer"]} if "peer" in median else {})


def measure_titles(folder: str) -> dict[str, float]:
    """Return CPU seconds a title, and beams within the titles over beams without."""
    from upright.data.catalogue import load_split
    from upright.language.titles import TitleTrie, natural_title, prior_scores
    from upright.models.hub import load_language_model

    model, tokenizer = load_language_model(folder)
    titles = [natural_title(one) for one in load_split("ml100k").item_titles or ()]
    start = time.process_time()
    prior_scores(model, tokenizer, titles)
    spent = (time.process_time() - start) / len(titles)
    trie, prompt = TitleTrie(titles, tokenizer), tokenizer("My favourite film is", return_tensors="pt")
    held = {"prefix_allowed_tokens_fn": trie.allowed(prompt["input_ids"].shape[1])}
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for within, own in times.items():
            start = time.process_time()
            size = {"num_beams": 5, "max_new_tokens": 8, "min_new_tokens": 1 if within else 8, "do_sample": False}
            made = model.generate(**prompt, **size, **(held if within else {}))
            tokens = made.shape[1] - prompt["input_ids"].shape[1]
            own.append((time.process_time() - start) / tokens)
    return {"title": spent, "trie": statistics.median(times[True]) / statistics.median(times[False])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--model", help="folder of SmolLM2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure_steps(given.steps) | (measure_titles(given.model) if given.model else {})
    for name, bar in BARS.items():
        said = f"{found[name]:6.3f}" if name in found else "not measured"
        print(f"{name:8} {said}  (bar {bar:g})")
    return int(any(value > BARS[name] for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
