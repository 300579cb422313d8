"""What a sharpness-aware step costs against a plain one, and what titles cost in a language model.

    python benchmarks/eisam.py [--steps N] [--model FOLDER]

=================  ==================================================================  =====
name               what, in CPU time but for ``memory``                                bar
=================  ==================================================================  =====
``sam``            SAM: a step of `EISAM` with constant weights over a plain step      2.3
``shared``         the present direction: a backward pass more                         2.75
``lagged``         the direction of the last step                                      2.1
``subset``         the same, second pass for the rarest half of the targets            1.85
``outside``        of ``lagged``: what is neither a pass nor the base's own step,      0.05
                   over the step; wall time, of steps of their own
``memory``         of ``lagged``: most that is held beyond the base optimiser, in      3.05
                   copies of the trainable parameters
``peer``           ``sam`` over `pytorch_optimizer.SAM`, where that is installed       1.05
``title``          CPU-s a title of `prior_scores`, 1,349 titles                       0.1
``trie``           beams within the titles over unconstrained beams                    1.3
``lm shared`` ...  the same three steps, adapters in all layers of SmolLM2, batches    2.75,
                   of 4 sequences of 128 tokens                                        2.1,
                                                                                       1.65
=================  ==================================================================  =====

Steps of all kinds are interleaved, and medians are compared, on SASRec with 1,349 items, width 32, 20 places, 128
windows, a target at every place. The last ones need a folder of SmolLM2 and are named as not measured without it. Exit
status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
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
    "memory": 3.05,
    "peer": 1.05,
    "title": 0.1,
    "trie": 1.3,
    "lm shared": 2.75,
    "lm lagged": 2.1,
    "lm subset": 1.65,
}
ITEMS, PLACES, WINDOWS = 1349, 20, 128
Batch = tuple[torch.Tensor, torch.Tensor, int]
Losses = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


def batches() -> tuple[list[torch.Tensor], np.ndarray]:
    """Return windows of items with a Zipf law, shape (128, 21) each, and the counts of their targets."""
    law = 1.0 / torch.arange(1, ITEMS + 1.0) ** 0.8
    draw = torch.Generator().manual_seed(0)
    found = [torch.multinomial(law.expand(WINDOWS, -1), PLACES + 1, generator=draw) for _ in range(4)]
    return found, np.bincount(torch.cat([b[:, 1:] for b in found]).flatten().numpy(), minlength=ITEMS)


def sequential(model: SASRec) -> Losses:
    """Return losses and items of a batch of histories, targets and a number of masks."""
    return lambda batch: model.target_losses(*batch[:2], masks=batch[2])


class Kind:
    """A kind of step with a model of its own; `halved` leaves the targets of a batch that take the second pass."""

    def __init__(
        self,
        model: torch.nn.Module,
        losses: Losses,
        count: np.ndarray,
        halved: Callable[[Batch, Callable[[torch.Tensor], torch.Tensor]], Batch],
        *,
        watched: bool = False,
        **settings: Any,
    ) -> None:
        self.model, self.losses, self.halved = model, losses, halved
        self.base = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        self.opt = EISAM(self.base, count, **settings) if settings else None
        self.watched, self.inside, self.held = watched, 0.0, 0
        if watched:
            self.base.step = self._base_step  # type: ignore[method-assign, assignment]

    def _timed(self, f: Callable[[], Any]) -> Any:
        if not self.watched:
            return f()
        start = time.perf_counter()  # asking for CPU time costs as much as what is to be seen
        found = f()
        self.inside += time.perf_counter() - start
        return found

    def step(self, batch: Batch, *, weigh: bool = False) -> None:
        """Make one step; `inside` grows by what passes and the base's own step take, `held` is the memory then."""
        if self.opt is None:
            self.base.zero_grad()
            self.losses(batch)[0].mean().backward()
            self.held = bytes_held() if weigh else 0
            self.base.step()
        elif self.opt.mode == "shared":
            self.opt.step(lambda: self.losses(batch))
        else:
            self.opt.zero_grad()
            losses, items = self._timed(lambda: self.losses(batch))
            self._timed(self.opt.plain(losses, items).backward)
            if self.opt.mode == "subset":
                batch = self.halved(batch, self.opt.selected)
            with self.opt.ascent():
                losses, items = self._timed(lambda: self.losses(batch))
                self._timed(self.opt.penalty(losses, items).backward)
                self.held = bytes_held() if weigh else 0
            self.opt.merge()
            self.opt.step()

    def _base_step(self) -> Any:
        return self._timed(lambda: type(self.base).step(self.base))


def bytes_held() -> int:
    """Return the bytes of all tensors that Python reaches, each place of memory once."""
    seen = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    seen += [one.grad for one in seen if one.is_leaf and one.grad is not None]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in seen}.values())


def without_rest(batch: Batch, selected: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Leave the selected targets at their places."""
    history, target, masks = batch
    return history, torch.where(selected(target), target, -1), masks


def of_sasrec(count: np.ndarray, width: int = 32, **settings: Any) -> Kind:
    """Return a kind of step on a fresh SASRec."""
    model = SASRec(ITEMS, width, length=PLACES, generator=torch.Generator().manual_seed(0))
    return Kind(model, sequential(model), count, without_rest, **settings)


class Peer(Kind):
    """SAM of `pytorch_optimizer`: two passes, the first for the direction."""

    def __init__(self, count: np.ndarray) -> None:
        model = SASRec(ITEMS, 32, length=PLACES, generator=torch.Generator().manual_seed(0))
        super().__init__(model, sequential(model), count, without_rest)
        from pytorch_optimizer import SAM

        self.peer = SAM(self.model.parameters(), torch.optim.Adam, rho=0.05, lr=1e-3)

    def step(self, batch: Batch, *, weigh: bool = False) -> None:
        """Make one step."""
        for last in (False, True):
            self.losses(batch)[0].mean().backward()
            (self.peer.second_step if last else self.peer.first_step)(zero_grad=True)


def interleaved(kinds: dict[str, Kind], batch: Callable[[int], Batch], steps: int) -> tuple[dict[str, float], float]:
    """Return the median of each kind's steps in seconds, and the share outside of passes of the one that is watched."""
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    outside = []
    for number in range(steps + 1):
        for name, kind in kinds.items():
            clock = time.perf_counter if kind.watched else time.process_time
            kind.inside, start = 0.0, clock()
            kind.step(batch(number))
            if number:  # the first one warms up
                spent[name].append(clock() - start)
                outside += [1.0 - kind.inside / spent[name][-1]] if kind.watched else []
    share = statistics.median(outside) if outside else 0.0
    return {name: statistics.median(own) for name, own in spent.items()}, share


def measure_steps(steps: int) -> dict[str, float]:
    """Return the ratios of medians, and the memory of a step."""
    windows, count = batches()

    def batch(number: int) -> Batch:
        return windows[number % 4][:, :-1], windows[number % 4][:, 1:], number

    held = []
    for settings in ({}, {"mode": "lagged"}):
        kind = of_sasrec(count, 256, **settings)
        for number in range(2):  # a direction is held from the second step on
            kind.step(batch(number), weigh=True)
        held.append(kind.held / sum(p.numel() * p.element_size() for p in kind.model.parameters()))
        del kind
        gc.collect()
    kinds: dict[str, Kind] = {
        "plain": of_sasrec(count),
        "sam": of_sasrec(count, mode="shared", weight="constant", lam=1.0),
        **{mode: of_sasrec(count, mode=mode) for mode in ("shared", "lagged", "subset")},
        "outside": of_sasrec(count, mode="lagged", watched=True),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        kinds["peer"] = Peer(count)
    median, outside = interleaved(kinds, batch, steps)
    found = {name: median[name] / median["plain"] for name in ("sam", "shared", "lagged", "subset")}
    found |= {"outside": outside, "memory": held[1] - held[0]}
    return found | ({"peer": median["sam"] / median["peer"]} if "peer" in median else {})


def measure_language(folder: str, steps: int = 5) -> dict[str, float]:
    """Return ratios of medians for adapters in all layers of a language model."""
    from peft import LoraConfig

    from upright.language.adapters import adapted
    from upright.language.logprobs import token_log_probs
    from upright.models.hub import load_language_model

    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 40000, (4, 128), generator=draw)
    count = np.array([40, 40, 2, 1])  # of four items, each with one sequence; half of them take a second pass

    def rows(batch: Batch, selected: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        on = selected(batch[1])
        return batch[0][on], batch[1][on], batch[2]

    def kind(**settings: Any) -> Kind:
        config = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
        model = adapted(load_language_model(folder)[0], config, seed=0, checkpointing=False)

        def losses(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            labels = batch[0].clone()
            labels[:, 0] = -100
            log_probs, mask = token_log_probs(model(input_ids=batch[0]).logits, labels, dtype=torch.float64)
            return -log_probs.sum(dim=1) / mask.sum(dim=1), batch[1]

        return Kind(model, losses, count, rows, **settings)

    modes = ("shared", "lagged", "subset")
    kinds = {"plain": kind(), **{mode: kind(mode=mode) for mode in modes}}
    median, _ = interleaved(kinds, lambda number: (tokens, torch.arange(4), number), steps)
    return {f"lm {mode}": median[mode] / median["plain"] for mode in modes}


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
    found = measure_steps(given.steps)
    if given.model:
        found |= measure_titles(given.model) | measure_language(given.model)
    for name, bar in BARS.items():
        said = f"{found[name]:6.3f}" if name in found else "not measured"
        print(f"{name:9} {said}  (bar {bar:g})")
    return int(any(value > BARS[name] for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
