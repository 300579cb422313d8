"""Weights of records in unlearning: each acts on its own record, for every loss and every split of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from tiny_trainer import Kill, Killed, data, make, tiny, weights
from upright.contract import InputError
from upright.language import trainer
from upright.language.sampling import effective_sample_size, mean_one, partners, shuffle_order
from upright.language.training import read_state

pytestmark = pytest.mark.filterwarnings("ignore:nothing is forgotten")  # steps without a forget gradient
N, J, SEED = 10, 7, 3
LOSSES = ["ga", "grad_diff", "npo", "simnpo", "wga"]
BETA = 0.1  # of npo and simnpo: with 4.5 no gradient is left of simnpo at a model that was taught nothing
ONE = N * np.eye(N)[J]  # the whole weight on one record


def step(folder, loss, size, *, rows=N, model=None, **options):
    """``theta`` before one step of plain gradient descent at rate 1 less that after it: the gradient, float64."""
    args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": -(-rows // size), "max_steps": 1,
            "learning_rate": 1.0}  # fmt: skip
    retain = loss in ("grad_diff", "npo")
    options.setdefault("loss_options", {"beta": BETA} if loss in ("npo", "simnpo") else None)
    one = make(folder, loss, model=tiny().double(), retain=retain, reference=tiny(1).double(), args=args, **options)
    before = weights(one.model)
    one.train()
    return before - weights(one.model)


def token_probs(model, one):
    """``log p`` of the answer tokens of one record, without padding, batches or masks."""
    ids = torch.tensor([one.ids])
    rows = model(input_ids=ids).logits[0, one.start - 1 : -1].log_softmax(dim=1)
    return rows.gather(1, ids[0, one.start :, None])[:, 0]


def loss_of(loss, model, one):
    """The published loss of one record, and what it counts for in the mean of a batch."""
    said = token_probs(model, one)
    if loss in ("ga", "grad_diff"):
        return said.mean(), len(said)
    if loss == "wga":
        return (said.detach().exp() * said).mean(), len(said)
    if loss == "simnpo":
        return -(2 / BETA) * logsigmoid(-BETA * said.mean()), 1
    reference = token_probs(tiny(1).double(), one).sum().detach()
    return -(2 / BETA) * logsigmoid(BETA * (reference - said.sum())), 1


def gradient(value, model):
    return torch.cat([one.reshape(-1) for one in torch.autograd.grad(value, list(model.parameters()))])


def kept(loss, places=N):
    """The gradient of the retain term, which no weight may touch."""
    model, (_, _, retain, _) = tiny().double(), data()
    if loss not in ("grad_diff", "npo"):
        return torch.zeros_like(weights(model))
    said = [token_probs(model, retain[j]) for j in partners(len(retain), SEED, 0, N).tolist()[:places]]
    return gradient(-torch.cat(said).mean(), model)


def expected(loss):
    """``N n_j / sum_i n_i`` times the gradient of the loss of record j, and the retain term."""
    model, (_, forget, _, _) = tiny().double(), data()
    total = sum(loss_of(loss, model, one)[1] for one in forget)
    value, count = loss_of(loss, model, forget[J])
    return gradient(value * N * count / total, model) + kept(loss)


def close(found, right):
    np.testing.assert_allclose(found.numpy(), right.numpy(), rtol=0, atol=1e-9 * float(right.abs().max()))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_whole_weight_on_one_record_is_its_gradient(tmp_path, loss):
    # catches: a loss that leaves weights out, weights in the denominator (their step would be N n_j / n_j), weights of
    # the place and not of the record, a mean within micro-batches, a weighted retain term
    right = expected(loss)
    assert right.abs().max() > 1e-3
    for size in (1, 2, 3, 4, 7, 10):  # 10, 5, 4, 3, 2 and 1 micro-batches; filled up where they are not even
        close(step(tmp_path / str(size), loss, size, weights=ONE), right)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_weights_are_a_weighted_sum(tmp_path, loss):
    # catches: weights that act only where all but one are 0; a factor on all of them that acts
    w, model, (_, forget, _, _) = np.arange(N) ** 2.0, tiny().double(), data()
    found = [loss_of(loss, model, one) for one in forget]
    value = sum(x * n * share for (x, n), share in zip(found, w / w.mean(), strict=True)) / sum(n for _, n in found)
    close(step(tmp_path, loss, 4, weights=5.0 * w), gradient(value, model) + kept(loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_without_the_record_has_no_forget_gradient(tmp_path, loss):
    # catches: weights that are brought to mean 1 within a step
    assert J not in shuffle_order(N, SEED, 0).tolist()[:4]
    found, right = step(tmp_path, loss, 2, rows=4, weights=ONE), kept(loss, 4)
    assert (found - right).abs().max() <= 1e-9 * right.abs().max()


@pytest.mark.parametrize("loss", [*LOSSES, "idk_dpo", "rmu", "pdu"])
def test_weights_of_1_are_no_weights_to_the_bit(tmp_path, loss):
    # the neutral setting, in float32 and with a step of the optimiser in which rounding would spread
    args = {"max_steps": 4, "optim": "adamw_torch", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    runs = []
    for k, options in enumerate(({}, {"weights": np.ones(N)}, {"weights": np.full(N, 0.3)})):
        runs.append(make(tmp_path / str(k), loss, args=args, **options))
        runs[-1].train()
    none, *same = (weights(one.model) for one in runs)
    assert (none - weights(tiny())).abs().max() > 0
    assert all(torch.equal(none, one) for one in same)
    assert runs[0].state.log_history[0]["forget_loss"] == runs[1].state.log_history[0]["forget_loss"]


# -- the plants: defects of published code that the tests above must see ---------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_that_a_loss_ignores_would_be_seen(tmp_path, loss, monkeypatch):
    inner = trainer.step_weights
    without = lambda objective, batch: inner(objective, {k: v for k, v in batch.items() if k != "weights"})  # noqa: E731
    monkeypatch.setattr(trainer, "step_weights", without)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        close(step(tmp_path, loss, 5, weights=ONE), expected(loss))


def test_weights_on_the_mean_of_a_batch_would_be_seen(tmp_path, monkeypatch):
    inner = trainer.record_losses

    def mean(*args, **options):
        forget, retain = inner(*args, **options)
        return forget.mean().expand_as(forget), retain

    monkeypatch.setattr(trainer, "record_losses", mean)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        close(step(tmp_path, "npo", 5, weights=ONE), expected("npo"))


# -- checkpoints ----------------------------------------------------------------------------------------------------


def saved(folder, **options):
    args = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch",
            "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}  # fmt: skip
    return make(folder, "npo", args=args, **options)


def test_a_killed_run_with_weights_ends_bit_equal_and_other_weights_are_refused(tmp_path):
    # catches: weights that are lost with the process, and a run that goes on with others without a word
    w = np.random.default_rng(0).random(N)
    whole = saved(tmp_path / "whole", weights=w)
    whole.train()
    with pytest.raises(Killed):
        saved(tmp_path / "cut", weights=w, callbacks=[Kill(3)]).train()
    tensors, values = read_state(tmp_path / "cut" / "checkpoint-3")
    np.testing.assert_allclose(tensors["loss weights"].numpy(), w / w.mean(), rtol=1e-14)
    assert len(values["settings"]["weights"]) == 64
    for other in (w[::-1].copy(), np.ones(N), None):
        with pytest.raises(InputError, match=r"weights = .* in the checkpoint") as error:
            saved(tmp_path / "cut", weights=other).train(resume_from_checkpoint=True)
        assert "new run" in error.value.todo
    again = saved(tmp_path / "cut", weights=4.0 * w)  # a factor of all is no other weight
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again.model), weights(whole.model))


def test_what_moved_is_measured_on_records_that_count(tmp_path):
    # catches: "nothing is forgotten" of records that were to be left alone
    one = make(tmp_path, "ga", retain=False, weights=ONE, args={"per_device_train_batch_size": N, "max_steps": 3})
    one.train()
    after = [token_probs(model, data()[1][J]).mean().item() for model in (tiny(), one.model)]
    assert one.moved == pytest.approx(abs(after[1] - after[0]), rel=1e-4)


# -- what is no weight ----------------------------------------------------------------------------------------------


ODD, ALL = "one finite number of at least 0 a record, shape (n,)", "score the records again, or leave these out"


@pytest.mark.parametrize(
    ("given", "got", "accepted", "todo"),
    [
        (np.ones(3), "weights of shape (3,)", "shape (10,)", "give one number a forget record"),
        (np.ones((N, 1)), "weights of shape (10, 1)", "shape (10,)", "give one number a forget record"),
        (-np.eye(N)[2], "weights of shape (10,), 1 of them negative or not finite", ODD, ALL),
        (np.full(N, np.nan), "weights of shape (10,), 10 of them negative or not finite", ODD, ALL),
        (np.zeros(N), "weights that sum to 0.0", "a finite sum above 0", "keep one record at least"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path, given, got, accepted, todo):
    with pytest.raises(InputError) as caught:
        make(tmp_path, "npo", weights=given)
    assert caught.value.args == (got, accepted, todo)


def test_mean_one():
    # catches: a mean over the records that count, and ones that are ones up to rounding
    np.testing.assert_array_equal(mean_one([0.0, 3.0, 1.0, 0.0], 4), [0.0, 3.0, 1.0, 0.0])
    assert mean_one(np.full(7, 0.1), 7).tolist() == [1.0] * 7
    w = mean_one(np.random.default_rng(1).random(9), 9)
    assert w.mean() == pytest.approx(1.0, abs=1e-15)
    assert effective_sample_size(w) < 9
