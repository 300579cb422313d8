r"""PhysRVG: a video generator is rewarded for mechanics, and shown the truth where it fails.

Paper
-----
Zhang et al., *PhysRVG: Physics-Aware Unified Reinforcement Learning for Video Generative Models*, ECCV 2026,
arXiv 2601.11087.

Problem
-------
A flow model with velocity v_theta makes clips that look right and break mechanics: bodies pass through each other,
vanish, gain energy. With a reward R of tracks, and, where it is known, the true future x of a context, find

    minimise   a_d L_GRPO(theta; R) + a_m 1[mean offset of the group > tau] L_FM(theta; x)

Algorithm
---------
1. G rollouts of each of P contexts from one noise; stochastic steps in a window of two, drawn from the first quarter
2. the clips are decoded and tracked; R is minus the offset from the true tracks, or minus what breaks mechanics
3. advantages in each group; of `keep` samples, the best and the worst           `upright.maths.policy.advantages`
4. discovery: the clipped loss of the log-probabilities of the stochastic steps  `upright.maths.policy.surrogate`
5. mimicry, where the mean offset of a group is above tau: flow matching on the true clip, at fresh times
6. one step of AdamW on both, gradients clipped at norm 1; the best checkpoint on validation is kept

Shapes
------
Latents (B, T, ...), times (B, T): context frames are clean, their time is 0. Rewards and offsets (P, G).

Deviations
----------
D1. The log-probability is that of generated frames; the published code averages over the context as well (`official`).
D2. ``fixed``: sub-pixel centroids, contacts by a noise-scaled threshold, a lost frame costs 200 px of 832; the
    published penalty cannot be reached, so that a body that vanishes is paid for (`official`).
D3. tau is a share of the start's offset on validation, not 8 px of 832 (`paper`) or 10 (`official`).
D4. L_GRPO is scaled by the number of generated elements, as if log-probabilities were sums; against mimicry it then
    grows with the root of that number.
D5. A group whose rewards are all alike has no advantage, in place of noise over 1e-8.
D6. All kept samples of all groups make one update, in place of one in four, so that the ratio is 1 and its clip rests.
D7. A transformer over places stands for a video network, with a renderer as its decoder (`upright.tasks.clips`).
D8. `reward="newton"` needs no future: where that is withheld there is nothing to mimic, and discovery is alone.

Cost
----
An iteration of 4 x 12 rollouts of 8 steps, drawn and tracked: see ``benchmarks/physrvg.py``.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from upright.contract import (
    Arm,
    Config,
    InputError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    Task,
    method,
    stream,
)
from upright.declare import Curve, Front, Histogram, Intervals, Noted, Picture
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from upright.maths import policy as grpo
    from upright.video import animate, rewards
    from upright.video import model as models
else:
    torch = LazyModule("torch")
    grpo = LazyModule("upright.maths.policy")
    animate = LazyModule("upright.video.animate")
    models = LazyModule("upright.video.model")
    rewards = LazyModule("upright.video.rewards")

__all__ = ["Futures", "PhysRVGConfig", "cycle_loss", "run"]

_WIDE = 832.0  # px that published thresholds are of
_TAU = {"paper": 8.0, "official": 10.0}
_SHARE = 0.6  # of the start's offset, in place of these
_RATIO = 1e-6  # that the ratio of an unchanged model may differ from 1 by
_TENTH = 15  # iterations at either end of which the gate's rate is noted
_DEAD = 10  # iterations in a row without a spread of rewards, after which a run ends


class PhysRVGConfig(Config):
    """Weights of both losses, the reward, and how rollouts are made."""

    train: Literal["cycle", "mimicry", "none", "best", "truth"] = "cycle"
    """The cycle; flow matching on the true clips alone; nothing; nothing, but the best of `group` futures by `newton`
    is taken; or the true future."""
    mode: Literal["recommended", "paper", "official"] = "recommended"
    """Reward, tau and log-probability: see the deviations."""
    discovery: NonNegativeFloat = 1.0
    """a_d."""
    mimicry: NonNegativeFloat = 1.0
    """a_m."""
    reward: Literal["offset", "newton"] = "offset"
    """Minus the offset from the true future, as `mode` has it, or minus what breaks mechanics, without a future."""
    tau: NonNegativeFloat | None = None
    """Offset in px above which a group mimics; none: as `mode` has it."""
    gate: bool = True
    """Whether tau decides; without it all groups mimic."""
    shuffle: bool = False
    """Whether advantages change places inside their group: a placebo."""
    iterations: PositiveInt = 150
    """Updates of the cycle."""
    check_every: PositiveInt = 10
    """Iterations between looks at validation."""
    prompts: PositiveInt = 4
    """Contexts an iteration."""
    group: Annotated[int, Range(ge=2)] = 12
    """Rollouts of a context."""
    keep: PositiveInt | None = None
    """Of a group, the best and the worst, an even number; none: all."""
    steps: Annotated[int, Range(ge=4)] = 8
    """Of a rollout in training."""
    eta: PositiveFloat = 0.7
    """Size of the noise of stochastic steps."""
    sde: Literal["constant", "flow", "cps"] = "constant"
    """How that noise falls with time."""
    clip: PositiveFloat = 5e-3
    """Of the ratio, for the mean over elements."""
    learning_rate: PositiveFloat = 2e-5
    """Of AdamW."""
    mimicries: PositiveInt = 5
    """Updates of flow matching that `train="mimicry"` makes in place of an iteration: as many CPU seconds."""
    batch_size: PositiveInt = 64
    """Clips of such an update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and (self.keep % 2 or self.keep > self.group):
            got = f"keep = {self.keep} of group = {self.group}"
            raise InputError(got, "an even number up to the group", "correct keep")


@dataclasses.dataclass(frozen=True, eq=False)
class Futures:
    """What an arm returns: a policy, and how futures are taken from it.

    Parameters
    ----------
    policy : Policy
    steps : int
        Of a rollout.
    best : int
        Futures that the best is taken of, by `newton`.
    judge : callable, optional
        ``judge(places, meta) -> (N,)``, lower is better, where the best is taken.
    """

    policy: Any
    steps: int
    best: int = 1
    judge: Any = None

    def futures(self, latents: Any, condition: Any, noise: Any, meta: Any) -> Any:
        """Return the places (N, T, 2, 2), px, of a future of each context."""
        tried, found = noise, list[Any]()
        seed = zlib.crc32(noise.double().numpy().tobytes())  # the same for all that ask with this noise
        for turn in range(self.best):
            if turn:
                own = torch.Generator().manual_seed(stream(seed, "best", turn))
                tried = torch.randn(noise.shape, generator=own, dtype=noise.dtype)
            x, _ = models.rollout(self.policy, latents, condition, tried, steps=self.steps)
            found.append(self.policy.positions(x))
        if self.best == 1:
            return found[0]
        judged = torch.stack([self.judge(one, meta) for one in found])
        chosen = torch.nan_to_num(judged, nan=math.inf).argmin(0)
        return torch.stack(found)[chosen, torch.arange(len(chosen))]


# -- the losses -------------------------------------------------------------------------------------------------------


def cycle_loss(
    policy: Any,
    taken: Sequence[Any],
    condition: Any,
    advantage: Any,
    *,
    steps: int,
    eta: float,
    kind: Any = "constant",
    clip: float = 5e-3,
    whole: bool = False,
) -> tuple[Any, Any]:
    """Return the discovery loss of each sample, shape (B,), and the ratio of each step, shape (S, B).

    ``n mean_s max(-A rho_s, -A clip(rho_s, 1 - clip, 1 + clip))``, n the number of generated elements of a clip.

    Parameters
    ----------
    policy : Policy
    taken : sequence of Taken
        The stochastic steps of B rollouts.
    condition : Tensor, shape (B, C)
    advantage : Tensor, shape (B,)
    steps, eta, kind
        Of these rollouts.
    clip : float
        Of the ratio.
    whole : bool
        Whether frames of the context stand in the log-probability, as in the published code.
    """
    options = {"steps": steps, "eta": eta, "kind": kind, "whole": whole}
    now = torch.stack([models.log_probs(policy, one, condition, **options) for one in taken])
    old = torch.stack([one.log_prob for one in taken])
    loss = torch.stack([grpo.surrogate(own, was, advantage, clip) for own, was in zip(now, old, strict=True)])
    elements = math.prod(policy.shape[1:]) * (policy.shape[0] - policy.context)
    return elements * loss.mean(0), (now - old).exp().detach()


# -- the loop ---------------------------------------------------------------------------------------------------------


class _Cycle:
    """One arm's rollouts, rewards and updates, and what is noted of them."""

    def __init__(self, task: Any, config: PhysRVGConfig, run: Run, policy: Any) -> None:
        self.task, self.config, self.run, self.policy = task, config, run, policy
        self.part = task.part("post", run)
        self.optimiser = torch.optim.AdamW(policy.parameters(), config.learning_rate, weight_decay=0.0)
        known = self.part.truth is not None
        if not known and (config.reward == "offset" or config.mimicry):
            got = f"reward = {config.reward!r} and mimicry = {config.mimicry:g} where the future is withheld"
            raise InputError(got, "reward = 'newton' and mimicry = 0", "set them, or future = 'known'")
        preset = {"recommended": "fixed"}.get(config.mode, config.mode)
        self.offset: Any = rewards.load_reward(preset) if known else None
        self.newton = rewards.load_reward("newton")

    def tau(self) -> float:
        """Return the offset above which a group mimics, px."""
        c = self.config
        if c.tau is not None:
            return c.tau
        if c.mode in _TAU:
            return float(_TAU[c.mode] * self.policy.size[1] / _WIDE)
        valid = self.task.part("valid", self.run)
        noise = torch.randn(valid.latents.shape, generator=self.run.torch_rng("tau"), dtype=valid.latents.dtype)
        with torch.no_grad():
            x, _ = models.rollout(self.policy, valid.latents, valid.condition, noise, steps=c.steps)
        film = self.task.film(self.policy.positions(x), valid.meta)
        return _SHARE * float(self.offset.score(film, valid.truth, valid.meta).value.mean())

    def iteration(self, step: int, tau: float) -> dict[str, float]:
        """Make one update and return what is to be logged."""
        c, generator = self.config, self.run.torch_rng("rollouts", step)
        index = torch.randint(0, len(self.part.latents), (c.prompts,), generator=generator)
        every = index.repeat_interleave(c.group)
        latents, condition, meta = self.part.latents[every], self.part.condition[every], self.part.meta[every]
        own = torch.randn((c.prompts, *latents.shape[1:]), generator=generator, dtype=latents.dtype)
        noise = own.repeat_interleave(c.group, 0)  # shared in a group
        first = int(torch.randint(0, max(1, c.steps // 4), (1,), generator=generator))
        options: dict[str, Any] = {"steps": c.steps, "eta": c.eta, "kind": c.sde}
        options["whole"] = c.mode == "official"
        x, taken = models.rollout(
            self.policy, latents, condition, noise, window=(first, first + 1), generator=generator, **options
        )  # step 1
        film = self.task.film(self.policy.positions(x), meta)
        found, offset = self._judged(film, every, meta)  # step 2
        advantage, flat = grpo.advantages(-found.value.view(c.prompts, c.group))  # step 3
        if c.shuffle:
            order = torch.argsort(torch.rand(advantage.shape, generator=generator), 1)
            advantage = advantage.gather(1, order)
        kept = torch.arange(len(every))
        if c.keep is not None:
            kept = (grpo.extremes(advantage, c.keep) + torch.arange(c.prompts)[:, None] * c.group).flatten()
        loss, ratio = cycle_loss(
            self.policy,
            [one.select(kept) for one in taken],
            condition[kept],
            advantage.flatten()[kept].to(latents.dtype),
            clip=c.clip,
            **options,
        )  # step 4
        total = c.discovery * loss.mean()
        opened = torch.zeros(c.prompts, dtype=torch.bool)
        if offset is not None and c.mimicry:
            opened = grpo.gate(offset.view(c.prompts, c.group), tau if c.gate else -1.0)
        if opened.any():
            shown = index[opened].repeat_interleave(c.group)
            mimic = models.flow_matching_loss(
                self.policy, self.part.latents[shown], self.part.condition[shown], generator
            )
            total = total + c.mimicry * mimic.mean() * opened.to(mimic.dtype).mean()  # step 5
        _refuse_ratio(ratio, step)
        self._update(total)  # step 6
        lost = found.lost[:, self.policy.context :].float().mean()
        return {
            "reward": -float(found.value.mean()),
            "gate": float(opened.float().mean()),
            "flat": float(flat.float().mean()),
            "lost": float(lost),
        } | ({} if offset is None else {"offset": float(offset.mean())})

    def mimic(self, step: int) -> dict[str, float]:
        """Make the updates of flow matching that stand for an iteration."""
        c, generator = self.config, self.run.torch_rng("mimicry", step)
        total = 0.0
        for _ in range(c.mimicries):
            index = torch.randint(0, len(self.part.latents), (c.batch_size,), generator=generator)
            loss = models.flow_matching_loss(
                self.policy, self.part.latents[index], self.part.condition[index], generator
            ).mean()
            self._update(loss)
            total += float(loss.detach()) / c.mimicries
        return {"loss": total}

    def _judged(self, film: Any, every: Any, meta: Any) -> tuple[Any, Any]:
        """Return the scores that reward rollouts, and their offsets where the future is known."""
        truth = None if self.part.truth is None else self.part.truth[every]
        offset: Any = None if self.offset is None else self.offset.score(film, truth, meta)
        if self.config.reward == "newton":
            return self.newton.score(film, None, meta), None if offset is None else offset.value
        return offset, offset.value

    def _update(self, loss: Any) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()


def _refuse_ratio(ratio: Any, step: int) -> None:
    """Refuse a rollout that the policy it came from would not give the same log-probability."""
    off = float((ratio - 1.0).abs().max())
    if not off <= _RATIO:
        got = f"a ratio {off:.1e} off 1 before the update of iteration {step + 1}"
        todo = "rollout and update must evaluate one model: no dropout, one type of numbers, one batch layout"
        raise InputError(got, f"1 within {_RATIO:g}", todo)


def _seen(task: Any, run: Run, policy: Any) -> dict[str, float]:
    """Return means of the values of validation clips."""
    values = task.score(Futures(policy, task.config.steps), "valid", run).values
    return {name: float(x[x == x].mean()) for name, x in values.items() if (x == x).any()}


def _health(start: Mapping[str, float], now: Mapping[str, float], decides: str) -> str:
    """Say what got worse while what is rewarded got better; empty where nothing did."""
    if not now[decides] < start[decides]:
        return ""
    if now["spread"] < 0.25 * start["spread"]:
        return f"two futures of one context differ by {now['spread']:.2f} px, {start['spread']:.2f} at the start"
    if now["momentum"] > 2.0 * start["momentum"] + 0.05:
        return f"momentum from nowhere is {now['momentum']:.2f} px/frame^2, {start['momentum']:.2f} at the start"
    if now["background"] > start["background"] + 0.01:
        return f"the background changes by {now['background']:.3f}, {start['background']:.3f} at the start"
    return ""


def _post_train(task: Any, config: PhysRVGConfig, run: Run, policy: Any) -> None:
    """Train a policy in place and leave it at its best checkpoint on validation."""
    cycle, decides = _Cycle(task, config, run, policy), "penetrates" if config.reward == "newton" else "offset"
    start = _seen(task, run, policy)
    tau = cycle.tau() if config.train == "cycle" and cycle.offset is not None else math.inf
    told: dict[str, Any] = {"dead": 0, "gate": []}
    parts = {"policy": policy, "optimiser": cycle.optimiser, "told": told}
    with run.training(config, epochs=config.iterations, patience=None, **parts) as epochs:
        for step in epochs:
            line = cycle.mimic(step) if config.train == "mimicry" else cycle.iteration(step, tau)
            told["dead"] = told["dead"] + 1 if line.get("flat", 0.0) == 1.0 else 0
            told["gate"].append(line.get("gate", 0.0))
            if epochs.due:
                now = _seen(task, run, policy)
                line |= {f"valid/{name}": now[name] for name in ("offset", "penetrates", "newton", "spread")}
                epochs.check(-now[decides])
                if why := _health(start, now, decides):
                    run.warn(f"arm {run.arm}: ended after {step + 1} iterations: {why}")
                    break
            epochs.log(**line)
            if told["dead"] == _DEAD or line.get("lost", 0.0) > 0.5:
                why = "more than half of the bodies lost"
                why = f"no spread of rewards {_DEAD} times in a row" if told["dead"] == _DEAD else why
                run.warn(f"arm {run.arm}: ended after {step + 1} iterations: {why}")
                break
    gates = told["gate"]  # of the checkpoint that is kept where that is not the last
    run.note(
        "cycle",
        {"tau": tau if math.isfinite(tau) else None, "best": epochs.best_epoch, "iterations": config.iterations},
    )
    run.note(
        "gate",
        {"first": sum(gates[:_TENTH]) / len(gates[:_TENTH]), "last": sum(gates[-_TENTH:]) / len(gates[-_TENTH:])},
    )


def _places(task: Any, run: Run, result: Any) -> Any:
    """Return the places of validation scenes as an arm goes on with them; noise is the same for all."""
    like = task.part("valid", run).latents
    noise = torch.randn(like.shape, generator=run.torch_rng("story"), dtype=like.dtype)
    return task.futures(result, "valid", noise, run)


def _note_story(task: Any, run: Run, places: Any) -> None:
    """Note the first validation scene frame by frame."""
    meta, p = task.part("valid", run).meta, places[0].double()
    step, mass = p[1:] - p[:-1], meta.mass[0].double()
    energy = (0.5 * mass * step.square().sum(-1)).sum(-1)
    columns = {
        "gap": (p[1:, 0] - p[1:, 1]).norm(dim=-1) - meta.radius[0].sum(),
        "speed": step[:, 0].norm(dim=-1),
        "energy": energy / energy[: meta.context - 1].mean(),
        "place": (p[1:, 0] - p[0, 0]).norm(dim=-1),
    }
    rows = [{name: float(x[i]) for name, x in columns.items()} | {"frame": i + 1} for i in range(len(step))]
    run.note("story", rows)


def _sheet(task: Any, run: Run, before: Any, after: Any) -> bytes:
    """Return three validation scenes in motion: the truth, the start, and after."""
    part = task.part("valid", run)
    some = part.meta[slice(0, 3)]
    films = [task.film(one[:3], some).numpy() for one in (_places(task, run, None), before, after)]
    return animate.animate([[film[i] for film in films] for i in range(3)], labels=("truth", "before", "after"))


# -- declaration ------------------------------------------------------------------------------------------------------

_FRAMES = {
    "place": ("Way of the first body from where it began, px", []),
    "gap": ("Gap between the bodies, px", ["They touch where it is 0; below 0 they are inside each other."]),
    "speed": ("Speed of the first body, px a frame", ["It changes at a contact and nowhere else."]),
    "energy": ("Kinetic energy, of that in the context", ["A contact may take some and gives none."]),
}
_REPORT = [
    Front(
        "Offset from the true future, against clips in which bodies pass into each other",
        "mean:offset",
        ["The price, change of the background, is in the table: a renderer can hardly have one."],
        cost="mean:penetrates",
    ),
    Picture(
        "Three validation scenes: the truth, the start, and after",
        "futures",
        ["The first frames are given. Noise is the same before and after."],
        arms=("remedy",),
    ),
    Intervals("Places against the truth", "mean:offset mean:unseen_offset mean:iou mean:spread", join="arm"),
    Intervals(
        "Mechanics, judged without the true future",
        "mean:penetrates mean:momentum mean:newton mean:energy_gain mean:lost",
        join="arm",
    ),
    Intervals("Breaks of mechanics by motion", "mean:newton:motion=*", join="arm"),
    Curve("Reward of rollouts by iteration", x="step", y="reward"),
    Curve("Share of groups that mimic, by iteration", x="step", y="gate"),
    Curve("Offset on validation by iteration", x="step", y="valid/offset"),
    Curve("Clips that penetrate on validation, by iteration", x="step", y="valid/penetrates"),
    *(
        Curve(f"One scene: {title}", "story", reading, x="frame", y=name, arms=("baseline", "remedy", "anchor"))
        for name, (title, reading) in _FRAMES.items()
    ),
    Histogram("Offset of clips", "offset", x="px"),
    Noted(
        "How training ended",
        "cycle",
        ["The checkpoint with the best validation is what is scored."],
        names={"tau": "tau, px", "best": "best iteration", "iterations": "of"},
    ),
    Noted("Share of groups that mimic", "gate", names={"first": "first 15 iterations", "last": "last 15"}),
]
_LIMITS = [
    "Latents are the places of two discs and the decoder is a renderer: no result of it is one of a video network.",
    "The renderer draws nothing but the bodies, so that a background can hardly change here; a pixel model can.",
    "The start was taught wrong mechanics on purpose, in half of its clips. How wrong a web-trained model is differs.",
    "Rewards see motion alone: a stray body, a fade or another size cost next to nothing.",
    "What breaks mechanics within a tolerance is not rewarded, and training spends it.",
    "Checkpoints and rates of discovery on mechanics are chosen by clips that penetrate on validation.",
    "An offset punishes every future but the recorded one, also those that mechanics allows.",
    "Contexts are simulated, in two dimensions, with discs and without friction.",
]
_COMMON = {
    "statistics": [
        "mean:offset",
        "mean:penetrates",
        "mean:background",
        "mean:newton",
        "mean:iou",
        "mean:momentum",
        "mean:energy_gain",
        "mean:lost",
        "mean:spread",
        "mean:unseen_offset",
        "mean:newton:motion",
    ]
}
_START = Arm("start", "baseline", {"train": "none"}, "the start")
_VERIFIERS = {"reward": "newton", "mimicry": 0.0}
_AIM = Arm("truth", "anchor", {"train": "truth"}, "the true future")


@method(
    "physrvg",
    task="upright.tasks.clips:Clips",
    config=PhysRVGConfig,
    title="PhysRVG",
    mends="generated clips in which bodies break mechanics",
    neutral=[{"discovery": 0.0, "mimicry": 0.0}],
    arms=[
        _START,
        Arm("cycle", "remedy", {}, "the mimicry-discovery cycle"),
        Arm("sft", "trivial", {"train": "mimicry"}, "fine-tuning on the same clips", simpler=True),
        Arm("shuffled", "placebo", {"shuffle": True}, "the cycle, advantages shuffled"),
        Arm("discovery", "rival", {"mimicry": 0.0}, "discovery alone"),
        Arm("both", "rival", {"gate": False}, "both, without the gate"),
        Arm("verifiers", "rival", _VERIFIERS, "discovery by mechanics alone"),
        Arm("best_of_n", "rival", {"train": "best"}, "the best of twelve by mechanics"),
        _AIM,
    ],
    statistics=_COMMON["statistics"],
    primary="mean:offset",
    cost="mean:background",
    presets={
        "quick": {
            "method": {"iterations": 40},
            "task": {"model": "small", "shared": True, "updates": 400, "learning_rate": 4e-3, "test": 128, "valid": 64},
            "arms": ["start", "cycle", "sft", "shuffled", "verifiers"],
        },
        "full": {"method": {}, "task": {}},
    },
    tune={"learning_rate": [2e-5, 5e-5, 2e-4]},
    variants={
        "future=withheld": {
            "arms": [
                _START,
                Arm("verifiers", "remedy", _VERIFIERS, "discovery by mechanics alone"),
                Arm("best_of_n", "trivial", {"train": "best"}, "the best of twelve by mechanics", simpler=True),
                Arm("shuffled", "placebo", {**_VERIFIERS, "shuffle": True}, "the same, advantages shuffled"),
                _AIM,
            ],
            "primary": "mean:penetrates",
        }
    },
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "collision",
        "settings": {"start": "bundled", "model": "small", "test": 64, "valid": 32, "iterations": 30},
        "arms": ["start", "cycle", "sft", "shuffled", "verifiers"],
    },
    tiny={"iterations": 2, "check_every": 1, "prompts": 2, "group": 3, "mimicries": 1, "batch_size": 4},
)
def run(task: Task, config: PhysRVGConfig, run: Run) -> Futures | None:
    """Return how an arm goes on from contexts; None stands for the true futures."""
    t: Any = task
    if config.train == "truth":
        _note_story(t, run, _places(t, run, None))
        return None
    policy, newton = t.policy(run), rewards.load_reward("newton")
    best = config.group if config.train == "best" else 1

    def judge(position: Any, meta: Any) -> Any:
        return newton.score(t.film(position, meta), None, meta).value

    result = Futures(policy, t.config.steps, best, judge)
    before = None if config.train in ("none", "best") else _places(t, run, result)
    if config.train in ("cycle", "mimicry"):
        _post_train(t, config, run, policy)
    after = _places(t, run, result)
    _note_story(t, run, after)
    if run.arm == ("cycle" if t.config.future == "known" else "verifiers"):
        run.picture("futures", _sheet(t, run, before, after))
    return result
