"""Item-wise sharpness with Trainer: loops by hand, micro-batches, dropout, resume, processes, bad input."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from tiny_trainer import Kill, Killed, arguments, data, tiny, weights
from upright.contract import InputError
from upright.language.eisam_trainer import EISAMArguments, EISAMTrainer
from upright.language.encoding import Encoded
from upright.language.sampling import shuffle_order
from upright.maths.sharpness import item_weights
from upright.maths.sharpness_optimiser import EISAM

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 asks transformers by the old name
)

ITEMS = np.array([3, 0, 1, 0, 2, 0, 1, 0, 2, 1])
LORA = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def wide(dropout=0.0):
    """A model in float64 throughout: transformers takes the norms of a Llama in float32."""
    model = tiny()
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = torch.nn.RMSNorm(16, 1e-6), torch.nn.RMSNorm(16, 1e-6)
        layer.self_attn.attention_dropout = dropout
    model.model.norm = torch.nn.RMSNorm(16, 1e-6)
    return model.double()


def make(folder, *, model=None, kind=EISAMTrainer, args=None, **options):
    tokenizer, records, *_ = data()
    options = {"records": records, "items": ITEMS, "processing_class": tokenizer, **options}
    settings = arguments(folder, EISAMArguments, **{"max_steps": 4, **(args or {})})
    return kind(wide() if model is None else model, args=settings, **options)


def run(folder, **options):
    one = make(folder, **options)
    one.train()
    return one


def distance(one, other):
    """Between two trained models, relative to the way of the first from the start."""
    moved = weights(one.model) - weights(tiny())
    assert moved.norm() > 0.01
    return float((weights(one.model) - weights(getattr(other, "model", other))).norm() / moved.norm())


def one_loss(model, one):
    """Mean over the tokens of one answer, without padding, batches or masks."""
    ids = torch.tensor([one.ids])
    return cross_entropy(model(input_ids=ids).logits[0, one.start - 1 : -1], ids[0, one.start :])


class Plain(EISAMTrainer):
    """Trainer's own step on the plain mean: one pass, the base optimiser."""

    create_optimizer = Trainer.create_optimizer
    training_step = Trainer.training_step

    def log(self, *args):
        Trainer.log(self, *args)


# -- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("mode", ["lagged", "subset"])
def test_steps_equal_a_hand_written_loop(tmp_path, mode, micro):
    # catches a mean over tokens of the batch, a mean of means, places that do not count, weights of other items, a
    # merge after clipping, a penalty that is normalised by its own rows, a second pass on the wrong rows, a schedule
    # that does not reach the base. Where no row of a step is selected, one is read at weight 0, and e* of the next step
    # is 0
    codes = np.sort(ITEMS) if mode == "subset" else ITEMS
    args = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": 4 // micro,
        "mode": mode,
        "rho": 0.3,
        "lam": 0.7,
        "max_steps": 8,
        "max_grad_norm": 0.5,
    }
    args |= {"optim": "adamw_torch", "learning_rate": 5e-3, "lr_scheduler_type": "linear"}
    one = run(tmp_path, args=args, items=codes)
    model, records = wide(), data()[1]
    base = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    opt = EISAM(base, np.bincount(ITEMS), rho=0.3, lam=0.7, mode=mode)
    down = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step / 8)
    epochs = [shuffle_order(10, 3, epoch).split(4) for epoch in range(3)]  # 4, 4 and 2 records each
    for rows in [*epochs[0], *epochs[1], *epochs[2][:2]]:
        items = torch.from_numpy(codes)[rows]
        losses = lambda at: torch.stack([one_loss(model, records[k]) for k in at])  # noqa: E731
        opt.zero_grad()
        opt.plain(losses(rows), items).backward()
        with opt.ascent():
            on = opt.selected(items)
            on[0] |= not on.any()
            opt.penalty(losses(rows[on]), items[on]).backward()
        opt.merge()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        down.step()
    assert distance(one, model) < 1e-9
    assert distance(one, run(tmp_path, args={**args, "rho": 0.0}, items=codes)) > 1e-3


@pytest.mark.parametrize("still", [{"lam": 0.0}, {"rho": 0.0}, {"plain_steps": 4, "rho": 0.5}])
@pytest.mark.parametrize("lora", [False, True])
def test_neutral_settings_are_plain_fine_tuning(tmp_path, still, lora):
    # catches a warm-up that weighs rare items already, and one that never ends; and
    # with dropout: at rho = 0 both passes add up to the plain loss only where they draw the same masks, and later
    # steps only agree where the random state goes on from the plain pass
    def model():
        torch.manual_seed(5)  # of the adapter
        return peft.get_peft_model(wide(0.2), LORA).double() if lora else wide(0.2)

    args = {**TWO, "learning_rate": 0.5}
    plain = run(tmp_path / "a", kind=Plain, args=args, model=model())
    own = run(tmp_path / "b", args={**args, **still}, model=model())
    start, ends = weights(model()), [weights(one.model) for one in (plain, own)]
    moved = (ends[0] - start).norm()
    assert moved > 1e-3
    assert (ends[1] - ends[0]).norm() < 1e-9 * moved
    moving = run(tmp_path / "c", args={**args, "plain_steps": 1, "rho": 0.5}, model=model())
    assert (weights(moving.model) - ends[0]).norm() > 1e-6 * moved


def test_the_log_and_evaluation_hold_the_plain_loss(tmp_path):
    # catches an evaluation that is weighted, and a penalty that is not the rise of the weighted loss
    _, records, *_ = data()
    start = wide().requires_grad_(False)
    pairs = list(zip(records, ITEMS.tolist(), strict=True))
    args = {"max_steps": 2, "rho": 0.3, "per_device_train_batch_size": 10}
    one = make(tmp_path, args=args, eval_dataset=pairs)
    mean = float(torch.stack([one_loss(start, record) for record in records]).mean())
    one.train()
    after = float(torch.stack([one_loss(one.model, record).detach() for record in records]).mean())
    assert one.evaluate()["eval_loss"] == pytest.approx(after, rel=1e-6)
    lines = [line for line in one.state.log_history if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(mean, rel=1e-6)
    assert lines[0]["penalty"] == pytest.approx(0.0, abs=1e-6)
    assert "realised_perturbation" not in lines[0]
    assert lines[1]["penalty"] > 1e-3
    assert lines[1]["realised_perturbation"] == pytest.approx(1.0)
    assert lines[1]["realised_cosine"] == pytest.approx(1.0)
    assert one.model.config.use_cache is True
    args |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}  # the last one is filled up
    for line, parts in zip(lines, run(tmp_path, args=args).state.log_history, strict=False):
        assert (parts["loss"], parts["penalty"]) == pytest.approx((line["loss"], line["penalty"]), rel=1e-5, abs=1e-7)


# -- precision ------------------------------------------------------------------------------------------------------


def test_a_perturbation_lost_in_rounding_is_said(tmp_path):
    # catches a radius below what the weights can take
    with pytest.warns(UserWarning, match="of a perturbation's length"):
        one = run(tmp_path, model=tiny(), args={"rho": 3e-9, "max_steps": 2})
    assert one.state.log_history[1]["realised_cosine"] < 0.9


def test_adapters_train_in_float32_and_other_narrow_weights_are_refused(tmp_path):
    # catches e* rounded away in bf16, and a base that is cast along
    narrow = peft.get_peft_model(tiny(), LORA).to(torch.bfloat16)
    one = run(tmp_path, model=narrow)
    kinds = {p.requires_grad: p.dtype for p in one.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert one.state.log_history[1]["realised_perturbation"] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InputError, match=r"trained weights of type torch.bfloat16 \(model.embed_tokens.weight\)"):
        make(tmp_path, model=tiny().to(torch.bfloat16))
    whole = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    with pytest.raises(InputError, match="modules_to_save"):
        make(tmp_path, model=tiny().to(torch.bfloat16), peft_config=whole)


# -- resume ---------------------------------------------------------------------------------------------------------


def lora(folder, kill=None, items=ITEMS, **args):
    own = {**TWO, "optim": "adamw_torch", "lr_scheduler_type": "cosine", "rho": 0.3, "max_steps": 8, "save_steps": 1}
    own |= {"save_strategy": "steps", **args}
    return make(folder, model=tiny(), peft_config=LORA, callbacks=kill and [Kill(kill)], args=own, items=items)


def state(one):
    """Weights, moments and direction, all as tensors."""
    held = one.sharpness.state_dict()
    out = {**one.model.state_dict(), **{f"direction.{k}": d for k, d in held["direction"].items()}}
    return out | {f"{k}.{name}": x for k, moments in held["state"].items() for name, x in moments.items()}


@functools.cache
def whole():
    import tempfile

    one = lora(tempfile.mkdtemp(), save_strategy="no")
    one.train()
    assert one.state.global_step == 8
    return one


@pytest.mark.parametrize("at", [2, 3, 4, 6])
def test_a_killed_run_ends_bit_equal(tmp_path, at):
    # killed in an epoch (2, 4) and at its border (3, 6). Catches a direction that starts at 0 again, one of the killed
    # step, dropout of another stream, an order that starts again
    with pytest.raises(Killed):
        lora(tmp_path, kill=at).train()
    again = lora(tmp_path)
    again.train(resume_from_checkpoint=True)
    a, b = state(again), state(whole())
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert sum(name.startswith("direction") for name in a) == 8


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    with pytest.raises(Killed):
        lora(tmp_path, kill=1).train()
    changes = {"rho": {"rho": 0.1}, "items": {"items": np.roll(ITEMS, 1)}}
    for name, change in {**changes, "effective batch": {"gradient_accumulation_steps": 1}}.items():
        with pytest.raises(InputError, match=f"{name} = "):
            lora(tmp_path, **change).train(resume_from_checkpoint=True)


# -- bad input ------------------------------------------------------------------------------------------------------


def test_settings_outside_their_range_are_refused(tmp_path):
    # each before a model is touched
    no, far = float("nan"), float("inf")
    bad = {"rho": (-0.1, far), "lam": ("1", no), "gamma": (no,), "share": (0.0, 1.1), "mode": ("shared",)}
    bad |= {"plain_steps": (-1, 0.5), "title_limit": (0,), "adaptive": ("no",)}
    bad |= {"label_smoothing_factor": (0.1,), "train_sampling_strategy": ("group_by_length",)}  # ignored in silence
    for name, values in bad.items():
        for value in values:
            with pytest.raises(InputError, match=f"{name} = {value!r}"):
                make(tmp_path, args={name: value})
    with pytest.raises(InputError, match="weight 'rarity'"):
        make(tmp_path, args={"weight": "rarity"})
    with pytest.raises(InputError, match="steps inside the backward pass"):
        make(tmp_path, args={"optim": "galore_adamw_layerwise"})


def test_records_and_items_that_do_not_fit_are_refused(tmp_path):
    # each before a step is taken, with the row
    tokenizer, records, *_ = data()
    with pytest.raises(InputError, match=r"a title of \d+ tokens of record \d+ \(the first is 0\)"):
        make(tmp_path, args={"title_limit": 3})
    prompt = records[6].ids[: records[6].start]
    for empty in (prompt, (*prompt, tokenizer.eos_token_id)):
        some = [*records[:6], Encoded(empty, len(prompt)), *records[7:]]
        with pytest.raises(InputError, match=r"a title of 0 tokens of record 6"):
            make(tmp_path, records=some)
    for options, words in (
        ({"item_count": [4, 3, 2]}, r"item code 3 of record 0"),
        ({"items": np.where(ITEMS == 2, -1, ITEMS)}, r"item code -1 of record 4"),
        ({"items": ITEMS[:9]}, r"items of shape \(9,\)"),
        ({"items": ITEMS + 0.0}, "type float64 for 10 records"),
        ({"records": [], "items": np.zeros(0, int)}, "all 0"),
    ):
        with pytest.raises(InputError, match=words):
            run(tmp_path, **options)
    with pytest.raises(InputError, match="args of type TrainingArguments"):
        EISAMTrainer(tiny(), records, ITEMS, args=TrainingArguments(str(tmp_path)), processing_class=tokenizer)
    with pytest.warns(UserWarning, match="plain SAM"):
        make(tmp_path, items=np.arange(10))


def test_given_counts_are_used(tmp_path):
    # catches counts of the records in place of those of the catalogue
    counts = [4, 30, 2, 1, 7]
    one = make(tmp_path, item_count=counts)
    np.testing.assert_array_equal(one.item_weight, item_weights(counts, "relative", 2.0))
