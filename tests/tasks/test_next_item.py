"""The next-item task at its doors: a file of one's own, settings that do not fit the data, groups too small."""

from __future__ import annotations

import dataclasses
import inspect
import json

import numpy as np
import pytest

from upright.contract import InputError
from upright.data.catalogue import load_split
from upright.data.interactions import read_interactions
from upright.experiment.config import resolve
from upright.experiment.folders import ArmRun, read_json
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, run_seeds
from upright.models.recommenders import build
from upright.tasks.next_item import READER, NextItem, NextItemConfig


def write_log(folder, header="uid,film,stars,when", users=30, items=12, extra=()):
    """Every user has `items` rows; the stars are 1 to 5, the time grows with the row."""
    rows = [f"u{u},f{(u + i) % 40},{1 + (u + i) % 5},{100 * u + i}" for u in range(users) for i in range(items)]
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *rows, *extra]) + "\n", encoding="utf-8")
    return path


def load(path, **settings):
    return NextItem.load(NextItemConfig(data=str(path), group_share=0.3, **settings))


NAMES = {"user_column": "uid", "item_column": "film", "value_column": "stars", "time_column": "when"}


# -- a file of one's own --------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_reader(tmp_path):
    # catches: a setting that is accepted and ignored, which would train on other data than asked for
    extra = ["u0,f0,9,9999", "lonely,f1,3,1", "u1,rare,2,5"]
    path = write_log(tmp_path, extra=extra)
    task = load(path, **NAMES, duplicates="sum", min_user=2, min_item=2)
    wanted = read_interactions(path, user="uid", item="film", value="stars", time="when", duplicates="sum", min_user=2,
                               min_item=2)  # fmt: skip
    parts = (task.train, task.valid, task._test)
    assert sum(len(p) for p in parts) == len(wanted) == 30 * 12
    assert task.train.user_ids == wanted.user_ids
    assert "lonely" not in task.train.user_ids
    assert "rare" not in task.train.item_ids
    assert sum(p.value.sum() for p in parts) == wanted.value.sum()
    assert all(p.time is not None for p in parts)


def test_ids_of_any_mixture_are_accepted_on_demand(tmp_path):
    # catches: `ids` that does not arrive
    rows = [f"{u if u else 'x'},{i},3" for u in range(30) for i in range(10)]
    path = tmp_path / "mine.csv"
    path.write_text("user,item,rating\n" + "\n".join(rows) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="--set ids=text"):
        load(path)
    assert load(path, ids="text").n_users == 30


def test_none_on_the_command_line_is_no_column(tmp_path):
    # catches: the text "none" taken for the name of a column
    path = write_log(tmp_path)
    passed = {**NAMES, "value_column": "none", "time_column": "None", "group_share": "0.3"}
    _, config = resolve(load_method("in_ucds"), passed, "quick", str(path))
    assert (config.value_column, config.time_column) == (None, None)
    assert NextItemConfig(value_column="none") == NextItemConfig(value_column=None)
    task = NextItem.load(config)
    assert set(task.train.value.tolist()) == {1.0}
    assert task.train.time is None


def test_recency_groups_need_only_the_name_of_the_time_column(tmp_path):
    # catches: a time column that the command line cannot name
    path = write_log(tmp_path)
    with pytest.raises(InputError, match="--set time_column=NAME"):
        load(path, **{**NAMES, "time_column": None}, group_rule="recency")
    task = load(path, **NAMES, group_rule="recency")
    latest = np.argsort([int(name[1:]) for name in task.train.user_ids])[-9:]
    assert set(np.flatnonzero(task.groups == "advantaged")) == set(latest)


def test_defaults_are_those_of_the_reader():
    # catches: a default that drifts from the one that Python callers meet
    reader = inspect.signature(read_interactions).parameters
    assert {READER[name]: getattr(NextItemConfig(), name) for name in READER} == {
        argument: reader[argument].default for argument in READER.values()
    }
    assert set(READER.values()) == set(reader) - {"source"}
    assert NextItemConfig().reader_options() == {}


@pytest.mark.parametrize("data", ["synthetic", "ml100k", "epinions"])
@pytest.mark.parametrize(("name", "value"), [("user_column", "uid"), ("min_item", 3), ("duplicates", "sum")])
def test_settings_of_a_file_are_refused_for_a_named_data_set(data, name, value):
    # catches: a filter that a person believes to be in force
    with pytest.raises(InputError) as caught:
        NextItem.load(NextItemConfig(data=data, **{name: value}))
    assert caught.value.got == f"--set {name} together with the data set {data!r}"
    assert "with the path of a file only" in caught.value.accepted
    assert "--data" in caught.value.todo


def test_settings_survive_config_json(tmp_path):
    # catches: a setting that JSON cannot hold, so that a run could not be resumed
    config = NextItemConfig(data="mine.csv", **NAMES, min_user=3, duplicates="last")
    assert NextItemConfig(**json.loads(json.dumps(config.as_dict()))) == config


# -- groups that can be compared ------------------------------------------------------------------------------------


def test_one_user_is_refused(tmp_path):
    # catches: hours of training on a file whose column of users was the wrong one
    path = write_log(tmp_path, "user,item,rating,when", users=1)
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.got == "1 user in mine.csv"
    assert caught.value.accepted == "at least 2 users"
    assert "user_column" in caught.value.todo


@pytest.mark.parametrize(("share", "small"), [(0.01, "0 advantaged"), (0.1, "advantaged"), (0.99, "0 disadvantaged")])
def test_a_group_too_small_to_compare_is_refused(tmp_path, share, small):
    # catches: a verdict of NaN, and a mean that is one person's value
    path = write_log(tmp_path, "user,item,rating,when")
    with pytest.raises(InputError) as caught:
        NextItem.load(NextItemConfig(data=str(path), group_share=share))
    assert f"{small} with a test item" in caught.value.got
    assert caught.value.accepted == "at least 5 users with a test item in each group"
    assert "group_share" in caught.value.todo


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_groups_on_demand(tmp_path, share):
    # catches: a check that refuses a run without groups, which is somebody's wish
    path = write_log(tmp_path, "user,item,rating,when")
    assert len(set(NextItem.load(NextItemConfig(data=str(path), group_share=share)).groups)) == 1


def test_users_without_a_test_item_make_no_group_large(tmp_path):
    # catches: a group counted by its members instead of by those who have a value
    path = write_log(tmp_path, "user,item,rating,when", users=60, items=3)
    config = NextItemConfig(data=str(path), group_share=0.2)
    split = load_split(str(path))
    task = NextItem(split, config)
    members = (task.groups == "advantaged").sum()
    scored = ((split.test.counts("user") > 0) & (task.groups == "advantaged")).sum()
    assert members == 12
    assert scored < 5  # the most active in training are those of whom few rows went to test
    with pytest.raises(InputError, match=f"{scored} advantaged with a test item"):
        NextItem.load(config)


def test_another_split_at_each_seed_keeps_its_users(tmp_path):
    # catches: six seeds on one split for a model without a seed, which are one; runs of other splits that are refused
    path = write_log(tmp_path, "user,item,rating,when")
    ask = Ask("in_ucds", data=str(path), preset="quick", arms=["none", "in_ucds"])
    more = {"group_share": 0.3, "epochs": 2, "check_every": 1, "dim": 4}
    folders, comparison = run_seeds(
        dataclasses.replace(ask, settings=more | {"split_seed": "seed"}), [0, 1], out=tmp_path / "a"
    )
    prints = [read_json(f / "summary.json")["data"]["fingerprint"] for f in folders]
    assert prints[0] != prints[1]
    found = read_json(comparison / "comparison.json")
    assert (found["evidence"]["n_units"], found["seeds"]) == (30, [0, 1])
    fixed = [NextItemConfig(data=str(path), split_seed=n).load_split(None).fingerprint for n in (0, 1)]
    assert prints == fixed
    folders, _ = run_seeds(dataclasses.replace(ask, settings=more), [0, 1], out=tmp_path / "b")
    assert {read_json(f / "summary.json")["data"]["fingerprint"] for f in folders} == {fixed[0]}


# -- the tiny world -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_the_tiny_world_defines_every_protocol(seed):
    # catches: a world too small for 99 negatives, so that conformance never sees the sampled protocol
    task, run = NextItem.tiny(seed), ArmRun(None, seed, "x")
    assert task.n_items > 100
    model = build("bprmf", task.n_users, task.n_items, task.seen, 4, 1, run.torch_rng("init"))
    task.open_test()
    values = task.score(model, "test", run).values
    has_test = task._test.counts("user") > 0
    assert has_test.sum() > 100
    np.testing.assert_array_equal(~np.isnan(values["ndcg@10_sampled"]), has_test)
    assert all(not np.isnan(v).all() for v in values.values())
