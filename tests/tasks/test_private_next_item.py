"""Next-item recommendation with a private attribute: classes, who is held out, what is attacked and what refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.data.interactions import synthetic
from upright.experiment.folders import ArmRun
from upright.methods import raid
from upright.methods.raid import RAIDConfig
from upright.recommendation.controls import WithUsers
from upright.tasks.private_next_item import PROTOCOLS, PrivateNextItem, PrivateNextItemConfig, classes_of

tiny = PrivateNextItem.tiny


def run_of(seed=0, arm="x"):
    return ArmRun(None, seed, arm)


def with_columns(**columns):
    """The planted world with other columns of users."""
    split = synthetic(seed=0)
    return dataclasses.replace(split, user_columns={k: np.asarray(v) for k, v in columns.items()})


def task_on(split, **settings):
    return PrivateNextItem(split, tiny().config.replace(**settings))


# -- classes --------------------------------------------------------------------------------------------------------


def test_numbers_are_cut_at_the_lower_ends_of_classes():
    # catches a bound on the wrong side, and a missing age that becomes the oldest class
    ages = np.array([*range(18, 30), 24.999, 25, 45, 44.5, 80, np.nan])
    found = classes_of(ages, (25.0, 45.0))
    assert found[:12].tolist() == ["<25"] * 7 + ["25-45"] * 5
    assert found[12:].tolist() == ["<25", "25-45", ">=45", "25-45", ">=45", ""]
    assert set(classes_of(ages, (20.0,))) == {"<20", ">=20", ""}


def test_few_values_and_text_are_classes_as_they_are():
    # a 0/1 column is not an age; catches cuts on a flag, and numbers shown as 1.0
    assert classes_of(np.array([1, 0, 30]), (25.0,)).tolist() == ["1", "0", "30"]
    assert classes_of(np.array([1.0, np.nan, 0.0]), (25.0,)).tolist() == ["1", "", "0"]
    assert classes_of(["F", None, "M", "", float("nan")], (25.0,)).tolist() == ["F", "", "M", "", ""]
    assert classes_of(np.arange(12)).tolist() == [str(i) for i in range(12)]


def test_small_classes_are_merged_and_missing_users_stay_missing():
    column = ["a"] * 5 + ["b"] * 2 + ["c"] + [None] * 2
    assert classes_of(column, merge_below=3).tolist() == ["a"] * 5 + ["merged"] * 3 + [""] * 2
    assert classes_of(column, merge_below=2).tolist() == ["a"] * 5 + ["b"] * 2 + ["merged"] + [""] * 2
    assert classes_of(column, merge_below=99).tolist() == ["merged"] * 8 + [""] * 2
    assert classes_of(column).tolist() == [v or "" for v in column]


def two_columns():
    half = np.array(["x", "y"])[np.arange(120) % 2].astype(object)
    half[:6] = None
    third = np.array(["p", "q", "r"])[np.arange(120) // 40]
    return with_columns(half=half, third=third)


def test_a_product_is_one_term_and_a_sum_is_one_a_column():
    # what is measured is the product in both cases; a user who lacks one column has no product, and keeps the other
    split = two_columns()
    product, both = (task_on(split, attribute=a, folds=2) for a in ("half*third", "half+third"))
    assert product.classes == both.classes == [f"{a} & {b}" for a in "xy" for b in "pqr"]
    assert (product.labels == both.labels).all()
    assert (product.labels[:6] == "").all()
    assert len(product.terms) == 1
    assert (product.terms[0] == product.labels).all()
    assert [sorted(set(t)) for t in both.terms] == [["", "x", "y"], ["p", "q", "r"]]
    assert both.facts["classes"] == {c: int((both.labels == c).sum()) for c in both.classes}


def test_users_who_are_not_known_are_known_to_nobody():
    # neither scored nor given to the defence, and the same users at every seed
    task = tiny(known=0.7)
    hidden = task.labels == ""
    assert 0 < hidden.sum() < 60
    assert hidden.mean() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 120) ** 0.5)
    assert (tiny(known=0.7).labels == task.labels).all()
    assert not task.held_out(run_of())[hidden].any()
    (term,) = task.known_labels(run_of())
    assert (term[hidden] == "").all()
    assert (term[~hidden] != "").all()


# -- who is held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", [0.3, 0.5])
def test_the_hold_out_is_stratified_by_seed_and_alike_in_every_arm(holdout):
    # catches a hold-out by chance over all users, one that follows the arm, and one that is the same at every seed
    task = tiny(holdout=holdout)
    out = task.held_out(run_of(0, "raid"))
    for c in task.classes:
        assert out[task.labels == c].sum() == round(holdout * (task.labels == c).sum())
    assert (task.held_out(run_of(0, "none")) == out).all()
    assert (tiny(holdout=holdout).held_out(run_of(0, "mean")) == out).all()
    assert (task.held_out(run_of(1, "raid")) != out).any()
    first = run_of()
    first.rng("order", 0).random(7)
    assert (task.held_out(first) == out).all()  # whatever was drawn before


def test_users_for_tuning_and_for_the_study_are_apart_and_together_all():
    # catches strengths chosen on users who are scored later
    tuning, rest = tiny(attacked="tuning", folds=2), tiny(attacked="rest")
    quarter = tuning.held_out(run_of(0))
    assert (tuning.held_out(run_of(5)) == quarter).all()  # a fixed quarter
    assert quarter.sum() == 30
    other = task_on(with_columns(half=np.array(["x", "y"])[np.arange(120) % 2]), attribute="half", attacked="rest")
    assert not (other.held_out(run_of()) & quarter).any()  # the same users whatever the attribute
    ever = np.zeros(120, dtype=bool)
    for seed in range(30):
        out = rest.held_out(run_of(seed))
        assert not (out & quarter).any()
        for c in rest.classes:
            own = rest.labels == c
            assert out[own].sum() == round(0.5 * (own & ~quarter).sum())
        ever |= out
    assert (ever | quarter).all()


@pytest.mark.parametrize("attribute", ["half*third", "half+third"])
def test_the_defence_may_be_kept_from_knowing_the_held_out(attribute):
    split = two_columns()
    knows, blind = (task_on(split, attribute=attribute, folds=2, held_out_known=k) for k in (True, False))
    out = knows.held_out(run_of())
    assert (blind.held_out(run_of()) == out).all()
    for full, cut in zip(knows.known_labels(run_of()), blind.known_labels(run_of()), strict=True):
        assert (full[out] != "").all()
        assert (cut == np.where(out, "", full)).all()
    knows.known_labels(run_of())[0][:] = "spoilt"
    assert "spoilt" not in knows.known_labels(run_of())[0]  # a copy


# -- scores ---------------------------------------------------------------------------------------------------------


def scored(task, seed=0, **settings):
    task.open_test()
    return task.score(task.model(run_of(seed)), "test", run_of(seed))


def attacks_of(found):
    return {name: np.asarray(v) for name, v in found.values.items() if name.startswith("attack/")}


@pytest.mark.parametrize("settings", [{}, {"known": 0.8}, {"attacked": "rest"}])
def test_each_protocol_scores_its_own_users_and_their_values_are_ranks(settings):
    task = tiny(**settings)
    found = scored(task)
    out, attacks = task.held_out(run_of()), attacks_of(found)
    assert set(attacks) == {f"attack/embedding/logistic/{p}/{c}" for p in PROTOCOLS for c in task.classes}
    for name, values in attacks.items():
        own = ~out & (task.labels != "") if "/aligned/" in name else out
        assert (np.isnan(values) == ~own).all()
        assert (values[own] > 0).all()
        assert (values[own] < 1).all()
        assert values[own].mean() == pytest.approx(0.5)  # mid-ranks of every fold
        assert name in task.metrics
    assert found.by["attribute"] == task.labels.tolist()
    assert np.isfinite(found.values["ndcg@10"]).sum() > 100  # quality is measured for everybody


def test_of_two_classes_the_second_says_all():
    task = task_on(with_columns(half=np.array(["x", "y"])[np.arange(120) % 2]), attribute="half")
    assert {n.rpartition("/")[2] for n in attacks_of(scored(task))} == {"y"}
    assert {n.rpartition("/")[2] for n in task.metrics if n.startswith("attack/")} == {"y"}


def test_labels_of_held_out_users_rank_themselves_only_through_the_attacker():
    # a table that is the class: every attack is perfect. Catches ranks in the wrong direction or of another class
    task = tiny()
    task.open_test()
    table = torch.from_numpy(np.eye(3)[task.labels.astype(int)] + 0.01 * np.random.default_rng(0).random((120, 3)))
    padded = torch.cat([table, torch.zeros(120, 5, dtype=torch.float64)], 1)
    out = task.held_out(run_of())
    for name, values in attacks_of(task.score(WithUsers(task.model(run_of()), padded), "test", run_of())).items():
        who = ~out if "/aligned/" in name else out
        own = (task.labels == name.rpartition("/")[2]) & who
        assert values[own].min() > values[who & ~own].max() or "transfer" not in name
        assert np.mean(values[own]) > 0.75


def test_what_a_model_exposes():
    # lists leave training items out; NeuMF gives both halves, LightGCN both tables, the others no propagated rows
    every = ("embedding", "propagated", "scores", "lists")
    shapes = {}
    for backbone in ("bprmf", "neumf", "lightgcn"):
        task = tiny(backbone=backbone, surfaces=every)
        found = task.surfaces(task.model(run_of()))
        shapes[backbone] = {name: value.shape for name, value in found.items()}
        assert not found["lists"].toarray()[task.seen.nonzero()].any()
        assert (found["lists"].sum(1) == 10).all()
    assert shapes["bprmf"] == {"embedding": (120, 8), "scores": (120, 80), "lists": (120, 80)}
    assert shapes["neumf"]["embedding"] == (120, 16)
    assert shapes["lightgcn"]["embedding"] == shapes["lightgcn"]["propagated"] == (120, 8)


def test_validation_is_quality_alone():
    task = tiny()
    found = task.score(task.model(run_of()), "valid", run_of())
    assert set(found.values) == {"ndcg@10", "recall@10", "mrr@10", "hit@10"}


def test_the_test_split_is_refused_inside_a_method():
    task = tiny()
    with pytest.raises(InputError, match="test split inside a method"):
        task.score(task.model(run_of()), "test", run_of())


def test_a_constant_attribute_ends_with_a_warning_and_no_attack():
    # neither an error at the end of a run nor a leakage of something that is not there
    task = tiny(merge_below=10**6)
    config = RAIDConfig(epochs=2, defence_epochs=2, check_every=1, batch_size=256, alpha=1.0)
    found = {}
    for arm, alpha in (("none", 0.0), ("raid", 1.0)):
        run = run_of(arm=arm)
        model = raid.run(task, config.replace(alpha=alpha), run)
        assert "nothing to hide" in run.warnings[0]
        assert "projection" not in run.notes
        found[arm] = model, run
    task.open_test()
    first, second = (task.score(model, "test", run) for model, run in found.values())
    assert not attacks_of(first)
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second.values[name])


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["gender", "community*gender", "gender+community"])
def test_an_unknown_attribute_is_named_with_those_that_exist(attribute):
    with pytest.raises(InputError) as caught:
        tiny(attribute=attribute)
    assert caught.value.got == "attribute 'gender' of synthetic"
    assert caught.value.accepted == "community"
    assert "* or +" in caught.value.todo


def test_data_without_columns_of_users_say_so():
    with pytest.raises(InputError, match="data whose users have columns"):
        task_on(with_columns())


@pytest.mark.parametrize(("settings", "fits"), [({"folds": 10}, True), ({"folds": 11}, False),
                                                ({"folds": 5, "holdout": 0.25}, True),
                                                ({"folds": 5, "holdout": 0.8}, False)])  # fmt: skip
def test_a_class_must_leave_enough_users_on_both_sides(settings, fits):
    # 40 users a class: 20 and 20, 10 and 30, 32 and 8. Catches an attack that fails after hours of training
    if fits:
        task = tiny(**settings)
        assert scored(task).values
        return
    with pytest.raises(InputError) as caught:
        tiny(**settings)
    assert "class '0' of community with 40 users" in caught.value.got
    assert f"{2 * settings['folds']} held-out users and {2 * settings['folds']} others" in caught.value.accepted
    assert "merge_below" in caught.value.todo


@pytest.mark.parametrize("settings", [{"known": 0.0}, {"holdout": 1.0}, {"folds": 1}, {"attackers": ("forest",)},
                                      {"surfaces": ("ears",)}, {"attacked": "some"}])  # fmt: skip
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        PrivateNextItemConfig(**settings)


def test_attributes_come_from_a_file_of_their_own(tmp_path):
    # catches rows matched by position, "nan" taken for a class, and a silent run without anybody's attribute
    log = tmp_path / "log.csv"
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}") for u in range(80) for i in rng.choice(60, 12, replace=False)]
    log.write_text("user,item,rating\n" + "".join(f"{u},{i},1\n" for u, i in rows))
    people = {f"u{u}": "F" if u % 2 else "M" for u in range(80)} | {"u3": "nan", "u4": ""}
    users = tmp_path / "users.csv"
    users.write_text("person,gender\n" + "".join(f"{u},{g}\n" for u, g in reversed(people.items())))
    config = PrivateNextItemConfig(data=str(log), users_file=str(users), users_id="person", folds=3)
    task = PrivateNextItem.load(config)
    names = config.load_split(None).train.user_ids
    wanted = [people[u] if people[u] in ("F", "M") else "" for u in names]
    assert task.labels.tolist() == wanted
    run = run_of()
    task.known_labels(run)
    assert "2 of 80 users have no known gender" in run.warnings[0]
    users.write_text("person,gender\nsomebody,F\n")
    with pytest.raises(InputError, match="none of its users"):
        PrivateNextItem.load(config)
    users.write_text("person,gender\nu1,F\nu1,M\n")
    with pytest.raises(InputError, match="again"):
        PrivateNextItem.load(config)
