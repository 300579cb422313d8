"""Models small enough for exact Hessians, and a scorer written out by hand: for the tests of MRD and its engines."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from upright.language.encoding import Encoded
from upright.language.noise import rows

V = 40


def exact(model):
    """The model in float64, its norms too: those of the package compute in float32 whatever they are given."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model.double().eval()


def made(kind, config, seed=0, spread=3.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval()
        for p in model.parameters():  # norms and biases start at one and nought: give them something to differ in
            p.data.mul_(spread if p.ndim > 1 else 1.0).add_(0.1 * torch.randn(p.shape))
    return model


def llama(layers=1, tied=True, **more):
    return made(LlamaForCausalLM, LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.1, **more,
    ))  # fmt: skip


def gpt2():
    return made(GPT2LMHeadModel, GPT2Config(
        vocab_size=V, n_positions=64, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def gemma():
    return made(Gemma2ForCausalLM, Gemma2Config(
        vocab_size=V, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=64, sliding_window=32, final_logit_softcapping=2.0,
        attn_implementation="eager", query_pre_attn_scalar=4,
    ))  # fmt: skip


def samples(seed=0, n=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 14, n)
    return [Encoded(tuple(int(i) for i in rng.integers(0, V, t)), int(rng.integers(1, t - 2))) for t in lengths]


def token_log_likelihoods(model, one, scope="answer"):
    """P_t of one sample on its own, by log_softmax over all logits."""
    ids = torch.tensor([one.ids])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
    first = one.start if scope == "answer" else 1
    return logits[:-1].log_softmax(1).gather(1, ids[0, 1:, None])[first - 1 :, 0]


def sigmas_of(model, c):
    return {n: c * float(p.detach().double().square().mean().sqrt()) for n, p in model.named_parameters()}


def by_hand(model, encoded, sigmas, *, probes, seed, law="gaussian", scope="answer", signs=(1, -1)):
    """Signed changes (K, n) from copies of the model, one sample at a time."""
    with torch.no_grad():
        base = [token_log_likelihoods(model, one, scope) for one in encoded]
        found = np.zeros((probes, len(encoded)))
        for k, sign in itertools.product(range(probes), signs):
            other = copy.deepcopy(model)
            for name, p in other.named_parameters():
                z = rows(seed, k, name, p.shape, law=law, dtype=p.dtype)
                p.add_(sign * sigmas[name] * z)
            for i, one in enumerate(encoded):
                found[k, i] += float(((base[i] - token_log_likelihoods(other, one, scope)) / base[i]).sum()) / len(
                    signs
                )
    return found


class Toy(nn.Module):
    """``log p(x_t = 0) = -(c_t + b_t (theta - theta_0) + h_t (theta - theta_0)^2 / 2)`` with two tokens."""

    def __init__(self, c, b, h):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, h.shape[1], dtype=torch.float64))
        self.c, self.b, self.h, self.start = c, b, h, self.w.detach().clone()

    def forward(self, input_ids, attention_mask):
        d = self.w - self.start
        q = self.c + self.b @ d + self.h @ d.square() / 2
        z = torch.stack([torch.zeros_like(q), torch.log(torch.expm1(q))], 1)  # (T, 2)
        return SimpleNamespace(logits=z[None, : input_ids.shape[1]].expand(len(input_ids), -1, -1))


def toy(t=6, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)  # noqa: E731
    return Toy(0.5 + draw(t), draw(t, d) - 0.5, draw(t, d)), [Encoded((0,) * n, 1) for n in range(2, t + 1)]


def close(a, b, rtol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * float(np.median(np.abs(b))))
