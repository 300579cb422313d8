"""Backbones against their formulas written out in NumPy, and negatives against the law they promise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from upright.contract import InputError
from upright.models import recommenders
from upright.models.recommenders import BPRMF, LightGCN, NeuMF, build, draw_negatives

NAMES = ("bprmf", "neumf", "lightgcn")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def graph(n_users=7, n_items=9, density=0.4, seed=0):
    """A random log in which the last user and the last item have no interaction."""
    mask = np.random.default_rng(seed).random((n_users, n_items)) < density
    mask[-1] = False
    mask[:, -1] = False
    mask[0, 0] = True
    return sparse.csr_array(mask.astype(np.float32))


def make(name, dtype=torch.float64, dim=6, layers=2, seed=0, **options):
    return build(name, 7, 9, graph(), dim, layers, generator(seed), dtype, **options)


# -- LightGCN ----------------------------------------------------------------------------------------------------


def dense_lightgcn(table, mask, layers):
    """Mean over layers of (D^-1/2 A D^-1/2)^k E, with a dense matrix and its powers."""
    n_users, n_items = mask.shape
    adjacency = np.zeros((n_users + n_items,) * 2)
    adjacency[:n_users, n_users:] = mask
    adjacency[n_users:, :n_users] = mask.T
    degree = adjacency.sum(axis=1)
    with np.errstate(divide="ignore"):
        scale = np.where(degree > 0, degree**-0.5, 0)
    normal = scale[:, None] * adjacency * scale
    return np.mean([np.linalg.matrix_power(normal, k) @ table for k in range(layers + 1)], axis=0)


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
def test_lightgcn_equals_the_dense_formula(layers):
    # Catches: row normalisation for symmetric, self loops, the ego layer left out of the mean, K for K + 1.
    model = make("lightgcn", layers=layers)
    users, items = model.tables()
    expected = dense_lightgcn(model.table.detach().numpy(), graph().toarray() > 0, layers)
    np.testing.assert_allclose(torch.cat([users, items]).detach().numpy(), expected, rtol=0, atol=1e-14)


def test_lightgcn_gradient_is_the_true_one_to_second_order():
    # Planted defect: return the incoming gradient from `_Smooth.backward` unchanged and this turns red.
    model = make("lightgcn", dim=2, layers=3)

    def smooth(table):
        return torch.cat(torch.func.functional_call(_Tables(model), {"model.table": table}, ()))

    table = model.table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(smooth, (table,))
    assert torch.autograd.gradgradcheck(smooth, (table,))


class _Tables(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return self.model.tables()


def test_lightgcn_gradient_through_a_non_contiguous_incoming_gradient():
    # Catches: a product that reads the memory of a transposed gradient as if it were contiguous.
    model = make("lightgcn")
    torch.cat(model.tables()).T.contiguous().pow(2).sum().backward()
    fast, model.table.grad = model.table.grad, None
    torch.cat(model.tables()).pow(2).sum().backward()
    torch.testing.assert_close(fast, model.table.grad, rtol=0, atol=1e-14)


def test_isolated_users_and_items_keep_their_share_of_the_ego_row():
    # Catches: 1 / sqrt(0) = inf turning the whole table into NaN.
    model = make("lightgcn", layers=3)
    users, items = model.tables()
    (users.sum() + items.sum()).backward()
    assert torch.isfinite(model.table.grad).all()
    torch.testing.assert_close(users[-1], model.table[6] / 4)
    torch.testing.assert_close(items[-1], model.table[-1] / 4)


def test_an_empty_graph_is_matrix_factorisation_up_to_scale():
    model = LightGCN(2, 3, sparse.csr_array((2, 3)), 4, 1, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(torch.cat(model.tables()), model.table.detach() / 2)


def test_lightgcn_reads_edges_only_once_and_ignores_their_values():
    # Catches: ratings used as edge weights, a stored 0 lost, a repeated row counted as two edges, the input changed.
    twice = sparse.csr_array((np.array([5.0, 0.0, 3.0]), np.array([1, 0, 1]), np.array([0, 3, 3])), shape=(2, 3))
    kept = twice.indices.copy()
    once = sparse.csr_array(np.array([[1.0, 1, 0], [0, 0, 0]]))
    one, two = (LightGCN(2, 3, g, 4, generator=generator(), dtype=torch.float64) for g in (twice, once))
    torch.testing.assert_close(one.tables(), two.tables(), rtol=0, atol=0)
    np.testing.assert_array_equal(twice.indices, kept)
    assert twice.nnz == 3


def test_lightgcn_survives_copies_casts_and_state_dicts():
    # Catches: a graph that stays behind in float32, or that is stored with every checkpoint.
    model = make("lightgcn", torch.float32)
    double = copy.deepcopy(model).double()
    assert double.tables()[0].dtype == torch.float64
    torch.testing.assert_close(double.tables()[1].float(), model.tables()[1])
    assert set(model.state_dict()) == {"table"}
    fresh = make("lightgcn", torch.float32, seed=1)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.tables(), model.tables(), rtol=0, atol=0)


def test_lightgcn_is_bitwise_repeatable():
    # Catches: scatter-adds whose order depends on thread timing.
    model = LightGCN(200, 300, graph(200, 300, 0.1), 16, generator=generator())
    grads = []
    for _ in range(3):
        model.table.grad = None
        users, items = model.tables()
        (users @ items.T).square().mean().backward()
        grads.append(model.table.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


# -- NeuMF -------------------------------------------------------------------------------------------------------


def slow_neumf(model, user, item):
    """One logit: concatenate, then layer by layer."""
    d = model.dim
    u, i = (t.detach().numpy() for t in (model.user[user], model.item[item]))
    layer = np.concatenate([u[d:], i[d:]])
    for weight, bias in zip(model.weights, model.biases, strict=True):
        layer = np.maximum(weight.detach().numpy() @ layer + bias.detach().numpy(), 0)
    final = np.concatenate([u[:d] * i[:d], layer])
    head = np.concatenate([model.product_weight.detach().numpy(), model.out_weight.detach().numpy()])
    return final @ head + model.out_bias.item()


@pytest.mark.parametrize("hidden", [(5,), (8, 4, 2), (32, 16, 8)])
def test_neumf_equals_the_concatenated_network(hidden):
    # Catches: user and item halves of the first layer swapped, its bias added twice, a ReLU after the last sum.
    model = NeuMF(4, 5, 6, hidden, init_std=1.0, generator=generator(), dtype=torch.float64)
    for bias in model.biases:
        torch.nn.init.normal_(bias, generator=generator(1))
    torch.nn.init.constant_(model.out_bias, 0.3)
    users, items = model.tables()
    expected = np.array([[slow_neumf(model, u, i) for i in range(5)] for u in range(4)])
    np.testing.assert_allclose(model.score_all(users, items).detach().numpy(), expected, atol=1e-12)
    paired = model.score(users[[0, 3, 3]], items[[4, 0, 2]])
    np.testing.assert_allclose(paired.detach().numpy(), expected[[0, 3, 3], [4, 0, 2]], atol=1e-12)


@pytest.mark.parametrize("elements", [1, 50, 10**6])
def test_neumf_chunks_of_items_do_not_change_scores(monkeypatch, elements):
    # Catches: a last, shorter chunk dropped or chunks joined along users.
    model = make("neumf", init_std=1.0)
    users, items = model.tables()
    whole = model.score_all(users, items)
    monkeypatch.setattr(recommenders, "_CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(model.score_all(users, items), whole)


def test_neumf_of_the_paper_has_64_32_16_8():
    # The first 64 of that name is the input; catches an extra 64 x 64 layer.
    model = make("neumf", dim=32)
    assert [tuple(w.shape) for w in model.weights] == [(32, 64), (16, 32), (8, 16)]
    assert model.tables()[0].shape == (7, 64)


# -- all three ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_is_an_entry_of_score_all(name, dtype):
    # Catches: item rows used for users; a transposed catalogue matrix.
    model = make(name, dtype, init_std=1.0)
    users, items = model.tables()
    u, i = torch.tensor([0, 5, 6, 2]), torch.tensor([8, 1, 0, 2])
    whole = model.score_all(users, items)
    assert whole.shape == (7, 9)
    assert whole.dtype == dtype
    torch.testing.assert_close(model.score(users[u], items[i]), whole[u, i])


@pytest.mark.parametrize("name", NAMES)
def test_ego_rows_are_the_trained_ones(name):
    # Catches: L2 on propagated rows; item rows taken without the offset behind the users.
    model = make(name, layers=0)  # without layers the propagated table is the trained one
    users, items = model.tables()
    ego_user, ego_item = model.ego(torch.tensor([6, 0]), torch.tensor([8, 8, 1]))
    torch.testing.assert_close(ego_user, users[[6, 0]])
    torch.testing.assert_close(ego_item, items[[8, 8, 1]])
    if name == "lightgcn":
        deep = make(name, layers=2)
        torch.testing.assert_close(deep.ego(torch.tensor([1]), torch.tensor([2])), [deep.table[[1]], deep.table[[9]]])


@pytest.mark.parametrize("name", NAMES)
def test_initial_values_come_from_the_generator_alone(name):
    # Catches: paired arms that start apart; torch's global generator moved by a constructor.
    before = torch.random.get_rng_state()
    one, two, other = make(name), make(name), make(name, seed=1)
    single = make(name, torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    for (key, a), b, c, d in zip(
        one.named_parameters(), two.parameters(), other.parameters(), single.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.float(), d, rtol=0, atol=0)
        assert "bias" in key or not torch.equal(a, c)


@pytest.mark.parametrize(("cls", "std"), [(BPRMF, 0.01), (NeuMF, 0.01), (LightGCN, 0.1)])
def test_initial_spread_is_the_documented_one(cls, std):
    args = (sparse.csr_array((300, 300)),) if cls is LightGCN else ()
    model = cls(300, 300, *args, generator=generator())
    rows = torch.cat(model.ego(torch.arange(300), torch.arange(300)))
    assert rows.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_known_pairs_rise_above_others(name):
    # Catches: a score detached from part of the model. Two communities: pairs inside one must win over pairs across.
    n = 20
    side = np.arange(n) < n // 2
    log = sparse.csr_array((side[:, None] == side).astype(np.float32))
    model = build(name, n, n, log, 8, 2, generator(), torch.float64, init_std=0.1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    rng = np.random.default_rng(0)
    for _ in range(60):
        u, i = (torch.from_numpy(x.astype(np.int64)) for x in log.nonzero())
        j = torch.from_numpy(draw_negatives(u.numpy(), log, n, rng)[:, 0])
        users, items = model.tables()
        margin = model.score(users[u], items[i]) - model.score(users[u], items[j])
        optimiser.zero_grad()
        torch.nn.functional.softplus(-margin).mean().backward()
        optimiser.step()
    users, items = model.tables()
    scores = model.score_all(users, items).detach().numpy()
    inside = log.toarray() > 0
    assert min(scores[u][inside[u]].min() - scores[u][~inside[u]].max() for u in range(n)) > 0
    for key, value in model.named_parameters():
        # A bias behind the last sum shifts every score alike, so a pairwise loss cannot move it.
        assert key == "out_bias" or not torch.equal(value, start[key]), key


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make("ngcf"), "backbone = 'ngcf'"),
        (lambda: BPRMF(0, 3, generator=generator()), "n_users = 0"),
        (lambda: BPRMF(3, 3, 0, generator=generator()), "dim = 0"),
        (lambda: NeuMF(3, 3, 4, (), generator=generator()), "hidden = ()"),
        (lambda: NeuMF(3, 3, 4, (4, 0), generator=generator()), "smallest_hidden_layer = 0"),
        (lambda: LightGCN(3, 3, graph(), generator=generator()), "interactions of shape (7, 9)"),
        (lambda: LightGCN(7, 9, graph(), layers=-1, generator=generator()), "layers = -1"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, says):
    with pytest.raises(InputError) as caught:
        call()
    assert says in caught.value.got


# -- negatives ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 12), st.integers(1, 4))
def test_negatives_are_unseen_items_of_the_catalogue(seed, n_users, n_items, k):
    # Planted defect: side="left" in the search gives seen items and turns this red.
    rng = np.random.default_rng(seed)
    mask = rng.random((n_users, n_items)) < rng.random()
    mask[np.arange(n_users), rng.integers(0, n_items, n_users)] = False
    users = rng.integers(0, n_users, 40)
    drawn = draw_negatives(users, sparse.csr_array(mask), n_items, rng, k)
    assert drawn.shape == (40, k)
    assert drawn.dtype == np.int64
    assert ((drawn >= 0) & (drawn < n_items)).all()
    assert not mask[users[:, None], drawn].any()


def test_negatives_are_uniform_over_unseen_items():
    # Catches: items that follow a seen one drawn twice as often (shift to the next free item), last item never drawn.
    mask = np.zeros((3, 10), dtype=bool)
    mask[0, [0, 1, 2, 7, 9]] = True
    mask[1, :9] = True  # one single free item
    users = np.repeat([0, 1, 2], 20_000)
    drawn = draw_negatives(users, sparse.csr_array(mask), 10, np.random.default_rng(0))[:, 0]
    for user in range(3):
        counts = np.bincount(drawn[users == user], minlength=10)
        p = np.where(mask[user], 0, 1 / (~mask[user]).sum())
        # Five standard errors a cell: a false alarm in less than one run in 100,000.
        assert (np.abs(counts - 20_000 * p) <= 5 * np.sqrt(20_000 * p * (1 - p))).all()


def test_negatives_are_fresh_each_call_and_repeatable_by_seed():
    # Catches: negatives drawn once for the whole training.
    users, rng = np.zeros(100, dtype=np.int64), np.random.default_rng(0)
    one, two = (draw_negatives(users, graph(), 9, rng) for _ in range(2))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(draw_negatives(users, graph(), 9, np.random.default_rng(0)), one)


def test_negatives_accept_unsorted_and_repeated_entries():
    # Catches: a binary search over columns that are not sorted.
    messy = sparse.csr_array((np.ones(4), np.array([3, 0, 3, 2]), np.array([0, 4])), shape=(1, 5))
    drawn = draw_negatives(np.zeros(500, dtype=np.int64), messy, 5, np.random.default_rng(0))
    assert set(drawn.ravel()) == {1, 4}
    assert messy.indices.tolist() == [3, 0, 3, 2]


def test_no_users_need_no_negatives():
    assert draw_negatives(np.array([], dtype=np.int64), graph(), 9, np.random.default_rng(0), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("users", "n_items", "k", "says"),
    [
        ([0, 1], 3, 1, "1 user(s) who have seen all 3 items, the first is user 1"),
        ([0, 2], 3, 1, "user codes from 0 to 2"),
        ([-1], 3, 1, "user codes from -1 to -1"),
        ([0], 4, 1, "interactions of shape (2, 3)"),
        ([0], 3, 0, "k = 0"),
    ],
)
def test_negatives_refuse_bad_input(users, n_items, k, says):
    # Catches: an endless loop for a user who has seen everything.
    seen = sparse.csr_array(np.array([[1.0, 0, 0], [1, 1, 1]]))
    with pytest.raises(InputError) as caught:
        draw_negatives(np.array(users), seen, n_items, np.random.default_rng(0), k)
    assert says in caught.value.got
