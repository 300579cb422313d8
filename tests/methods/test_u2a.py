"""U2A as a method: scores and weights, what each arm trains with, rounds that are undone, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("transformers")

from upright.contract import InputError, stream
from upright.data.preferences import Pair
from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.language import negatives, trainer
from upright.language.alignment import BlockGradients
from upright.language.encoding import pad_of
from upright.language.negatives import U2AWeights, hessian_products, select_negatives, u2a_weights, weigh_scores
from upright.language.objectives import objective_of, record_losses
from upright.language.reader import read_answers
from upright.language.sampling import MRDSampler
from upright.language.trainer import PairCollator, UnlearnTrainer, quiet_arguments
from upright.methods import u2a
from upright.tasks.align import Align

SCORE = np.array([3.0, 1.0, -2.0, -0.5, 0.25])
CERTAIN = np.array([1, 0, -1, 0, 0], dtype=np.int8)


@pytest.fixture(scope="module")
def task():
    return Align.tiny()


@pytest.fixture
def held():
    return ArmRun(None, 0, "x")


def scored(task, held, *, negatives=None, pairs=None, **options):
    model, tokenizer = task.model(held)
    pool, steering = negatives or task.pool(held), pairs or task.pairs(held, "objective")
    options = {"batch_size": 32, "seed": stream(held.seed, "blocks"), **options}
    return u2a_weights(model, tokenizer, pool, steering, **options)


@pytest.fixture(scope="module")
def found(task):
    return scored(task, ArmRun(None, 0, "x"))


def state(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def arm_settings(name):
    return next(arm for arm in load_method("u2a").arms if arm.name == name).settings


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ga", "ce_u"])  # the second leaves the first token of an answer out
def test_a_plain_step_on_one_negative_lowers_the_objective_by_its_score(task, held, tmp_path, loss):
    # the guarantee, through the trainer itself. catches: a score of the wrong sign, of another record, and one that
    # leaves out that a loss of tokens counts a record by their number
    records = list(task.pool(held))
    records[0] = dataclasses.replace(records[0], answer="Just take a brick.")
    (model, tokenizer), n, rate = task.model(held), len(records), 1e-3
    score, pool = scored(task, held, negatives=records, loss=loss).score, task.speaker(model, held).encode(records)
    assert pool[0].answer_length < 0.7 * pool[1].answer_length
    for j in (0, 1):
        one = task.model(held)[0]
        before = u2a._objective(task, one, held)
        arguments = quiet_arguments(tmp_path, seed=0, loss=loss, max_steps=1, learning_rate=rate, optim="sgd",
                                    per_device_train_batch_size=n)  # fmt: skip
        arguments.max_grad_norm = 0.0
        own = UnlearnTrainer(one, pool, args=arguments, processing_class=tokenizer, weights=n * np.eye(n)[j])
        trainer.train_quietly(own)
        assert u2a._objective(task, one.eval(), held) - before == pytest.approx(-rate * score[j], rel=0.05)


def test_swapped_pairs_flip_every_score_at_the_start_model(task, held, found):
    # elsewhere pairs weigh differently. catches: a margin that enters by its size, blocks that depend on the answers
    pairs = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in task.pairs(held, "objective")]
    turned = scored(task, held, pairs=pairs)
    size = np.abs(found.score).max()
    assert_allclose(turned.score, -found.score, atol=1e-6 * size)
    assert_allclose(turned.interval, -found.interval[:, ::-1], atol=1e-6 * size)
    assert_array_equal(turned.certain, -found.certain)


def test_a_score_lies_in_its_interval_and_a_veto_is_certain(found):
    assert ((found.interval[:, 0] < found.score) & (found.score < found.interval[:, 1])).all()
    assert found.certain.any()
    assert_array_equal(found.veto, (found.certain != 0) & (found.score < 0))
    assert np.isnan(found.residual)


def test_copies_share_the_weight_of_their_record(task, held, found):
    # catches: a record that counts three times because somebody sent it three times
    pool = list(task.pool(held))
    first = int(found.weight.argmax())
    copies = [dataclasses.replace(pool[first], id="again"), dataclasses.replace(pool[first], id="once more")]
    more = scored(task, held, negatives=[*pool, *copies])
    assert len(more.weight) == len(pool) + 2
    assert more.weight.mean() == pytest.approx(1.0)
    assert_allclose(more.weight[[first, -1, -2]], more.weight[first], rtol=1e-12)
    whole = more.weight[: len(pool)] * np.where(np.arange(len(pool)) == first, 3, 1)
    assert_allclose(whole / whole.sum(), found.weight / found.weight.sum(), rtol=1e-6)
    assert_allclose(more.score[[-1, -2]], found.score[first], rtol=1e-6)
    assert more.id[-2:] == ("again", "once more")
    assert more.warnings == (f"2 of {len(pool) + 2} negatives are copies and share the weight of their record",)


# -- curvature --------------------------------------------------------------------------------------------------------


def test_products_with_the_hessian_are_those_of_two_backward_passes(task, held):
    # catches: a loss without its retain term or its weights, a step that is not divided by, weights not put back
    model, tokenizer = task.model(held)
    model.set_attn_implementation("eager")  # the fused kernel has no second derivative
    start, pad = task.model(held)[0], pad_of(tokenizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel())))
    pool, kept = task.encoded(held, "pool")[:5], task.encoded(held, "retain")[:3]
    weight = np.array([2.0, 0.0, 1.0, 0.5, 1.5])
    own, before = [p for p in model.parameters() if p.requires_grad], state(model)
    draw = torch.randn(before.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat(
        [(p.detach() * z.view_as(p)).flatten() for p, z in zip(own, draw.split([p.numel() for p in own]), strict=True)]
    )
    for loss in ("npo", "grad_diff"):
        task_ = objective_of(loss, gamma=0.7, alpha=1.3)
        sums = np.array([one.sum() for one in read_answers(start, pool, pad=pad)])
        product = hessian_products(model, pool, kept, task_, sums=sums, weight=weight, pad=pad)(x)
        assert torch.equal(state(model), before)
        batch = PairCollator(pool, kept, (), pad)([(i, i % 3, True) for i in range(5)])
        forget, retain = record_losses(task_, model, batch, sums={"forget": torch.from_numpy(sums)}, speaking=None)
        tokens = (batch["forget"]["labels"] != -100).sum(1) if loss == "grad_diff" else torch.ones(5)
        words = (batch["retain"]["labels"] != -100).sum(1)
        value = 0.7 * (forget * tokens * torch.from_numpy(weight)).sum() / tokens.sum()
        value = value + 1.3 * (retain * words).sum() / words.sum()
        slope = torch.cat(
            [g.flatten() for g in torch.autograd.grad(value, own, create_graph=True, materialize_grads=True)]
        )
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(slope @ x, own, materialize_grads=True)])
        assert_allclose(product.numpy(), exact.numpy(), rtol=0, atol=2e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("solve", ["neumann", "cg"])
def test_curvature_that_damping_outweighs_leaves_the_scores_of_the_identity(task, held, solve):
    # catches: a solution that is cut into other tensors than it was made of, a residual that is not of the solution
    plain = scored(task, held, blocks=2)
    bent = scored(task, held, blocks=2, solve=solve, damping=1e5, steps=3, retain=task.retain(held))
    assert_allclose(1e5 * bent.score, plain.score, atol=0.01 * np.abs(plain.score).max())
    assert 0.0 <= bent.residual < 0.01
    free = scored(task, held, blocks=2, solve=solve, damping=5.0, steps=3, retain=task.retain(held))
    assert np.abs(5.0 * free.score - plain.score).max() > 0.01 * np.abs(plain.score).max()


# -- weights ----------------------------------------------------------------------------------------------------------


def test_what_is_kept_and_how_it_is_weighed():
    # catches: the published sign, a deviation over what is kept alone, weights of another mean
    power = np.exp(SCORE / SCORE.std())
    for keep, kept in (("positive", [0, 1, 4]), ("all", range(5)), (1, [0]), (4, [0, 1, 3, 4])):
        chosen = np.isin(np.arange(5), kept)
        assert_array_equal(select_negatives(SCORE, keep), chosen)
        weight, why = weigh_scores(SCORE, CERTAIN, keep, 1.0)
        assert_allclose(weight, 5 * power * chosen / (power * chosen).sum(), rtol=1e-12)
        assert why == ()
    assert_allclose(weigh_scores(SCORE, CERTAIN, "positive", 0.0)[0], [5 / 3, 5 / 3, 0, 0, 5 / 3], rtol=1e-12)
    assert_array_equal(weigh_scores(SCORE, CERTAIN, "all", 0.0)[0], np.ones(5))
    two = weigh_scores(SCORE, CERTAIN, "positive", 2.0)[0]
    assert two[0] / two[1] == pytest.approx((power[0] / power[1]) ** 2)


def test_later_rounds_move_weights_that_were_there_and_select_nothing():
    # catches: a record that was left alone and comes back; one that is dropped because its score fell
    before = np.array([0.0, 2.0, 2.0, 1.0, 0.0])
    weight, _ = weigh_scores(SCORE, CERTAIN, "positive", 1.0, before)
    moved = before * np.exp(SCORE / SCORE.std())
    assert_allclose(weight, 5 * moved / moved.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("score", "certain", "why"),
    [
        (np.abs(SCORE), [1] * 5, "unlearning any of the 5 negatives lowers the objective"),
        (-np.abs(SCORE), [-1] * 5, "unlearning any of the 5 negatives does not lower the objective"),
        (SCORE, [0] * 5, "none of the 5 scores can be told from 0"),
    ],
)
def test_weights_of_noise_are_not_given(score, certain, why):
    weight, told = weigh_scores(score, np.array(certain, dtype=np.int8))
    assert_array_equal(weight, np.ones(5))
    assert told == (f"{why}: weights would be noise, uniform ones are returned; give more pairs",)
    before = np.array([0.0, 1.0, 2.0, 2.0, 0.0])
    weight, told = weigh_scores(score, np.array(certain, dtype=np.int8), before=before)
    assert_array_equal(weight, before)
    assert told == (f"{why}: weights would be noise, they stay as they were; give more pairs",)


# -- the doors of other trainers --------------------------------------------------------------------------------------


@pytest.fixture
def made():
    weight = np.array([2.0, 0.0, 1.5, 0.0, 1.5])
    interval = np.stack([SCORE - 1, SCORE + 1], axis=1)
    return U2AWeights(tuple("abcde"), weight, SCORE, interval, CERTAIN, float("nan"), ())


def test_rows_of_a_data_set_get_three_columns(made):
    rows = [{"prompt": name} for name in "abcde"]
    new = made.to_rows(rows)
    assert rows == [{"prompt": name} for name in "abcde"]
    assert new[0] == {"prompt": "a", "weight": 2.0, "score": 3.0, "keep": True}
    assert [row["keep"] for row in new] == [True, False, True, False, True]
    for wrong, words in (
        (rows[:3], ("3 rows for 5 negatives", "one a negative", "pass the rows that the negatives were read from")),
        ([*rows[:4], {"keep": 1}], ("rows that have a column 'keep'", "rows without", "rename that column")),
    ):
        with pytest.raises(InputError) as caught:
            made.to_rows(wrong)
        assert caught.value.args == words


def test_the_sampler_draws_by_weight_and_goes_on_where_it_stopped(made):
    # catches: draws by score, or of negatives that are left alone
    sampler = made.sampler(seed=3, num_samples=4000)
    assert type(sampler) is MRDSampler
    share = np.bincount(list(sampler), minlength=5) / 4000
    assert_allclose(share, made.weight / 5, atol=0.03)  # four standard errors
    assert share[1] == share[3] == 0.0
    whole, cut, resumed = list(made.sampler(3)), made.sampler(3), made.sampler(8)
    stream_of = iter(cut)
    begun = [next(stream_of) for _ in range(2)]
    resumed.load_state_dict(cut.state_dict())
    assert begun + list(resumed) == whole
    assert made.effective_sample_size == pytest.approx(25 / (4 + 2 * 2.25))


# -- arms -------------------------------------------------------------------------------------------------------------


def test_the_neutral_setting_is_uniform_unlearning_bit_for_bit(task, held):
    config = u2a.U2AConfig(rounds=1, epochs=1, learning_rate=1e-3)
    neutral, uniform, own = (
        state(u2a.run(task, config.replace(**settings), held).model)
        for settings in (*load_method("u2a").neutral, arm_settings("uniform"), {"gate": False})
    )
    assert torch.equal(neutral, uniform)
    assert not torch.equal(own, uniform)


@pytest.fixture
def weights_of(task, monkeypatch):
    """Return the weights with which an arm trains in two rounds, at a model that stays as it is."""

    def of(arm, **settings):
        seen = []
        monkeypatch.setattr(u2a, "_train", lambda t, config, run, model, start, turn, weight: seen.append(weight))
        config = u2a.U2AConfig(rounds=2, **settings).replace(**arm_settings(arm))
        u2a._unlearn(task, config, ArmRun(None, 0, arm))
        assert len(seen) == 2
        return seen

    return of


def test_arms_weigh_by_what_they_say(task, held, found, weights_of):
    # a control that is fed U2A's weights by mistake would be no control
    assert found.warnings == ()
    step, n = found.score / found.score.std(), len(found.score)
    assert weights_of("uniform") == weights_of("gated") == [None, None]
    first, second = weights_of("u2a")
    assert_allclose(first, found.weight, rtol=1e-9)
    moved = found.weight * np.exp(step)
    assert_allclose(second, n * moved / moved.sum(), rtol=1e-6)
    others = weights_of("permuted")
    assert_array_equal(
        *(np.argsort(one, kind="stable") for one in others)
    )  # one order: drawn anew it would average out
    for same, placebo in zip((first, second), others, strict=True):
        assert_array_equal(np.sort(placebo), np.sort(same))
        assert (placebo != same).any()
    for size, arm in ((-task.speaker(task.model(held)[0], held).losses(task.pool(held)), "loss"),
                      (-np.array([one.answer_length for one in task.encoded(held, "pool")]), "length")):  # fmt: skip
        for weight in weights_of(arm):  # in both rounds
            assert_array_equal(
                np.sort(np.flatnonzero(weight)), np.sort(np.argsort(size, kind="stable")[: found.keep.sum()])
            )
            assert_allclose(weight[weight > 0], n / found.keep.sum())
    flipped = weights_of("flipped")[0]
    turned = np.exp(-step) * (found.score < 0)
    assert_allclose(flipped, n * turned / turned.sum(), rtol=1e-9)
    start, later = weights_of("official")
    assert_allclose(start, n * found.keep / found.keep.sum())
    wrong = np.exp(-step) * found.keep
    assert_allclose(later, n * wrong / wrong.sum(), rtol=1e-6)


class Recorder:
    """Stands for the trainer and keeps what it was given."""

    stopped = ""

    def __init__(self, model, forget, retain, **given):
        self.forget, self.retain, self.given = forget, retain, given
        Recorder.last = self


@pytest.fixture
def given_to_trainer(task, held, monkeypatch):
    monkeypatch.setattr(trainer, "UnlearnTrainer", Recorder)
    monkeypatch.setattr(trainer, "train_quietly", lambda own: None)

    def of(weight=None, **settings):
        model = task.model(held)[0]
        u2a._train(task, u2a.U2AConfig(**settings), held, model, task.model(held)[0], 0, weight)
        return Recorder.last

    return of


def test_dpo_has_the_pairs_and_as_many_updates_as_all_rounds(task, held, given_to_trainer):
    settings = {"rounds": 3, "epochs": 2, "batch_size": 4}
    own = given_to_trainer(np.ones(15), **settings)
    assert (own.given["args"].max_steps, own.given["args"].loss) == (2 * 4, "npo")  # 15 negatives, 4 an update
    dpo = given_to_trainer(train="dpo", **settings)
    assert (dpo.given["args"].max_steps, dpo.given["args"].loss) == (3 * 2 * 4, "idk_dpo")
    assert dpo.given["args"].loss_options == {"beta": 0.3}
    chosen, rejected = task.encoded_pairs(held, "objective")
    assert (dpo.given["alternatives"], dpo.forget) == (chosen, rejected)
    assert "weights" not in dpo.given


def test_official_grad_diff_has_no_weights_among_what_it_selects(given_to_trainer):
    weight = np.r_[np.zeros(5), np.arange(1.0, 11.0)]
    assert_array_equal(given_to_trainer(weight, loss="grad_diff").given["weights"], weight)
    assert_array_equal(given_to_trainer(weight, loss="grad_diff", mode="official").given["weights"], weight > 0)


def test_official_npo_is_of_the_mean_of_a_batch(task, held, tmp_path):
    # spec 2.4 and 2.8.3, by hand
    (model, tokenizer), start = task.model(held), task.model(held)[0]
    with torch.no_grad():
        for p in start.parameters():
            p.mul_(0.95)
    pool, kept, pad = task.encoded(held, "pool"), task.encoded(held, "retain"), pad_of(tokenizer)
    weight = np.r_[np.zeros(3), np.arange(1.0, 13.0)]
    options = {"loss": "npo", "loss_options": {"beta": 0.2}, "gamma": 0.7, "alpha": 1.3, "max_steps": 1}
    args = quiet_arguments(tmp_path, seed=0, **options)
    own = u2a._mean_npo()(model, pool, kept, args=args, processing_class=tokenizer, reference=start, weights=weight)
    own._prepare_reference()
    rows = [0, 5, 6, 9]  # the first is not selected, the last place does not count
    batch = own.data_collator([(i, k, k < 3) for k, i in enumerate(rows)])
    with torch.no_grad():
        value = float(own.compute_loss(model, batch))
    now, then = (read_answers(m, [pool[i] for i in rows[1:3]], pad=pad) for m in (model, start))
    gap = np.mean(np.concatenate(now)) - np.mean(np.concatenate(then))  # CE of the reference less that of the model
    held_back = -np.mean(np.concatenate(read_answers(model, kept[:3], pad=pad)))
    share = (weight / weight.mean())[rows[:3]].mean()
    assert value == pytest.approx(0.7 * share * 10 * np.log1p(np.exp(0.2 * gap)) + 1.3 * held_back, rel=1e-6)


# -- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("falls", ["ranking_accuracy", "implicit_accuracy"])
def test_a_round_that_ranks_worse_is_undone_bit_for_bit(task, monkeypatch, falls):
    # catches: undoing by subtraction, a gate of one accuracy, rounds that go on from a model that was given up
    good, worse = ({"ranking_accuracy": 0.5, "implicit_accuracy": 0.5} | x for x in ({}, {falls: 0.25}))
    after = {}

    def shake(t, config, run, model, start, turn, weight):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(turn)))
        after[turn] = state(model)

    monkeypatch.setattr(u2a, "_train", shake)
    for gate, kept, left in ((True, [1.0, 0.0], 0), (False, [1.0, 1.0, 1.0], 2)):
        values = iter([good, good, worse, good])
        monkeypatch.setattr(u2a, "_ranked", lambda t, model, run, values=values: next(values))
        run = ArmRun(None, 0, "x")
        model = u2a._unlearn(task, u2a.U2AConfig(weighting="uniform", gate=gate), run)
        assert [row["kept"] for row in run.notes["rounds"]] == kept
        assert torch.equal(state(model), after[left])


def test_what_is_predicted_of_a_small_round_comes(task):
    # catches: a gradient of J at another model than the round began with, a change that counts earlier rounds too
    run = ArmRun(None, 0, "x")
    u2a._unlearn(task, u2a.U2AConfig(weighting="uniform", gate=False, rounds=2, epochs=1, learning_rate=1e-4), run)
    for row in run.notes["rounds"]:
        assert row["realised"] == pytest.approx(row["predicted"], rel=0.1)
        assert row["realised"] != 0.0


def test_an_adapter_is_trained_in_place_of_the_weights():
    task, run = Align.tiny(lora=2), ArmRun(None, 0, "u2a")
    spec, start = load_method("u2a"), task.model(run)[0].state_dict()
    model = spec.run(task, spec.config(rounds=1, epochs=1, gate=False), run).model
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, start[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_groups_are_unlearnt_alone_from_the_largest_scores_down(monkeypatch):
    task, run, seen = Align.tiny(negatives=16, mislabelled=13, epochs=1), ArmRun(None, 0, "x"), []
    monkeypatch.setattr(u2a, "_train", lambda t, config, run, model, start, turn, weight: seen.append(weight))
    u2a._note_groups(task, u2a.U2AConfig(groups=5), run, task.model(run)[0])
    score = scored(task, run).score
    order = np.argsort(-score)
    assert [set(np.flatnonzero(w)) for w in seen] == [set(order[:16]), set(order[16:])]
    assert [row["predicted"] for row in run.notes["groups"]] == pytest.approx(
        [-score[order[:16]].mean(), -score[order[16:]].mean()]
    )


def test_a_run_notes_scores_without_names(task, found):
    run, rose = ArmRun(None, 0, "u2a"), np.arange(15.0)
    u2a._note_scores(run, found, rose)
    assert [row["place"] for row in run.notes["scores"]] == list(range(1, 16))
    order = np.argsort(-found.score)
    for name, values in (("score", found.score), ("low", found.interval[:, 0]), ("high", found.interval[:, 1])):
        assert_allclose([row[name] for row in run.notes["scores"]], values[order])
    assert {"place", "score", "low", "high"} == set(run.notes["scores"][0])
    quartiles = run.notes["quartiles"]
    assert_allclose(quartiles[0]["weight"], np.sort(found.weight)[-4:].mean())
    assert_allclose(quartiles[-1]["rose"], rose[order[-3:]].mean())  # of those left alone the lowest
    facts = run.notes["weights"]
    assert facts["certain_to_help"] + facts["certain_to_hurt"] + facts["undecided"] == pytest.approx(1.0)
    assert facts["kept"] == int((found.score > 0).sum())


# -- what is refused --------------------------------------------------------------------------------------------------


def _and_a_chosen_answer(pool, pairs):
    return {
        "negatives": [*pool, dataclasses.replace(pool[0], id="bad", prompt=pairs[1].prompt, answer=pairs[1].chosen)]
    }


BAD = {
    "fewer prompts than blocks": (
        lambda pool, pairs: {"blocks": 9},
        ("8 prompts for 9 blocks", "9 prompts at least", "add pairs of other prompts, or take blocks=8"),
    ),
    "one prompt": (
        lambda pool, pairs: {"pairs": [dataclasses.replace(p, cluster="one") for p in pairs]},
        ("8 pairs of 1 prompt", "pairs of two prompts at least", "add pairs of other prompts"),
    ),
    "a chosen answer": (
        _and_a_chosen_answer,
        (
            "record {1} of chosen is record bad of negatives (1 shared)",
            "chosen and negatives without a common record",
            "take the shared records out of negatives",
        ),
    ),
    "weights of another length": (
        lambda pool, pairs: {"weight": np.ones(3)},
        ("weights of shape (3,)", "shape (15,)", "give one number a forget record"),
    ),
    "a negative weight": (
        lambda pool, pairs: {"weight": np.r_[-1.0, np.ones(14)]},
        (
            "weights of shape (15,), 1 of them negative or not finite",
            "one finite number of at least 0 a record, shape (n,)",
            "score the records again, or leave these out",
        ),
    ),
    "no weight": (
        lambda pool, pairs: {"weight": np.zeros(15)},
        ("weights that sum to 0.0", "a finite sum above 0", "keep one record at least"),
    ),
    "more kept than there are": (
        lambda pool, pairs: {"keep": 16},
        ("keep = 16 of 15 negatives", "1 to 15", "change keep"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(task, held, name):
    change, words = BAD[name]
    pool, pairs = task.pool(held), task.pairs(held, "objective")
    with pytest.raises(InputError) as caught:
        scored(task, held, **change(pool, pairs))
    assert caught.value.args == (words[0].replace("{1}", pairs[1].id), *words[1:])


def test_an_answer_that_is_longer_than_the_context_is_refused(task, held):
    pool = task.pool(held)
    long = dataclasses.replace(pool[0], id="long", answer="the brick " * 300)
    with pytest.raises(InputError) as caught:
        scored(task, held, negatives=[*pool, long])
    got, *words = caught.value.args
    assert got.startswith("record long with ")
    assert words == ["at most 256, the context of the model", "split the record, or use a model with a longer context"]


def test_no_negatives_and_equal_answers_are_refused(task, held):
    model, tokenizer = task.model(held)
    with pytest.raises(InputError) as caught:
        u2a_weights(model, tokenizer, [], task.pairs(held, "objective"))
    assert caught.value.args == ("no negatives", "one at least", "check the file")
    with pytest.raises(InputError) as caught:
        Pair("p3", "How?", "So.", " So. ")
    assert caught.value.args == ("pair p3 with equal answers", "answers that differ", "leave the pair out")


def test_what_a_model_that_diverged_cannot_read_is_named(task, held, monkeypatch):
    (model, tokenizer), start, pool = task.model(held), task.model(held)[0], task.pool(held)
    pairs = task.pairs(held, "objective")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite at pair"):
        u2a_weights(model, tokenizer, pool, pairs)
    flat = {name: torch.zeros(8, *p.shape) for name, p in start.named_parameters()}
    monkeypatch.setattr(negatives, "block_gradients", lambda *_, **__: BlockGradients(flat, np.zeros(8)))
    with pytest.raises(InputError, match="not finite at negative"):
        u2a_weights(model, tokenizer, pool, pairs, loss="ga", reference=start)


@pytest.mark.parametrize("settings", [{"blocks": 1}, {"loss": "ga", "beta": 0.1}, {"groups": -1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(InputError):
        u2a.U2AConfig(**settings)


def test_the_native_door_is_found_in_the_file_of_the_method():
    assert u2a.u2a_weights is u2a_weights
    assert u2a.U2AWeights is U2AWeights
    with pytest.raises(AttributeError, match="no attribute 'u2a_weight'"):
        u2a.u2a_weight  # noqa: B018
