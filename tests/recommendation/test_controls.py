"""What RAID is compared with and the batches that all of it shares."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from upright.experiment.folders import ArmRun
from upright.models.recommenders import build
from upright.recommendation import pairs
from upright.recommendation.controls import (
    Adversary,
    WithUsers,
    clipped,
    erased,
    exposed,
    gaussian_epsilon,
    matched_noise,
)
from upright.tasks.next_item import NextItem

BACKBONES = ["bprmf", "neumf", "lightgcn"]


def points(seed, n, d):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model_of(backbone, users=12, items=9):
    seen = sparse.csr_array((np.random.default_rng(0).random((users, items)) < 0.3).astype(np.float64))
    generator = torch.Generator().manual_seed(0)
    return build(backbone, users, items, seen, 4, 2, generator, torch.float64, init_std=0.5)


def one_direction(n=400, d=6, far=1.2, seed=0):
    """Two classes that the first axis alone tells apart, and nothing else does."""
    codes = np.random.default_rng(seed).integers(0, 2, n)
    table = points(seed, n, d)
    table[:, 0] += far * torch.from_numpy(2.0 * codes - 1.0)
    return table, codes


def adversary(codes, table, classes=2, seed=0, **options):
    return Adversary(codes, classes, table, torch.Generator().manual_seed(seed), **options)


# -- the adversary ---------------------------------------------------------------------------------------------------


def test_the_adversary_learns_on_vectors_that_stay():
    # catches an adversary that climbs its own loss, or that never steps
    table, codes = one_direction()
    one, users = adversary(codes, table), torch.arange(400)
    losses = [-one.step(table, users).item() for _ in range(50)]
    assert losses[0] == pytest.approx(np.log(2), abs=0.15)
    assert losses[-1] < 0.5 * losses[0]
    assert all(b < a + 1e-3 for a, b in zip(losses[::10], losses[10::10], strict=False))


def attack(table, codes):
    """AUC of a fresh logistic regression on users it was not fitted on."""
    half = np.arange(len(codes)) % 2 == 0
    model = LogisticRegression().fit(table[half].numpy(), codes[half])
    return roc_auc_score(codes[~half], model.decision_function(table[~half].numpy()))


def test_the_returned_loss_moves_vectors_against_a_fresh_attacker():
    # catches a reversal of the wrong sign: vectors would become easier to read
    table, codes = one_direction(far=0.6)
    x, users = table.clone().requires_grad_(), torch.arange(400)
    one, solver = adversary(codes, table), torch.optim.Adam([x], lr=0.01)
    for _ in range(20):  # first the adversary alone
        one.step(table, users)
    for _ in range(40):
        solver.zero_grad()
        one.step(x, users).backward()
        solver.step()
    before, after = attack(table, codes), attack(x.detach(), codes)
    assert before > 0.75
    assert after < before - 0.15


def test_the_loss_is_its_formula_and_trains_no_adversary():
    # -CE over users who teach, classes alike, CE to 1/C over the others, mean over the batch; catches an adversary that
    # is trained by the loss that should fool it
    table, codes = points(0, 50, 3), np.repeat([0, 1], [40, 10])
    fitted = np.where(np.arange(50) % 3 == 0, -1, codes)
    x = table.clone().requires_grad_()
    one = adversary(fitted, table, inner=2)
    loss = one.step(x, torch.arange(50))
    a, b, c, d = (layer.detach() for layer in one.layers)
    scaled = (table - table.mean(0)) / table.std()
    log_p = torch.log_softmax(torch.relu(scaled @ a.T + b) @ c.T + d, 1)
    size = np.bincount(fitted[fitted >= 0])
    total = 0.0
    for u in range(50):
        y = fitted[u]
        total += size.sum() / size[y] / 2 * log_p[u, y].item() if y >= 0 else -log_p[u].mean().item()
    assert loss.item() == pytest.approx(total / 50)
    kept = [layer.grad.clone() for layer in one.layers]
    loss.backward()
    assert all(torch.equal(k, layer.grad) for k, layer in zip(kept, one.layers, strict=True))
    assert (x.grad.abs().sum(1) > 0).all()


def test_users_outside_fitted_never_train_the_adversary():
    # they may trade vectors: batch mean and spread stay, and nothing else of them is used
    table, codes = one_direction(60)
    fitted = np.where(np.arange(60) < 30, codes, -1)
    other = table.clone()
    other[30:] = table[30:].flip(0)
    first, second = adversary(fitted, table), adversary(fitted, other)
    for _ in range(5):
        first.step(table, torch.arange(60))
        second.step(other, torch.arange(60))
    for a, b in zip(first.layers, second.layers, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-9)
    third = adversary(np.where(np.arange(60) < 30, 1 - codes, -1), table)
    third.step(table, torch.arange(60))
    assert not torch.allclose(third.layers[3], first.layers[3], atol=1e-3)


@pytest.mark.parametrize(("codes", "classes"), [([0] * 6, 1), ([-1] * 6, 0), ([0, 1, -1, -1, -1, -1], 2)])
def test_nothing_to_hide_or_too_few_to_learn_from_is_exactly_zero(codes, classes):
    table = points(0, 6, 3).requires_grad_()
    loss = adversary(np.array(codes), table, classes).step(table, torch.arange(1, 6))
    loss.backward()
    assert loss.item() == 0.0
    assert not table.grad.any()


def test_a_resumed_adversary_goes_on_bit_by_bit():
    # through a file; catches a solver whose moments are forgotten
    table, codes = one_direction(40)
    whole, cut = adversary(codes, table), adversary(codes, table)
    losses = [whole.step(table, torch.arange(40)).item() for _ in range(8)]
    for _ in range(3):
        cut.step(table, torch.arange(40))
    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    file.seek(0)
    again = adversary(codes, table, seed=99)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [again.step(table, torch.arange(40)).item() for _ in range(5)] == losses[3:]


def test_a_user_counts_once_a_batch():
    table, codes = one_direction(10)
    first, second = (adversary(codes, table).step(table, u) for u in (
        torch.arange(10), torch.cat([torch.arange(10), torch.zeros(30, dtype=torch.int64)])
    ))  # fmt: skip
    assert first.item() == second.item()


# -- noise ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_noise_costs_what_it_should(seed, share):
    # utility falls smoothly from 1 to 0: catches a bisection of the wrong half, or too few rounds
    table = 3.0 * points(seed, 30, 4)

    def utility(moved):
        return float(1 / (1 + (moved - table).square().mean()))

    moved, size = matched_noise(table, utility, share, torch.Generator().manual_seed(seed))
    assert utility(moved) == pytest.approx(share, rel=0.01)
    assert utility(moved) <= share
    noise = (moved - table) / (size * table.std(0).mean())
    assert noise.std().item() == pytest.approx(1.0, abs=0.3)
    again, _ = matched_noise(table, utility, share, torch.Generator().manual_seed(seed))
    assert torch.equal(moved, again)


@pytest.mark.parametrize("target", [0.7, 2.0])
def test_no_noise_when_the_target_is_not_below(target):
    table = points(0, 10, 3)
    moved, size = matched_noise(table, lambda x: 0.7, target, torch.Generator().manual_seed(0))
    assert size == 0.0
    assert torch.equal(moved, table)
    assert moved is not table


def test_a_utility_that_never_falls_gets_the_largest_noise_and_a_jump_is_not_overshot():
    # catches a size that is never reached, and a table above the target
    table = points(0, 10, 3)
    assert matched_noise(table, lambda x: 1.0, 0.5, torch.Generator().manual_seed(0))[1] == pytest.approx(100.0)
    moved, _ = matched_noise(table, lambda x: float((x - table).std() < 0.3), 0.5, torch.Generator().manual_seed(0))
    assert (moved - table).std().item() == pytest.approx(0.3, rel=0.01)


def test_clipped_rows_keep_their_direction():
    # catches: a row that is made longer, a zero row that becomes NaN
    table = points(3, 9, 4)
    table[0] = 0.0
    found, most = clipped(table)
    length = table.norm(dim=1)
    assert most == pytest.approx(length.median().item())
    np.testing.assert_allclose(found.norm(dim=1).numpy(), np.minimum(length.numpy(), most), rtol=1e-12)
    assert torch.nn.functional.cosine_similarity(found[1:], table[1:]).min() > 1 - 1e-12


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 50.0])
def test_epsilon_is_that_of_the_definition(sigma):
    # catches: the classical bound, which is invalid above 1; a sensitivity taken for its half
    epsilon = gaussian_epsilon(sigma, 2.0, 1e-4)
    x = np.linspace(-12 * sigma - 2, 12 * sigma + 4, 200_001)
    p, q = (np.exp(-0.5 * ((x - at) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) for at in (2.0, 0.0))
    delta = np.maximum(p - np.exp(epsilon) * q, 0.0).sum() * (x[1] - x[0])
    assert delta == pytest.approx(1e-4, rel=1e-3)
    assert gaussian_epsilon(0.0, 2.0) == np.inf
    assert gaussian_epsilon(1e9, 2.0) == 0.0


# -- linear erasure -------------------------------------------------------------------------------------------------


def correlated(n=500, d=6, classes=3, seed=0):
    """Vectors of uneven spread whose means, and spreads, differ between classes."""
    codes = np.random.default_rng(seed).integers(0, classes, n)
    mix, centre = points(seed + 1, d, d), points(seed + 2, classes, d)
    return (points(seed, n, d) + centre[codes]) @ mix, codes


def covariance(table, codes, classes=3):
    z = np.eye(classes)[codes]
    x = table.numpy() - table.numpy().mean(0)
    return x.T @ (z - z.mean(0)) / len(z)


def test_erasure_takes_the_covariance_with_the_classes_by_its_share():
    # catches: a projection in the wrong metric, one class that is left, a share that is squared
    table, codes = correlated()
    before = covariance(table, codes)
    for share in (0.0, 0.4, 1.0):
        np.testing.assert_allclose(
            covariance(erased(table, [(codes, 3)], share), codes), (1 - share) * before, atol=1e-10
        )
    flat = erased(table, [(codes, 3)]).numpy()
    model = LogisticRegression(max_iter=500).fit(flat, codes)
    assert abs(roc_auc_score(codes == 0, model.predict_proba(flat)[:, 0]) - 0.5) < 0.02


def test_of_all_that_erase_it_moves_vectors_least():
    # catches: mean matching in the plain metric, which moves further
    table, codes = correlated()
    moved = (erased(table, [(codes, 3)]) - table).square().sum().item()
    cross, x = covariance(table, codes), (table - table.mean(0)).numpy()
    cov = x.T @ x / len(x)
    for seed in range(20):  # x - A B^+ x with B = A' for any A whose null space is that of the cross covariance
        shape = np.random.default_rng(seed).normal(size=(6, 6))
        metric = np.eye(6) if seed == 0 else shape @ shape.T
        oblique = cross @ np.linalg.pinv(cross.T @ metric @ cross) @ cross.T @ metric
        np.testing.assert_allclose((np.eye(6) - oblique) @ cross, 0.0, atol=1e-8)
        assert moved <= (x @ oblique.T @ oblique * x).sum() + 1e-9
    best = cross @ np.linalg.pinv(cross.T @ np.linalg.inv(cov) @ cross) @ cross.T @ np.linalg.inv(cov)
    assert moved == pytest.approx((x @ best.T @ best * x).sum(), rel=1e-8)


def test_erasure_is_fitted_to_users_of_known_class_and_moves_all():
    # catches: users without a class who stay, two attributes of which one is left, a direction without spread
    table, codes = correlated()
    table = torch.cat([table, table[:, :1]], 1)  # its covariance is singular
    hidden, other = np.where(np.arange(500) < 100, -1, codes), np.random.default_rng(9).integers(0, 2, 500)
    found = erased(table, [(hidden, 3), (other, 2)])
    np.testing.assert_allclose(covariance(found[100:], codes[100:]), 0.0, atol=1e-9)
    np.testing.assert_allclose(covariance(found[100:], other[100:], 2), 0.0, atol=1e-9)
    assert (found[:100] != table[:100]).any(1).all()


# -- surfaces and a replaced table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_that_a_model_holds_of_its_users_is_exposed(backbone):
    # D5: both halves of NeuMF, the trained and the propagated rows of LightGCN; with their gradient
    model = model_of(backbone)
    held, served = exposed(model), model.tables()[0]
    assert held.shape == (12, {"bprmf": 4, "neumf": 8, "lightgcn": 8}[backbone])
    assert torch.equal(held[:, -served.shape[1] :], served)
    if backbone == "lightgcn":
        assert torch.equal(held[:, :4], model.ego(torch.arange(12), torch.arange(1))[0])
        assert not torch.equal(held[:, :4], served)
    assert torch.equal(exposed(model, served), held)
    held.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in ("user", "table"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_replaced_table_is_scored_as_the_backbone_scores(backbone):
    # catches a score that still reads the old users, and one that is a plain product under NeuMF
    model = model_of(backbone)
    users, items = (t.detach() for t in model.tables())
    other = users + points(1, *users.shape)
    twin = WithUsers(model, other)
    assert torch.equal(twin.tables()[0], other)
    assert torch.equal(twin.tables()[1], items)
    with torch.no_grad():
        found = NextItem.scores_of(twin)(np.arange(12))
        np.testing.assert_array_equal(found, model.score_all(other, items).numpy())
        assert np.abs(found - NextItem.scores_of(model)(np.arange(12))).max() > 1e-6
        assert torch.equal(twin.score(other[:3], items[:3]), model.score(other[:3], items[:3]))
    assert torch.equal(twin.ego(torch.arange(12), torch.arange(2))[0], other)  # the old rows are nowhere
    assert set(dict(twin.named_parameters())) == {"user", "item"}
    other += 1.0
    assert not torch.equal(twin.tables()[0], other)  # a copy


# -- batches and the loss of a batch --------------------------------------------------------------------------------


def test_an_epoch_holds_every_pair_once_with_unseen_negatives_and_is_named():
    # catches lost or repeated rows, negatives that the user has, and an order that depends on what was drawn before
    task, run = NextItem.tiny(), ArmRun(None, 0, "x")
    epochs = [list(pairs.batches(task, run, epoch, 100)) for epoch in (1, 0, 1)]
    users, items, negatives = (torch.cat(part).numpy() for part in zip(*epochs[0], strict=True))
    rows = set(zip(task.train.user.tolist(), task.train.item.tolist(), strict=True))
    assert sorted(zip(users.tolist(), items.tolist(), strict=True)) == sorted(rows)
    assert not task.seen.toarray()[users, negatives].any()
    assert [len(b[0]) for b in epochs[0][:-1]] == [100] * (len(epochs[0]) - 1)
    assert all(torch.equal(x, y) for a, b in zip(epochs[0], epochs[2], strict=True) for x, y in zip(a, b, strict=True))
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])


@pytest.mark.parametrize("kind", ["bpr", "bce"])
def test_the_loss_of_a_batch_is_its_formula(kind):
    # with loops; catches sides mixed up, a sum for a mean, and a penalty on rows outside the batch
    model = model_of("bprmf")
    u, i, j = torch.tensor([0, 3, 3]), torch.tensor([1, 2, 5]), torch.tensor([4, 4, 0])
    users, items = model.tables()
    loss, decay = pairs.pair_loss(model, users, items, (u, i, j), kind, 0.3)
    p, q = users.detach().numpy(), items.detach().numpy()
    total = 0.0
    for a, b, c in zip(u.tolist(), i.tolist(), j.tolist(), strict=True):
        yes, no = p[a] @ q[b], p[a] @ q[c]
        total += np.log1p(np.exp(no - yes)) if kind == "bpr" else np.log1p(np.exp(-yes)) + np.log1p(np.exp(no))
    assert loss.item() == pytest.approx(total / 3)
    size = (p[u] ** 2).sum(1).mean() + (q[[1, 2, 5, 4, 4, 0]] ** 2).sum(1).mean()
    assert decay.item() == pytest.approx(0.15 * size)
    assert pairs.pair_loss(model, users, items, (u, i, j), kind, 0.0)[1].item() == 0.0


def test_neumf_is_trained_by_cross_entropy_and_the_others_by_bpr():
    assert [pairs.loss_name(NextItem.tiny(backbone=b)) for b in BACKBONES] == ["bpr", "bce", "bpr"]
