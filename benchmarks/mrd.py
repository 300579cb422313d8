"""What MRD scoring costs, how far its ranking can be trusted, and where its default noise comes from.

    python benchmarks/mrd.py [--model FOLDER] [--records 40] [--pairs 4] [--only speed,peer,memory,sigma,ranks]

Without a model, tiny Llamas are trained from scratch on 100 records of TOFU: AdamW at 3e-3 with a cosine to 0, batches
of 10, 50 epochs (20 CPU seconds) for the one that knows them by heart. Times are CPU seconds of one thread.

(a) speed: the in-place engine against noise for every batch and pass, batches of 4, equal scores. Goal: 1.7 times.
(b) peer: ours at its default target of reliability against the scheme of the public re-implementation, written here
    from its description (mean of absolute values, sigma = 1e-5, batches of 4, noise drawn for every batch with
    randn_like, kept in a list, added and subtracted, all logits in float32, log-probabilities held at 1e-6 from 0).
    How many of its draws reach the same split-half reliability, and the same agreement with a long antithetic
    reference? Goal: 3 times.
(c) memory: highest resident memory during scoring over that with the model loaded, by engine, each in a process of its
    own with a Llama of 108 million parameters. Goal: at most 1.1 for hooks.
(d) sigma: the ratio of scores at twice the noise, by relative noise and model; the default is the largest c that keeps
    4 within 10 % on all of them.
(e) ranks: Spearman correlation between two seeds, 8 draws, and with a reference of 48 pairs at 3e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from upright.data.forget import tofu_records
from upright.language.difficulty import DEFAULT_SIGMA, reliability, score_difficulty, spearman
from upright.language.encoding import Encoded, collate, encode_all
from upright.language.engines import InPlaceEngine, noisy_parameters
from upright.language.logprobs import token_log_probs
from upright.language.noise import rms
from upright.language.reader import Reader
from upright.models.tiny import tiny_llama, tiny_tokenizer

BATCH, WIDE = 4, 32
PARTS = ("speed", "peer", "memory", "sigma", "ranks")


def train(model: Any, encoded: Sequence[Encoded], epochs: int, *, uneven: bool = False) -> Any:
    """Teach a model its records, each 1 to 4 times an epoch where exposure is uneven."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    rng = np.random.default_rng(0)
    times = rng.integers(1, 5, len(encoded)) if uneven else np.ones(len(encoded), dtype=int)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 + np.cos(np.pi * epoch / epochs)) / 2
        order = rng.permutation(np.repeat(np.arange(len(encoded)), times))
        for at in range(0, len(order), 10):
            inputs = collate([encoded[i] for i in order[at : at + 10]], 0, scope="sequence")
            log_probs, mask = token_log_probs(model(**inputs, use_cache=False).logits, inputs.pop("labels"))
            optimizer.zero_grad()
            (-log_probs.sum() / mask.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


def clock(call: Any) -> tuple[float, Any]:
    """Return CPU seconds and what the call gave."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def verdict(value: float, goal: float, *, most: bool = False) -> str:
    """Say whether a goal is met."""
    return f"goal {goal:g}: {'met' if (value <= goal if most else value >= goal) else 'missed'}"


# -- (a) -----------------------------------------------------------------------------------------------------------


def per_batch(model: Any, encoded: Sequence[Encoded], probes: int, law: str) -> np.ndarray:
    """Return signed scores with batches outside and noise inside: every pass of every batch draws all of it."""
    sigmas = {n: float(DEFAULT_SIGMA[4:]) * rms(t) for n, t in noisy_parameters(model).items()}
    reader = Reader(model, encoded, scope="answer", batch_size=BATCH, pad=0)
    signed = np.zeros(len(encoded))
    with torch.no_grad(), InPlaceEngine(model, sigmas, seed=0, law=law) as engine:
        base = {}
        for b, batch in enumerate(reader.batches):  # before any noise
            base[b] = reader.read_batch(engine.forward, batch)
        for b, batch in enumerate(reader.batches):
            starts = np.concatenate([[0], np.cumsum(reader.tokens[batch])])[:-1]
            for k in range(probes):
                for sign in (1.0, -1.0):
                    engine.at = None  # no second half out of the first
                    with engine.noisy(k, sign):
                        moved = reader.read_batch(engine.forward, batch)
                    signed[batch] += np.add.reduceat((base[b] - moved) / base[b], starts) / 2
    return signed / probes


def speed(model: Any, encoded: Sequence[Encoded], pairs: int) -> None:
    print(f"\n(a) noise outside against noise for every batch; {len(encoded)} samples, batch {BATCH}, {pairs} pairs")
    for law in ("gaussian", "rademacher"):
        ours, found = clock(lambda law=law: score_difficulty(
            model, encoded, probes=pairs, noise=law, batch_size=BATCH, engine="inplace", check_scaling=False
        ))  # fmt: skip
        theirs, other = clock(lambda law=law: per_batch(model, encoded, pairs, law))
        hooks, _ = clock(lambda law=law: score_difficulty(
            model, encoded, probes=pairs, noise=law, batch_size=BATCH, engine="hook", check_scaling=False
        ))  # fmt: skip
        wide, _ = clock(lambda law=law: score_difficulty(
            model, encoded, probes=pairs, noise=law, batch_size=WIDE, engine="inplace", check_scaling=False
        ))  # fmt: skip
        apart = float(np.max(np.abs(found.signed - other)) / np.max(np.abs(other)))
        print(f"  {law:10}  in place {ours:6.2f} s   per batch {theirs:6.2f} s   {theirs / ours:4.2f} times, "
              f"{verdict(theirs / ours, 1.7)}; scores apart by {apart:.1e}; hooks {hooks:6.2f} s")  # fmt: skip
        print(f"  {'':10}  in place with batches of {WIDE}, which noise outside allows at no cost: {wide:6.2f} s, "
              f"{theirs / wide:4.2f} times")  # fmt: skip


# -- (b) -----------------------------------------------------------------------------------------------------------


def peer(model: Any, encoded: Sequence[Encoded], draws: int, sigma: float = 1e-5) -> tuple[np.ndarray, float]:
    """Return changes (K, n) and CPU seconds of the re-implementation's scheme, on a copy of the weights' values."""
    saved = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    values = np.zeros((draws, len(encoded)))
    spent = time.process_time()
    with torch.no_grad():
        for at in range(0, len(encoded), BATCH):
            inputs = collate(encoded[at : at + BATCH], 0, scope="sequence")
            labels = inputs.pop("labels")

            def log_probs(inputs: Any = inputs, labels: Any = labels) -> torch.Tensor:
                logits = model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                return logits.gather(2, labels[:, 1:].clamp_min(0)[..., None])[..., 0]

            base, mask = log_probs(), labels[:, 1:] != -100
            for k in range(draws):
                noise = [torch.randn(p.shape, generator=generator) * sigma for p in model.parameters()]
                for p, z in zip(model.parameters(), noise, strict=True):
                    p.add_(z)
                change = (base - log_probs()) / -base.abs().clamp_min(1e-6)
                for p, z in zip(model.parameters(), noise, strict=True):
                    p.sub_(z)
                values[k, at : at + BATCH] = (change * mask).sum(1).numpy()
        spent = time.process_time() - spent
        for n, p in model.named_parameters():
            p.copy_(saved[n])
    return values, spent


def first_to_reach(curve: dict[int, float], goal: float) -> int | None:
    """Return the smallest number of draws that reaches a goal."""
    return next((k for k, v in curve.items() if v >= goal), None)


def against_peer(model: Any, encoded: Sequence[Encoded], draws: int = 128) -> None:
    reference = score_difficulty(
        model, encoded, sigma="rel:5e-3", probes=64, seed=99, scope="sequence", check_scaling=False
    )
    spent, ours = clock(lambda: score_difficulty(model, encoded, scope="sequence", batch_size=BATCH, engine="inplace"))
    truth = spearman(ours.mrd, reference.mrd)
    print(f"\n(b) ours: {ours.probes} pairs, {ours.passes} passes, {spent:.2f} CPU s: reliability "
          f"{ours.reliability:.3f}, Spearman with the reference {truth:.3f}")  # fmt: skip
    values, total = peer(model, encoded, draws)
    ks = [k for k in (2, 4, 8, 16, 32, 64, 128, 256) if k <= draws]
    own = {k: reliability(values[:k], "mean_abs") for k in ks}
    agreed = {k: spearman(np.abs(values[:k]).mean(0), reference.mrd) for k in ks}
    plain = {k: spearman(np.abs(values[:k].mean(0)), reference.mrd) for k in ks}
    print("    peer, draws                " + "".join(f"{k:>8}" for k in ks))
    for name, curve in (("reliability", own), ("Spearman with reference", agreed), ("  with abs outside", plain)):
        print(f"    {name:26} " + "".join(f"{v:8.3f}" for v in curve.values()))
    print(f"    {'CPU seconds':26} " + "".join(f"{total * k / draws:8.2f}" for k in ks))
    for name, curve, goal in (("reliability", own, ours.reliability), ("agreement with the reference", agreed, truth)):
        k = first_to_reach(curve, goal)
        if k is None:
            least = total / spent
            print(f"    at equal {name}: not reached with {draws} draws, which cost {least:.1f} times ours")
        else:
            ratio = total * k / draws / spent
            print(f"    at equal {name}: {k} draws, {ratio:.1f} times ours, {verdict(ratio, 3)}")


# -- (c) -----------------------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(field))  # fmt: skip


def memory_child(engine: str) -> None:
    """Score two short batches with a Llama of 108 million parameters and print bytes as JSON."""
    records = tofu_records()[:4]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=2048)
    small = tiny_llama(tokenizer, hidden=32, layers=1)
    encoded = encode_all(tokenizer, records)
    score = {"hook": "hook", "inplace": "inplace"}.get(engine)
    score_difficulty(small, encoded, probes=1, batch_size=2, engine=score or "inplace")  # what torch itself keeps
    model = tiny_llama(tokenizer, hidden=1024, layers=8, heads=16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    now = resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        print("the high-water mark includes the making of the model", file=sys.stderr)
    if score:
        score_difficulty(model, encoded, probes=1, batch_size=2, engine=score, check_scaling=False)
    else:
        peer(model, encoded, 1)
    print(json.dumps({"model": size, "extra": resident("VmHWM") - now}))


def memory() -> None:
    print(
        "\n(c) resident memory over a loaded model of 4-byte weights, batches of 2; the peer keeps a list of noise, and"
    )
    print("    here the copy that puts its drift right")
    for engine in ("hook", "inplace", "peer"):
        out = subprocess.run([sys.executable, __file__, "--child", engine], capture_output=True, text=True, check=True)
        found = json.loads(out.stdout.splitlines()[-1])
        ratio = 1 + found["extra"] / found["model"]
        goal = f", {verdict(ratio, 1.1, most=True)}" if engine == "hook" else ""
        print(f"  {engine:8} model {found['model'] / 1e6:6.0f} MB, at most {found['extra'] / 1e6:6.1f} MB more: "
              f"{ratio:5.3f} times{goal}")  # fmt: skip


# -- (d), (e) ------------------------------------------------------------------------------------------------------


def calibrate(models: dict[str, Any], encoded: Sequence[Encoded]) -> None:
    grid = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 1.5e-2, 2e-2, 3e-2)
    print(f"\n(d) estimate(2 sigma) / estimate(sigma), 4 by theory, by c of 'rel:c'; the default is {DEFAULT_SIGMA!r}")
    print("    model       " + "".join(f"{c:>8g}" for c in grid))
    good = dict.fromkeys(grid, True)
    for name, model in models.items():
        found = {c: score_difficulty(model, encoded, sigma=f"rel:{c}", probes=4, batch_size=20).scaling for c in grid}
        good = {c: good[c] and abs(found[c] / 4 - 1) <= 0.1 for c in grid}
        print(f"    {name:12}" + "".join(f"{v:8.3f}" for v in found.values()))
    print(f"    largest c within 10 % on all: {max((c for c in grid if good[c]), default=None)}")


def ranks(model: Any, encoded: Sequence[Encoded]) -> None:
    print("\n(e) Spearman between two seeds, and of the first with 48 pairs at 3e-3; 8 draws (pairs for antithetic)")
    reference = score_difficulty(model, encoded, sigma=3e-3, probes=48, seed=99, check_scaling=False, batch_size=20).mrd
    print("    sigma    " + "".join(f"{name:>22}" for name in ("plain", "mean_abs", "antithetic", "antithetic +-1")))
    for sigma in (1e-5, 1e-4, 1e-3, 3e-3, 1e-2):
        cells = []
        for estimator, law in (("plain", "gaussian"), ("mean_abs", "gaussian"), ("antithetic", "gaussian"),
                               ("antithetic", "rademacher")):  # fmt: skip
            one, two = (score_difficulty(model, encoded, sigma=sigma, probes=8, estimator=estimator, noise=law, seed=s,
                                         check_scaling=False, batch_size=20).mrd for s in (0, 1))  # fmt: skip
            cells.append(f"{spearman(one, two):10.2f} / {spearman(one, reference):5.2f}")
        print(f"    {sigma:<9g}" + "".join(f"{c:>22}" for c in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a language model, in place of the tiny ones")
    parser.add_argument("--records", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=4, help="of (a)")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        return memory_child(options.child)
    parts = options.only.split(",")
    records = tofu_records()[:100]
    if options.model:
        from upright.models.hub import load_language_model

        model, tokenizer = load_language_model(options.model)
        encoded = encode_all(tokenizer, records)
        models = {"given": model}
    else:
        tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=2048)
        encoded = encode_all(tokenizer, records)
        spent, model = clock(lambda: train(tiny_llama(tokenizer), encoded, 50))
        models = {"trained": model, "uneven": train(tiny_llama(tokenizer, seed=1), encoded, 8, uneven=True)}
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, 100 records learnt in {spent:.0f} CPU s")
    some = encoded[: options.records]
    if "speed" in parts:
        speed(model, some, options.pairs)
    if "peer" in parts:
        for name, one in models.items():
            print(f"\n    -- {name} --", end="")
            against_peer(one, some)
    if "memory" in parts:
        memory()
    if "sigma" in parts:
        more = {} if options.model else {
            "untrained": tiny_llama(tokenizer, seed=3),
            "half trained": train(tiny_llama(tokenizer, seed=1), encoded, 10),
            "8 layers": train(tiny_llama(tokenizer, hidden=64, layers=8), encoded, 30),
        }  # fmt: skip
        calibrate({**models, **more}, some)
    if "ranks" in parts:
        ranks(models.get("uneven", model), some)


if __name__ == "__main__":
    main()
