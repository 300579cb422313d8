"""Silos, models with a client axis, and local steps against NumPy written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification import silos
from upright.contract import InputError


def world(seed, sizes=(30, 7, 55), d=4, m=3):
    rng = np.random.default_rng(seed)
    xs = [rng.normal(size=(n, d)) for n in sizes]
    rows = [silos.one_hot(rng.integers(0, m, n), m) for n in sizes]
    return rng, xs, rows


def models(rng, k, d, m, hidden):
    parts = [silos.initial(d, m, hidden, rng) for _ in range(k)]
    return {n: torch.from_numpy(np.stack([p[n] + 0.1 * rng.normal(size=p[n].shape) for p in parts])) for n in parts[0]}


def trained(params, xs, rows, index, **settings):
    return silos.local_steps(params, [torch.from_numpy(x) for x in xs], [torch.from_numpy(r) for r in rows], index,
                             **settings)  # fmt: skip


# -- silos ----------------------------------------------------------------------------------------------------------


def test_pooled_rows_are_cut_into_silos_and_lost_nowhere():
    # catches rows, labels and groups that are cut differently, and columns of groups that a client lacks
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    who, group = rng.choice(["b", "a"], 40), np.array(["u", "v", "w"])[np.r_[np.zeros(38, int), 1, 2]]
    own = silos.silos_of(x, y, who, [group])
    assert list(own) == ["a", "b"]
    for name, silo in own.items():
        rows = np.flatnonzero(who == name)
        np.testing.assert_array_equal(silo.x, x[rows])
        np.testing.assert_array_equal(silo.y, y[rows])
        assert silo.members[0].shape == (len(rows), 3)
        np.testing.assert_array_equal(np.array(["u", "v", "w"])[silo.members[0].argmax(1)], group[rows])


def _silo(**change):
    own = {"name": "a", "x": np.zeros((3, 2)), "y": np.array([0, 1, 1]), "members": (np.eye(3),)} | change
    return silos.Silo(**own)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": np.zeros((2, 2))}, "client 'a' with features float64 of shape (2, 2) and labels of shape (3,)"),
        ({"x": np.zeros((3, 2), int)}, "client 'a' with features int64 of shape (3, 2)"),
        ({"x": np.array([[0, 1.0], [np.nan, 0], [0, 0]])}, "1 rows of features that are not finite, the first is 1"),
        ({"y": np.array([0, -1, 1])}, "client 'a' with labels of int64, the smallest -1"),
        ({"members": (np.full((3, 2), 0.5),)}, "client 'a', members 0: not one-hot"),
        ({"members": (np.ones((3, 2)),)}, "client 'a', members 0: not one-hot"),
    ],
)
def test_bad_silos_are_refused_in_three_parts(change, text):
    # catches input that would end as NaN, or as people counted in two groups
    with pytest.raises(InputError) as caught:
        _silo(**change)
    assert text in caught.value.got
    assert caught.value.accepted
    assert caught.value.todo


def test_rows_of_different_lengths_and_unknown_groups_are_refused():
    # catches silent broadcasting and a stranger that gets a column of its own
    x, y = np.zeros((3, 1)), np.array([0, 1, 0])
    with pytest.raises(InputError, match="3 rows, 3 labels, 2 clients"):
        silos.silos_of(x, y, ["a", "b"])
    with pytest.raises(InputError, match="groups 0 with 'z'"):
        silos.silos_of(x, y, ["a", "b", "a"], [["u", "z", "u"]], names=[["u", "v"]])


# -- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 5])
def test_one_model_and_many_give_the_same_logits_as_numpy(hidden):
    # catches a transposed weight, a bias of another client, a missing ReLU
    rng = np.random.default_rng(1)
    params, x = models(rng, 3, 4, 2, hidden), rng.normal(size=(3, 6, 4))
    many = silos.logits(params, torch.from_numpy(x)).numpy()
    for k in range(3):
        own = {name: value[k] for name, value in params.items()}
        z, p = x[k], {name: value.numpy() for name, value in own.items()}
        if hidden:
            z = np.maximum(z @ p["hidden.weight"] + p["hidden.bias"], 0.0)
        z = z @ p["weight"] + p["bias"]
        np.testing.assert_allclose(many[k], z, atol=1e-13)
        np.testing.assert_allclose(silos.logits(own, torch.from_numpy(x[k])).numpy(), z, atol=1e-13)


def test_loss_with_one_hot_rows_is_the_cross_entropy():
    # catches a mean where a sum over classes belongs
    rng = np.random.default_rng(2)
    z, y = torch.from_numpy(rng.normal(size=(9, 4))), torch.from_numpy(rng.integers(0, 4, 9))
    own = silos.weighted_log_loss(z, torch.from_numpy(silos.one_hot(y.numpy(), 4)))
    torch.testing.assert_close(own, torch.nn.functional.cross_entropy(z, y, reduction="none"))


# -- batches and steps ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.integers(1, 30))
def test_batches_use_every_row_before_any_row_again(seed, n, steps, size):
    # catches sampling with replacement, and a client with fewer rows than a batch
    index = silos.batches(np.random.default_rng(seed), n, steps, size)
    assert index.shape == (steps, size)
    flat = index.ravel()
    for start in range(0, len(flat), n):
        part = flat[start : start + n]
        assert len(set(part.tolist())) == len(part)
    assert flat.min() >= 0
    assert flat.max() < n


def by_hand(w, b, x, r, index, optimiser, rate, decay):
    """Softmax regression, SGD or Adam, gradient written out."""
    w, b, state = w.copy(), b.copy(), [0.0, 0.0, 0.0, 0.0]
    for t, rows in enumerate(index, start=1):
        z = x[rows] @ w + b
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = (p * r[rows].sum(1, keepdims=True) - r[rows]) / len(rows)
        gw, gb = x[rows].T @ g + decay * w, g.sum(0) + decay * b
        if optimiser == "sgd":
            w, b = w - rate * gw, b - rate * gb
            continue
        state = [0.9 * state[0] + 0.1 * gw, 0.999 * state[1] + 0.001 * gw**2,
                 0.9 * state[2] + 0.1 * gb, 0.999 * state[3] + 0.001 * gb**2]  # fmt: skip
        mw, vw, mb, vb = (s / (1 - (0.9 if i % 2 == 0 else 0.999) ** t) for i, s in enumerate(state))
        w, b = w - rate * mw / (np.sqrt(vw) + 1e-8), b - rate * mb / (np.sqrt(vb) + 1e-8)
    return w, b


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_softmax_regression_written_out_for_each_client(optimiser, decay):
    # catches gradients that leak between clients, a loss summed over a batch, states kept from elsewhere
    rng, xs, rows = world(3)
    rows = [r + 0.3 * rng.random(r.shape) for r in rows]  # weights, not labels
    params = models(rng, 3, 4, 3, 0)
    index = np.stack([silos.batches(rng, len(x), 7, 10) for x in xs])
    after = trained(params, xs, rows, index, optimiser=optimiser, learning_rate=0.05, weight_decay=decay)
    for k in range(3):
        w, b = by_hand(params["weight"][k].numpy(), params["bias"][k].numpy(), xs[k], rows[k], index[k], optimiser,
                       0.05, decay)  # fmt: skip
        np.testing.assert_allclose(after["weight"][k].numpy(), w, atol=1e-10)
        np.testing.assert_allclose(after["bias"][k].numpy(), b, atol=1e-10)


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_client_alone_has_the_numbers_it_has_among_others(hidden, optimiser):
    # catches a step that depends on who else is in the tensor program: Flower's clients are alone
    rng, xs, rows = world(4)
    params = models(rng, 3, 4, 3, hidden)
    index = np.stack([silos.batches(rng, len(x), 8, 12) for x in xs])
    before = {name: value.clone() for name, value in params.items()}
    together = trained(params, xs, rows, index, optimiser=optimiser)
    for k in range(3):
        own = {name: value[k : k + 1] for name, value in params.items()}
        alone = trained(own, xs[k : k + 1], rows[k : k + 1], index[k : k + 1], optimiser=optimiser)
        for name in params:
            np.testing.assert_allclose(alone[name][0].numpy(), together[name][k].numpy(), atol=1e-12)
    for name in params:  # what went in is not changed
        torch.testing.assert_close(params[name], before[name], rtol=0, atol=0)


def test_float32_stays_float32():
    # catches a silent promotion that doubles messages
    rng, xs, rows = world(5)
    params = {name: value.float() for name, value in models(rng, 3, 4, 3, 2).items()}
    index = np.stack([silos.batches(rng, len(x), 2, 4) for x in xs])
    after = trained(params, [x.astype(np.float32) for x in xs], [r.astype(np.float32) for r in rows], index)
    assert {value.dtype for value in after.values()} == {torch.float32}
