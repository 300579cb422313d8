"""Methods are found without being imported, and a broken plugin is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from upright.contract import InputError
from upright.experiment import registry


@pytest.fixture
def broken(install):
    """Plugins whose modules raise, hold no such function, or hold an unmarked one."""
    files = {"broken_plugin": "raise RuntimeError('planted')\n", "unmarked_plugin": "def run(task, config, run): ...\n"}
    points = ["raising = broken_plugin:run", "absent = unmarked_plugin:walk", "unmarked = unmarked_plugin:run"]
    install("broken-thing", "methods", [*points, "gone = no_such_module:run"], **files)


def test_listing_methods_imports_no_heavy_package_and_no_method():
    # catches a registry that imports what it lists: `upright list` must answer at once
    code = (
        "import sys; from upright.experiment.registry import names; rows = names(); "
        "print(len(rows), [m for m in ('torch', 'polars', 'matplotlib', 'scipy', 'upright.methods.in_ucds') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = out.stdout.split(maxsplit=1)
    assert int(count) >= 10
    assert heavy.strip() == "[]"


def test_every_method_is_installed_and_says_what_it_mends():
    # catches: a method without an entry point, and an entry point that no list knows
    rows = {row["name"]: row for row in registry.names()}
    assert set(registry.METHODS) == {name for name, row in rows.items() if row["package"] == "upright"}
    assert set(registry.METHODS) <= set(registry.find())
    assert all(row["mends"] for row in rows.values() if row["package"] == "upright")


def test_a_plugin_is_listed_with_its_package_even_when_it_does_not_import(broken):
    rows = {row["name"]: row for row in registry.names()}
    assert rows["raising"] == {"name": "raising", "mends": "", "state": "plugin", "package": "broken-thing"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raising", "RuntimeError: planted"),
        ("absent", "has no attribute 'walk'"),
        ("unmarked", "is not a method"),
        ("gone", "No module named 'no_such_module'"),
    ],
)
def test_a_broken_plugin_warns_naming_its_package(broken, name, why):
    # catches a plugin's error that looks like ours, and one that is swallowed
    with pytest.warns(UserWarning, match="of package broken-thing does not load"), pytest.raises(InputError) as caught:
        registry.load_method(name)
    assert "broken-thing" in caught.value.got
    assert why in caught.value.got
    assert caught.value.todo == "repair or uninstall broken-thing"


def test_a_broken_plugin_does_not_hinder_others(broken):
    assert registry.load_method("in_ucds").name == "in_ucds"


def test_an_unknown_name_is_refused_with_the_closest_one():
    with pytest.raises(InputError, match="did you mean 'in_ucds'"):
        registry.load_method("inucds")
