"""FedRecGEL by hand: fit a log, recommend, take in a new user, and carry the same model to one's own Flower federation.

::

    model = FedRec(rho_shared=0.05, rho_private=0.05, rounds=200).fit("ratings.csv")
    model.recommend("196", k=5)
    name = model.add_user(["50", "181", "258"])
    strategy, client_app = model.app(lambda context: model.device("anna", history))
    model.save("model")

What is saved, and what goes to Flower, is what a server has: settings, item ids and the shared block. Vectors of users
stay where they are.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from upright.contract import InputError
from upright.data.columns import Column, read_columns
from upright.data.interactions import Interactions, read_interactions
from upright.federation.rounds import State, checked, drive
from upright.recommendation.devices import Device, devices_of
from upright.recommendation.federated import FedRecGEL, score_all
from upright.recommendation.settings import FedRecConfig

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from upright.federation.flower import Rounds

__all__ = ["FedRec"]

SETTINGS, SHARED = "settings.json", "shared.safetensors"


class FedRec:
    """A recommender that is trained on devices, one user a device.

    Parameters
    ----------
    backbone : {"dot", "neumf", "neumf-paper"}
    rho_shared, rho_private : float
        Radii of the neighbourhoods in which the loss shall be low; both 0: plain federated training.
    **settings
        The other fields of `upright.recommendation.settings.FedRecConfig` but for ``n_items``: ``rounds``,
        ``fraction``, ``server_rate``, ``seed`` ...

    Attributes
    ----------
    state : dict
        Of the server, after the last round.
    item_ids : tuple of str, length I
    devices : dict of user to Device

    Raises
    ------
    InputError
        For a setting outside its range.
    """

    def __init__(
        self, backbone: str = "dot", rho_shared: float = 0.05, rho_private: float = 0.05, **settings: Any
    ) -> None:
        self.settings = {"backbone": backbone, "rho_shared": rho_shared, "rho_private": rho_private, **settings}
        unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(FedRecConfig)})
        if unknown:
            close = difflib.get_close_matches(unknown[0], FedRecConfig.__dataclass_fields__, n=1)
            raise InputError(
                f"setting {unknown[0]!r}", "a field of FedRecConfig", f"did you mean {(close or ['rounds'])[0]!r}?"
            )
        FedRecConfig(**{"n_items": 1, "n_clients": 10**9, **self.settings})  # a typo is answered before data are read
        self.item_ids: tuple[str, ...] = ()
        self.state: State = {}
        self.devices: dict[str, Device] = {}
        self.privates: dict[str, dict[str, NDArray[Any]]] = {}

    def start(self, items: Iterable[Any], shared: Mapping[str, NDArray[Any]] | None = None, **changes: Any) -> Self:
        """Begin with a catalogue and nobody's data.

        Parameters
        ----------
        items : iterable of ids
            The same at the server and at every client, in the same order.
        shared : mapping of name to ndarray, optional
            ``shared.item``, shape (I, d), and the layers; as they are drawn by default.
        **changes
            Of settings.

        Raises
        ------
        InputError
            For no items, an item that comes twice, and arrays of another model.
        """
        ids = tuple(map(str, items))
        self._code = {name: code for code, name in enumerate(ids)}
        if not ids or len(self._code) < len(ids):
            got = f"{len(ids)} items, {len(self._code)} of them distinct"
            raise InputError(got, "one item or more, each once", "leave out what is there twice")
        self.item_ids, self.devices, self.privates = ids, {}, {}
        self.algorithm = FedRecGEL(FedRecConfig(**{**self.settings, **changes, "n_items": len(ids)}))
        first = self.algorithm.start()
        if shared is not None:
            template = {name: value for name, value in first.items() if name.startswith("shared.")}
            first |= checked({name: value for name, value in shared.items() if name in template}, template)
        self.state = first
        return self

    def fit(self, interactions: Any, **options: Any) -> Self:
        """Train on the devices of a log, in one process.

        Parameters
        ----------
        interactions : path, data frame or Interactions
            Who met what; ratings and times are not looked at.
        **options
            Of `upright.data.interactions.read_interactions`, for a path or a data frame: ``user``, ``item`` ...

        Raises
        ------
        InputError
            For a log that cannot be read, and too few users for ``fraction``.
        """
        log = interactions
        if not isinstance(log, Interactions):
            own: dict[str, Any] = {"min_user": 1, "duplicates": "last", **options}
            log = read_interactions(log, **own)
        names = [log.user_ids[code] for code in np.unique(log.user)]
        devices = devices_of(log.user, log.item, log.n_users).values()
        self.start(log.item_ids, n_clients=len(names))
        self.devices = {name: Device(name, one.items) for name, one in zip(names, devices, strict=True)}
        self.state, privates = drive(self.algorithm, self.devices)
        self.privates = dict(privates)
        return self

    def recommend(self, user: Any, k: int = 10, exclude_seen: bool = True) -> list[tuple[str, float]]:
        """Return the best items of a user with their scores, best first; fewer where a user has met nearly all.

        Raises
        ------
        InputError
            For a user who is not known, and ``k < 1``.
        """
        self._require_start()
        name = str(user)
        if name not in self.devices:
            known = f"{len(self.devices)} users, such as {', '.join(map(repr, list(self.devices)[:3]))}"
            raise InputError(f"user {name!r}", known if self.devices else "nobody yet", "add_user(history) first")
        if k < 1:
            raise InputError(f"k = {k}", "a whole number from 1", "ask for one item or more")
        scores = score_all(self.state, self.algorithm.users(self.privates, [name]))[0]
        order = np.argsort(-scores, kind="stable")
        if exclude_seen:
            order = order[~np.isin(order, self.devices[name].items)]
        return [(self.item_ids[code], float(scores[code])) for code in order[:k]]

    def device(self, name: Any, history: Iterable[Any]) -> Device:
        """Return a device with items of the catalogue, each counted once.

        Raises
        ------
        InputError
            For no items, and items that are not in the catalogue.
        """
        self._require_start()
        items = list(dict.fromkeys(map(str, history)))
        strange = [item for item in items if item not in self._code]
        if strange or not items:
            shown = ", ".join(map(repr, strange[:5]))
            got = f"{len(strange)} unknown items in the history of {name}: {shown}" if items else f"no items of {name}"
            accepted = f"items among the {len(self._code)} of the catalogue, such as {self.item_ids[0]!r}"
            raise InputError(got, accepted, "leave the others out, or train with a catalogue that has them")
        return Device(str(name), np.sort([self._code[item] for item in items]))

    def read_device(self, file: Any, name: Any) -> Device:
        """Return the device of a table with a column ``item``; errors also as of `device`."""
        table = read_columns(file, {"item": Column("id")})
        return self.device(name, table["item"].to_list())

    def add_user(self, history: Iterable[Any], name: Any = None, *, steps: int | None = None) -> str:
        """Take in a user; the shared block stays as it is, and only the new vector is fitted.

        Parameters
        ----------
        history : iterable of item ids
        name : optional
            One that nobody has yet; made up by default.
        steps : int, optional
            Of the client's Adam, each with other negatives; by default as many as a client has on average in training.

        Returns
        -------
        str
            The name, for `recommend`.

        Raises
        ------
        InputError
            For unknown items, a name that is taken, ``steps < 1``.
        """
        config = self._require_start().config
        own = self.device(f"user {len(self.devices) + 1}" if name is None else name, history)
        steps = max(1, round(config.fraction * config.rounds)) if steps is None else steps
        if own.name in self.devices or steps < 1:
            got, todo = f"name {own.name!r}, steps = {steps}", "choose another name, or more steps"
            raise InputError(got, "a name that nobody has, and one step or more", todo)
        shared, private = self.shared(), dict[str, NDArray[Any]]()
        for step in range(steps):  # the reply is dropped: the server learns nothing of this user
            _, private = self.algorithm.client({**shared, "round": np.array([1 + step])}, private, own)
        self.devices[own.name], self.privates[own.name] = own, private
        return own.name

    def app(
        self, load_data: Callable[[Any], Device], *, keep: str | Path | None = None, **options: Any
    ) -> tuple[Rounds, ClientApp]:
        """Return strategy and client app for Flower, which go on from the shared block, at round 1.

        Parameters
        ----------
        load_data : callable
            From Flower's context to a `device`.
        keep, **options
            Of `upright.federation.flower.client_app`, and of `upright.federation.flower.strategy`.
        """
        from upright.federation import flower

        algorithm = self._require_start()
        own: dict[str, Any] = {"state": algorithm.start() | self.shared(), "on_round": self._take, **options}
        return flower.strategy(algorithm, **own), flower.client_app(algorithm, load_data, keep=keep)

    def _take(self, state: State) -> None:
        self.state = state

    def shared(self) -> dict[str, NDArray[Any]]:
        """Return item table and layers, as ``shared.item`` and so on."""
        self._require_start()
        return {name: value for name, value in self.state.items() if name.startswith("shared.")}

    def save(self, folder: str | Path) -> Path:
        """Write settings, item ids and the shared block; nothing of a user."""
        self._require_start()
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        own = self.algorithm.config.as_dict()  # without the seed with which noise can be taken away
        settings = {name: value for name, value in own.items() if name not in ("n_items", "noise_seed")}
        text = json.dumps({"settings": settings, "items": self.item_ids}, indent=1, ensure_ascii=False)
        (path / SETTINGS).write_text(text + "\n", encoding="utf-8")
        (path / SHARED).write_bytes(
            save({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in self.shared().items()})
        )
        return path

    @classmethod
    def load(cls, folder: str | Path, shared: str | Path | None = SHARED, **changes: Any) -> Self:
        """Return a model that was saved.

        Parameters
        ----------
        folder : path
        shared : path, optional
            The file of the shared block, in the folder by default; None begins as it is drawn, which will do at a
            client: the server sends the block.
        **changes
            Of settings, such as ``rounds``.

        Raises
        ------
        InputError
            For a file that is missing, damaged or of another model.
        """
        file = Path(folder) / SETTINGS
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            settings, items = {**row["settings"], **changes}, row["items"]
            file = Path(folder) / (shared or SHARED)
            arrays = load(file.read_bytes()) if shared is not None else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            got = f"{file.name}: {type(error).__name__}: {error}"
            raise InputError(got, "a file that `save` wrote", "check the path, or save the model again") from None
        return cls(**settings).start(items, arrays)

    def _require_start(self) -> FedRecGEL:
        if not self.item_ids:
            accepted = "a model that was fitted, started or loaded"
            raise InputError("a model without data", accepted, "fit(interactions), or start(items), first")
        return self.algorithm

    def export(self, folder: str | Path) -> Path:
        """Write a Flower app: what `save` writes, ``pyproject.toml``, a server app, a client app and a README."""
        path = self.save(folder)
        for name, text in _APP.items():
            (path / name).write_text(text.replace("ROUNDS", str(self.algorithm.config.rounds)), encoding="utf-8")
        return path


_APP: Mapping[str, str] = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "federated-recommender"
version = "1.0.0"
description = "Goes on training a recommender on devices."
license = "Apache-2.0"
dependencies = ["upright[federated]"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "upright"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
shared = "shared.safetensors"  # where the server process finds it; an app that is sent takes no safetensors along
out = "trained"                # folder for the model that results
rounds = ROUNDS
min-nodes = 2
""",
    "server_app.py": '''\
"""The server: goes on from the shared block."""

from pathlib import Path

from flwr.serverapp import ServerApp

from upright.federation.recommender import FedRec

app = ServerApp()


@app.main()
def main(grid, context):
    run = context.run_config
    shared = Path(str(run["shared"])).resolve()
    model = FedRec.load(Path(__file__).parent, shared, rounds=int(run["rounds"]))
    strategy, _ = model.app(None, min_nodes=int(run["min-nodes"]))
    turns = 3 * int(run["rounds"])  # a round that must be repeated takes a turn of its own
    try:
        strategy.start(grid, strategy.initial_arrays(), num_rounds=turns)
    finally:
        model.save(str(run["out"]))  # after the last round that was settled
''',
    "client_app.py": '''\
"""A client: one user's items, a table with a column `item`; the user's vector is kept beside it."""

import os
from pathlib import Path

from upright.federation.recommender import FedRec

model = FedRec.load(Path(__file__).parent, shared=None)


def table(context):
    return Path(str(context.node_config.get("data") or os.environ["FEDREC_DATA"]))


def device(context):
    return model.read_device(table(context), context.node_config.get("name", table(context).stem))


app = model.app(device, keep=os.environ.get("FEDREC_KEEP"))[1]
''',
    "README.md": """\
1. Install `upright[federated]` on all machines; set `fraction` and `n_clients` in `settings.json` for your federation.
2. Server: `flower-superlink --insecure --disable-runtime-dependency-installation` (with certificates in earnest).
3. Device: `flower-supernode --insecure --superlink HOST:8000 --node-config 'name="anna" data="/path/items.csv"'`.
4. `items.csv` has a column `item` with ids of `settings.json`; `FEDREC_KEEP=FOLDER` keeps the device's vector there.
5. `flwr run . CONNECTION --run-config 'shared="/path/shared.safetensors" out="/path/trained"'` (paths of the server).
6. The server's folder `out` then has the trained shared block: `FedRec.load(out)` recommends, `add_user` adds users.
""",
}
