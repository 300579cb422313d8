"""The optimiser against two passes written by hand: loop, micro-batches, scaler, processes, dropout and bad input."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from quadratic_items import QuadraticItems
from upright.contract import InputError
from upright.maths.sharpness import item_sharpness, item_weights, shuffled_weights
from upright.maths.sharpness_optimiser import EISAM, MODES, check_sharpness

ITEMS, F64 = 10, torch.float64
COUNT = np.floor(60 / np.arange(1, ITEMS + 1))


def make(dtype=F64, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, ITEMS)).to(dtype)


def batches(steps=5, size=8, dtype=F64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(steps, size, 6, generator=g, dtype=F64).to(dtype)
    return list(zip(x, torch.randint(0, ITEMS, (steps, size), generator=g), strict=True))


def losses(model, x, y):
    return cross_entropy(model(x).float() if x.dtype == torch.bfloat16 else model(x), y, reduction="none")


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def passes(opt, model, x, y, micro=None, scale=lambda loss: loss):
    """The passes of a step by the loop of the module's docstring, in micro-batches."""
    micro = micro or len(x)
    for xs, ys in zip(x.split(micro), y.split(micro), strict=True):
        part = len(xs) / len(x)
        scale(opt.plain(losses(model, xs, ys), ys) * part).backward()
        with opt.ascent():
            on = opt.selected(ys)
            if on.any():
                scale(opt.penalty(losses(model, xs[on], ys[on]), ys[on]) * part).backward()
    opt.merge()


def train(model, opt, data, micro=None, clip=None, scheduler=None):
    for x, y in data:
        opt.zero_grad()
        passes(opt, model, x, y, micro)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        if scheduler:
            scheduler.step()
    return flat(model)


def by_closure(model, opt, data=None):
    """Train with a closure a step, which gives the mean loss."""
    for x, y in data or batches():
        wanted = float(losses(model, x, y).detach().mean())
        assert float(opt.step(lambda x=x, y=y: (losses(model, x, y), y))) == wanted
    return flat(model)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def by_hand(model, base, c, data, *, rho=0.05, mode="lagged", adaptive=False, clip=None, scheduler=None):
    """Train with the two passes written out; c of each item."""
    direction = None
    for x, y in data:

        def gradient(weight, along=None, x=x, y=y):
            """Of the weighted mean, at w or moved by the ascent along a direction."""
            named = dict(model.named_parameters())
            if along is not None:
                t = [p.detach().abs() if adaptive else 1.0 for p in named.values()]
                norm = math.sqrt(sum(float((a * d).square().sum()) for a, d in zip(t, along, strict=True))) or math.inf
                e = [rho / norm * a * a * d for a, d in zip(t, along, strict=True)]
                named = {name: p + one for (name, p), one in zip(named.items(), e, strict=True)}
            loss = cross_entropy(functional_call(model, named, x), y, reduction="none")
            return gradients(model, (weight * loss).sum() / len(y))

        found = gradient(1 - c[y])
        for on in [y == i for i in y.unique()] if mode == "exact" else [1.0]:
            if mode in ("shared", "exact"):
                direction = gradient(c[y] * on)
            up = gradient(c[y] * on, direction)
            found = [a + b for a, b in zip(found, up, strict=True)]
        direction = up
        for p, g in zip(model.parameters(), found, strict=True):
            p.grad = g
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        base.step()
        if scheduler:
            scheduler.step()
    return flat(model)


def c_of(lam=0.8, weight="relative", gamma=2.0):
    return torch.from_numpy(lam * item_weights(COUNT, weight, gamma))


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# the step


@pytest.mark.parametrize("micro", [8, 4, 1])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_loop_is_two_passes_written_by_hand_with_clipping_and_a_scheduler(adaptive, micro):
    a, b = make(), make()
    opt, base = EISAM(adam(a), COUNT, adaptive=adaptive), adam(b)
    own, other = (torch.optim.lr_scheduler.CosineAnnealingLR(one, 5) for one in (opt, base))
    found = train(a, opt, batches(), micro, clip=0.1, scheduler=own)
    assert opt.base.param_groups[0]["lr"] == own.get_last_lr()[0] < 0.01
    close(found, by_hand(b, base, c_of(), batches(), adaptive=adaptive, clip=0.1, scheduler=other))
    assert float((found - flat(make())).abs().max()) > 0.01


TAIL = torch.from_numpy(item_weights(COUNT, "tail_only") > 0).to(F64)
SAM = ("shared", {"weight": "constant", "lam": 1.0}, torch.ones(ITEMS, dtype=F64))
IMBSAM = ("shared", {"weight": "tail_only", "lam": float(TAIL.numpy() @ COUNT / COUNT.sum())}, TAIL)


@pytest.mark.parametrize(
    ("mode", "settings", "c"),
    [
        *((mode, {"adaptive": adaptive}, c_of()) for mode in MODES if mode != "subset" for adaptive in (False, True)),
        *((mode, neutral, 0 * TAIL) for mode in MODES for neutral in ({"lam": 0.0}, {"rho": 0.0})),  # the base alone
        SAM,
        IMBSAM,
    ],
)
def test_a_closure_runs_the_passes_of_each_mode(mode, settings, c):
    assert c.max() > 1 or not set(settings) <= {"adaptive"}  # negative weights of the plain pass are among them
    a, b = make(), make()
    wanted = by_hand(b, adam(b), c, batches(), mode=mode, adaptive=settings.get("adaptive", False))
    close(by_closure(a, EISAM(adam(a), COUNT, mode=mode, **settings)), wanted)


def test_subset_takes_the_rarest_items_alone_and_both_means_over_the_batch():
    opt = EISAM(adam(make()), COUNT, mode="subset", share=0.5)
    on = opt.selected(torch.arange(ITEMS))
    assert COUNT[on].sum() <= 0.5 * COUNT.sum() < COUNT[on].sum() + COUNT[~on].min()
    assert COUNT[on].max() < COUNT[~on].min()
    b = make()
    wanted = by_hand(b, adam(b), torch.where(on, c_of(), 0.0), batches())
    for micro in (8, 4, 1):
        a = make()
        opt = EISAM(adam(a), COUNT, mode="subset", share=0.5)
        close(train(a, opt, batches(), micro), wanted)
    x, y = batches()[0]
    opt.zero_grad()
    passes(opt, a, x, torch.zeros_like(y))  # of the most frequent item alone: the second pass is empty
    head = gradients(a, losses(a, x, torch.zeros_like(y)).mean())
    for p, g in zip(a.parameters(), head, strict=True):
        close(p.grad, g)


def test_on_quadratics_step_and_penalty_have_their_closed_forms():
    model, y, rho = QuadraticItems([1.0] * ITEMS), torch.arange(ITEMS), 0.3
    opt = EISAM(torch.optim.SGD(model.parameters(), lr=1.0), COUNT, rho=rho, mode="shared")
    c = c_of() / ITEMS
    slope = torch.einsum("ide,ie->id", model.hessian, model.w.detach() - model.centre)
    g, h = (c[:, None] * slope).sum(0), (c[:, None, None] * model.hessian).sum(0)
    before = model.w.detach().clone()
    rise = float(rho * g.norm() + 0.5 * rho**2 * (g @ h @ g) / (g @ g))
    assert check_sharpness(opt, lambda: (model(y), y)).penalty == pytest.approx(rise, rel=1e-9)
    opt.step(lambda: (model(y), y))
    close(before - model.w.detach(), slope.mean(0) + rho * h @ g / g.norm())


def test_the_penalty_of_convex_losses_grows_with_the_radius_and_is_below_that_of_exact_items():
    y, c, model = torch.arange(ITEMS), c_of() / ITEMS, QuadraticItems(range(1, ITEMS + 1))
    model.hessian = torch.linspace(1, 5, ITEMS, dtype=F64)[:, None, None] * torch.eye(5, dtype=F64)

    def checked(rho):
        return check_sharpness(EISAM(torch.optim.SGD([model.w], lr=1.0), COUNT, rho=rho), lambda: (model(y), y))

    low = 0.0
    for rho in (0.01, 0.1, 0.5, 2.0):
        # spheres: the first-order ascent is the exact maximum of each item
        each = item_sharpness(model, [model.w], y, rho)[1]
        assert low < checked(rho).penalty <= float(c @ each) + 1e-12
        low = checked(rho).penalty
    model.centre = model.w.detach().expand(ITEMS, -1)  # a stationary point of all items
    assert checked(0.05).penalty == checked(0.05).gradient_gap == 0.0


def tail_sharpness(world, **settings):
    """Mean sharpness of the rarer half of the items, whose losses are ten times more curved, after training."""
    model = QuadraticItems([1.0] * 5 + [10.0] * 5, seed=world)
    y = torch.repeat_interleave(torch.arange(ITEMS), torch.from_numpy(COUNT).long())
    opt = EISAM(torch.optim.SGD(model.parameters(), lr=0.02), COUNT, rho=0.3, mode="shared", **{"lam": 1.0, **settings})
    for _ in range(50):
        opt.step(lambda: (model(y), y))
    return float(item_sharpness(model, [model.w], torch.arange(ITEMS), 0.1)[1][5:].mean())


def test_a_sharp_tail_becomes_flatter_than_with_sam_and_not_with_the_weights_of_others():
    # in worlds that differ by curvature and place of the items; in a single one it need not be so
    f, fall = item_weights(COUNT, "relative", 2.0), {"sam": [], "eisam": [], "others": []}
    for world in range(6):
        other = shuffled_weights(f, COUNT, np.random.default_rng(world))
        start = tail_sharpness(world, lam=0.0)
        fall["sam"].append(start - tail_sharpness(world, weight="constant"))
        fall["eisam"].append(start - tail_sharpness(world))
        fall["others"].append(start - tail_sharpness(world, item_weight=other))
    assert stats.ttest_rel(fall["eisam"], fall["sam"], alternative="greater").pvalue < 0.05
    assert np.mean(fall["others"]) < 0.2 * np.mean(fall["eisam"])


@pytest.mark.parametrize("mode", ["lagged", "shared"])
def test_the_order_of_items_and_samples_and_the_scale_of_counts_do_not_matter(mode):
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0))  # the new code of each item
    count = np.empty(ITEMS)
    count[order.numpy()] = 3 * COUNT
    a, b = make(), make()
    found = by_closure(a, EISAM(adam(a), COUNT, mode=mode))
    other = EISAM(adam(b), count, mode=mode)
    for x, y in batches():
        other.step(lambda x=x, y=y: (losses(b, x.flip(0), y.flip(0)), order[y.flip(0)]))
    close(found, flat(b))


# scalers, processes, checkpoints


def test_a_step_that_a_scaler_skips_leaves_no_trace():
    a, b = make(), make()
    opt, scaler = EISAM(adam(a), COUNT), torch.amp.GradScaler("cpu", init_scale=1024.0)
    data = batches()
    for k, (x, y) in enumerate(data):
        opt.zero_grad()
        passes(opt, a, x, y, 4, lambda loss, k=k: scaler.scale(loss) * (math.inf if k == 2 else 1.0))
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(a.parameters(), 0.1)
        scaler.step(opt)
        scaler.update()
    assert scaler.get_scale() == 512.0
    close(flat(a), train(b, EISAM(adam(b), COUNT), data[:2] + data[3:], clip=0.1))


def test_the_direction_of_a_step_that_is_not_made_is_forgotten():
    model = make()
    opt = EISAM(adam(model), COUNT)
    train(model, opt, batches()[:1])
    kept = opt.state_dict()["direction"][0].clone()
    x, y = batches()[1]
    opt.zero_grad()
    passes(opt, model, x, y)
    opt.zero_grad()
    losses(model, x, y).mean().backward()  # a step of the base alone
    opt.step()
    assert torch.equal(opt.state_dict()["direction"][0], kept)


@pytest.mark.parametrize("settings", [{}, {"direction": "random"}, {"mode": "subset", "adaptive": True}])
def test_a_state_taken_up_between_steps_goes_on_bit_for_bit(settings, tmp_path):
    a, b = make(), make()
    opt = EISAM(adam(a), COUNT, **settings)
    train(a, opt, batches()[:2])
    torch.save([opt.state_dict(), a.state_dict()], tmp_path / "state")
    state, weights = torch.load(tmp_path / "state")
    b.load_state_dict(weights)
    again = EISAM(adam(b), COUNT, **settings, seed=5)
    again.load_state_dict(state)
    assert torch.equal(train(a, opt, batches()[2:]), train(b, again, batches()[2:]))
    plain = {k: state[k] for k in ("state", "param_groups")}
    again.load_state_dict(plain)  # of the base alone
    assert again.state_dict()["direction"] == {}
    with pytest.raises(InputError, match="direction of other parameters"):
        again.load_state_dict({**state, "direction": {0: torch.ones(7)}})


def test_a_random_direction_has_the_same_length():
    model = make()
    opt = EISAM(adam(model), COUNT, direction="random")
    train(model, opt, batches()[:2])
    x, y = batches()[2]
    opt.zero_grad()
    before = flat(model)
    opt.plain(losses(model, x, y), y).backward()
    toward = torch.cat([g.flatten() for g in gradients(model, opt.penalty(losses(model, x, y), y))])
    with opt.ascent():
        e = flat(model) - before
        opt.penalty(losses(model, x, y), y).backward()
    assert float(e.norm()) == pytest.approx(0.05, rel=1e-9)
    assert abs(float(torch.cosine_similarity(e, toward, dim=0))) < 0.3  # 282 parameters: 5 standard deviations
    assert torch.equal(flat(model), before)


def test_new_parameters_join_with_the_second_step():
    model, extra = make(), nn.Parameter(torch.zeros(ITEMS, dtype=F64))
    opt = EISAM(adam(model), COUNT)
    x, y = batches()[0]
    opt.step(lambda: (losses(model, x, y), y))
    opt.add_param_group({"params": [extra], "lr": 0.1})
    assert opt.param_groups is opt.base.param_groups
    opt.step(lambda: (cross_entropy(model(x) + extra, y, reduction="none"), y))
    assert extra.detach().abs().max() > 0


def one_of_two(rank, folder):
    """Train as process `rank` of two: reduced in each micro-batch, then in the last one alone (no_sync)."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for late in (False, True):
            model = make()
            spread, opt = DistributedDataParallel(model), EISAM(adam(model), COUNT)
            for x, y in batches():
                opt.zero_grad()
                for k, (xs, ys) in enumerate(zip(x[rank::2].split(2), y[rank::2].split(2), strict=True)):
                    with spread.no_sync() if late and k == 0 else contextlib.nullcontext():
                        (opt.plain(losses(spread, xs, ys), ys) / 2).backward()
                        with opt.ascent():
                            (opt.penalty(losses(spread, xs, ys), ys) / 2).backward()
                opt.step()
            torch.save(flat(model), f"{folder}/{rank}{int(late)}")
            assert check_sharpness(opt, lambda: (losses(spread, xs, ys), ys)).gradient_gap < 1e-12  # noqa: B023
        spread = DistributedDataParallel(model, gradient_as_bucket_view=True)
        opt.step(lambda: (losses(spread, xs, ys), ys))  # right: buckets are laid anew after the very first pass
        with pytest.raises(InputError, match="gradient_as_bucket_view"):
            opt.step(lambda: (losses(spread, xs, ys), ys))
        with pytest.raises(InputError, match="gradient_as_bucket_view"):
            check_sharpness(opt, lambda: (losses(spread, xs, ys), ys))
        with pytest.raises(InputError, match="processes"):
            EISAM(adam(model), COUNT, mode="shared").step(lambda: (losses(model, xs, ys), ys))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    here = Path(__file__)
    code = f"import sys; sys.path += {sys.path}; import {here.stem} as own; own.one_of_two(1, {str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=here.parent) as other:
        one_of_two(0, tmp_path)
    assert other.returncode == 0
    model = make()
    wanted = train(model, EISAM(adam(model), COUNT), batches())
    for name in ("00", "01", "10", "11"):
        close(torch.load(tmp_path / name), wanted)


# dropout


def test_both_passes_of_each_micro_batch_have_one_mask():
    model, seen = make(dropout=0.5), []
    model[2].register_forward_hook(lambda module, args, out: seen.append(out == 0))
    train(model, EISAM(adam(model), COUNT), batches(), 4)
    for plain, second in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(plain, second)
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_model_with_dropout_passes_the_check_and_stays_as_it_was(mode, dtype):
    model = make(dtype, dropout=0.5)
    opt = EISAM(adam(model), COUNT, mode=mode)
    x, y = batches(dtype=dtype)[0]
    opt.step(lambda: (losses(model, x, y), y))
    before, random, state = flat(model), torch.get_rng_state(), str(opt.state_dict())
    found = check_sharpness(opt, lambda: (losses(model, x, y), y))
    assert found.loss_gap == 0.0
    assert found.gradient_gap < (1e-5 if dtype == torch.float32 else 1e-12)
    assert found.norm_ratio == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(flat(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert str(opt.state_dict()) == state


# bad input


def test_the_check_refuses_other_masks_changed_gradients_and_weights_that_somebody_writes_to(monkeypatch):
    model, own, calls = make(), torch.Generator().manual_seed(0), []
    opt, (x, y), before = EISAM(adam(model), COUNT), batches()[0], flat(model)
    merge = opt.merge

    def refused(says, closure=lambda: (losses(model, x, y), y)):
        with pytest.raises(InputError, match=says):
            check_sharpness(opt, closure)
        assert torch.equal(flat(model), before)

    def spoil():
        merge()
        with torch.no_grad():
            model[0].bias.add_(1e-9)

    refused("random state", lambda: (losses(model, x * torch.rand(6, generator=own, dtype=F64), y), y))
    with monkeypatch.context() as patch:
        patch.setattr(opt, "merge", spoil)
        refused("restored")
    model[0].weight.register_hook(lambda g: (calls.append(0), g * (1 + len(calls)))[1])
    refused("closed form")


def test_bfloat16_weights_do_not_take_a_small_step():
    model = make(torch.bfloat16)
    x, y = batches(dtype=torch.bfloat16)[0]
    opt = EISAM(torch.optim.SGD(model.parameters(), lr=1e-3), COUNT, rho=1e-3)
    with pytest.raises(InputError, match="float32"):
        check_sharpness(opt, lambda: (losses(model, x, y), y))
    opt.step(lambda: (losses(model, x, y), y))
    with pytest.warns(UserWarning, match="float32"):
        opt.step(lambda: (losses(model, x, y), y))
    assert min(opt.realised) < 0.9
    wide = make(torch.float32)
    opt = EISAM(adam(wide), COUNT, rho=1e-3)
    train(wide, opt, batches(dtype=torch.float32)[:2])
    assert opt.realised == pytest.approx((1.0, 1.0), abs=1e-3)


def test_half_a_step_other_codes_and_another_base_are_refused():
    # catches a step along 1 - c_i alone, which trains against the tail
    model = make()
    opt, (x, y) = EISAM(adam(model), COUNT), batches()[0]
    opt.zero_grad()
    opt.plain(losses(model, x, y), y).backward()
    with pytest.raises(InputError, match="without an ascent"):
        opt.step()
    with opt.ascent():
        opt.penalty(losses(model, x, y), y).backward()
    opt.step()
    with pytest.raises(InputError, match="item codes of type"):
        opt.plain(losses(model, x, y), y.double())
    with pytest.raises(InputError, match="a base of type Sequential"):
        EISAM(model, COUNT)


def test_what_was_realised_survives_a_checkpoint():
    model = make()
    opt, again = EISAM(adam(model), COUNT), EISAM(adam(model), COUNT)
    train(model, opt, batches()[:2])
    again.load_state_dict(opt.state_dict())
    assert opt.realised is not None
    assert again.realised == opt.realised


def test_an_exception_inside_ascent_restores_all():
    model = make(dropout=0.5)
    opt = EISAM(adam(model), COUNT)
    train(model, opt, batches()[:2])
    x, y = batches()[2]
    opt.zero_grad()
    opt.plain(losses(model, x, y), y).backward()
    before, grads, random = flat(model), [p.grad.clone() for p in model.parameters()], torch.get_rng_state()

    def fail():
        assert not torch.equal(flat(model), before)
        opt.penalty(losses(model, x, y), y).backward()
        torch.rand(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), opt.ascent():
        fail()
    assert torch.equal(flat(model), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    with opt.ascent():  # and the next one works
        opt.penalty(losses(model, x, y), y).backward()
    opt.step()


@pytest.mark.parametrize("what", ["ascent", "step", "merge", "zero_grad"])
def test_nothing_of_the_loop_stands_inside_ascent(what):
    model = make()
    opt, before = EISAM(adam(model), COUNT), flat(model)
    with pytest.raises(InputError, match="ascent before zero_grad"), opt.ascent():
        pass
    opt.zero_grad()
    with pytest.raises(InputError, match=f"{what} inside ascent"), opt.ascent():
        getattr(opt, what)().__enter__() if what == "ascent" else getattr(opt, what)()
    assert torch.equal(flat(model), before)


WRONG = {
    "rho": [-0.1, math.nan],
    "lam": [-1.0],
    "mode": ["late"],
    "share": [0.0],
    "direction": ["up"],
    "weight": ["none"],
    "item_weight": [[1.0], [-1.0] * ITEMS],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_settings_that_mean_nothing_are_refused(name, value):
    with pytest.raises(InputError):
        EISAM(adam(make()), COUNT, **{name: value})


def test_calls_that_do_not_fit_are_refused():
    for mode in ("shared", "exact"):
        with pytest.raises(InputError, match="closure"):
            EISAM(adam(make()), COUNT, mode=mode).step()
    opt, y = EISAM(adam(make()), COUNT), torch.tensor([0, 1])
    for call in (opt.plain, opt.penalty):
        with pytest.raises(InputError, match="shape"):
            call(torch.tensor(1.0), torch.tensor(3))
        with pytest.raises(InputError, match="shape"):
            call(torch.ones(2), torch.zeros(3, dtype=torch.int64))
        for wrong in (ITEMS, -1):
            with pytest.raises(InputError, match="item_count"):
                call(torch.ones(2), y.clamp(max=0) + wrong)


@pytest.mark.parametrize("missed", ["plain", "second"])
def test_a_parameter_that_one_pass_does_not_reach_is_refused_by_name(missed):
    model = make()
    extra = nn.Parameter(torch.zeros(ITEMS, dtype=F64))
    named = torch.optim.AdamW([*model.named_parameters(), ("extra", extra)], lr=0.01)
    for base, name in ((named, "extra"), (torch.optim.AdamW([*model.parameters(), extra]), "parameter 4")):
        opt = EISAM(base, COUNT)
        x, y = batches()[0]
        reached, other = losses(model, x, y), cross_entropy(model(x) + extra, y, reduction="none")
        opt.zero_grad()
        opt.plain(reached if missed == "plain" else other, y).backward()
        with opt.ascent():
            opt.penalty(other if missed == "plain" else reached, y).backward(retain_graph=True)
        with pytest.raises(InputError, match=f"{missed} pass for {name}"):
            opt.step()


@pytest.mark.parametrize("early", ["clip", "unscale", "scaler step"])
def test_what_changes_gradients_comes_after_merge(early):
    model = make()
    opt, scaler = EISAM(adam(model), COUNT), torch.amp.GradScaler("cpu", init_scale=8.0)
    x, y = batches()[0]
    opt.zero_grad()
    scaler.scale(opt.plain(losses(model, x, y), y)).backward()
    with opt.ascent():
        scaler.scale(opt.penalty(losses(model, x, y), y)).backward()
    if early == "clip":
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    elif early == "unscale":
        scaler.unscale_(opt)
    with pytest.raises(InputError, match="merge"):
        scaler.step(opt) if early == "scaler step" else opt.merge()
