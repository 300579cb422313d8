"""Next item on devices: what is held out, who is asked what, and who counts as light."""

from __future__ import annotations

import numpy as np
import pytest

from upright.contract import InputError
from upright.experiment.folders import ArmRun
from upright.tasks.federated_next_item import FederatedNextItem, FederatedNextItemConfig


class Scores:
    """Scores that are known, and who was asked for them."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def score_all(self, users):
        self.asked.append(users)
        return self.table[users]


def tiny(**changes):
    return FederatedNextItem.tiny(**changes)


def score(task, table, split="valid"):
    result = Scores(table)
    return task.score(result, split, ArmRun(None, 0, "x")), result


def pairs(log):
    return set(zip(log.user.tolist(), log.item.tolist(), strict=True))


def with_sizes(sizes, path, times=True):
    rows = [f"u{u:02d},i{i:03d}" + f",{i}" * times for u, n in enumerate(sizes) for i in range(n)]
    path.write_text("\n".join(["user,item" + ",time" * times, *rows]), encoding="utf-8")
    return FederatedNextItemConfig(data=str(path), time_column="time" if times else None)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_list_holds_the_wanted_item_and_no_met_one(split):
    # catches held-out items on a device, met ones among the candidates, and at the test the validation item
    task = tiny()
    task.open_test()
    part = task.scored_part(split)
    on_devices = {(u, int(i)) for u, device in enumerate(task.devices.values()) for i in device.items}
    assert on_devices == pairs(task.train)
    assert not on_devices & (pairs(task.valid) | pairs(task.scored_part("test")))
    table = np.zeros((task.n_users, task.n_items))
    met = pairs(task.train) | (pairs(task.valid) if split == "test" else set())
    for u, i in met:
        table[u, i] = 2.0  # would stand above the wanted one
    table[part.user, part.item] = 1.0
    found, _ = score(task, table, split)
    assert np.min(found.values["ndcg@10"]) == 1.0
    assert ("ndcg@10_sampled" in found.values) == (split == "test")


def test_the_test_split_is_closed_until_the_runner_opens_it():
    task = tiny()
    table = np.zeros((task.n_users, task.n_items))
    with pytest.raises(InputError, match="test split"):
        score(task, table, "test")
    task.open_test()
    assert len(score(task, table, "test")[0].unit) == task.n_users


def test_groups_are_by_training_items(tmp_path):
    task = tiny()
    task.open_test()
    found, _ = score(task, np.zeros((task.n_users, task.n_items)), "test")
    sizes = np.array([len(device.items) for device in task.devices.values()])
    light, decile = np.array(found.by["size"]) == "light", np.array(found.by["size_decile"]).astype(int)
    assert (light == (sizes < np.median(sizes))).all() or sizes.min() == np.median(sizes)
    assert sizes[light].max() <= sizes[~light].min()
    assert set(decile) <= set(range(1, 11))
    assert (np.diff(decile[np.argsort(sizes, kind="stable")]) >= 0).all()
    assert all(len(set(decile[sizes == n])) == 1 for n in sizes)
    mostly = FederatedNextItem.load(with_sizes([5] * 12 + [9, 8, 7], tmp_path / "log.csv"))
    groups = mostly._groups()["size"]  # of whom more than half have as few as anybody
    assert groups == ["light"] * 12 + ["heavy"] * 3


def test_validation_ranks_a_fixed_sample_and_the_test_everybody():
    task = tiny(checked_clients=40)
    table = np.random.default_rng(0).normal(size=(task.n_users, task.n_items))
    (one, first), (other, _) = score(task, table), score(task, table)
    assert len(one.unit) == 40
    assert one.unit == other.unit
    assert sorted(np.concatenate(first.asked)) == one.unit
    whole, _ = score(tiny(), table)
    assert len(whole.unit) == task.n_users
    np.testing.assert_array_equal(one.values["ndcg@10"], np.array(whole.values["ndcg@10"])[one.unit])
    assert one.by["size"] == np.array(whole.by["size"])[one.unit].tolist()
    task.open_test()
    assert len(score(task, table, "test")[0].unit) == task.n_users


def test_mode_official_selects_on_the_test_item():
    task, official = tiny(), tiny(mode="official")
    task.open_test()
    assert pairs(official.valid) == pairs(task.scored_part("test"))
    assert pairs(official.train) == pairs(task.train) | pairs(task.valid)
    table = np.zeros((task.n_users, task.n_items))
    table[official.valid.user, official.valid.item] = 1.0
    official.open_test()
    for split in ("valid", "test"):
        assert np.min(score(official, table, split)[0].values["hit@10"]) == 1.0


def test_what_a_result_rests_on_is_said(tmp_path):
    said = {}
    for name, task in {
        "plain": tiny(),
        "official": tiny(mode="official"),
        "drawn": FederatedNextItem.load(with_sizes([*range(4, 16)], tmp_path / "log.csv", times=False)),
    }.items():
        run = ArmRun(None, 0, "x")
        task.warn(run)
        said[name] = run.warnings
    assert said["plain"] == []
    assert "test item" in said["official"][0]
    assert "no times" in said["drawn"][0]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [([4, 5, 6, 7], "4 users"), ([5] * 12, "1 numbers of items"), ([2, *range(4, 16)], "fewer than three")],
)
def test_data_on_which_nothing_can_be_said_are_refused(tmp_path, sizes, words):
    with pytest.raises(InputError) as said:
        FederatedNextItem.load(with_sizes(sizes, tmp_path / "log.csv"))
    assert words in said.value.got
