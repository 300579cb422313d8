"""Both engines against copies of the model and each other; what they put back, how often they draw, what they hold."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mrd_sample import V, by_hand, close, exact, gemma, gpt2, llama, samples, sigmas_of, token_log_likelihoods, toy
from upright.contract import InputError
from upright.language import difficulty, engines, noise, reader
from upright.language.difficulty import score_difficulty
from upright.language.engines import HookEngine, InPlaceEngine
from upright.language.reader import Reader

# -- against the scorer written out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["inplace", "hook"])
@pytest.mark.parametrize("build", [llama, gpt2, gemma], ids=["llama", "gpt2", "gemma2"])
def test_engines_against_copies_of_the_model(build, engine):
    # catches a layer without noise, a tied tensor with two, transposed noise, a scaled embedding, logits without cap
    model = build().double()
    encoded = samples()
    for law, scope in (("gaussian", "answer"), ("rademacher", "sequence")):
        values = by_hand(model, encoded, sigmas_of(model, 0.05), probes=2, seed=4, law=law, scope=scope)
        found = score_difficulty(
            model, encoded, sigma="rel:0.05", probes=2, seed=4, noise=law, scope=scope, engine=engine, batch_size=4
        )
        np.testing.assert_allclose(found.signed, values.mean(0), rtol=2e-3)  # norms of the package are float32
        with torch.no_grad():
            nll = [-float(token_log_likelihoods(model, one, scope).mean()) for one in encoded]
        np.testing.assert_allclose(found.nll, nll, rtol=1e-6)


@pytest.mark.parametrize(
    "build",
    [lambda: exact(llama(2)), lambda: exact(llama(2, tied=False)), lambda: gpt2().double()],
    ids=["tied", "untied", "gpt2"],
)
def test_engines_agree(build):
    # catches the hook engine adding other noise than the in-place one, anywhere
    model, encoded = build(), samples()
    one, other = (score_difficulty(model, encoded, probes=3, engine=e) for e in ("inplace", "hook"))
    close(other.signed, one.signed)
    close(other.standard_error, one.standard_error)
    assert other.scaling == pytest.approx(one.scaling, rel=1e-6)
    assert (one.engine, other.engine) == ("inplace", "hook")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
def test_engines_agree_with_noise_on_an_adapter_alone():
    # catches noise on frozen weights, and adapters that the hooks miss
    peft = pytest.importorskip("peft")
    model = exact(llama(2))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data += 0.3
    chosen = lambda name: "lora_" in name  # noqa: E731
    one, other = (
        score_difficulty(model, samples(), sigma=0.1, probes=2, engine=e, parameters=chosen)
        for e in ("inplace", "hook")
    )
    close(other.signed, one.signed)
    names = [n for n, _ in model.named_parameters() if "lora_" in n]
    assert set(InPlaceEngine(model, dict.fromkeys(names, 0.1), seed=0, law="gaussian").noisy_tensors) == set(names)
    assert one.mrd.max() > 0


def test_a_layer_that_is_not_called_is_named():
    # catches the hook engine that leaves a weight without noise in silence
    model = exact(llama(tied=False))
    inner = model.forward
    model.extra, model.lm_head = model.lm_head, nn.Identity()  # a layer whose weight is used by hand
    model.forward = lambda input_ids, attention_mask: SimpleNamespace(
        logits=inner(input_ids=input_ids, attention_mask=attention_mask).logits @ model.extra.weight.T
    )
    assert (score_difficulty(model, samples(), probes=1, engine="inplace").mrd > 0).all()
    with pytest.raises(InputError, match="never called"):
        score_difficulty(model, samples(), probes=1, engine="hook", parameters=lambda n: n == "extra.weight")


# -- restoring ------------------------------------------------------------------------------------------------------


class Boom(Exception):
    pass


def failing_after(model, calls):
    inner, left = model.forward, itertools.count(calls, -1)

    def forward(*args, **kwargs):
        if next(left) <= 0:
            raise Boom
        return inner(*args, **kwargs)

    return forward


@pytest.mark.parametrize("engine", ["inplace", "hook"])
@pytest.mark.parametrize("calls", [None, 0, 1, 4])
def test_weights_and_modes_are_what_they_were(engine, calls):
    # property 7: catches subtract-to-restore, a restore that an exception skips, lost modes, hooks left behind
    model, encoded = llama(2), samples()
    model.train()
    model.model.layers[0].eval()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    modes, forward = [m.training for m in model.modules()], model.forward
    if calls is None:
        score_difficulty(model, encoded, sigma="rel:0.1", probes=3, batch_size=2, engine=engine)
    else:
        with pytest.MonkeyPatch.context() as patch:
            model.forward = failing_after(model, calls)
            patch.setattr(model, "forward", model.forward)
            with pytest.raises(Boom):
                score_difficulty(model, encoded, sigma="rel:0.1", probes=3, batch_size=2, engine=engine)
        model.forward = forward
    assert all(torch.equal(t.view(torch.int32), model.state_dict()[n].view(torch.int32)) for n, t in state.items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_buffer_that_the_model_changes_is_put_back():
    # catches a counter or a running mean that a noisy pass has moved
    model, encoded = toy()
    model.register_buffer("calls", torch.zeros(2))
    forward = model.forward

    def counted(input_ids, attention_mask):
        model.calls += 1
        return forward(input_ids, attention_mask)

    model.forward = counted
    score_difficulty(model, encoded, probes=2)
    assert model.calls.tolist() == [0.0, 0.0]


def test_a_failed_restore_is_noticed(monkeypatch):
    # catches a checksum that is taken of the wrong tensors, or that cannot fail
    clean = InPlaceEngine.__exit__

    def forgetful(self, *error):
        self.copies = {name: copy + 1 for name, copy in self.copies.items()}
        clean(self, *error)

    monkeypatch.setattr(InPlaceEngine, "__exit__", forgetful)
    with pytest.raises(RuntimeError, match="reload"):
        score_difficulty(llama(), samples(), probes=1)


def test_checksum_sees_every_bit():
    # catches a sum that swapped entries, a sign of zero or one flipped bit leave as it was
    x = torch.arange(12.0).view(3, 4)
    changed = [x.flip(0), torch.where(x == 0, -0.0, x), torch.nextafter(x, x + 1), x.clone()]
    assert [engines.checksum({"x": c}) == engines.checksum({"x": x}) for c in changed] == [False, False, False, True]
    for odd in (torch.tensor(3.0), torch.zeros(0), torch.tensor([True]), torch.zeros(3, dtype=torch.float64)):
        assert engines.checksum({"x": odd}) == engines.checksum({"x": odd.clone()})


# -- cost -----------------------------------------------------------------------------------------------------------


def test_passes_and_draws_are_counted(monkeypatch):
    # catches noise drawn for every batch, and passes that nobody reports
    model, encoded, calls, draws = llama(), samples(n=6), [], []
    forward = model.forward
    model.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    real = engines.rows
    monkeypatch.setattr(engines, "rows", lambda *a, **k: draws.append(a[1:3]) or real(*a, **k))
    found = score_difficulty(model, encoded, probes=5, batch_size=2, engine="inplace", check_scaling=False)
    assert found.passes == 1 + 2 * 5  # one without noise
    assert len(calls) == 3 * found.passes
    assert len(draws) == len(set(draws)) == 5 * len(list(model.parameters()))  # one for each pair
    found = score_difficulty(model, encoded, probes=5, batch_size=2)
    assert found.passes == 1 + 2 * 5 + 4


@pytest.mark.parametrize("engine", ["inplace", "hook"])
def test_only_scored_rows_meet_the_vocabulary(engine, monkeypatch):
    # catches logits of the prompt and of padding, and a chunk that repeats or loses a row
    model, encoded, sizes = exact(llama()), samples(), []
    base = score_difficulty(model, encoded, probes=2, engine=engine)
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    score_difficulty(model, encoded, probes=2, engine=engine, check_scaling=False)
    assert sizes == [base.tokens.sum() + 1] * 5
    monkeypatch.setattr(reader, "_LOGITS", 3 * V)
    sizes.clear()
    close(score_difficulty(model, encoded, probes=2, engine=engine).signed, base.signed)
    assert max(sizes) == 4


def test_noise_comes_in_blocks(monkeypatch):
    # catches a hook that draws the noise of a whole layer at once
    monkeypatch.setattr(noise, "_BLOCK", 64)
    model, encoded, most = exact(llama(2)), samples(), []
    real = engines.rows
    monkeypatch.setattr(engines, "rows", lambda *a, **k: most.append(r := real(*a, **k)) or r)
    one, other = (score_difficulty(model, encoded, probes=2, engine=e) for e in ("inplace", "hook"))
    close(other.signed, one.signed)
    assert max(r.numel() for r in most) <= 64


def test_auto_takes_hooks_where_a_copy_does_not_fit(monkeypatch):
    # catches an engine that fills the memory
    monkeypatch.setattr(difficulty, "_free_memory", lambda device: 1)
    assert score_difficulty(llama(), samples(), probes=1).engine == "hook"


def test_hook_engine_leaves_versions_alone():
    # catches a weight that is changed and put back where it should not be touched at all
    model = llama()
    before = [p._version for p in model.parameters()]
    score_difficulty(model, samples(), probes=2, engine="hook")
    assert [p._version for p in model.parameters()] == before


def test_reader_and_engines_work_on_their_own():
    # catches a reader that needs a scoring around it
    model, encoded = exact(llama()), samples()
    source = Reader(model, encoded, scope="answer", batch_size=2, pad=0)
    with torch.no_grad(), HookEngine(model, sigmas_of(model, 0.05), seed=0, law="gaussian") as machine:
        base = source.read(machine.forward)
        with machine.noisy(0, 1.0):
            moved = source.read(machine.forward)
        assert np.array_equal(source.read(machine.forward), base)
    assert not np.allclose(moved, base)
