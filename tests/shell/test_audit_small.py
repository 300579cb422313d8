"""Audits of too few users, and audits with no place for their folder: refused before anything is written."""

from __future__ import annotations

import pytest

from upright.contract import InputError
from upright.shell.audit_ranking import audit_ranking


def files(folder, groups, size, held=None):
    """Write lists and held-out items of `size` users a group; the first `held` users alone have a held-out item."""
    users = [f"{name}{j}" for name in groups for j in range(size)]
    for name, header, rows in (
        ("lists", "user,item,rank", [f"{u},x,1" for u in users]),
        ("held", "user,item", [f"{u},x" for u in users[:held]]),
        ("users", "user,group", [f"{u},{u[0]}" for u in users]),
    ):
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")


def audit(folder, users=None):
    return audit_ranking(folder / "lists.csv", held_out=folder / "held.csv", users=users and folder / users, k=1,
                         out=folder / "runs", draws=20)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "held", "got"),
    [(1, None, "1 user in lists.csv"), (3, 1, "1 user with a held-out item in held.csv")],
)
def test_too_few_users_are_refused(tmp_path, size, held, got):
    # catches an interval of width 0 around one user's value, and a folder made for it
    files(tmp_path, "x", size, held)
    with pytest.raises(InputError) as caught:
        audit(tmp_path)
    assert caught.value.got == got
    assert caught.value.accepted.startswith("at least 2 users")
    assert "more users" in caught.value.todo
    assert not (tmp_path / "runs").exists()


def test_two_users_are_enough(tmp_path):
    # catches a bound that is off by one
    files(tmp_path, "x", 3, 2)
    assert audit(tmp_path).is_dir()


def test_groups_that_are_all_too_small_are_refused(tmp_path):
    # catches an audit by groups in which no group is left
    files(tmp_path, "xyz", 4)
    with pytest.raises(InputError) as caught:
        audit(tmp_path, "users.csv")
    assert caught.value.got == "every group of users.csv has fewer than 5 users with a defined value: 'x', 'y', 'z'"
    assert "one group of 5" in caught.value.accepted
    assert "without --users" in caught.value.todo
    assert not (tmp_path / "runs").exists()
    assert audit(tmp_path).is_dir()


def test_one_group_that_is_large_enough_is_audited(tmp_path):
    # catches an audit lost because other groups are small
    files(tmp_path, "x", 5)
    with (tmp_path / "users.csv").open("a") as f:
        f.write("y0,y\n")
    for name, row in (("lists", "y0,x,1"), ("held", "y0,x")):
        with (tmp_path / f"{name}.csv").open("a") as f:
            f.write(row + "\n")
    assert audit(tmp_path, "users.csv").is_dir()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    # catches a traceback after the whole audit was computed
    files(tmp_path, "x", 2)
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="is a file"):
        audit(tmp_path)
