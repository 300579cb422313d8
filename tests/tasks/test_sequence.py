"""Next in a sequence: what is held out, who is head and tail, what a model may see, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from upright.contract import InputError
from upright.data.interactions import synthetic
from upright.data.sequences import leave_last
from upright.experiment.folders import ArmRun
from upright.tasks.answers import opaque_codes
from upright.tasks.sequence import NextInSequence, NextInSequenceConfig

RUN = ArmRun(None, 0, "x")


class Oracle:
    """Ranks given items first; keeps the histories that it was shown."""

    def __init__(self, wanted, items):
        self.wanted, self.items, self.shown = torch.from_numpy(wanted), items, None

    def score_all(self, history):
        self.shown = history
        return torch.nn.functional.one_hot(self.wanted, self.items).double()


class Flat:
    """Has no opinion."""

    def __init__(self, items):
        self.items = items

    def score_all(self, history):
        return torch.zeros(len(history), self.items)


@pytest.fixture(scope="module")
def task():
    return NextInSequence.tiny()


def write(folder, n_users=12, times=True, **columns):
    rng = np.random.default_rng(0)
    rows = {
        "user_id": np.repeat(np.arange(n_users), 8),
        "item_id": np.concatenate([rng.permutation(30)[:8] for _ in range(n_users)]),
    }
    rows |= {"timestamp": np.arange(len(rows["user_id"]))} if times else {}
    pl.DataFrame(rows | columns).write_csv(folder / "log.csv")
    return str(folder / "log.csv")


def test_a_model_that_knows_the_next_item_is_perfect_and_sees_what_came_before_it(task):
    # catches: a test history without the validation item, one that holds the test item, seen items among candidates
    other = NextInSequence.tiny()
    other.open_test()
    for split, part, last in (("valid", task.valid, task.train), ("test", other._test, task.valid)):
        model = Oracle(part.item, task.n_items)
        found = other.score(model, split, RUN)
        assert found.values["ndcg@10"].tolist() == [1.0] * task.n_users
        newest = np.zeros(task.n_users, dtype=np.int64)
        newest[last.user] = last.item  # rows of a user stand in their order: the last one counts
        assert model.shown[:, -1].tolist() == newest.tolist()


def test_a_model_without_opinion_gets_the_expectation_over_ties(task):
    found = task.score(Flat(task.n_items), "valid", RUN)
    left = task.n_items - np.bincount(task.train.user, minlength=task.n_users)
    assert found.values["hit@10"] == pytest.approx(np.minimum(1.0, 10 / left))


def test_targets_are_counted_in_training_alone_and_head_is_a_fifth(task):
    # catches: counts of the whole log, which tell what is held out
    first = np.unique(task.train.user, return_index=True)[1]
    rest = np.delete(task.train.item, first)
    assert task.item_count.tolist() == np.bincount(rest, minlength=task.n_items).tolist()
    head = np.array(task.popularity) == "head"
    assert 0 < head.sum() <= np.ceil(0.2 * task.n_items)
    assert task.item_count[head].min() > task.item_count[~head].max()


def test_groups_are_those_of_the_held_out_item_and_clusters_tell_nothing_of_it(task):
    # catches: the groups of another split, users with one item in two clusters, an item id in a published table
    found = task.score(Flat(task.n_items), "valid", RUN)
    assert found.by["popularity"] == [task.popularity[i] for i in task.valid.item]
    pairs = zip(found.by["popularity"], found.by["prior"], strict=True)
    assert found.by["cell"] == [f"{a} of data, {b} of prior" for a, b in pairs]
    for group in ("head", "tail"):
        own = np.array(found.by["popularity"]) == group
        values = found.values[f"ndcg@10_{group}"]
        assert np.isnan(values[~own]).all()
        assert values[own].tolist() == found.values["ndcg@10"][own].tolist()
    assert len(set(zip(found.cluster, task.valid.item, strict=True))) == len(set(found.cluster))
    assert len(set(found.cluster)) == len(set(task.valid.item))
    other = np.random.default_rng(1).permutation(task.n_items)  # other items, equal where these are
    assert opaque_codes(other[task.valid.item]) == list(found.cluster)


def test_batches_hold_every_window_once_or_are_drawn_by_weight(task):
    whole = np.concatenate([y for _, y, _ in task.batches(RUN, 0, 7)])
    assert sorted(map(tuple, whole)) == sorted(map(tuple, task.target))
    masks = [m for _, _, m in task.batches(RUN, 0, 7)]
    assert len(set(masks)) == len(masks)
    # catches: windows drawn by the weights of the history, of one target, or by how many a window has
    weight = np.random.default_rng(0).random(task.n_items) ** 4
    there = task.target >= 0
    mass = np.where(there, weight[task.target], 0.0).sum(1) / there.sum(1)
    drawn = [y for epoch in range(300) for _, y, _ in task.batches(RUN, epoch, 64, weight)]
    rows = [tuple(row) for row in np.concatenate(drawn).tolist()]
    assert len(rows) == 300 * len(whole)
    share = np.array([rows.count(tuple(row)) for row in task.target.tolist()]) / len(rows)
    assert np.corrcoef(share, mass)[0, 1] > 0.95


def test_the_test_part_is_closed_until_it_is_opened():
    with pytest.raises(InputError, match="the test split inside a method"):
        NextInSequence.tiny().score(None, "test", RUN)


def test_scores_of_a_prior_are_read_by_item(tmp_path):
    # catches: scores in the order of the file
    path = write(tmp_path, n_users=120)
    items = pl.read_csv(path)["item_id"].unique().sort(descending=True).to_list()
    pl.DataFrame({"item": items, "prior": [-float(i) for i in items]}).write_csv(tmp_path / "prior.csv")
    settings = {"data": path, "time_column": "timestamp", "prior": str(tmp_path / "prior.csv")}
    task = NextInSequence.load(NextInSequenceConfig(**settings))
    assert task.prior.tolist() == [-float(i) for i in task.train.item_ids]


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({}, "whose last item is head"),
        ({"time_column": None}, "a log without times"),
        ({"prior": "short.csv"}, "has no prior for"),
        ({"prior": "broken.csv"}, "'prior' is"),
        ({"prior": "unnamed.csv"}, "rename columns to prior"),  # no option names them
    ],
)
def test_what_cannot_be_a_task_is_refused(tmp_path, monkeypatch, change, got):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    pl.DataFrame({"item": [1, 2], "prior": [0.5, 1.0]}).write_csv("short.csv")
    pl.DataFrame({"item": [1, 2], "prior": ["0.5", "inf"]}).write_csv("broken.csv")
    pl.DataFrame({"item": [1, 2], "known": [0.5, 1.0]}).write_csv("unnamed.csv")
    settings = {"data": path, "time_column": "timestamp"} | change
    with pytest.raises(InputError, match=got):
        NextInSequence.load(NextInSequenceConfig(**settings))


def test_ties_are_facts_of_the_data():
    split = synthetic(seed=0)
    tied = [dataclasses.replace(p, time=p.time // 1000) for p in (split.train, split.valid, split.test)]
    split = leave_last(dataclasses.replace(split, **dict(zip(("train", "valid", "test"), tied, strict=True))), seed=0)
    assert NextInSequence(split, NextInSequenceConfig(data="synthetic")).facts["tied_neighbours"] > 0.5
    assert NextInSequence.tiny().facts["tied_neighbours"] == 0.0


def test_a_cell_of_few_users_takes_the_table_of_the_prior_away():
    # catches: the value of one user
    task, run = NextInSequence.tiny(), ArmRun(None, 0, "x")
    task.prior = np.zeros(task.n_items)
    size = task.valid.counts("item")
    task.prior[np.flatnonzero((size > 0) & (size < 5))[0]] = 1.0  # head of the prior is one item
    assert set(task.score(Flat(task.n_items), "valid", run).by) == {"popularity"}
    assert "no table of two by two" in run.warnings[0]


def test_what_is_noted_of_places_and_frequency_counts_everybody_once():
    # catches: bins that overlap or lose a user, a curve that does not run from 0 to 1 or lies above the diagonal
    task, run = NextInSequence.tiny(), ArmRun(None, 0, "x")
    task.open_test()
    found = task.score(Oracle(task._test.item, task.n_items), "test", run)
    assert sum(row["n"] for row in run.notes["frequency"]) == len(found.unit)
    assert all(row["value"] == 1.0 for row in run.notes["frequency"])
    items, places = (np.array([row[name] for row in run.notes["lorenz"]]) for name in ("items", "places"))
    assert (items[0], places[0], items[-1], places[-1]) == (0.0, 0.0, 1.0, pytest.approx(1.0))
    assert (places <= items + 1e-12).all()
    assert (np.diff(places) >= 0).all()
