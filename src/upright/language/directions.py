r"""Directional derivatives of the losses of a whole pool: ``score_ik = <v_k, grad l_i(theta)>`` for record i.

=============  ======================================================================================================
``products``   One backward pass of the summed loss of a batch, down to the outputs of the layers. A layer adds
               ``sum_t (g_it V_k) . x_it`` to the score of record i, g its output's gradient and x its input, or for
               several directions ``<V_k, sum_t g_it x_it^T>`` in small layers. Exact, m directions for one pass.
               Linear layers, ``Conv1D`` of GPT-2, embeddings (tied weights: at both uses), biases and norms are
               covered; directions on other tensors go by ``forwards`` restricted to them, and their scores are added.
``forwards``   Central differences D(h) along each direction: 2 m passes without gradients, and D(2 h) of 16 records to
               see how far to trust them. For losses that read log-probabilities: differences are taken of these, and
               the derivative of the loss by them comes from autograd, so what a loss holds constant stays constant.
``backward``   The gradient of one record at a time: slow, and what the others are measured against.
=============  ======================================================================================================

Logits are taken at answer tokens alone where the model lets its head be cut (`Reader`). The model is in evaluation mode
meanwhile, so its gradient checkpointing rests: a smaller `batch_size` saves memory. The padding row of
an embedding (`padding_idx`) has no gradient, where a text holds that token too: all three leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from upright.contract import InputError
from upright.language.encoding import Encoded
from upright.language.engines import DirectionEngine, layer_kind, noisy_parameters, removing
from upright.language.logprobs import IGNORE, token_log_probs
from upright.language.losses import LOSSES, PAIRS, Loss
from upright.language.reader import Reader, evaluating

__all__ = ["Directional", "directional", "trainable"]

Array = NDArray[np.float64]
Directions = Mapping[str, Tensor]
# of the norm of the weights that are moved, in float64 and below: between rounding and the third derivative
STEP, _ROUNDED_STEP = 5e-6, 1.5e-4
_CHECKED = 16  # records
_FORMED = 1 << 24  # most numbers of gradients of one layer for the records of a batch: 64 MiB in float32
# of the squared gradient norm: a layer that products miss is seen, tensor cores in reduced precision pass
_AGREE = 1e-3


class Directional(NamedTuple):
    """Scores of a pool and how they came about.

    Parameters
    ----------
    score : ndarray of float64, shape (n, m)
        ``<v_k, grad l_i>``: by how much the loss of record i rises when the weights move along ``v_k``, to first order.
    error : ndarray of float64, shape (n,), or None
        ``|D(2 h) - D(h)|``, the largest over the directions: rounding, or a third derivative. Of 16 records from one
        end of the pool to the other, NaN for the others; None where no difference was taken.
    step : float or None
        h, a length: 1.5e-4 of the norm of the weights that are moved, 5e-6 where all are in float64.
    passes : mapping
        ``forward`` and ``backward`` passes over the pool, without those over the 16 records.
    """

    score: Array
    error: Array | None
    step: float | None
    passes: Mapping[str, int]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name; a tied tensor once.

    Raises
    ------
    InputError
        When there is none, and where `noisy_parameters` refuses a model: half precision, quantised or sharded weights.
    """
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not asked:
        todo = "set requires_grad, or load the adapter with is_trainable=True"
        raise InputError("a model without a trainable parameter", "one at least", todo)
    return noisy_parameters(model, asked.__contains__)


def directional(
    model: Any,
    encoded: Sequence[Encoded],
    directions: Directions,
    *,
    loss: str,
    how: Literal["products", "forwards", "backward"] = "products",
    batch_size: int = 16,
    pad: int,
    reference: ArrayLike | None = None,
    options: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
) -> Directional:
    """Return ``<v_k, grad l_i>`` for n records and m directions.

    Parameters
    ----------
    model, encoded, pad, names
        As for `Reader`; answers are scored. Weights and their `grad` are left as they are.
    directions : mapping of parameter name to Tensor of shape (m, *shape)
        Of trainable parameters; what is left out is 0.
    loss : str
        A loss of `LOSSES`, or a pair of `PAIRS` for its forget loss, one value a record. Those that need a second
        answer, a reference model or a control vector are refused; ``forwards`` takes those of log-probabilities alone.
    how : str
        A row of the table of the module.
    batch_size : int
    reference : array, shape (n,), optional
        Sums of log-probabilities under the reference, read by losses that take them (``npo``).
    options : mapping, optional
        Factors of the loss.

    Returns
    -------
    Directional

    Raises
    ------
    InputError
        For a model that `trainable` refuses, directions, losses and references that do not fit, a model whose layers
        ``products`` does not see (two records are compared with ``backward``), and scores that are not finite.
    """
    own = trainable(model)
    if not encoded:
        raise InputError("no records", "one record at least", "check the pool")
    m = _refuse_directions(directions, own)
    reader = Reader(model, encoded, scope="answer", batch_size=batch_size, pad=pad, names=names)
    pool = _Pool(model, reader, loss, how, options, reference)
    with evaluating(model):
        if how == "backward":
            each = [_backward(pool, own, directions, i) for i in range(len(encoded))]
            found = Directional(np.stack(each), None, None, {"forward": 1, "backward": 1})
        elif how == "forwards":
            found = _forwards(pool, own, directions)
        else:
            found = _products(pool, own, directions, m)
    bad = np.flatnonzero(~np.isfinite(found.score).all(axis=1))
    if len(bad):
        got = f"a score of {reader.names[bad[0]]} that is not finite ({len(bad)} such records)"
        raise InputError(got, "finite gradients", "leave these records out, or find where the model diverged")
    return found


def _refuse_directions(directions: Directions, own: Mapping[str, Tensor]) -> int:
    """Return m."""
    if not directions:
        raise InputError("no directions", "one tensor at least", "pass name -> (m, *shape), for example grad J")
    m = len(next(iter(directions.values())))
    for name, v in directions.items():
        if name not in own:
            todo = "name them as model.named_parameters() does"
            raise InputError(f"a direction for {name!r}", "names of trainable parameters", todo)
        if not m or tuple(v.shape) != (m, *own[name].shape) or not bool(torch.isfinite(v).all()):
            got = f"directions of shape {tuple(v.shape)} for {name!r}, {int((~torch.isfinite(v)).sum())} not finite"
            raise InputError(got, f"finite numbers of shape {(m or 'm', *own[name].shape)}", "correct them")
    return m


class _Pool:
    """The losses of records, from logits at answer tokens alone."""

    def __init__(
        self,
        model: Any,
        reader: Reader,
        loss: str,
        how: str,
        options: Mapping[str, Any] | None,
        reference: ArrayLike | None,
    ) -> None:
        ways = ("products", "forwards", "backward")
        if how not in ways:
            raise InputError(f"how = {how!r}", ", ".join(ways), "choose one of these")
        plain = [n for n, one in LOSSES.items() if one.reference in ("none", "sums") and one.answers == 1]
        accepted = [n for n in plain if how != "forwards" or LOSSES[n].reads == "log_probs"]
        name = PAIRS.get(loss, (loss,))[0]
        if name not in accepted:
            todo = "take 'products'" if name in plain else "choose one of these"
            raise InputError(f"loss = {loss!r} by {how}", ", ".join(accepted), todo)
        self.model, self.reader = model, reader
        self.loss: Loss = LOSSES[name]
        if odd := sorted(set(options or {}) - set(self.loss.defaults)):
            accepted = list(self.loss.defaults) or ["no options"]
            raise InputError(f"option {odd[0]!r} of loss {loss!r}", ", ".join(accepted), "correct its name")
        self.options = {**self.loss.defaults, **(options or {})}
        self.sums: Tensor | None = None
        if self.loss.reference == "sums":
            sums = np.asarray([] if reference is None else reference, dtype=np.float64)
            if sums.shape != (len(reader.encoded),) or not np.isfinite(sums).all():
                got = f"loss {loss!r} with a reference of shape {None if reference is None else sums.shape}"
                todo = "read the records with the reference model"
                raise InputError(got, f"{len(reader.encoded)} finite sums of log-probabilities", todo)
            self.sums = torch.from_numpy(sums)

    def value(self, said: Tensor, other: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the loss of log-probabilities and mask, or of logits and labels; shape (B,)."""
        sums = [] if self.sums is None else [self.sums[list(rows)].to(said)]
        return self.loss.function(said, other, *sums, **self.options)

    def losses(self, rows: Sequence[int], owner: list[Tensor] | None = None) -> Tensor:
        """Return the losses of some records with their graph, shape (B,).

        `owner` takes the record of each row (N + 1,) that the output head is given, which has the shape (1, N + 1, d).
        """
        inputs, labels = self.reader.inputs(rows)
        sample, column = (labels != IGNORE).nonzero(as_tuple=True)  # (N,) each
        target, order = labels[sample, column], column - (labels != IGNORE).int().argmax(dim=1)[sample]
        place = sample * labels.shape[1] + column - 1  # of the row that predicts it
        extra = torch.cat([place, place[-1:]])  # a last row that nothing is asked of: rows predict the label after them
        if owner is not None:
            owner[:] = [extra // labels.shape[1]]
        logits = self._logits(inputs, extra)  # (1, N + 1, V)
        size = (len(rows), int(order.max()) + 1)
        if self.loss.reads == "logits":
            wide = logits.new_zeros(size[0], size[1] + 1, logits.shape[2])
            wide = wide.index_put((sample, order), logits[0, :-1])
            asked = labels.new_full(wide.shape[:2], IGNORE).index_put((sample, order + 1), target)
            return self.value(wide, asked, rows)
        try:
            found = token_log_probs(logits, torch.cat([target.new_full((1,), IGNORE), target])[None])[0][0, 1:]
        except InputError:
            bad = (~torch.isfinite(logits.detach()[0, :-1])).any(dim=1)
            if not bool(bad.any()):
                raise
            got = f"logits that are not finite at {self.reader.names[rows[int(sample[bad][0])]]}"
            raise InputError(got, "finite logits", "find where the model diverged") from None
        said = found.new_zeros(size).index_put((sample, order), found)
        mask = torch.zeros(size, dtype=torch.bool, device=said.device).index_put((sample, order), sample >= 0)
        return self.value(said, mask, rows)

    def _logits(self, inputs: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return logits at some rows of the flattened batch, shape (1, N, V)."""
        shape, picked = inputs["input_ids"].shape, list[Tensor]()

        def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if picked or not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != shape:
                return None
            picked.append(args[0].flatten(0, 1).index_select(0, rows.to(args[0].device))[None])
            return (picked[0], *args[1:])

        with ExitStack() as stack:
            if self.reader.head is not None:
                stack.enter_context(removing(self.reader.head.register_forward_pre_hook(pick)))
            logits: Tensor = self.model(**inputs).logits
        return logits if picked else logits.flatten(0, 1).index_select(0, rows.to(logits.device))[None]

    def along(self, flat: Array, slope: Array, rows: NDArray[np.int64]) -> Array:
        """Return ``sum_t dl_i/dlog p_it slope_it`` at given log-probabilities of some records, shape (len(rows),)."""
        tokens = torch.from_numpy(self.reader.tokens[rows])
        mask = torch.arange(int(tokens.max()))[None] < tokens[:, None]
        said, moved = (torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, torch.from_numpy(x))
                       for x in (flat, slope))  # fmt: skip
        with torch.enable_grad():
            value = self.value(said.requires_grad_(), mask, rows.tolist()).sum()
            found: Array = (torch.autograd.grad(value, said)[0] * moved).sum(dim=1).numpy()
        return found


# -- one record at a time ---------------------------------------------------------------------------------------------


def _gradients(pool: _Pool, own: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """Return the gradient of the loss of one record in float64; 0 for what it does not touch."""
    with torch.enable_grad():
        found = torch.autograd.grad(pool.losses([i]).sum(), list(own.values()), materialize_grads=True)
    return {name: g.double() for name, g in zip(own, found, strict=True)}


def _backward(pool: _Pool, own: Mapping[str, Tensor], directions: Directions, i: int) -> Array:
    grads = _gradients(pool, {name: own[name] for name in directions}, i)
    dots = [v.to(grads[n]).flatten(1) @ grads[n].flatten() for n, v in directions.items()]
    return np.asarray(np.sum([one.cpu().numpy() for one in dots], axis=0))


# -- differences ------------------------------------------------------------------------------------------------------


def _norms(tensors: Directions) -> Array:
    """Return the norms of m directions over all their tensors, shape (m,)."""
    each = [torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64).cpu().numpy() for v in tensors.values()]
    return np.asarray(np.sqrt(np.square(each).sum(axis=0)))


def _forwards(pool: _Pool, own: Mapping[str, Tensor], directions: Directions) -> Directional:
    reader, length = pool.reader, _norms(directions)
    moved = float(_norms({name: own[name].detach()[None] for name in directions})[0])
    if not math.isfinite(moved):
        raise InputError("weights that are not finite", "finite weights", "find where the model diverged")
    exact = all(own[name].dtype == torch.float64 for name in directions)
    step = (STEP if exact else _ROUNDED_STEP) * (
        moved or float(_norms({name: p.detach()[None] for name, p in own.items()})[0]) or 1.0
    )
    n = len(reader.tokens)
    checked = np.unique(np.linspace(0, n - 1, _CHECKED).astype(np.int64))
    few = Reader(pool.model, [reader.encoded[i] for i in checked], scope="answer", batch_size=_CHECKED, pad=reader.pad,
                 names=[reader.names[i] for i in checked])  # fmt: skip
    score, again = np.zeros((n, len(length))), np.zeros((len(checked), len(length)))
    with torch.no_grad(), DirectionEngine(pool.model, directions) as machine:
        for k in np.flatnonzero(length):
            for times, asked, rows, into in ((1, reader, np.arange(n), score), (2, few, checked, again)):
                scale, said = times * step / length[k], []
                for side in (scale, -scale):
                    with machine.noisy(int(k), side):
                        said.append(asked.read(machine.forward))
                into[:, k] = pool.along((said[0] + said[1]) / 2, (said[0] - said[1]) / (2 * scale), rows)
    error = np.full(n, np.nan)
    error[checked] = np.abs(again - score[checked]).max(axis=1)
    return Directional(score, error, step, {"forward": reader.passes, "backward": 0})


# -- products ---------------------------------------------------------------------------------------------------------

_Product = Callable[[Tensor, Tensor], Tensor]  # input and gradient of the output -> (m, *places)


def _of_linear(v: Tensor) -> _Product:
    """``sum_oi g_o V_koi x_i`` with v of shape (m, o, i), by the side that leaves the smaller result.

    Of several directions, gradients of single records are less work than directions at every token.
    """

    def product(x: Tensor, g: Tensor) -> Tensor:
        if len(v) > 1 and x.ndim == 3 and 1 < len(x) <= _FORMED / v[0].numel():
            return (v.flatten(1) @ torch.bmm(g.mT, x.to(v)).flatten(1).mT)[..., None]  # (m, B, 1)
        one, by, other = (x, v.mT, g) if v.shape[1] < v.shape[2] else (g, v, x)
        near = one.reshape(-1, one.shape[-1]).to(v) @ by  # (m, N, smaller)
        return (near * other.reshape(-1, other.shape[-1])).sum(dim=-1).view(len(v), *g.shape[:-1])

    return product


def _of_embedding(module: nn.Embedding, v: Tensor) -> _Product:
    """``sum_d g_d V_kd(id)``, nought for the padding row; some families scale what they read."""

    def product(ids: Tensor, g: Tensor) -> Tensor:
        read = (torch.func.functional_call(module, {"weight": one}, (ids,)) for one in v)
        found = torch.stack([(one * g).sum(dim=-1) for one in read])  # (m, B, T)
        return found if module.padding_idx is None else found * (ids != module.padding_idx)

    return product


def _of_vector(v: Tensor, unit: Callable[[Tensor], Tensor] | None = None) -> _Product:
    """``sum_d g_d V_kd u_d(x)``, u the output for a weight of ones without bias; 1 for a bias."""
    return lambda x, g: torch.einsum("...d,kd->k...", g if unit is None else g * unit(x), v)


def _unit(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what a norm multiplies its weight with: it is affine in the weight, ``1 + weight`` in some families."""
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters(recurse=False)}

    def unit(x: Tensor) -> Tensor:
        given = ({**zeros, "weight": torch.full_like(zeros["weight"], value)} for value in (1.0, 0.0))
        one, none = (torch.func.functional_call(module, own, (x,)) for own in given)
        return one - none  # type: ignore[no-any-return]

    return unit


def _product(module: nn.Module, leaf: str, v: Tensor) -> _Product | None:
    """Return what a parameter of a module adds to scores, None where its use is not known for certain."""
    kind, weight = layer_kind(module), dict(module.named_parameters(recurse=False))[leaf]
    v = v.to(weight)
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return _of_embedding(module, v)
    if kind is not None:
        return _of_vector(v) if leaf == "bias" else _of_linear(v.mT if kind == "transposed" else v)
    own = {name: p.ndim for name, p in module.named_parameters()}
    if "Norm" in type(module).__name__ and own in ({"weight": 1}, {"weight": 1, "bias": 1}):
        return _of_vector(v) if leaf == "bias" else _of_vector(v, _unit(module))
    return None


def _products(pool: _Pool, own: Mapping[str, Tensor], directions: Directions, m: int) -> Directional:
    hooks, score, once = _Hooks(pool.model, directions), np.zeros((len(pool.reader.tokens), m)), 0
    if hooks.left and pool.loss.reads != "log_probs":
        got = f"a direction for {sorted(hooks.left)[0]!r} with a loss that reads logits"
        raise InputError(got, "linear layers, embeddings and norms", "leave it out, or take how='backward'")
    if hooks.covered:
        _refuse_unseen(pool, {name: own[name] for name in hooks.covered})
        once = 1
        for batch in pool.reader.batches:
            score[batch] = hooks.score(pool, batch)
    if not hooks.left:
        return Directional(score, None, None, {"forward": once, "backward": once})
    rest = _forwards(pool, own, {name: directions[name] for name in hooks.left})
    passes = {"forward": once + rest.passes["forward"], "backward": once}
    return Directional(score + rest.score, rest.error, rest.step, passes)


class _Hooks:
    """Scores of a batch, added up by hooks at the layers that use the tensors of the directions."""

    def __init__(self, model: nn.Module, directions: Directions) -> None:
        self.model, self.m = model, len(next(iter(directions.values())))
        names = {id(p): name for name, p in model.named_parameters() if name in directions}
        uses: list[tuple[nn.Module, str, _Product | None]] = []
        for module in model.modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                if (name := names.get(id(parameter))) is not None:
                    uses.append((module, name, _product(module, leaf, directions[name])))
        # a tensor with one use that is not known goes by differences in all its uses
        self.left = {name for _, name, product in uses if product is None}
        self.covered = set(directions) - self.left
        self.uses: dict[nn.Module, list[_Product]] = {}
        for module, name, product in uses:
            if product is not None and name not in self.left:
                self.uses.setdefault(module, []).append(product)

    def score(self, pool: _Pool, rows: Sequence[int]) -> Array:
        """Return the scores of some records, shape (B, m)."""
        owner: list[Tensor] = []
        score = torch.zeros(len(rows), self.m, dtype=torch.float64, device=pool.reader.device)

        def add(product: _Product, x: Tensor, g: Tensor) -> None:
            found = product(x, g).double()  # (m, *places)
            if found.shape[1] == len(rows):
                score.add_(found.flatten(2).sum(dim=2).T.to(score))
            elif found.shape[1:] == (1, len(owner[0])):  # the output head
                score.index_add_(0, owner[0], found[:, 0].T.to(score))
            else:
                got = f"a layer with an output of shape {tuple(g.shape)} for {len(rows)} records"
                raise InputError(got, "layers that keep records apart", "take how='forwards' or how='backward'")

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            fresh = not output.requires_grad  # nothing below has a direction: the graph begins here
            seen = output.detach().requires_grad_() if fresh else output
            x = args[0].detach()

            def receive(g: Tensor) -> None:
                for product in self.uses[module]:
                    add(product, x, g)

            seen.register_hook(receive)  # type: ignore[no-untyped-call]
            return seen.clone() if fresh else None  # a leaf may not be changed in place

        with torch.enable_grad(), _without_gradients(self.model), ExitStack() as stack:
            for module in self.uses:
                stack.enter_context(removing(module.register_forward_hook(hook)))
            total = pool.losses(rows, owner).sum()
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]
        return np.asarray(score.cpu().numpy())


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of any parameter meanwhile."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)


def _refuse_unseen(pool: _Pool, own: Mapping[str, Tensor]) -> None:
    """Compare the products of the gradients of the two shortest records with those gradients themselves."""
    rows = pool.reader.batches[-1][-2:]
    grads = [_gradients(pool, own, i) for i in rows]
    stacked = {name: torch.stack([one[name] for one in grads]) for name in own}
    exact = np.sum([(v.flatten(1) @ v.flatten(1).T).cpu().numpy() for v in stacked.values()], axis=0)
    found = _Hooks(pool.model, stacked).score(pool, rows)
    off = float(np.abs(found - exact).max())
    if not off <= _AGREE * float(exact.max()) and math.isfinite(exact.max()):
        got = f"products that miss a gradient by {off / float(exact.max()):.1e} of its squared norm"
        raise InputError(got, "a model that calls its layers, one record a row", "take 'forwards' or 'backward'")
