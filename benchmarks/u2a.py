"""What scores of negative examples cost against one backward pass a record, and how exact they are.

    python benchmarks/u2a.py [--rounds N] [--model FOLDER]

=======================  ==========================================================================  ==============
name                     what, CPU time of one-record backward over that of it, in one run           bar
=======================  ==========================================================================  ==============
``products``             tiny Llama with adapters, batches of 16                                     at least 1.8
``products full``        the same, all weights                                                       none
``products lm``          SmolLM2 with adapters, records of about 29 tokens                           at least 1.3
``products lm chat``     the same in its chat form, about 57 tokens                                  none
``... error``            largest difference from one-record backward over the largest score          at most 1e-5
``eight``, ``eight full``  CPU time of 8 directions over that of one: adapters, all weights          at most 1.4,
                                                                                                     2.2
``forwards``, ``... full``  central differences of two steps, tiny Llama                            at least 2.0
``forwards lm``          SmolLM2 with adapters                                                       none
``... error``            as above                                                                    at most 1e-3,
                                                                                                     ``lm``: none
``... rank``             1 - Spearman's correlation with one-record backward                         at most 1e-3,
                                                                                                     ``lm``: none
``memory``               most memory during differences over that of one forward pass without        at most 1.1
                         gradients and one copy of the trainable weights; all weights
``cg``                   CPU time of ten steps of conjugate gradients on a fixed batch of 16, in     at most 40
                         forward-backward passes of that batch
``products cuda``        ``products lm`` in wall time on an accelerator, where there is one          none
=======================  ==========================================================================  ==============

Logits are taken at answer tokens alone in all of them. Kinds are interleaved and medians compared. What needs SmolLM2
takes it from a folder or from the cache, and is named as not measured without it. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.attention import SDPBackend, sdpa_kernel

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.adapters import adapted
from upright.language.directions import Directional, directional, trainable
from upright.language.encoding import Encoded, collate, encode_all, pad_of
from upright.language.logprobs import sample_means, token_log_probs
from upright.language.pretraining import teach
from upright.language.reader import read_answers
from upright.maths.bilevel import solve
from upright.models.hub import load_language_model, smollm2
from upright.models.tiny import tiny_llama, tiny_tokenizer

AT_LEAST = {"products": 1.8, "products lm": 1.3, "forwards": 2.0, "forwards full": 2.0}
AT_MOST = {
    **{f"{name} error": 1e-5 for name in ("products", "products full", "products lm")},
    "eight": 1.4,
    "eight full": 2.2,
    **{f"forwards{kind} {what}": 1e-3 for kind in ("", " full") for what in ("error", "rank")},
    "memory": 1.1,
    "cg": 40.0,
}
PRINTED = ("products full", "products lm chat", "forwards lm", "forwards lm error", "forwards lm rank", "products cuda")
ACTS = ("open", "clean", "paint", "move", "lift", "fold", "sell", "wash", "hide", "mend")
THINGS = ("lamp", "door", "clock", "chair", "fence", "tower", "bridge", "engine", "mirror", "basket", "ladder")
WORDS = ("slowly", "with", "a", "rope", "from", "the", "attic", "before", "noon", "and", "never", "alone", "or", "old")


def texts(n: int, seed: int) -> list[Record]:
    """Return questions with answers of 6 to 26 words."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        act, thing = draw.choice(ACTS), draw.choice(THINGS)
        rest = " ".join(draw.choice(WORDS, draw.integers(2, 22)))
        found.append(Record(f"How do I {act} the {thing}?", f"You {act} the {thing} {rest}."))
    return found


class World:
    """A model, its pool, and gradients of a preference objective by blocks."""

    def __init__(self, model: Any, tokenizer: Any, n: int, template: Any = "plain") -> None:
        self.model, self.pad = model, pad_of(tokenizer)
        given = [texts(n, 1), texts(16, 2), texts(16, 3)]
        self.pool, chosen, rejected = (encode_all(tokenizer, records, template=template) for records in given)
        own = trainable(model)
        grads = []
        for k in range(8):  # at the start model grad J is a mean of c_chosen - c_rejected
            value = self.losses(rejected[2 * k : 2 * k + 2]).sum() - self.losses(chosen[2 * k : 2 * k + 2]).sum()
            grads.append(torch.autograd.grad(value, list(own.values()), materialize_grads=True))
        self.directions = {name: torch.stack(parts) for name, parts in zip(own, zip(*grads, strict=True), strict=True)}

    def losses(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Return the mean log-probability of each answer, with its graph."""
        batch = collate(encoded, self.pad)
        labels = batch.pop("labels")
        return sample_means(*token_log_probs(self.model(**batch, use_cache=False).logits, labels))

    def scores(self, how: str, directions: int = 1) -> Directional:
        """Score the pool."""
        some = {name: v[:directions] for name, v in self.directions.items()}
        return directional(self.model, self.pool, some, loss="ga", how=how, batch_size=16, pad=self.pad)  # type: ignore[arg-type]


def adapters(model: Any) -> Any:
    """Return a model with adapters that already do something."""
    from peft import LoraConfig

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = adapted(model, config, seed=0, checkpointing=False).eval()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.01 * torch.randn(parameter.shape, generator=draw))
    return model


def tiny(n: int = 96) -> tuple[World, World]:
    """Return the tiny model with adapters and with all its weights."""
    records = texts(200, 0)
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=1024)
    found = []
    for kind in (adapters, lambda model: model):
        model = tiny_llama(tokenizer)
        teach(model, encode_all(tokenizer, records), epochs=2)
        found.append(World(kind(model), tokenizer, n))
    return found[0], found[1]


def timed(kinds: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the median time of each, interleaved; a round before them warms up where there are several."""
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + (rounds > 1)):
        for name, call in kinds.items():
            start = clock()
            call()
            if number or rounds == 1:
                spent[name].append(clock() - start)
    return {name: statistics.median(own) for name, own in spent.items()}


def measure_world(world: World, kind: str, rounds: int, eight: str = "") -> dict[str, float]:
    """Return ratios and errors for one model."""
    exact = world.scores("backward").score[:, 0]
    found = {}
    for how in ("products", "forwards"):
        score = world.scores(how).score[:, 0]
        found[f"{how}{kind} error"] = float(np.abs(score - exact).max() / np.abs(exact).max())
        found[f"{how}{kind} rank"] = 1.0 - float(spearmanr(score, exact).statistic)
    ways: dict[str, Callable[[], Any]] = {
        how: lambda how=how: world.scores(how)  # type: ignore[misc]
        for how in ("backward", "products", "forwards")
    }
    if eight:
        ways["eight"] = lambda: world.scores("products", 8)
    median = timed(ways, rounds, time.process_time)
    found |= {f"{how}{kind}": median["backward"] / median[how] for how in ("products", "forwards")}
    return found | ({eight: median["eight"] / median["products"]} if eight else {})


def most_memory(call: Callable[[], Any]) -> int:
    """Return the most bytes that torch holds beyond what it holds before a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(changes).max())


def measure_memory(world: World) -> float:
    """Return the memory of differences over what they should need."""
    pass_alone = most_memory(lambda: read_answers(world.model, world.pool, pad=world.pad, batch_size=16))
    copy = sum(p.numel() * p.element_size() for p in trainable(world.model).values())
    return most_memory(lambda: world.scores("forwards")) / (pass_alone + copy)


def measure_cg(world: World, rounds: int) -> float:
    """Return ten steps of conjugate gradients in forward-backward passes."""
    own = list(trainable(world.model).values())
    shapes = [p.shape for p in own]
    g = torch.cat([v[0].flatten() for v in world.directions.values()])
    batch = world.pool[:16]

    def parts(x: torch.Tensor) -> list[torch.Tensor]:
        return [one.view(s) for one, s in zip(x.split([s.numel() for s in shapes]), shapes, strict=True)]

    def step() -> None:
        torch.autograd.grad(world.losses(batch).mean(), own)

    def run() -> None:
        grads = torch.autograd.grad(-world.losses(batch).mean(), own, create_graph=True)

        def hvp(x: torch.Tensor) -> torch.Tensor:
            found = torch.autograd.grad(grads, own, parts(x), retain_graph=True, materialize_grads=True)
            return torch.cat([one.flatten() for one in found])

        solve(hvp, g, how="cg", damping=10.0, steps=10)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        median = timed({"cg": run, "step": step}, rounds, time.process_time)
    return median["cg"] / median["step"]


def measure_cuda(folder: str) -> float:
    """Return the ratio in wall time on an accelerator."""
    model, tokenizer = load_language_model(folder)
    world = World(adapters(model), tokenizer, 96)
    world.model.to("cuda")

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    ways = ("backward", "products")
    median = timed({how: lambda how=how: world.scores(how) for how in ways}, 3, clock)  # type: ignore[misc]
    return median["backward"] / median["products"]


def folder_of(given: str | None) -> str | None:
    """Return the folder of SmolLM2, from the cache where none is named."""
    try:
        return given or str(smollm2())
    except InputError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="folder of SmolLM2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    adapter, full = tiny()
    found = measure_world(adapter, "", given.rounds, "eight") | measure_world(full, " full", given.rounds, "eight full")
    found |= {"memory": measure_memory(full), "cg": measure_cg(adapter, given.rounds)}
    if folder := folder_of(given.model):
        model, tokenizer = load_language_model(folder)
        own = adapters(model)
        found |= measure_world(World(own, tokenizer, 64), " lm", 1)
        chat = World(own, tokenizer, 64, "chat")
        median = timed(
            {how: lambda how=how: chat.scores(how) for how in ("backward", "products")}, 1, time.process_time
        )  # type: ignore[misc]
        found["products lm chat"] = median["backward"] / median["products"]
        if torch.cuda.is_available():
            found["products cuda"] = measure_cuda(folder)
    for name in (*AT_LEAST, *AT_MOST, *PRINTED):
        said = f"{found[name]:9.3g}" if name in found else "not measured"
        bar = f"  (at least {AT_LEAST[name]:g})" if name in AT_LEAST else ""
        print(f"{name:20} {said}{bar}" + (f"  (at most {AT_MOST[name]:g})" if name in AT_MOST else ""))
    low = any(found[name] < bar for name, bar in AT_LEAST.items() if name in found)
    return int(low or any(found[name] > bar for name, bar in AT_MOST.items() if name in found))


if __name__ == "__main__":
    sys.exit(main())
