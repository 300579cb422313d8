"""SASRec: its formula written out, what it may see, its masks, and a sequence that it must learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from upright.contract import InputError
from upright.models.sequential import SASRec, SeededDropout

N_ITEMS, LENGTH = 7, 5


def make(dropout=0.0, seed=0, **options):
    sizes = {"n_items": N_ITEMS, "dim": 4, "layers": 2, "heads": 2, "length": LENGTH} | options
    generator = torch.Generator().manual_seed(seed)
    model = SASRec(**sizes, dropout=dropout, generator=generator, dtype=torch.float64)
    with torch.no_grad():  # away from the start, where norms and biases are plain
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def batch(rows=4, seed=0):
    """Histories of one item to LENGTH, each with the next item at every place."""
    rng = np.random.default_rng(seed)
    items = torch.from_numpy(rng.integers(0, N_ITEMS, (rows, LENGTH + 1)))
    history, target = items[:, :-1].clone(), items[:, 1:].clone()
    for row in range(rows):
        history[row, : row % LENGTH] = target[row, : row % LENGTH] = -1
    return history, target


def by_hand(model, items):
    """Logits after each of some items, (T, I), places and heads one by one."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads, dim = model.blocks[0].heads, state["item"].shape[1]
    width = dim // heads

    def norm(v, name):
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def layer(v, name):
        return state[f"{name}.weight"] @ v + state[f"{name}.bias"]

    places = range(LENGTH - len(items), LENGTH)
    x = [math.sqrt(dim) * state["item"][i] + state["place"][p] for i, p in zip(items, places, strict=True)]
    for k in range(len(model.blocks)):
        name = f"blocks.{k}."
        q, key, value = zip(
            *(np.split(layer(norm(v, name + "before_attention"), name + "query_key_value"), 3) for v in x), strict=True
        )
        after = []
        for t in range(len(x)):
            parts = []
            for head in range(heads):
                own = slice(head * width, (head + 1) * width)
                weight = np.exp([q[t][own] @ key[s][own] / math.sqrt(width) for s in range(t + 1)])
                parts.append(sum(w * value[s][own] for s, w in enumerate(weight / weight.sum())))
            v = x[t] + layer(np.concatenate(parts), name + "out")
            inner = np.maximum(layer(norm(v, name + "before_places"), name + "first"), 0)
            after.append(v + layer(inner, name + "second"))
        x = after
    return np.array([state["item"] @ norm(v, "norm") for v in x])


def test_scores_and_losses_equal_the_formula():
    # Catches: a place counted from the left, a missing norm or scale, heads that mix, a loss at the wrong place, a
    # causal mask that is missing or one place off, padding that is looked at or counted, rows that touch one another.
    model = make()
    history, target = batch()
    scores = model.score_all(history).detach().numpy()
    losses, item = model.target_losses(history, target, masks=0)
    expected = []
    for row in range(len(history)):
        logits = by_hand(model, history[row][history[row] >= 0].tolist())
        np.testing.assert_allclose(scores[row], logits[-1], rtol=0, atol=1e-12)
        narrow = model.score_all(history[row : row + 1, -len(logits) :])[0].detach()
        np.testing.assert_allclose(narrow, logits[-1], rtol=0, atol=1e-12)
        wanted = target[row][target[row] >= 0].tolist()
        expected += [np.log(np.exp(z).sum()) - z[i] for z, i in zip(logits, wanted, strict=True)]
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=0, atol=1e-12)
    assert item.tolist() == target[target >= 0].tolist()


def test_masks_decide_dropout_alone():
    # Catches: dropout that reads or moves the global generator, masks that are not drawn again, dropout when scoring.
    model = make(dropout=0.5)
    history, target = batch(rows=16)
    torch.manual_seed(1)
    first = model.target_losses(history, target, masks=3)[0]
    scores = model.score_all(history)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(model.target_losses(history, target, masks=3)[0], first)
    assert not torch.isclose(model.target_losses(history, target, masks=4)[0], first).any()
    model.eval()
    assert torch.equal(model.score_all(history), scores)
    plain = model.target_losses(history, target, masks=3)[0]
    assert torch.equal(model.target_losses(history, target, masks=4)[0], plain)
    expected = cross_entropy(scores, target[:, -1], reduction="none")
    torch.testing.assert_close(plain[(target >= 0).sum(1).cumsum(0) - 1], expected, rtol=0, atol=1e-12)


def test_dropout_keeps_the_mean():
    # Catches: activations that are not scaled, p taken for 1 - p. Of 40,000 masks at p = 0.2 a share within five
    # standard errors (0.01) of 0.8 is kept.
    kept = SeededDropout(0.2, torch.Generator().manual_seed(0))(torch.ones(40_000))
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert abs((kept > 0).float().mean().item() - 0.8) < 0.01


def test_gradients_of_every_parameter():
    # catches: a gradient that is cut off. Norms of two numbers are 1 and -1, whatever stands before them: dim is 4
    model = make(dropout=0.1, dim=4, layers=1, length=3, n_items=4)
    history, target = torch.tensor([[-1, 0, 3]]), torch.tensor([[-1, 3, 1]])

    def losses(*_parameters):  # which are moved in place
        return model.target_losses(history, target, masks=1)[0]

    assert torch.autograd.gradcheck(losses, tuple(model.parameters()))
    assert torch.autograd.gradgradcheck(losses, tuple(model.parameters()), fast_mode=True)  # for the curvature


def test_it_learns_a_cycle():
    # 0 -> 3 -> 6 -> 2 -> 5 -> 1 -> 4 -> 0: every next item is certain, so hit@1 must become 1.
    generator = torch.Generator().manual_seed(0)
    model = SASRec(N_ITEMS, 16, 1, 2, LENGTH, 0.1, generator=generator)
    steps = torch.arange(LENGTH + 1)
    items = (torch.arange(N_ITEMS)[:, None] + steps) * 3 % N_ITEMS
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(60):
        optimiser.zero_grad()
        model.target_losses(items[:, :-1], items[:, 1:], masks=epoch)[0].mean().backward()
        optimiser.step()
    assert torch.equal(model.score_all(items[:, :-1]).argmax(1), items[:, -1])


def test_the_state_comes_back_and_the_seed_decides():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.rand(1), expected)
    history, _ = batch()
    assert torch.equal(one.score_all(history), other.score_all(history))
    assert not torch.isclose(one.score_all(history), third.score_all(history)).all()
    third.load_state_dict(one.state_dict())
    assert torch.equal(one.score_all(history), third.score_all(history))


HISTORY, TARGET = batch()


@pytest.mark.parametrize(
    ("history", "target", "got"),
    [
        (HISTORY + N_ITEMS, TARGET, "item codes from"),
        (HISTORY, TARGET - 5, "item codes from"),
        (HISTORY, TARGET[:, 1:], "targets of shape"),
        (HISTORY, TARGET.double(), "targets of shape"),
        (HISTORY[0], TARGET[0], "a history of shape"),
        (HISTORY.int(), TARGET, "a history of shape"),
        (HISTORY.repeat(1, 2), TARGET.repeat(1, 2), "a history of shape"),
        (HISTORY.flip(1), TARGET.flip(1), "a history with padding after an item, in row 1"),
        (HISTORY, TARGET.clamp_min(0), "a target without an item before it"),
        (HISTORY, torch.full_like(TARGET, -1), "no target"),
    ],
)
def test_bad_batches_are_refused(history, target, got):
    with pytest.raises(InputError) as error:
        make().target_losses(history, target, masks=0)
    assert error.value.got.startswith(got)


def test_a_user_without_an_item_has_no_scores():
    with pytest.raises(InputError, match="without an item, in row 2"):
        make().score_all(torch.where(torch.arange(4)[:, None] == 2, -1, HISTORY))


@pytest.mark.parametrize("option", [{"n_items": 0}, {"layers": 0}, {"length": 0}, {"heads": 3}, {"dropout": 1.0}])
def test_bad_sizes_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        make(**option)
