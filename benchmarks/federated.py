"""What a round of FedRecGEL costs a client: in one tensor program, one client at a time, and as a loop over modules.

    python benchmarks/federated.py [--only NAME ...] [--repeats N]

==================  =====================================================================  ======  =========
name                what, in CPU time of one thread                                        bar     prototype
==================  =====================================================================  ======  =========
``video paper``     Amazon-Video, neumf-paper, 807 clients, both radii: ms a client        1.6     1.27
``video loop``      a loop over modules (deep copy, negatives from a list, three dense     >= 40   122
                    gradients, a fresh Adam, a dense upload added up) over that
``video dot``       the same clients, dot: ms a client                                     0.15    0.08
``ml dot``          ML-100K, dot, 943 clients: ms a client                                 0.8     0.62
``ml dot alone``    one client at a time over that                                         >= 2.5  3.3
``ml dot GiB``      resident, with torch                                                   0.6     0.41
``ml paper``        ML-100K, neumf-paper: together over one at a time                      1.05    1.31
``large dot``       100,000 registered, 10,000 asked, 20,000 items: seconds a round        4       1.4
``large dot GiB``   resident                                                               2       0.66
``large save``      checkpoint of that state, and what reads it back: seconds              3
``large paper``     the same round, neumf-paper: seconds                                   30      20
``flower``          Flower in one process over `drive` with one client a chunk, as Flower  4       2.0
                    runs them: 24 clients, 4 rounds
==================  =====================================================================  ======  =========

What is compared is interleaved, and medians are compared. Each line's data are made in a process of its own, with one
thread, NumPy's included, so that CPU time is work and resident memory is that line's. Amazon-Video is read from
``UPRIGHT_DATA``; lines without data are named as not measured. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from upright.contract import InputError
from upright.data.catalogue import load_split
from upright.federation import rounds
from upright.recommendation.devices import Device, devices_of
from upright.recommendation.federated import FedRecGEL
from upright.recommendation.settings import FedRecConfig

BARS = {"video paper": (1.6, 1.27), "video loop": (40, 122), "video dot": (0.15, 0.08), "ml dot": (0.8, 0.62),
        "ml dot alone": (2.5, 3.3), "ml dot GiB": (0.6, 0.41), "ml paper": (1.05, 1.31), "large dot": (4, 1.4),
        "large dot GiB": (2, 0.66), "large save": (3, None), "large paper": (30, 20), "flower": (4, 2.0)}  # fmt: skip
AT_LEAST = ("video loop", "ml dot alone")
CLIENTS = 807


class Module(nn.Module):
    """The paper's network as modules: 32 + 128, 256-128-64-32."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.product, self.layers = nn.Embedding(n_items, 32), nn.Embedding(n_items, 128)
        sizes = (256, 128, 64, 32)
        self.mlp = nn.Sequential(*(m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())))
        self.out = nn.Linear(64, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Return logits of one user, shape (n,)."""
        h = self.mlp(torch.cat([user[32:].expand(len(item), -1), self.layers(item)], 1))
        return self.out(torch.cat([user[:32] * self.product(item), h], 1)).squeeze(1)


class Loop:
    """A round as a loop over modules does it: everything that is shared is dense, and everything is made anew."""

    def __init__(self, config: FedRecConfig) -> None:
        self.config, self.server = config, Module(config.n_items)
        self.sums = [torch.zeros_like(p) for p in self.server.parameters()]
        self.user = 0.01 * torch.randn(160, generator=torch.Generator().manual_seed(0))

    def client(self, device: Device, turn: int) -> None:
        """Do one client's round, and add its upload to the server's sums."""
        config, draw, seen = self.config, random.Random(turn), set(device.items.tolist())
        rest = [i for i in range(config.n_items) if i not in seen]
        item = [i for one in device.items.tolist() for i in (one, *draw.sample(rest, config.negatives))]
        x, y = torch.tensor(item), (torch.arange(len(item)) % (1 + config.negatives) == 0).float()
        model, user = copy.deepcopy(self.server), nn.Parameter(self.user.clone())
        shared, private = torch.optim.Adam(model.parameters(), lr=0.001), torch.optim.Adam([user], lr=0.1)

        def backward() -> None:
            shared.zero_grad()
            private.zero_grad()
            for first in range(0, len(x), config.block):
                part = slice(first, first + config.block)
                nn.functional.binary_cross_entropy_with_logits(model(user, x[part]), y[part]).backward()

        backward()
        blocks, moves = (list(model.parameters()), [user]), []
        for block, rho in zip(blocks, (config.rho_shared, config.rho_private), strict=True):
            norm = torch.cat([p.grad.flatten() for p in block]).norm() + 1e-12
            moves.append([p.grad * (rho / norm) for p in block])
        for block, move in zip(blocks, moves, strict=True):
            with torch.no_grad():
                for p, e in zip(block, move, strict=True):
                    p.add_(e)
            backward()
            with torch.no_grad():
                for p, e in zip(block, move, strict=True):
                    p.sub_(e)
            if block is blocks[0]:
                upload = [p.grad.clone() for p in block]
                shared.step()
        private.step()
        for total, own in zip(self.sums, upload, strict=True):
            total.add_(own)


def asked(name: str, backbone: str, count: int) -> tuple[FedRecGEL, dict[str, Any], dict[str, Device]]:
    """Return an algorithm, its first message and evenly spaced clients."""
    split = load_split(name)
    devices = devices_of(split.train.user, split.train.item, split.n_users)
    algorithm = FedRecGEL(FedRecConfig(n_items=split.n_items, backbone=backbone, fraction=1.0))
    names = sorted(devices, key=lambda one: len(devices[one].items))
    names = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]
    return algorithm, algorithm.start(), {name: devices[name] for name in names}


def together(algorithm: FedRecGEL, state: dict[str, Any], devices: dict[str, Device]) -> None:
    """Do a round of all devices, and the server's step."""
    answers = algorithm.clients(algorithm.message(state), {name: {} for name in devices}, devices)
    total = algorithm.begin(state)
    for name in sorted(answers):
        algorithm.add(total, name, answers[name][0])
    algorithm.finish(state, total)


def alone(algorithm: FedRecGEL, state: dict[str, Any], devices: dict[str, Device]) -> None:
    """Do the same with a program for each client."""
    total, message = algorithm.begin(state), algorithm.message(state)
    for name in sorted(devices):
        algorithm.add(total, name, algorithm.client(message, {}, devices[name])[0])
    algorithm.finish(state, total)


def medians(repeats: int, **kinds: Callable[[int], Any]) -> dict[str, float]:
    """Return the median CPU time of some kinds of work, interleaved; a first turn warms up."""
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(repeats + 1):
        for name, work in kinds.items():
            start = time.process_time()
            work(turn)
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(own[1:]) for name, own in spent.items()}


def gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_video(repeats: int) -> dict[str, float]:
    dot, dot_state, devices = asked("amazon-video", "dot", CLIENTS)
    paper, state, _ = asked("amazon-video", "neumf-paper", 1)
    few = [devices[name] for name in list(devices)[:: CLIENTS // 5]]
    loop = Loop(paper.config)
    found = medians(
        repeats,
        dot=lambda _: together(dot, dot_state, devices),
        paper=lambda _: together(paper, state, devices),
        loop=lambda turn: [loop.client(device, turn) for device in few],
    )
    each = {name: 1e3 * found[name] / len(devices) for name in ("dot", "paper")}
    return {"video dot": each["dot"], "video paper": each["paper"],
            "video loop": 1e3 * found["loop"] / len(few) / each["paper"]}  # fmt: skip


def measure_ml(repeats: int) -> dict[str, float]:
    dot, state, devices = asked("ml100k", "dot", 943)
    found = medians(repeats, all=lambda _: together(dot, state, devices), alone=lambda _: alone(dot, state, devices))
    ms = 1e3 * found["all"] / len(devices)
    return {"ml dot": ms, "ml dot alone": found["alone"] / found["all"], "ml dot GiB": gib()}


def measure_paper(repeats: int) -> dict[str, float]:
    paper, state, devices = asked("ml100k", "neumf-paper", 100)
    found = medians(
        repeats, all=lambda _: together(paper, state, devices), alone=lambda _: alone(paper, state, devices)
    )
    return {"ml paper": found["all"] / found["alone"]}


def large() -> dict[str, Device]:
    """Return 100,000 devices with 5 to 25 of 20,000 items each, under a Zipf law."""
    rng = np.random.default_rng(0)
    size, law = rng.integers(5, 26, 100_000), 1 / np.arange(1, 20_001.0) ** 0.8
    items = np.split(rng.choice(20_000, size.sum(), p=law / law.sum()), np.cumsum(size)[:-1])
    return {f"u{i:05d}": Device(f"u{i:05d}", np.unique(own)) for i, own in enumerate(items)}


def measure_large(backbone: str, turns: int) -> dict[str, float]:
    """Return seconds of the slowest of some rounds under `rounds`, resident memory, and seconds of a checkpoint."""
    algorithm = FedRecGEL(FedRecConfig(n_items=20_000, backbone=backbone, rounds=turns))
    spent, start, kind = [], 0.0, backbone.removeprefix("neumf-")
    devices = large()
    start = time.process_time()
    for state, privates in rounds.rounds(algorithm, devices):  # noqa: B007  # the last ones are saved
        spent.append(time.process_time() - start)
        start = time.process_time()
    found = {f"large {kind}": max(spent), f"large {kind} GiB": gib()}
    start, file = time.process_time(), io.BytesIO()
    torch.save(rounds.to_tensors({"state": state, "privates": privates}), file)
    file.seek(0)
    back = rounds.from_tensors(torch.load(file, weights_only=True))
    held = sum(bool(own) for own in back["privates"].values())
    if held != sum(bool(own) for own in privates.values()):
        raise RuntimeError("A checkpoint lost private memory.")
    return found | {"large save": time.process_time() - start}


def measure_flower(repeats: int) -> dict[str, float]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from in_process_grid import InProcessGrid, identity
    from upright.federation.flower import client_app, strategy

    logging.getLogger("flwr").setLevel(logging.ERROR)
    _, _, devices = asked("ml100k", "dot", 24)
    algorithm = FedRecGEL(FedRecConfig(n_items=1682, rounds=4, fraction=0.5))
    names = sorted(devices)

    def flower(_: int) -> None:
        app = client_app(algorithm, lambda context: devices[names[int(context.node_config["partition-id"])]])
        with identity():
            grid = InProcessGrid(app, {k + 1: {"partition-id": k} for k in range(len(names))})
            own = strategy(algorithm)
            own.start(grid, own.initial_arrays(), num_rounds=5)

    found = medians(repeats, drive=lambda _: rounds.drive(algorithm, devices, chunk=1), flower=flower)
    return {"flower": found["flower"] / found["drive"]}


PARTS: dict[str, Callable[[int], dict[str, float]]] = {
    "video": measure_video,
    "ml": measure_ml,
    "paper": measure_paper,
    "large": lambda _: measure_large("dot", 3),
    "large-paper": lambda _: {k: v for k, v in measure_large("neumf-paper", 1).items() if k == "large paper"},
    "flower": measure_flower,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        torch.set_num_threads(1)
        try:
            print(json.dumps(PARTS[given.part](given.repeats)))
        except (InputError, ImportError) as error:
            print(json.dumps({}), error, sep="\n")
        return 0
    found: dict[str, float] = {}
    for part in given.only:
        words = [sys.executable, __file__, "--part", part, "--repeats", str(given.repeats)]
        single = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
        told = subprocess.run(words, capture_output=True, text=True, check=True, env=single).stdout.splitlines()
        found |= json.loads(told[0])
        print(*told[1:], sep="\n", end="\n" if told[1:] else "", file=sys.stderr)
    for name, (bar, before) in BARS.items():
        said = f"{found[name]:8.3f}" if name in found else "not measured"
        sign = ">=" if name in AT_LEAST else "<="
        print(f"{name:14} {said}  (bar {sign} {bar:g}" + (f", prototype {before:g})" if before else ")"))
    missed = [n for n, v in found.items() if n in BARS and (v < BARS[n][0] if n in AT_LEAST else v > BARS[n][0])]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
