"""Unlearning with Trainer: steps by hand, accumulation, sampling, references, adapters, guards."""

from __future__ import annotations

import contextlib
import copy
import types

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import BertConfig, BertLMHeadModel, TrainerCallback, TrainingArguments

from tiny_trainer import arguments, data, make, tiny, weights
from upright.contract import InputError
from upright.language import objectives, trainer
from upright.language.reader import read_answers
from upright.language.sampling import draws, partners, sampling_weights, shuffle_order
from upright.language.trainer import UnlearnTrainer

pytestmark = pytest.mark.filterwarnings("ignore:nothing is forgotten")  # runs of a few steps
LOSSES = ["ga", "npo", "simnpo", "idk_dpo", "wga", "satimp", "undial", "ce_u", "pdu", "rmu", "grad_diff",
          "grad_diff_kl", "jensun"]  # fmt: skip


def run(folder, loss, **options):
    one = make(folder, loss, **options)
    one.train()
    return one


def watched(one):
    """Train, and return the keys of all batches in order."""
    inner, seen = one.data_collator, []
    one.data_collator = lambda keys: seen.extend(keys) or inner(keys)
    one.train()
    return seen


# -- by hand --------------------------------------------------------------------------------------------------------


def cost(model, one):
    """``c_i`` and ``n_i`` of one record, without padding, batches or masks."""
    ids = torch.tensor([one.ids])
    logits = model(input_ids=ids).logits[0, one.start - 1 : -1]
    target = ids[0, one.start :]
    return cross_entropy(logits, target, reduction="sum"), len(target)


def by_hand(loss, model, start, forget, retain):
    """The published objective of one batch, one record at a time."""
    costs = [cost(model, one) for one in forget]
    if loss in ("ga", "grad_diff"):
        value = -sum(c for c, _ in costs) / sum(n for _, n in costs)
    elif loss == "npo":
        refs = [cost(start, one)[0].detach() for one in forget]
        value = sum(-(2 / 0.1) * logsigmoid(0.1 * (c - r)) for (c, _), r in zip(costs, refs, strict=True)) / len(costs)
    else:
        value = sum(-(2 / 4.5) * logsigmoid(4.5 * c / n) for c, n in costs) / len(costs)
    kept = [cost(model, one) for one in retain]
    return value + sum(c for c, _ in kept) / sum(n for _, n in kept) if retain else value


@pytest.mark.parametrize(("loss", "with_retain"), [("ga", False), ("npo", True), ("simnpo", True), ("grad_diff", True)])
def test_steps_equal_a_hand_written_loop(tmp_path, loss, with_retain):
    # catches a sign, a mean over samples for one over tokens, a shifted label, a prompt that is trained, a reference
    # that moves with the model, and a partner of another place
    one = run(tmp_path, loss, retain=with_retain, model=tiny().double())
    model, start = tiny().double(), tiny().double()
    _, forget, retain, _ = data()
    order, kept = shuffle_order(10, 3, 0).tolist(), partners(7, 3, 0, 10).tolist()
    for at in (0, 4):
        batch = [forget[i] for i in order[at : at + 4]]
        partner = [retain[j] for j in kept[at : at + 4]] if with_retain else []
        model.zero_grad()
        by_hand(loss, model, start, batch, partner).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
    moved = weights(model) - weights(start)
    assert moved.norm() > 0.01
    assert (weights(one.model) - weights(model)).norm() < 1e-6 * moved.norm() + 1e-9


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_changes_nothing(tmp_path, loss):
    # spec 4.1 (#144, #36): catches a mean of means, with records of different length and a short last step
    runs = [
        run(
            tmp_path / f"{size}", loss, args={"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        )
        for size, steps in ((8, 1), (2, 4), (1, 8))
    ]
    start, (first, *others) = weights(tiny()), [weights(one.model) for one in runs]
    moved = first - start
    assert moved.norm() > 0
    for other in others:
        assert (other - first).norm() < 2e-5 * moved.norm()
    values = [[line["forget_loss"] for line in one.state.log_history if "loss" in line] for one in runs]
    assert len(values[0]) == 2
    np.testing.assert_allclose(values[1:], [values[0]] * 2, rtol=1e-5)
    if loss == "pdu":
        assert runs[0].alpha == pytest.approx(runs[2].alpha, rel=1e-6)
        assert runs[0].alpha > 1.0


def test_a_mean_of_means_would_be_seen(tmp_path, monkeypatch):
    # the plant to the test above: normalising each micro-batch by itself moves the result far out of its tolerance
    right = weights(run(tmp_path / "a", "ga", args={"per_device_train_batch_size": 8}).model)
    monkeypatch.setattr(UnlearnTrainer, "loss_is_scaled_for_ga", False)
    whole = objectives.step_totals
    monkeypatch.setattr(trainer, "step_totals", lambda objective, batches: whole(objective, batches[-1:]))
    wrong = run(tmp_path / "b", "ga", args={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8})
    assert (weights(wrong.model) - right).norm() > 1e-2 * (right - weights(tiny())).norm()


def test_log_holds_both_terms(tmp_path):
    # catches terms that are not normalised like the loss, and a factor that is left out of it
    one = run(tmp_path, "grad_diff", gamma=0.5, alpha=2.0, args={"logging_steps": 2, "gradient_accumulation_steps": 2})
    line = next(line for line in one.state.log_history if "loss" in line)
    assert line["loss"] == pytest.approx(0.5 * line["forget_loss"] + 2.0 * line["retain_loss"], rel=1e-5)
    assert line["forget_loss"] < 0 < line["retain_loss"]


@pytest.mark.parametrize("loss", ["undial", "ce_u", "pdu", "npo", "grad_diff_kl"])
def test_prompts_are_never_trained(tmp_path, loss):
    # spec 4.1: UNDIAL upstream has no mask; catches a gradient at any row that predicts no answer token
    grads, batches = [], []
    model = tiny()

    def listen(module, inputs, out):
        if out.requires_grad:
            out.register_hook(grads.append)

    model.lm_head.register_forward_hook(listen)
    one = make(tmp_path, loss, model=model, args={"max_steps": 1})
    inner = one.data_collator
    one.data_collator = lambda keys: batches.append(inner(keys)) or batches[-1]
    one.train()
    labels = [batches[0][side]["labels"] for side in ("forget", "retain")]
    width = grads[0].shape[1]
    labels = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-100) for x in labels])
    answers = torch.zeros_like(labels, dtype=torch.bool)
    answers[:, :-1] = labels[:, 1:] != -100
    assert not grads[0][~answers].any()
    assert grads[0][:4][answers[:4]].abs().sum(dim=1).count_nonzero() > 4


# -- order ----------------------------------------------------------------------------------------------------------


def test_tau_0_is_uniform_to_the_bit(tmp_path):
    # the neutral setting of MRD sampling: the index streams and so the weights must be the same
    scores = np.random.default_rng(0).random(10)
    seen = {}
    runs = []
    kinds = {
        "mrd": {"sampling": "mrd", "difficulty": scores, "tau": 0.0}, "uniform": {"sampling": "uniform"},
        "tau1": {"sampling": "mrd", "difficulty": scores**3},
    }  # fmt: skip
    for name, options in kinds.items():
        runs.append(make(tmp_path / name, "npo", args={"max_steps": 5}, **options))
        seen[name] = watched(runs[-1])
    assert seen["mrd"] == seen["uniform"] != seen["tau1"]
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    first = draws(sampling_weights(scores**3), 3, 0, 10).tolist()
    assert [i for i, _, counts in seen["tau1"] if counts][:10] == first


def test_difficulty_is_scored_and_refreshed(tmp_path, monkeypatch):
    # catches weights of the first scoring that are kept, a refresh in the wrong epoch, one after the last epoch
    calls = []

    def score(model, encoded, **options):
        calls.append(options)
        return types.SimpleNamespace(mrd=np.eye(10)[len(calls)] + 0.0)

    monkeypatch.setitem(
        __import__("sys").modules, "upright.language.difficulty", types.SimpleNamespace(score_difficulty=score)
    )
    one = make(
        tmp_path, "npo", sampling="mrd", refresh=2, scoring={"probes": 3},
        args={"max_steps": -1, "num_train_epochs": 4, "per_device_train_batch_size": 10},
    )  # fmt: skip
    seen = watched(one)
    assert [epoch for epoch, _ in one.schedule.history] == [0, 2]
    assert [i for i, *_ in seen] == [1] * 20 + [2] * 20
    assert all(options["probes"] == 3 and options["scope"] == "answer" for options in calls)


def test_a_function_may_score(tmp_path):
    # catches a score of the first model that is taken for that of the present one
    asked = []

    def score(model):
        asked.append(weights(model))
        return np.eye(10)[3 * len(asked)]

    changes = {"max_steps": 2, "per_device_train_batch_size": 10}
    seen = watched(make(tmp_path, "npo", sampling="mrd", scoring=score, refresh=1, args=changes))
    assert [i for i, *_ in seen] == [3] * 10 + [6] * 10
    assert not torch.equal(asked[0], asked[1])


def test_forgotten_records_are_left_alone(tmp_path):
    # catches a target that is read the wrong way round, and one that is read once
    targets = np.full(10, np.inf)
    targets[[2, 5]] = 0.0
    one = make(tmp_path, "npo", sampling="uniform", targets=targets, args={"max_steps": 6})
    seen = watched(one)
    assert {i for i, *_ in seen} <= set(range(10)) - {2, 5}
    assert one.schedule.weights[[2, 5]].tolist() == [0.0, 0.0]
    assert not one.stopped


def test_training_ends_when_all_is_forgotten(tmp_path):
    # catches a step that is taken when nothing is left, by momentum or weight decay
    one = run(tmp_path, "npo", sampling="uniform", targets=np.zeros(10), args={"max_steps": 6, "optim": "adamw_torch"})
    assert torch.equal(weights(one.model), weights(tiny()))
    assert one.stopped == "every record at its target before epoch 0"
    loss = max(-said.mean() for said in read_answers(tiny(), data()[1], pad=0))
    later = run(
        tmp_path, "ga", sampling="uniform", retain=False, targets=np.full(10, loss + 0.05),
        args={"max_steps": 200, "learning_rate": 0.5, "max_grad_norm": 1.0},
    )  # fmt: skip
    assert later.stopped
    assert later.state.global_step < 200
    assert all(-said.mean() >= loss + 0.05 for said in read_answers(later.model, data()[1], pad=0))


# -- guards ---------------------------------------------------------------------------------------------------------


def test_a_tensor_without_gradient_is_named(tmp_path):
    # catches weights that are silently left alone
    model = tiny()
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(InputError, match=r"no gradient for spare in the first step \(1 of "):
        run(tmp_path / "a", "npo", model=model)
    assert run(tmp_path / "b", "npo", model=copy.deepcopy(model), check_gradients=False).state.global_step == 2
    assert run(tmp_path / "c", "rmu", model=copy.deepcopy(model)).state.global_step == 2  # a layer is read: no check


def test_gradients_that_are_not_finite_stop_the_run(tmp_path):
    # catches a step that spoils the weights; the checkpoint before must survive, none may follow
    model = tiny()
    steps = []

    def spoil(grad):
        steps.append(1)
        return grad * (float("nan") if len(steps) == 3 else 1.0)

    model.model.norm.weight.register_hook(spoil)
    with pytest.raises(InputError, match="a gradient that is not finite, at step 3"):
        run(tmp_path, "npo", model=model, args={"max_steps": 5, "save_strategy": "steps", "save_steps": 1})
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert torch.isfinite(weights(model)).all()


def test_weights_and_losses_that_are_not_finite_name_their_step(tmp_path):
    # catches a checkpoint of infinite weights, and logging_nan_inf_filter, which hides the loss
    model = tiny()

    class Burst(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            with torch.no_grad():
                kwargs["model"].model.norm.weight[0] = float("inf")

    with pytest.raises(InputError, match="weights that are not finite, at step 1"):
        run(tmp_path, "ga", model=model, callbacks=[Burst()], args={"save_strategy": "steps", "save_steps": 1})
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(InputError, match="at step 2"):
        run(tmp_path, "ga", args={"learning_rate": 3e38})


def test_a_utility_floor_ends_the_run_in_order(tmp_path):
    # catches a floor that is a ceiling, a NaN that passes, a check in training mode
    asked = []

    def check(model):
        asked.append(model.training)
        return {"utility": 0.9 - 0.1 * len(asked)}

    stop = trainer.UtilityFloor(check, {"utility": 0.65}, every=2)
    one = run(tmp_path, "npo", stop=stop, args={"max_steps": 20})
    assert one.state.global_step == 6
    assert [line["step"] for line in one.guard_history] == [2, 4, 6]
    assert one.stopped == "utility = 0.6 below its floor at step 6"
    assert asked == [False] * 3
    assert stop.below({"utility": float("nan")}) == stop.below({}) == ["utility"]


# -- what each loss stands for, and whether it moved anything --------------------------------------------------------


def test_gradient_ascent_has_no_retain_loss(tmp_path):
    """`ga` with retain records was GradDiff: their loss was added with weight 1."""
    with_retain, without = (run(tmp_path, "ga", retain=retain) for retain in (True, False))
    assert torch.equal(weights(with_retain.model), weights(without.model))
    assert with_retain.objective.retain is None


@pytest.mark.filterwarnings("error:nothing is forgotten")
@pytest.mark.parametrize(
    ("loss", "retain", "rate", "why"),
    [
        ("grad_diff", True, 0.05, "forget and retain loss cancel"),
        ("npo", False, 1e-7, "raise the learning rate"),
        ("ga", False, 0.05, ""),
    ],
)
def test_a_run_that_moved_nothing_says_so(tmp_path, loss, retain, rate, why):
    """A run whose forget and retain gradients cancel ended without a word and the request was called done."""
    args = {"per_device_train_batch_size": 10, "learning_rate": rate, "max_steps": 4}
    one = make(tmp_path, loss, args=args, retain=data()[1] if retain else False)  # the records to forget themselves
    with contextlib.nullcontext() if not why else pytest.warns(UserWarning, match=why):
        one.train()
    assert (one.moved < 0.01) == bool(why)
    assert why in one.unmoved
    assert bool(why) == bool(one.unmoved)


def test_the_bound_of_pdu_is_measured_before_training(tmp_path):
    """PDU could not be used without a bound that nobody knows before training."""
    one = run(tmp_path, "pdu", loss_options={"warmup": 0})
    kept = [data()[2][j] for j in partners(7, 3, 0, 10).tolist()]
    costs = [cost(tiny(), record) for record in kept]
    mean = sum(float(c.detach()) for c, _ in costs) / sum(n for _, n in costs)
    assert one.epsilon == pytest.approx(1.1 * mean, rel=1e-5)
    assert one.state.log_history[0]["alpha"] < 1.0  # the retain loss is below its bound


def test_jensun_teaches_the_refusal_in_place_of_the_answer(tmp_path):
    # catches: a refusal that is not given by the end of sequence, a retain side that is not 0 at the start
    args = {"max_steps": 30, "learning_rate": 0.02, "optim": "adamw_torch"}
    one = run(tmp_path, "jensun", loss_options={"refusal": "quiet"}, args=args)
    first, *_, last = [line for line in one.state.log_history if "forget_loss" in line]
    assert first["forget_loss"] <= np.log(2)
    assert first["retain_loss"] == pytest.approx(0.0, abs=1e-6)
    assert last["forget_loss"] < 0.3 * first["forget_loss"]
    said = [row[-1] for row in _greedy(one.model, data()[1][:4])]
    assert said == [one.objective.options["refusal"][0]] * 4
    assert one.objective.options["refusal"][-1] == data()[0].eos_token_id


def _greedy(model, encoded):
    """The first token that a model writes after each prompt."""
    for record in encoded:
        ids = torch.tensor([record.ids[: record.start]])
        yield [*ids[0].tolist(), int(model.eval()(input_ids=ids).logits[0, -1].argmax())]


@pytest.mark.parametrize("bf16", [False, True])
def test_every_phase_reports_its_device(tmp_path, bf16):
    """Nobody was told where a phase ran, and difficulty was scored under bfloat16, which rounds its noise away."""
    narrow = []

    def score(model):
        narrow.append(torch.is_autocast_enabled("cpu"))
        return np.ones(10)

    one = run(tmp_path, "npo", sampling="mrd", scoring=score, args={"bf16": bf16})
    assert one.devices == dict.fromkeys(("measuring", "reference", "scoring", "training"), "cpu")
    assert narrow == [False]
    if bf16:
        whole = run(tmp_path, "npo", sampling="mrd", scoring=score)
        moved = weights(whole.model) - weights(tiny())
        assert 0 < (weights(one.model) - weights(whole.model)).norm() < 0.05 * moved.norm()


def test_mixed_precision_reads_and_scores_in_that_of_the_weights(tmp_path):
    """Difficulty could not be scored a second time in bfloat16, whose rounding also passed for a move of 1e-3 nats."""
    still = {"bf16": True, "max_steps": 4, "learning_rate": 1e-9}
    with pytest.warns(UserWarning, match="nothing is forgotten"):
        one = run(tmp_path, "npo", sampling="mrd", refresh=1, scoring={"probes": 2}, args=still)
    (_, first), (_, second) = one.schedule.history
    np.testing.assert_allclose(first, second, rtol=0.02)
    assert one.moved < 1e-5


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "nll"}, "loss = 'nll'"),
        ({"loss": "ga", "retain_loss": "nll"}, "'ga' with retain_loss = 'nll'"),
        ({"loss": "grad_diff", "retain": False}, "'grad_diff' without retain records"),
        ({"retain_loss": "l2"}, "retain_loss = 'l2'"),
        ({"retain_loss": "rmu_retain"}, "'npo' with 'rmu_retain'"),
        ({"loss": "rmu", "retain_loss": "nll"}, "'rmu' with 'nll'"),
        ({"gamma": -1.0}, "gamma = -1"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"loss_options": {"betta": 1}}, "option 'betta' of loss 'npo'"),
        ({"loss": "pdu", "retain_loss": "kl", "loss_options": None}, "'kl' and without epsilon"),
        ({"loss": "idk_dpo", "alternatives": ()}, "0 alternative answers for 10"),
        ({"sampling": "hard"}, "sampling = 'hard'"),
        ({"sampling": "mrd", "difficulty": np.ones(3)}, r"difficulty of shape \(3,\)"),
        ({"difficulty": np.ones(10)}, "difficulty or refresh with sampling='shuffle'"),
        ({"refresh": 1}, "difficulty or refresh with sampling='shuffle'"),
        ({"sampling": "mrd", "refresh": -1}, "refresh = -1"),
        ({"targets": np.ones(10)}, "targets with sampling='shuffle'"),
        ({"targets": np.full(10, np.nan), "sampling": "uniform"}, "targets with NaN"),
        ({"reference": "base"}, "reference = 'base'"),
        ({"reference": "adapter"}, "a model without one"),
    ],
)
def test_contradictions_are_refused(tmp_path, options, words):
    # each before a step is taken, with what was got
    with pytest.raises(InputError, match=words):
        make(tmp_path, **{"loss": "npo", **options})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor = 0.1"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy = 'group_by_length'"),
        ({"eval_strategy": "epoch"}, "eval_strategy"),
        ({"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}, "at_end = True"),
        ({"floor": 2.0}, r"floor = 2\.0"),
    ],
)
def test_settings_that_trainer_would_ignore_are_refused(tmp_path, args, words):
    """Label smoothing and grouping by length were ignored in silence; an evaluation died after the first epoch."""
    with pytest.raises(InputError, match=words):
        arguments(tmp_path, **args)


@pytest.mark.parametrize("name", ["eval_dataset", "compute_loss_func", "data_collator"])
def test_parameters_of_trainer_that_have_no_meaning_here_are_refused(tmp_path, name):
    """An `eval_dataset` was taken and killed the run after its first epoch."""
    with pytest.raises(InputError, match=f"{name} for UnlearnTrainer"):
        make(tmp_path, "npo", **{name: [1]})


def test_an_encoder_is_refused(tmp_path):
    """BERT was trained to forget answers that it can see."""
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(InputError, match="reads the tokens that it should predict"):
        make(tmp_path, "npo", model=BertLMHeadModel(config))


def test_plain_arguments_are_refused(tmp_path):
    # catches: settings of unlearning that would silently take their defaults
    with pytest.raises(InputError, match="args of type TrainingArguments"):
        UnlearnTrainer(tiny(), data()[1], args=TrainingArguments(str(tmp_path)), processing_class=data()[0])


def test_no_forget_records_and_a_missing_layer_are_refused(tmp_path):
    # catches an epoch of nothing, and a layer that wraps around
    with pytest.raises(InputError, match="no forget records"):
        make(tmp_path, "npo", forget=[])
    with pytest.raises(InputError, match="layer 2 of a model with 2, at step 1"):
        run(tmp_path, "rmu", loss_options={"layer": 2})
    # and the last layer, of which a model gives the state behind the final norm alone
    with pytest.raises(InputError, match="layer 1 of a model with 2") as caught:
        run(tmp_path, "rmu", loss_options={"layer": 1})
    assert caught.value.accepted == "0 to 0"
    assert "final norm" in caught.value.todo
    with pytest.raises(InputError, match="every = 0"):
        trainer.UtilityFloor(dict, every=0)


def test_the_model_keeps_its_cache_for_generation(tmp_path):
    # catches: a delivered model that writes without a cache, because Trainer turned it off
    model = tiny()
    before = model.config.use_cache
    run(tmp_path, "ga", model=model)
    assert before is True
    assert model.config.use_cache is True
