"""Scores of a pool by products, differences and one record at a time, against each other and by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.checkpoint import checkpoint

from mrd_sample import exact, gemma, gpt2, llama, samples, token_log_likelihoods
from upright.contract import InputError
from upright.language import directions as module
from upright.language.directions import directional, trainable
from upright.language.encoding import Encoded
from upright.language.engines import DirectionEngine
from upright.language.losses import LOSSES

REFERENCE = -np.linspace(4, 9, 7)
FAMILIES = {
    "tied": lambda: exact(llama(2)),
    "untied": lambda: exact(llama(2, tied=False)),
    "biases": lambda: exact(llama(2, attention_bias=True, mlp_bias=True)),
    "padding": lambda: exact(llama(2, pad_token_id=7)),  # a token that the texts hold
    "gpt2": lambda: gpt2().double(),
    "gemma2": lambda: gemma().double(),
}


def lora(model=None):
    peft = pytest.importorskip("peft")
    model = exact(llama(2)) if model is None else model
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))).to(p)
    return model.train()


def toward(model, m=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn((m, *p.shape), generator=draw).to(p) for n, p in trainable(model).items()}


def scores(model, v, how="products", loss="ga", encoded=None, **more):
    encoded = samples(n=7) if encoded is None else encoded
    given = {"pad": 0, "batch_size": 3, "reference": REFERENCE[: len(encoded)]} | more
    return directional(model, encoded, v, loss=loss, how=how, **given)


def same(found, wanted, rtol):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * np.abs(wanted).max())


# -- the three ways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_against_gradients_by_hand(family):
    # catches a layer that is missed or counted twice, a transposed product, a use of tied weights, records that mix
    model = FAMILIES[family]()
    v = toward(model, 3)
    wanted = []
    for one in samples(n=7):
        value = token_log_likelihoods(model, one).mean()
        grads = torch.autograd.grad(value, list(trainable(model).values()), materialize_grads=True)
        wanted.append([sum(float((v[n][k] * g).sum()) for n, g in zip(v, grads, strict=True)) for k in range(3)])
    same(scores(model, v, "backward").score, wanted, 1e-6)
    tight = 1e-7 if family == "gemma2" else 1e-12  # its norms are float32
    products = scores(model, v)
    same(products.score, scores(model, v, "backward").score, tight)
    assert products.passes == {"forward": 1, "backward": 1}
    assert products.error is None


LOG_PROBS = ["ga", "grad_diff", "npo", "simnpo", "wga", "satimp", "nll"]


@pytest.mark.parametrize("loss", [*LOG_PROBS, "ce_u", "pdu", "jensun"])
def test_every_loss(loss):
    # catches a loss of the batch in place of one a record, and differences of what a loss holds constant (wga)
    model = exact(llama(2))
    v = toward(model)
    more = {"ce_u": {"skip": 0}, "jensun": {"refusal": (3, 4)}, "npo": {"beta": 0.7}}
    given = {"loss": loss, "options": more.get(loss)}
    wanted = scores(model, v, "backward", **given)
    same(scores(model, v, **given).score, wanted.score, 1e-12)
    if loss in LOG_PROBS:
        found = scores(model, v, "forwards", **given)
        same(found.score, wanted.score, 1e-7)
        assert found.passes == {"forward": 4, "backward": 0}
        assert (np.abs(found.score - wanted.score).max(axis=1) <= found.error).all()
    else:
        with pytest.raises(InputError, match=f"loss = '{loss}' by forwards"):
            scores(model, v, "forwards", **given)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize("family", ["tied", "padding", "gemma2", "lora"])
def test_differences(family):
    # catches a padding row that moves, dropout, a step that rounding swallows, an error that is not one
    model = lora() if family == "lora" else FAMILIES[family]()
    v, tight = toward(model), 2e-3 if family == "gemma2" else 1e-7
    wanted = scores(model, v, "backward")
    found = scores(model, v, "forwards")
    same(found.score, wanted.score, tight)
    own = trainable(model).values()
    assert found.step == pytest.approx(
        module.STEP * float(sum(p.detach().square().sum() for p in own)) ** 0.5, rel=1e-6
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_in_single_precision():
    # the bars of the benchmark: products 1e-5, differences 1e-3 and 0.999
    model = lora(llama(2))
    v = toward(model)
    wanted = scores(model, v, "backward").score
    same(scores(model, v).score, wanted, 1e-5)
    found = scores(model, v, "forwards").score
    same(found, wanted, 1e-3)
    assert spearmanr(found[:, 0], wanted[:, 0]).statistic > 0.999
    assert set(v) == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert scores(exact(llama(2)), toward(exact(llama(2)))).score.shape == wanted.shape


@pytest.mark.parametrize("chosen", ["embed_tokens", "lm_head", "norm", "layers.1.mlp", "bias"])
def test_directions_on_some_tensors(chosen):
    # catches a graph that begins too late or too early
    model = exact(llama(2, tied=False, attention_bias=True))
    v = {n: one for n, one in toward(model).items() if chosen in n}
    same(scores(model, v).score, scores(model, v, "backward").score, 1e-12)
    frozen = FAMILIES["tied"]().requires_grad_(False)
    frozen.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    v = toward(frozen)
    assert list(v) == ["model.layers.1.mlp.down_proj.weight"]
    same(scores(frozen, v).score, scores(frozen, v, "backward").score, 1e-12)


def test_batches_and_order_change_nothing():
    # catches records of one batch that meet, padding that counts, scores in the order of length
    model, encoded = exact(llama(2)), samples(n=7)
    v = toward(model)
    base = scores(model, v, loss="npo").score
    for size in (1, 2, 7):
        same(scores(model, v, loss="npo", batch_size=size, pad=size).score, base, 1e-12)
    order = [3, 0, 6, 1, 5, 2, 4]
    turned = scores(model, v, loss="npo", encoded=[encoded[i] for i in order], reference=REFERENCE[order])
    same(turned.score, base[order], 1e-12)
    alone = scores(model, v, loss="npo", encoded=[*encoded[:6], Encoded((1,) * 12, 5)])
    same(alone.score[:6], base[:6], 1e-12)
    halves = [scores(model, {n: one[k : k + 1] for n, one in v.items()}, loss="npo").score for k in range(2)]
    same(np.hstack(halves), base, 1e-12)


def test_swapped_pairs_flip_every_sign_at_the_start_model():
    # J = mean -log sigmoid(beta margin); catches a sign, and a reference that is not the start model's
    model = exact(llama(2))
    chosen, rejected, pool = samples(1, 4), samples(2, 4), samples(3, 7)

    def ascent(better, worse, moved=0.0):
        own = trainable(model)
        sums = lambda rows: torch.stack([token_log_likelihoods(model, one).sum() for one in rows])  # noqa: E731
        margin = sums(better) - sums(worse)
        margin = margin - margin.detach() + moved * torch.arange(4.0)
        grads = torch.autograd.grad(-nn.functional.logsigmoid(0.3 * margin).mean(), list(own.values()))
        return scores(model, {n: g[None] for n, g in zip(own, grads, strict=True)}, encoded=pool).score

    one, other = ascent(chosen, rejected), ascent(rejected, chosen)
    same(other, -one, 1e-12)
    assert (np.sign(other) == -np.sign(one)).all()
    away = ascent(chosen, rejected, 1.0) + ascent(rejected, chosen, -1.0)
    assert np.abs(away).max() > 1e-3 * np.abs(one).max()  # elsewhere pairs weigh differently


# -- models ---------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A layer with a tensor that is no layer's weight, and a use that may be one."""

    def __init__(self, model, by_hand=False):
        super().__init__()
        self.inner, self.by_hand = model, by_hand
        self.gate = nn.Parameter(torch.linspace(0.5, 1.5, 8).double())
        self.config = model.config

    def forward(self, input_ids, attention_mask):
        h = self.inner.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state * self.gate
        if self.by_hand:
            h = h + h @ self.inner.model.layers[0].self_attn.q_proj.weight.T
        return SimpleNamespace(logits=self.inner.lm_head(h))


def test_other_tensors_go_by_differences():
    # catches a tensor that no layer owns and that scores leave out in silence
    model = Scaled(exact(llama(2)))
    v = toward(model)
    wanted, found = scores(model, v, "backward"), scores(model, v)
    same(found.score, wanted.score, 1e-8)
    assert found.passes == {"forward": 5, "backward": 1}
    assert found.step == pytest.approx(module.STEP * float(model.gate.detach().norm()))
    assert (np.abs(scores(model, {"gate": v["gate"]}).score) > 0).all()
    with pytest.raises(InputError, match="a direction for 'gate' with a loss that reads logits"):
        scores(model, v, loss="pdu")
    same(scores(model, v, "backward", loss="pdu").score.shape, (7, 2), 0)


def test_a_use_that_hooks_do_not_see_is_refused():
    # catches scores that miss a part of the gradient
    model = Scaled(exact(llama(2)), by_hand=True)
    with pytest.raises(InputError, match="products that miss a gradient"):
        scores(model, toward(model))
    same(scores(model, toward(model), "forwards").score, scores(model, toward(model), "backward").score, 1e-6)


def test_activations_that_are_computed_again():
    # catches hooks that count a layer twice
    model = exact(llama(2))
    v = toward(model)
    wanted = scores(model, v).score
    for layer in model.model.layers:
        forward = layer.forward
        layer.forward = lambda x, _f=forward, **more: checkpoint(_f, x, use_reentrant=False, **more)
    same(scores(model, v).score, wanted, 1e-12)
    model = exact(llama(2)).train()
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()  # one of 5, 4
    same(scores(model, v).score, wanted, 1e-12)


def test_only_answer_rows_meet_the_vocabulary():
    # catches logits of the prompt and of padding
    model, encoded, rows = exact(llama(2)), samples(n=7), []
    model.lm_head.register_forward_hook(lambda m, args, output: rows.append(output.shape[:2].numel()))
    scores(model, toward(model), batch_size=7)
    answers = [encoded[i].answer_length for i in sorted(range(7), key=lambda i: (-len(encoded[i].ids), i))]
    assert rows == [answers[5] + 1, answers[6] + 1, answers[5] + answers[6] + 1, sum(answers) + 1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("how", ["products", "forwards", "backward"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_what_it_was(how, fails, monkeypatch):
    # catches gradients, flags, modes, hooks and weights that stay behind, after an exception too
    model = lora()
    model.base_model.model.model.layers[0].eval()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    v = toward(model)
    if fails:
        for name in ("value", "along"):
            monkeypatch.setattr(module._Pool, name, lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scores(model, v, how)
    else:
        scores(model, v, how)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_direction_engine():
    # catches a sign, a factor, the wrong direction, a row that is put back by subtracting
    model = exact(llama(tied=False, pad_token_id=7))
    v = toward(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad(), DirectionEngine(model, v) as machine:
        for probe, scale in ((1, 0.5), (1, -0.5), (0, -2.0)):
            with machine.noisy(probe, scale):
                for n, p in model.named_parameters():
                    torch.testing.assert_close(p.detach(), before[n] + scale * v[n][probe])
        ids, seen = torch.tensor([[3, 7, 3]]), []
        model.model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        with machine.noisy(0, 1.0):
            machine.forward(input_ids=ids)
        rows = before["model.embed_tokens.weight"][ids[0]] + v["model.embed_tokens.weight"][0, ids[0]]
        torch.testing.assert_close(seen[0][0, ::2], rows[::2])
        assert torch.equal(seen[0][0, 1], before["model.embed_tokens.weight"][7])  # autograd leaves it out, too
        torch.testing.assert_close(model.model.embed_tokens.weight.detach()[7], rows[1])
    assert all(torch.equal(p.detach(), before[n]) for n, p in model.named_parameters())


def test_differences_are_checked_on_sixteen_records():
    # catches a check of the shortest records alone, an error of 0 where nothing was checked, a shift of its records
    model = exact(llama())
    v, pool = toward(model), samples(n=40)
    options = {"loss": "ga", "batch_size": 3, "pad": 0}
    found = directional(model, pool, v, how="forwards", **options)
    wanted = directional(model, pool, v, how="backward", **options).score
    seen = np.flatnonzero(np.isfinite(found.error))
    assert len(seen) == 16
    assert (seen[0], seen[-1]) == (0, 39)
    assert (np.abs(found.score - wanted).max(axis=1)[seen] <= found.error[seen]).all()


def test_a_direction_of_nought_costs_nothing():
    # catches nought over nought
    model = exact(llama())
    v = {n: torch.stack([0 * one[0], one[1]]) for n, one in toward(model).items()}
    found = scores(model, v, "forwards")
    assert not found.score[:, 0].any()
    assert found.passes == {"forward": 2, "backward": 0}
    assert not scores(model, v).score[:, 0].any()


# -- refused ----------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_scored():
    # catches half precision, which swallows a step and rounds a product
    model = llama()
    v = toward(model)
    with pytest.raises(InputError, match=r"torch\.bfloat16"):
        scores(model.bfloat16(), v)
    with pytest.raises(InputError, match="a model without a trainable parameter"):
        scores(llama().requires_grad_(False), v)


def wrong(v, **changed):
    return {n: changed.get("to", one) if n == "model.norm.weight" else one for n, one in v.items()}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"v": {}}, "no directions"),
        ({"v": {"nowhere": torch.ones(1)}}, "a direction for 'nowhere'"),
        ({"to": torch.ones(2, 9)}, r"directions of shape \(2, 9\) for 'model.norm.weight'"),
        ({"to": torch.ones(1, 8)}, r"directions of shape \(1, 8\)"),
        ({"to": torch.full((2, 8), torch.nan)}, "16 not finite"),
        ({"encoded": []}, "no records"),
        ({"encoded": [Encoded((1, 2), 2)]}, "sample 0 with 2 tokens"),
        ({"how": "jvp"}, "how = 'jvp'"),
        ({"loss": "gaa"}, "loss = 'gaa' by products"),
        ({"loss": "rmu"}, "loss = 'rmu' by products"),
        ({"loss": "idk_dpo"}, "loss = 'idk_dpo' by products"),
        ({"loss": "undial"}, "loss = 'undial' by products"),
        ({"loss": "npo", "reference": None}, "loss 'npo' with a reference of shape None"),
        ({"loss": "npo", "reference": np.zeros(3)}, r"a reference of shape \(3,\)"),
        ({"loss": "npo", "reference": np.full(7, np.nan)}, "7 finite sums"),
        ({"options": {"beta": 1.0}}, "option 'beta' of loss 'ga'"),
        ({"loss": "simnpo", "options": {"gamma": 1.0}}, "option 'gamma' of loss 'simnpo'"),
    ],
)
def test_what_does_not_fit_is_refused(changed, said):
    # catches a direction that is broadcast or left out in silence, a loss with another reference
    model = llama()
    v = changed.pop("v", None)
    v = wrong(toward(model), **changed) if v is None else v
    changed.pop("to", None)
    with pytest.raises(InputError, match=said):
        scores(model, v, **changed)


def with_token(encoded, i, token=39):
    """Records of which the i-th alone begins with a token."""
    rest = [Encoded(tuple(min(t, token - 1) for t in one.ids), one.start) for one in encoded]
    rest[i] = Encoded((token, *rest[i].ids[1:]), rest[i].start)
    return rest


@pytest.mark.parametrize(
    ("how", "said"),
    [("products", "finite at third"), ("backward", "finite at third"), ("forwards", "weights that are not finite")],
)
def test_a_record_that_is_not_finite_is_named(how, said):
    # catches a NaN that is ranked
    model = llama(tied=False)
    v = toward(model)
    model.model.embed_tokens.weight.data[39] = torch.inf
    with pytest.raises(InputError, match=said):
        scores(model, v, how, encoded=with_token(samples(n=4), 2), names=["first", "second", "third", "fourth"])


class Blown(torch.autograd.Function):
    """The identity, whose gradient is infinite where it is told so."""

    @staticmethod
    def forward(ctx, out, bad):
        ctx.save_for_backward(bad)
        return out.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.where(ctx.saved_tensors[0], torch.inf, g), None


@pytest.mark.parametrize("how", ["products", "backward"])
def test_a_gradient_that_is_not_finite_is_named(how):
    # catches logits that are finite and a gradient that is not
    model, ids = exact(llama()), []
    model.model.embed_tokens.register_forward_pre_hook(lambda m, args: ids.append(args[0]))
    model.model.layers[0].mlp.register_forward_hook(lambda m, a, out: Blown.apply(out, (ids[-1] == 39)[..., None]))
    longest = int(np.argmax([len(one.ids) for one in samples(n=7)]))  # not among those that are compared first
    with pytest.raises(InputError, match=f"a score of sample {longest} that is not finite \\(1 such"):
        scores(model, toward(model), how, encoded=with_token(samples(n=7), longest))


def test_every_loss_is_taken_or_refused_by_name():
    # catches a new loss that nobody thought of
    taken = {"ga", "npo", "simnpo", "wga", "satimp", "ce_u", "pdu", "jensun", "nll"}
    assert set(LOSSES) - taken == {"idk_dpo", "alt_po", "rmu", "undial", "kl", "jensen_shannon", "rmu_retain"}
