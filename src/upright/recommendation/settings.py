"""Settings of a federated recommender, which server and devices must have alike."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from upright.contract import Config, InputError, NonNegativeInt, PositiveFloat, PositiveInt, Range

__all__ = ["FedRecConfig", "FederatedTraining"]

Finite = Annotated[float, Range(ge=0, lt=math.inf)]


class FederatedTraining(Config):
    """How clients train, whatever the data."""

    backbone: Literal["dot", "neumf", "neumf-paper"] = "dot"
    """Inner product; two tables of width dim; the second table four times as wide."""
    dim: PositiveInt = 32
    """Width of the product."""
    rho_shared: Finite = 0.05
    """Radius of the shared block."""
    rho_private: Finite = 0.05
    """Radius of the user's vector."""
    direction: Literal["own", "random"] = "own"
    """Of both perturbations: the gradient's, or random over the touched rows and the layers."""
    passes: Literal["sharp", "plain"] = "sharp"
    """``plain``: one pass and its gradient (FedNCF)."""
    fraction: Annotated[float, Range(gt=0, le=1)] = 0.1
    """Share of the clients asked in a round."""
    poisson: bool = False
    """Ask each client independently with probability `fraction`; always so with noise."""
    rounds: PositiveInt = 100
    """Rounds of training."""
    server_rate: Finite = 0.01
    """Adam's rate at the server; 0 leaves the shared block as it was drawn."""
    client_rate: PositiveFloat = 0.1
    """Adam's rate at the client."""
    weight_decay: Finite = 0.0
    """The shared block shrinks by ``1 - server_rate weight_decay`` a round, apart from Adam."""
    negatives: NonNegativeInt = 4
    """Items drawn after each positive one; fewer where a user has not so many left."""
    block: PositiveInt = 128
    """Samples of a block: each counts by one over the size of its block."""
    clip: PositiveFloat | None = None
    """Largest norm of a whole reply; a longer one is scaled down to it."""
    noise_multiplier: Finite = 0.0
    """Standard deviation of the noise on each number, over `clip`."""
    noise_at: Literal["server", "device"] = "server"
    """On the sum, or on each reply, all rows of the table, before it is sent."""
    pad_to: PositiveInt | None = None
    """The number of rows sent is brought to a multiple of this; see `padded`."""
    noise_seed: NonNegativeInt | None = None
    """Makes noise, padding and who is asked repeatable; who knows it can take them away: for tests alone."""


class FedRecConfig(FederatedTraining):
    """Settings of the algorithm; server and clients must have the same."""

    n_items: PositiveInt
    """I at the start."""
    n_clients: PositiveInt | None = None
    """U, needed with noise: its denominator is fixed."""
    view_every: NonNegativeInt = 0
    """Rounds between item-centred views, see `FedRecGEL.finish`; 0 for none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of all that is sent and kept."""
    memory: PositiveInt = 1 << 24
    """Bytes of a tensor program, about. Below 4 MB, small clients lose what batching gains."""
    seed: NonNegativeInt = 0
    """Of all streams but those that protect: see `noise_seed`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_clients is not None:
            self.count_asked(self.n_clients)
        if self.noise_multiplier and (self.clip is None or (self.noise_at == "server" and self.n_clients is None)):
            got = f"noise_multiplier = {self.noise_multiplier}, clip = {self.clip}, n_clients = {self.n_clients}"
            raise InputError(got, "noise with a clip, and with n_clients where the server adds it", "set what is none")

    def count_asked(self, clients: int) -> int:
        """Return ``floor(fraction U)``; nobody is an `InputError`."""
        asked = math.floor(self.fraction * clients + 1e-9)
        if not asked:
            got = f"fraction = {self.fraction} of {clients} clients, which asks nobody"
            raise InputError(got, "one client a round or more", "raise fraction, or register more clients")
        return asked

    def noise(self, at: Literal["server", "device"]) -> float:
        """Return the standard deviation of the noise that is added there."""
        return self.noise_multiplier * (self.clip or 0.0) if self.noise_at == at else 0.0

    def widths(self) -> tuple[int, int, tuple[int, ...]]:
        """Return the widths of an item's row, of the layers' part of it, and of the hidden layers."""
        if self.backbone == "dot":
            return self.dim, 0, ()
        wide = self.dim * (4 if self.backbone == "neumf-paper" else 1)
        return self.dim + wide, wide, (wide, max(1, wide // 2), max(1, wide // 4))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of w1, b1, w2, b2, w3, b3, out and bias, weights as (inputs, outputs); none for dot."""
        width, wide, hidden = self.widths()
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (narrow, broad) in enumerate(pairwise((2 * wide, *hidden)), start=1):
            shapes |= {f"w{number}": (narrow, broad), f"b{number}": (broad,)}
        return shapes | {"out": (width - wide + hidden[-1],), "bias": ()} if hidden else {}
