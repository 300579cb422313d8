"""Clips: a flow model goes on from the first frames of a scene; is what it makes up mechanics, and is it what happened.

The model is a fixture for a CPU: its latents are the places of two discs, its decoder is a renderer, and rewards look
at pixels alone. It learnt from clips of which a share lets discs pass through each other, as the web shows wrong
mechanics beside right ones. Each seed draws its own scenes and, unless it is shared, teaches its own start.

=========  ==========================================================================================================
pretrain   clips that taught the start, `ghosts` of them wrong
post       right clips that methods train on; with ``future="withheld"`` their contexts alone
valid      right clips for learning rates, checkpoints and tau
test       right clips; with `unseen`, also pendulums and falls, which post-training does not see
=========  ==========================================================================================================

The unit is a clip, one of `futures` of a scene, which is its cluster. Values are those of `upright.metrics.physics`:
``offset``, ``iou``, ``penetrates`` and ``momentum`` of the places that the model gives, which no reward sees, the
others of the pixels. Noise of rollouts that are scored is the same for all arms.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from upright.contract import (
    Config,
    InputError,
    Metric,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    UnitScores,
    stream,
)
from upright.lazy import LazyModule
from upright.metrics import physics
from upright.tasks.closed import Closed

if TYPE_CHECKING:
    import safetensors.torch as weights_file
    import torch

    from upright.models import hub
    from upright.video import model as models
    from upright.video import render, scenes, tracks, verifiers
else:
    weights_file = LazyModule("safetensors.torch")
    torch = LazyModule("torch")
    hub = LazyModule("upright.models.hub")
    models = LazyModule("upright.video.model")
    render = LazyModule("upright.video.render")
    scenes = LazyModule("upright.video.scenes")
    tracks = LazyModule("upright.video.tracks")
    verifiers = LazyModule("upright.video.verifiers")

__all__ = ["Clips", "ClipsConfig", "Part"]

Split = Literal["post", "valid", "test"]
_UNSEEN = ("pendulum", "fall")


class ClipsConfig(Config):
    """Scenes, the start model, and how it was taught."""

    data: Literal["collision"] = "collision"
    """What post-training shows: two discs that collide."""
    future: Literal["known", "withheld"] = "known"
    """Whether post-training knows what happens after the context."""
    model: Literal["small", "medium"] = "medium"
    """0.13 or 0.40 million weights."""
    start: Literal["taught", "bundled"] = "taught"
    """`bundled`: a small one that was taught before, by `benchmarks/make_video_start.py`."""
    shared: bool = False
    """Whether all seeds have the start of seed 0: intervals then say nothing of other starts."""
    pretrain: PositiveInt = 6000
    """Clips that teach the start."""
    ghosts: Annotated[float, Range(ge=0, le=1)] = 0.5
    """Share of them in which discs pass through each other."""
    updates: PositiveInt = 600
    """Of teaching."""
    batch_size: PositiveInt = 128
    """Clips an update of teaching."""
    learning_rate: PositiveFloat = 3e-3
    """Of teaching, with a warm-up of 50 updates and a cosine to 0."""
    post: PositiveInt = 256
    """Clips for post-training."""
    valid: PositiveInt = 128
    """Clips for validation."""
    test: PositiveInt = 256
    """Clips for the result."""
    unseen: NonNegativeInt = 0
    """Pendulums, and as many falls, for the result; the start is then taught as many of each as collisions."""
    futures: Annotated[int, Range(ge=2)] = 2
    """Of a scene, for the result."""
    steps: Annotated[int, Range(ge=4)] = 16
    """Of a rollout that is scored."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "bundled" and (self.model, self.unseen) != ("small", 0):
            got = f"start = 'bundled' with model = {self.model!r} and unseen = {self.unseen}"
            raise InputError(got, "model = 'small' and unseen = 0", "set these, or start = 'taught'")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Scenes of one purpose, as a method sees them.

    Parameters
    ----------
    latents : Tensor, shape (N, T, 4)
        NaN after the context where the future is withheld.
    condition : Tensor, shape (N, C)
        Of the policy.
    meta : Meta
        What is known of them beside pixels.
    truth : Tracks, optional
        Of the true clips, none where the future is withheld.
    """

    latents: Any
    condition: Any
    meta: Any
    truth: Any


class Clips(Closed):
    """Scenes of two bodies, and a model that goes on from their first frames.

    Parameters
    ----------
    config : ClipsConfig
    data_dir : str, optional
        Of no use: scenes are simulated.
    """

    unit_kind = "clip"
    Config = ClipsConfig

    def __init__(self, config: ClipsConfig, data_dir: str | None = None) -> None:
        self.config = config
        self._caches = False
        self._scenes: dict[tuple[int, Split], Any] = {}
        self._parts: dict[tuple[int, Split], Part] = {}
        sizes = json.dumps(config.as_dict(), sort_keys=True)
        self.facts: dict[str, Any] = {"name": config.data, "licence": "simulated here", "futures": config.future}
        self.facts["fingerprint"] = hashlib.sha256(sizes.encode()).hexdigest()
        self.metrics = self.metrics_of(config.as_dict())

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the values mean."""
        return dict(physics.METRICS)

    @classmethod
    def load(cls, config: ClipsConfig, data_dir: str | None = None) -> Clips:
        """Return the task; a taught start is kept in the cache."""
        task = cls(config, data_dir)
        task._caches = True
        return task

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> Clips:
        """Return a task of few scenes and a start that was hardly taught, for tests and `upright check`."""
        sizes = {"model": "small", "pretrain": 32, "updates": 3, "batch_size": 16, "post": 6, "valid": 4, "test": 6}
        return cls(ClipsConfig(**{**sizes, "steps": 6, "precision": "float64", **changes}))

    # -- what a method may see ------------------------------------------------------------------------------------

    def policy(self, run: Run) -> Any:
        """Return the start of a run's seed, a model of its own at each call."""
        c, seed = self.config, 0 if self.config.shared else run.seed
        told = 1 if c.unseen else 0  # numbers beside radii
        policy = models.Trajectory(c.model, features=2 + told, seed=stream(seed, "weights"))
        policy = policy.to(getattr(torch, c.precision))
        if c.start == "bundled":
            data = resources.files("upright.video").joinpath("start.safetensors").read_bytes()
            policy.load_state_dict({name: x.to(policy.place.dtype) for name, x in weights_file.load(data).items()})
            return policy
        names = ("data", "model", "pretrain", "ghosts", "updates", "batch_size", "learning_rate", "precision")
        key = {name: getattr(c, name) for name in names} | {"task": "clips", "seed": seed, "told": told}
        key["torch"] = torch.__version__

        def make() -> dict[str, Any]:
            return {"weights": self._teach(policy, seed, run)}

        found = run.shared("start", key, lambda: hub.cached(key, make) if self._caches else make())
        policy.load_state_dict(found["weights"])
        return policy

    def part(self, split: Split, run: Run) -> Part:
        """Return the scenes of a purpose.

        Raises
        ------
        InputError
            For those of the test, before the runner opened it.
        """
        self.refuse_closed(split, "scenes", "'post' or 'valid'", "the runner alone scores them")
        if (run.seed, split) not in self._parts:
            made = self._made(split, run)
            policy, meta = self.policy(run), tracks.meta_of(made)
            latents = policy.encode(torch.from_numpy(made.position).to(policy.place.dtype))
            hidden = split == "post" and self.config.future == "withheld"
            if hidden:
                latents[:, made.context :] = math.nan
            truth = None if hidden else self.track(torch.from_numpy(made.position).float(), meta)
            self._parts[run.seed, split] = Part(latents, self._condition(made, policy), meta, truth)
        return self._parts[run.seed, split]

    def film(self, position: Any, meta: Any) -> Any:
        """Return the clips (B, T, H, W, 3) of places (B, T, 2, 2), px."""
        return render.draw(position.float(), meta.radius, meta.colour, meta.backdrop)

    def track(self, position: Any, meta: Any) -> Any:
        """Return the tracks of the clips of places."""
        return tracks.track_colours(self.film(position, meta), meta)

    def futures(self, result: Any, split: Split, noise: Any, run: Run) -> Any:
        """Return the places (N, T, 2, 2), px, to which an arm goes on from the contexts of a split.

        Parameters
        ----------
        result : object with ``futures(latents, condition, noise, meta)``, or None
            None stands for the true futures.
        split : {"valid", "test"}
        noise : Tensor, shape of the latents
        """
        part = self.part(split, run)
        if result is None:
            return torch.from_numpy(self._made(split, run).position)
        hidden = part.latents.clone()
        hidden[:, self._made(split, run).context :] = math.nan
        with torch.no_grad():
            return result.futures(hidden, part.condition, noise, part.meta)

    def _made(self, split: Split, run: Run) -> Any:
        """Return the scenes of a purpose, simulated once."""
        if (run.seed, split) not in self._scenes:
            c, seed = self.config, stream(run.seed, "scenes", split)
            made = [scenes.simulate(c.data, getattr(c, split), seed)]
            if split == "test" and c.unseen:
                made += [scenes.simulate(kind, c.unseen, seed) for kind in _UNSEEN]
            self._scenes[run.seed, split] = scenes.join(made)
        return self._scenes[run.seed, split]

    def _condition(self, made: Any, policy: Any) -> Any:
        """Return what the policy is told of scenes: radii, and a tenth of a floor's height where falls are taught."""
        told = np.nan_to_num(made.ground[:, 2:]) / 10 if self.config.unseen else np.zeros((len(made), 0))
        return torch.from_numpy(np.concatenate([made.radius, told], 1)).to(policy.place.dtype)

    def _teach(self, policy: Any, seed: int, run: Run) -> dict[str, Any]:
        """Teach a start by flow matching and return its weights."""
        c = self.config
        made = [scenes.simulate(c.data, c.pretrain, stream(seed, "pretrain"), ghost=c.ghosts)]
        if c.unseen:
            made += [scenes.simulate(kind, c.pretrain, stream(seed, "pretrain")) for kind in _UNSEEN]
        every = scenes.join(made)
        latents = policy.encode(torch.from_numpy(every.position).to(policy.place.dtype))
        condition, generator = self._condition(every, policy), torch.Generator().manual_seed(stream(seed, "teach"))
        optimiser = torch.optim.AdamW(policy.parameters(), c.learning_rate, weight_decay=1e-4)
        warm = min(50, c.updates)
        rates = [min(1.0, (i + 1) / warm) * 0.5 * (1 + math.cos(math.pi * i / c.updates)) for i in range(c.updates)]
        with run.progress(c.updates, "teaching the start") as advance:
            for rate in rates:
                index = torch.randint(0, len(latents), (c.batch_size,), generator=generator)
                for group in optimiser.param_groups:
                    group["lr"] = c.learning_rate * rate
                loss = models.flow_matching_loss(policy, latents[index], condition[index], generator).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimiser.step()
                advance(1)
        return {name: x.detach().clone() for name, x in policy.state_dict().items()}

    # -- scoring --------------------------------------------------------------------------------------------------

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score futures of scenes.

        Parameters
        ----------
        result : as of `futures`
        split : {"valid", "test"}

        Raises
        ------
        InputError
            When the test is asked for before the runner opened it.
        """
        part, made = self.part(split, run), self._made(split, run)
        repeat, places, values = self.config.futures, list[Any](), list[dict[str, Any]]()
        for turn in range(repeat):
            shape, kind = part.latents.shape, part.latents.dtype
            noise = torch.randn(shape, generator=run.torch_rng("score", split, turn), dtype=kind)
            position = self.futures(result, split, noise, run)
            places.append(position.double().numpy())
            values.append(self._values(made, part, position))
        apart = [physics.trajectory_offset(places[0], other, made.context) for other in places[1:]]
        values[0]["spread"] = np.mean(apart, axis=0)  # once a scene
        nothing, names = np.full(len(made), np.nan), made.names()
        found = {m: np.stack([one.get(m, nothing) for one in values], axis=1).ravel() for m in self.metrics}
        seen = np.repeat(made.kind == self.config.data, repeat)
        found["unseen_offset"] = np.where(seen, np.nan, found["offset"])
        for name in ("offset", "iou", "penetrates", "momentum"):
            found[name] = np.where(seen, found[name], np.nan)
        return UnitScores(
            "clip",
            [f"{name}/{turn}" for name in names for turn in range(repeat)],
            found,
            {"motion": np.repeat(made.kind, repeat).tolist()},
            cluster=np.repeat(names, repeat).tolist(),
        )

    def _values(self, made: Any, part: Part, position: Any) -> dict[str, Any]:
        """Return the values of one future of each scene."""
        k, p = made.context, position.double().numpy()
        seen = self.track(position, part.meta)
        checks = verifiers.verify(seen, part.meta)
        return {
            "offset": physics.trajectory_offset(p, made.position, k),
            "iou": physics.disc_iou(p, made.position, made.radius, k),
            "penetrates": (physics.penetration(p, made.radius, k) > 1.0).astype(np.float64),
            "momentum": physics.momentum_change(p, made.mass, made.gravity, k),
            "newton": verifiers.newton(checks).double().numpy(),
            "energy_gain": checks["energy"].value.double().numpy(),
            "lost": (~seen.visible[:, k:]).double().mean((1, 2)).numpy(),
            "background": seen.background[:, k:].double().mean(1).numpy(),
        }
