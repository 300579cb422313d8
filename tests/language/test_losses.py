"""Unlearning losses: numbers by hand, finite differences, limits, masks, and defects of published code kept out."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from upright.contract import InputError
from upright.language import losses as ul
from upright.language.logprobs import sample_counts, sample_sums, token_log_probs

SEEDS = st.integers(0, 2**31 - 1)
LOG_PROBS = torch.log(torch.tensor([[1.0, 0.5, 0.25, 1.0], [1.0, 0.8, 1.0, 1.0]], dtype=torch.float64))
MASK = torch.tensor([[False, True, True, False], [False, True, False, False]])
C = [math.log(8.0), math.log(1.25)]  # sums of -log p of the two samples
SIGMOID = lambda x: 1.0 / (1.0 + math.exp(-x))  # noqa: E731


def near(values, expected, tolerance=1e-12):
    assert values.shape == (len(expected),)
    assert values.tolist() == pytest.approx(expected, abs=tolerance)


def batch(seed, b=3, t=6, v=5):
    """Logits of a model and a reference, hidden states of both, and labels with prompt and holes."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    labels = torch.randint(0, v, (b, t), generator=g)
    labels[torch.arange(t) < torch.randint(1, t - 2, (b, 1), generator=g)] = -100
    labels[:, -3] = torch.where(torch.rand(b, generator=g) < 0.5, -100, 1)
    labels[:, -2:] = torch.randint(0, v, (b, 2), generator=g)  # two answer tokens at least
    return {"logits": 2 * draw(b, t, v), "other": 2 * draw(b, t, v), "hidden": draw(b, t, 4), "base": draw(b, t, 4),
            "win": draw(b, t, v), "win_other": draw(b, t, v), "control": draw(4), "labels": labels,
            "win_labels": labels.roll(1, 0)}  # fmt: skip


def evaluate(name, x, **options):
    if name == "jensun":
        options.setdefault("refusal", (1, 2))
    return _evaluate(name, x, **options)


def _evaluate(name, x, **options):
    """Call a loss of the registry by what it says it needs; the model's tensors are x["logits"] and x["hidden"]."""
    loss = ul.LOSSES[name]
    if loss.reads == "hidden":
        mask = x["labels"] != -100
        reference = x["control"] if loss.reference == "control" else x["base"]
        return loss.function(x["hidden"], mask, reference) if loss.side == "forget" else loss.function(
            x["hidden"], reference, mask)  # fmt: skip
    if loss.reads == "logits":
        extra = [x["other"]] if loss.reference == "distributions" else []
        return loss.function(x["logits"], *extra, x["labels"], **options)
    log_probs, mask = token_log_probs(x["logits"], x["labels"])
    arguments = [log_probs, mask]
    if loss.reference == "sums":
        arguments.append(sample_sums(*token_log_probs(x["other"], x["labels"])))
    if loss.answers == 2:
        win = token_log_probs(x["win"], x["win_labels"])
        arguments += [*win, sample_sums(*token_log_probs(x["win_other"], x["win_labels"]))]
    return loss.function(*arguments, **options)


# -- numbers by hand ------------------------------------------------------------------------------------------------


def test_losses_of_log_probs_by_hand():
    # catches: sums for means, a lost factor 2 / beta, a lost sign, a weight on the wrong power
    near(ul.nll(LOG_PROBS, MASK), [C[0] / 2, C[1]])
    near(ul.ga(LOG_PROBS, MASK), [-C[0] / 2, -C[1]])
    ref = torch.tensor([-math.log(4.0), -math.log(2.0)], dtype=torch.float64)
    near(
        ul.npo(LOG_PROBS, MASK, ref, beta=0.5),
        [-4 * math.log(SIGMOID(0.5 * (C[0] - math.log(4)))), -4 * math.log(SIGMOID(0.5 * (C[1] - math.log(2))))],
    )
    # c - c_ref = log 2: sigmoid(log(2) / 2) = sqrt 2 / (1 + sqrt 2)
    assert float(ul.npo(LOG_PROBS, MASK, ref, beta=0.5)[0]) == pytest.approx(-4 * math.log(2**0.5 / (1 + 2**0.5)))
    # cbar_0 = log(8) / 2, so sigmoid(2 cbar) = 8 / 9
    assert float(ul.simnpo(LOG_PROBS, MASK, beta=2.0)[0]) == pytest.approx(-math.log(8 / 9))
    assert float(ul.simnpo(LOG_PROBS, MASK, beta=2.0, delta=math.log(2.0))[0]) == pytest.approx(-math.log(2 / 3))
    near(ul.wga(LOG_PROBS, MASK), [(0.5 * math.log(0.5) + 0.25 * math.log(0.25)) / 2, 0.8 * math.log(0.8)])
    near(
        ul.satimp(LOG_PROBS, MASK, beta1=2.0, beta2=1.0),
        [(0.25 * 0.5 * math.log(0.5) + 0.0625 * 0.75 * math.log(0.25)) / 2, 0.64 * 0.2 * math.log(0.8)],
    )
    win = torch.log(torch.tensor([[1.0, 0.5], [0.2, 0.9]], dtype=torch.float64))
    win_mask = torch.tensor([[False, True], [False, True]])
    win_ref = torch.log(torch.tensor([0.25, 0.9], dtype=torch.float64))
    # log ratios: win +log 2 and 0; lose log(4/8) and log(2/1.25)
    near(
        ul.dpo(LOG_PROBS, MASK, ref, win, win_mask, win_ref, beta=1.0),
        [-2 * math.log(SIGMOID(math.log(4.0))), -2 * math.log(SIGMOID(-math.log(1.6)))],
    )


def row(*p):
    """Logits (1, 2, V) that give the token at place 1 the probabilities p; what place 1 predicts is not asked."""
    return torch.log(torch.tensor([[p, p[::-1]]], dtype=torch.float64)) + 1.7


FIRST = torch.tensor([[-100, 0]])


def test_losses_of_logits_by_hand():
    # catches: KL the other way round, a target with the answer in it, the target's gradient, natural logs mixed up
    own, ref = row(0.5, 0.25, 0.25), row(0.25, 0.25, 0.5)
    near(ul.kl(own, ref, FIRST), [0.25 * math.log(0.5) + 0.5 * math.log(2.0)])
    near(ul.kl(own, ref, FIRST, direction="reverse"), [0.5 * math.log(2.0) + 0.25 * math.log(0.5)])
    skew = row(0.8, 0.1, 0.1)
    near(ul.kl(skew, ref, FIRST), [0.25 * math.log(0.25 / 0.8) + 0.25 * math.log(2.5) + 0.5 * math.log(5.0)])
    reverse = 0.8 * math.log(3.2) + 0.1 * math.log(0.4) + 0.1 * math.log(0.2)
    near(ul.kl(skew, ref, FIRST, direction="reverse"), [reverse])
    # teacher 0.5, 0.25, 0.25 with its first logit lowered by log 2: one third each
    near(ul.undial(skew, own, FIRST, beta=math.log(2.0)), [-(math.log(0.8) + 2 * math.log(0.1)) / 3])
    # own 0.8, 0.1, 0.1 without the answer: one half each
    near(ul.ce_u(skew, FIRST, skip=0), [-math.log(0.1)])
    logits = torch.tensor([[[3.0, 0.0, 0.0], [9.0, 9.0, 1.0]]], dtype=torch.float64)
    near(ul.pdu(logits, FIRST), [4.0])
    assert ul.dual_step(1.0, 0.5, epsilon=0.3, step=2.0) == pytest.approx(1.4)
    assert ul.dual_step(0.1, 0.0, epsilon=0.3) == 0.0


def divergence(p, q):
    """Jensen-Shannon by its definition, in nats."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(a * math.log(a / m) / 2 for one in (p, q) for a, m in zip(one, middle, strict=True) if a)


def test_jensen_shannon_by_hand():
    # catches: KL for Jensen-Shannon, a factor 2, the answer's own token or that of another place as the target
    own, ref = row(0.8, 0.1, 0.1), row(0.25, 0.25, 0.5)
    near(ul.jensen_shannon(own, ref, FIRST), [divergence([0.8, 0.1, 0.1], [0.25, 0.25, 0.5])])
    for token, onehot in enumerate(([1, 0, 0], [0, 1, 0], [0, 0, 1])):
        near(ul.jensun(own, FIRST, refusal=[token, 0]), [divergence([0.8, 0.1, 0.1], onehot)])
    three = torch.cat([own[:, :1], ref[:, :1], own[:, :1], own[:, :1]], dim=1)
    parts = [
        divergence([0.8, 0.1, 0.1], [0, 1, 0]),
        *(divergence(p, [1, 0, 0]) for p in ([0.25, 0.25, 0.5], [0.8, 0.1, 0.1])),
    ]
    near(ul.jensun(three, torch.tensor([[-100, 0, 1, 2]]), refusal=[1, 0]), [sum(parts) / 3])


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.0, 200.0))
def test_both_sides_of_jensun_are_bounded(seed, scale):
    # catches: a loss without bound, which destroys the model (gradient ascent), and a gradient that is not finite
    x = batch(seed)
    leaf = (scale * x["logits"]).requires_grad_()
    for name in ("jensun", "jensen_shannon"):
        value = evaluate(name, {**x, "logits": leaf, "other": scale * x["other"]})
        assert ((value >= -1e-12) & (value <= math.log(2) + 1e-12)).all()
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().sum(dim=(1, 2)).max()) <= 1.0
    same = evaluate("jensen_shannon", {**x, "other": x["logits"]})
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)
    # the ends: a refusal that is certain, a refusal that cannot be said, two models without a word in common
    labels, sure = torch.tensor([[-100, 0, 0]]), torch.full((1, 3, 4), -torch.inf, dtype=torch.float64)
    sure[..., 1] = 0.0
    near(ul.jensun(sure, labels, refusal=[1]), [0.0])
    near(ul.jensun(sure, labels, refusal=[2]), [math.log(2)])
    near(ul.jensen_shannon(sure, sure.roll(1, 2), labels), [math.log(2)])


def test_losses_of_hidden_states_by_hand():
    # catches: a norm in place of its square, no division by d or by n, the mask of another sample
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 0.0]]])
    mask = torch.tensor([[False, True, True]])
    near(ul.rmu_forget(hidden, mask, torch.tensor([1.0, 0.0])), [((0 + 4) / 2 + (4 + 0) / 2) / 2])
    near(ul.rmu_retain(hidden, torch.zeros(1, 3, 2), mask), [(5 / 2 + 9 / 2) / 2])


def test_token_mean_by_hand():
    assert float(ul.token_mean(ul.nll(LOG_PROBS, MASK), sample_counts(MASK))) == pytest.approx(sum(C) / 3)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_batch_token_means_equal_torch(seed):
    # catches: a token-mean source that is reproduced as a mean of samples
    x = batch(seed)
    shifted, flat = x["labels"][:, 1:], x["logits"][:, :-1]
    counts = sample_counts(x["labels"] != -100)
    peer = cross_entropy(flat.transpose(1, 2), shifted)
    assert float(ul.token_mean(evaluate("nll", x), counts)) == pytest.approx(float(peer), abs=1e-12)
    assert float(ul.token_mean(evaluate("ga", x), counts)) == pytest.approx(-float(peer), abs=1e-12)
    on = shifted != -100
    rows, other = log_softmax(flat[on], 1), log_softmax(x["other"][:, :-1][on], 1)
    for direction, first, second in (("forward", rows, other), ("reverse", other, rows)):
        peer = kl_div(first, second, reduction="batchmean", log_target=True)
        found = ul.token_mean(evaluate("kl", x, direction=direction), counts)
        assert float(found) == pytest.approx(float(peer), abs=1e-12)


# -- every loss of the registry -------------------------------------------------------------------------------------

NAMES = sorted(ul.LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name):
    # catches: a detached term, a gradient through a weight or target that is held constant by definition
    x = batch(5)
    key = "hidden" if ul.LOSSES[name].reads == "hidden" else "logits"
    leaf = x[key].clone().requires_grad_()
    if name in ("wga", "satimp", "ce_u"):  # the held part is frozen at the leaf for the difference quotient
        log_probs, mask = token_log_probs(x["logits"], x["labels"])
        p = log_probs.exp()
        weight = {"wga": p, "satimp": p**5 * (1 - p)}.get(name)

        def frozen(z):
            if weight is not None:
                now, _ = token_log_probs(z, x["labels"])
                return ((weight * now) * mask).sum(1) / mask.sum(1)
            out = []
            for i in range(len(z)):
                places = mask[i].nonzero()[:, 0][1:]  # the first answer token is skipped
                terms = []
                for t in places.tolist():
                    held = x["logits"][i, t - 1].clone()
                    held[x["labels"][i, t]] = -torch.inf
                    terms.append(-(held.softmax(0) * log_softmax(z[i, t - 1], 0)).sum())
                out.append(torch.stack(terms).mean())
            return torch.stack(out)

        torch.testing.assert_close(evaluate(name, {**x, key: leaf}), frozen(leaf), rtol=0, atol=1e-12)
        found, expected = (
            torch.autograd.grad(f.sum(), leaf)[0] for f in (evaluate(name, {**x, key: leaf}), frozen(leaf))
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert torch.autograd.gradcheck(frozen, leaf)
    else:
        assert torch.autograd.gradcheck(lambda z: evaluate(name, {**x, key: z}), leaf)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([1e3, float("nan")]))
def test_what_is_not_an_answer_changes_nothing(name, seed, rubbish):
    # catches: prompt or padding that is trained (UNDIAL, PDU and KL as published), NaN times 0, a mask not shifted
    x = batch(seed)
    on = x["labels"] != -100
    predicts = torch.roll(on, -1, dims=1)  # logits at t - 1 predict t
    dirty = dict(x)
    for key in ("win", "win_other"):
        dirty[key] = torch.where(predicts.roll(1, 0)[..., None], x[key], rubbish)
    for key in ("logits", "other"):
        dirty[key] = torch.where(predicts[..., None], x[key], rubbish)
    for key in ("hidden", "base"):
        dirty[key] = torch.where(on[..., None], x[key], rubbish)
    torch.testing.assert_close(evaluate(name, dirty), evaluate(name, x), rtol=0, atol=0)
    key = "hidden" if ul.LOSSES[name].reads == "hidden" else "logits"
    leaf = dirty[key].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(evaluate(name, {**dirty, key: leaf}).sum(), leaf)
    off = ~on if key == "hidden" else ~predicts
    assert not gradient[off].any()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_see_each_other(name):
    # catches: a batch mean inside the loss, so that weights per sample have no effect
    x = batch(7)
    whole = evaluate(name, x)
    assert whole.shape == (3,)
    assert torch.isfinite(whole).all()
    for i in range(3):
        part = {k: v if k == "control" else v[[i]] for k, v in x.items()}
        torch.testing.assert_close(evaluate(name, part)[0], whole[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_gets_no_gradient(name):
    # catches: a reference that is trained along when it shares the graph
    x = batch(8)
    for key in ("other", "base", "control", "win_other"):
        x[key].requires_grad_()
    for key in ("logits", "hidden"):
        x[key].requires_grad_()
    evaluate(name, x).sum().backward()
    assert all(x[key].grad is None for key in ("other", "base", "control", "win_other"))
    assert (x["hidden"].grad is None) == (ul.LOSSES[name].reads != "hidden")
    assert (x["logits"].grad is None) == (ul.LOSSES[name].reads == "hidden")


@pytest.mark.parametrize("name", [n for n in NAMES if ul.LOSSES[n].reads == "logits"])
def test_chunks_change_nothing(name):
    # catches: options that do not reach over_answers
    x = batch(9)
    grads = []
    for chunk in (None, 2):
        leaf = x["logits"].clone().requires_grad_()
        value = evaluate(name, {**x, "logits": leaf}, chunk=chunk)
        grads.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-13)
    assert evaluate(name, {**x, "logits": x["logits"].float(), "other": x["other"].float()}).dtype == torch.float32


def test_the_registry_says_what_the_functions_say():
    # catches: a default that differs from the signature; a reference that the function does not take
    for name, loss in ul.LOSSES.items():
        signature = inspect.signature(loss.function).parameters
        own = {k: p.default for k, p in signature.items() if p.kind == p.KEYWORD_ONLY and k not in ("dtype", "chunk")}
        assert own == dict(loss.defaults), name
        assert ("reference" in signature or "control" in signature) == (loss.reference != "none")
        assert ("win_log_probs" in signature) == (loss.answers == 2)
        assert inspect.getdoc(loss.function).startswith("``")
        assert "Source:" in inspect.getdoc(loss.function) or name == "nll"
    assert {"ga", "npo", "simnpo", "idk_dpo", "rmu", "wga", "undial", "kl", "nll"} <= set(ul.LOSSES)
    for forget, retain in ul.PAIRS.values():
        assert (ul.LOSSES[forget].side, ul.LOSSES[retain].side) == ("forget", "retain")


# -- limits and identities ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_npo_and_simnpo_become_gradient_ascent_for_small_beta(seed):
    # spec 2.10.8; catches: beta inside a mean, a margin with the wrong sign, sums and means exchanged
    x = batch(seed)
    log_probs, mask = token_log_probs(x["logits"], x["labels"])
    ref = sample_sums(*token_log_probs(x["other"], x["labels"]))
    beta, shift = 1e-6, 2 * math.log(2) / 1e-6
    sums, means = sample_sums(log_probs, mask), ul.ga(log_probs, mask)
    torch.testing.assert_close(ul.npo(log_probs, mask, ref, beta=beta) - shift, sums - ref, rtol=0, atol=1e-3)
    found = ul.simnpo(log_probs, mask, beta=beta, delta=0.7) - shift
    torch.testing.assert_close(found, means + 0.7, rtol=0, atol=1e-3)
    for function, peer in (
        (lambda z, m: ul.npo(z, m, ref, beta=1e-9), sample_sums),
        (lambda z, m: ul.simnpo(z, m, beta=1e-9, delta=0.0), ul.ga),
    ):
        leaf = log_probs.clone().requires_grad_()
        got, expected = (torch.autograd.grad(f(leaf, mask).sum(), leaf)[0] for f in (function, peer))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.01, 5.0))
def test_npo_at_its_reference_and_its_gradient_weight(seed, beta):
    # catches: a weight above 2, a loss that keeps pushing what is forgotten
    x = batch(seed)
    log_probs, mask = token_log_probs(x["logits"], x["labels"])
    sums = sample_sums(log_probs, mask)
    leaf = log_probs.clone().requires_grad_()
    value = ul.npo(leaf, mask, sums, beta=beta)
    torch.testing.assert_close(value, torch.full_like(value, 2 / beta * math.log(2)))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(gradient, mask.double())
    ref = sample_sums(*token_log_probs(x["other"], x["labels"]))
    (gradient,) = torch.autograd.grad(ul.npo(leaf, mask, ref, beta=beta).sum(), leaf)
    weight = 2 * torch.sigmoid(-beta * (ref - sums))
    torch.testing.assert_close(gradient, mask * weight[:, None], rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_neutral_settings_equal_their_baselines(seed):
    # catches: UNDIAL that is not distillation at 0, weights that do not vanish, a KL that is not 0 at the reference
    x = batch(seed)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-12)  # noqa: E731
    entropy = evaluate("undial", {**x, "logits": x["other"]}, beta=0.0)
    close(evaluate("undial", x, beta=0.0), evaluate("kl", x) + entropy)
    close(evaluate("wga", x, beta=0.0), evaluate("ga", x))
    close(evaluate("satimp", x, beta1=0.0, beta2=0.0), evaluate("ga", x))
    close(evaluate("satimp", x, beta1=1.0, beta2=0.0), evaluate("wga", x))
    for direction in ("forward", "reverse"):
        leaf = x["other"].clone().requires_grad_()
        value = evaluate("kl", {**x, "logits": leaf}, direction=direction)
        close(value.detach(), torch.zeros(3, dtype=torch.float64))
        close(torch.autograd.grad(value.sum(), leaf)[0], torch.zeros_like(leaf))
        assert (evaluate("kl", x, direction=direction) > 0).all()


def test_a_winner_that_never_moves_leaves_npo():
    # catches: DPO with winner and loser exchanged
    ref, win_ref = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-0.5, -0.5]).double()
    win, win_mask = torch.full((2, 1), -0.5).double(), torch.ones(2, 1, dtype=torch.bool)
    found = ul.dpo(LOG_PROBS, MASK, ref, win, win_mask, win_ref, beta=0.3)
    torch.testing.assert_close(found, ul.npo(LOG_PROBS, MASK, ref, beta=0.3))
    better = ul.dpo(LOG_PROBS, MASK, ref, win + 0.2, win_mask, win_ref, beta=0.3)
    assert (better < found).all()


def test_strong_undial_and_ce_u_agree_when_the_model_is_its_own_teacher():
    # catches: an answer's logit raised instead of lowered
    x = batch(11)
    strong = evaluate("undial", {**x, "other": x["logits"]}, beta=1e4)
    torch.testing.assert_close(strong, evaluate("ce_u", x, skip=0), rtol=0, atol=1e-12)


def test_extreme_log_probabilities_give_finite_losses():
    # catches: log(sigmoid) that overflows, 1 - p lost to rounding
    log_probs = torch.tensor([[0.0, -1e-20], [0.0, -1e4]], dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[False, True]] * 2)
    ref = torch.tensor([-1e4, 0.0], dtype=torch.float64)
    for value in (
        ul.npo(log_probs, mask, ref, beta=2.0), ul.simnpo(log_probs, mask), ul.wga(log_probs, mask),
        ul.satimp(log_probs, mask),
    ):  # fmt: skip
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), log_probs)[0]).all()
    sure = ul.satimp(log_probs, mask, beta1=0.0, beta2=1.0)
    assert float(sure[0].detach()) == pytest.approx(-1e-40, rel=1e-9, abs=0)


# -- defects of published code, kept out ----------------------------------------------------------------------------


def test_a_label_of_minus_100_never_indexes_the_vocabulary():
    # with V above 100, label -100 is entry V - 100 in code that scatters without a mask
    logits = torch.zeros(1, 4, 130, dtype=torch.float64)
    teacher = logits.clone()
    teacher[..., 30] = 5.0
    labels = torch.tensor([[-100, -100, 7, 30]])
    one = ul.undial(logits, teacher, labels)
    pushed = teacher.clone()
    pushed[0, 0, 30] -= 10.0  # what the missing mask would do at an ignored place
    torch.testing.assert_close(ul.undial(logits, pushed, labels), one, rtol=0, atol=0)
    with pytest.raises(InputError, match="labels from -99 to 7"):
        ul.undial(logits, teacher, torch.tensor([[-100, -100, 7, -99]]))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_label_of_an_answer_counts(name):
    # catches: the last token dropped as if it were the end of the sequence
    x = batch(12)
    changed = {k: v.clone() for k, v in x.items()}
    changed["hidden"][:, -1] += 1.0
    changed["logits"][:, -2] += torch.arange(5, dtype=torch.float64) ** 2
    assert (evaluate(name, changed) != evaluate(name, x)).all()


def test_ce_u_skips_the_first_answer_token_of_each_sample():
    # catches: the first place of the sequence skipped instead of the first answer token
    x = batch(13)
    on = x["labels"] != -100
    first = on & (on.cumsum(1) == 1)
    moved = {**x, "logits": x["logits"] + 3.0 * torch.roll(first, -1, 1)[..., None] * torch.arange(5)}
    torch.testing.assert_close(evaluate("ce_u", moved), evaluate("ce_u", x), rtol=0, atol=0)
    assert (evaluate("ce_u", moved, skip=0) != evaluate("ce_u", x, skip=0)).all()
    with pytest.raises(InputError, match="without an answer token"):
        ul.ce_u(row(0.5, 0.5), FIRST)


# -- random directions, bad input -----------------------------------------------------------------------------------


def test_control_vectors_are_reproducible_and_uniform_over_directions():
    # catches: a draw from the global generator; only positive entries under `sphere`
    draws = [ul.control_vector(8, scale=2.0, generator=torch.Generator().manual_seed(s)) for s in range(400)]
    torch.manual_seed(0)
    again = ul.control_vector(8, scale=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draws[0], again)
    table = torch.stack(draws).double()
    torch.testing.assert_close(table.norm(dim=1), torch.full((400,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
    unit = table / 2.0
    # each entry of a uniform unit vector has mean 0 and variance 1/8
    assert (unit.mean(0).abs() < 5 * (1 / 8 / 400) ** 0.5).all()
    g = torch.Generator().manual_seed(0)
    positive = torch.stack([ul.control_vector(50, scale=1.0, generator=g, law="orthant") for _ in range(40)])
    assert (positive >= 0).all()
    cosines = (positive @ positive.T)[~torch.eye(40, dtype=torch.bool)]
    assert float(cosines.mean()) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ul.npo(LOG_PROBS, MASK, torch.zeros(2), beta=0.0), "beta = 0.0"),
        (lambda: ul.npo(LOG_PROBS, MASK, torch.zeros(2), beta=float("nan")), "beta = nan"),
        (lambda: ul.npo(LOG_PROBS, MASK, torch.zeros(3)), "reference of shape (3,), 0 not finite"),
        (lambda: ul.npo(LOG_PROBS, MASK, torch.tensor([0.0, float("nan")])), "reference of shape (2,), 1 not finite"),
        (lambda: ul.simnpo(LOG_PROBS, MASK, beta=-1.0), "beta = -1.0"),
        (lambda: ul.wga(LOG_PROBS, MASK, beta=-1.0), "beta = -1.0"),
        (lambda: ul.ga(LOG_PROBS, MASK & False), "sample 0 without an answer token"),
        (lambda: ul.ga(LOG_PROBS, MASK[:, :2]), "mask of shape (2, 2)"),
        (lambda: ul.kl(row(0.5, 0.5), row(0.5, 0.5), FIRST, direction="both"), "direction = 'both'"),
        (lambda: ul.kl(row(0.5, 0.5), row(0.2, 0.3, 0.5), FIRST), "vocabularies of 2 and 3"),
        (lambda: ul.dpo(LOG_PROBS, MASK, torch.zeros(2), LOG_PROBS[:1], MASK[:1], torch.zeros(1)), "1 winners"),
        (lambda: ul.rmu_forget(torch.zeros(1, 2, 3), MASK[:1, :2], torch.zeros(1, 3)), "control of shape (1, 3)"),
        (lambda: ul.rmu_forget(torch.zeros(1, 2, 3), MASK[:1, :2], torch.zeros(4)), "target of shape (4,)"),
        (
            lambda: ul.rmu_retain(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), MASK[:1, :2]),
            "reference of shape (1, 2, 4)",
        ),
        (lambda: ul.jensun(row(0.5, 0.5), FIRST), "jensun without a refusal"),
        (lambda: ul.control_vector(3, scale=0.0, generator=torch.Generator()), "scale = 0.0"),
        (lambda: ul.control_vector(3, scale=1.0, generator=torch.Generator(), law="cube"), "law = 'cube'"),
    ],
)
def test_bad_input_is_refused_in_three_parts(call, says):
    with pytest.raises(InputError) as caught:
        call()
    assert says in caught.value.got
    assert caught.value.accepted
    assert caught.value.todo
