"""Words become typed settings, or an error that says what to write."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import Config, InputError, PositiveInt, Range
from upright.experiment.config import describe, parse_assignments, suggest, to_config


class Knobs(Config):
    """Sample."""

    rate: Annotated[float, Range(ge=0, le=1)] = 0.5
    """How much."""
    steps: PositiveInt = 3
    cap: PositiveInt | None = 4
    """Most, over
    two lines."""
    scale: Literal["auto"] | Annotated[float, Range(gt=1)] = "auto"
    """Either."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    flag: bool = False
    """On or off."""
    name: str = "x"
    """Free."""
    maybe: str | None = "y"
    """Text or nothing."""
    far: float = 1.0
    widths: tuple[int, ...] = (1, 2)
    """Layers."""


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "0.25", 0.25),
        ("rate", "1e-3", 1e-3),
        ("rate", "1", 1.0),
        ("steps", "12", 12),
        ("cap", "none", None),
        ("cap", "null", None),
        ("cap", "None", None),
        ("cap", "7", 7),
        ("scale", "auto", "auto"),
        ("scale", "2.5", 2.5),
        ("kind", "b", "b"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("far", "inf", math.inf),
        ("far", "-Infinity", -math.inf),
        ("name", "12", "12"),
        ("name", "none", "none"),
        ("maybe", "none", None),
        ("maybe", "x", "x"),
        ("name", "true", "true"),
        ("widths", "[3, 4]", (3, 4)),
        ("widths", "3,4", (3, 4)),
        ("widths", "3", (3,)),
        ("widths", [3, 4], (3, 4)),
        ("widths", (5,), (5,)),
    ],
)
def test_text_is_read_as_the_type_of_its_field(key, text, value):
    # catches a number kept as text, a name turned into a number, and JSON lists refused where tuples are asked
    found = getattr(to_config(Knobs, {key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("rate", "2", "float >= 0 and <= 1"),
        ("rate", "x", "float >= 0 and <= 1"),
        ("rate", "NaN", "float >= 0"),
        ("rate", None, "float"),
        ("rate", True, "float"),
        ("steps", "1.5", "int > 0"),
        ("steps", 2.0, "int > 0"),
        ("steps", "none", "int > 0"),
        ("cap", "0", "int > 0 or none"),
        ("scale", "1", "'auto' or float > 1"),
        ("kind", "c", "'a' | 'b'"),
        ("flag", "yes", "bool"),
        ("flag", 1, "bool"),
        ("name", 3, "str"),
        ("widths", '[1, "a"]', "tuple"),
        ("widths", "a,b", "tuple"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_accepted(key, value, accepted):
    # catches lenient reading ("yes" as true, 2.0 as 2) and errors without the range
    with pytest.raises(InputError) as caught:
        to_config(Knobs, {key: value})
    assert f"Knobs.{key}" in caught.value.got
    assert accepted in caught.value.accepted


def test_an_unknown_key_names_the_closest_one():
    with pytest.raises(InputError) as caught:
        to_config(Knobs, {"stepz": 3})
    assert caught.value.got == "unknown key 'stepz' for Knobs"
    assert caught.value.todo == "did you mean 'steps'?"


def test_a_suggestion_that_would_be_far_fetched_is_the_whole_list():
    assert suggest("qqqq", ["rate", "steps"]) == "take one of: rate, steps"


def test_a_config_made_from_words_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        to_config(Knobs, {}).rate = 0.1


@given(
    st.builds(
        Knobs,
        rate=st.floats(0, 1),
        steps=st.integers(1, 10**9),
        cap=st.none() | st.integers(1, 99),
        scale=st.just("auto") | st.floats(1.001, 1e9),
        kind=st.sampled_from("ab"),
        flag=st.booleans(),
        widths=st.lists(st.integers(), max_size=3).map(tuple),
    )
)
def test_a_config_survives_its_own_values(config):
    # catches a field that as_dict drops or that reading changes
    assert to_config(Knobs, config.as_dict()) == config


def test_assignments_are_split_at_the_first_equals_sign():
    assert parse_assignments(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for words in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError):
            parse_assignments(words)


def test_a_config_describes_its_fields_in_order():
    # catches a docstring given to the field after it
    rows = describe(Knobs)
    assert [r["name"] for r in rows][:3] == ["rate", "steps", "cap"]
    assert [r["doc"] for r in rows][:3] == ["How much.", "", "Most, over two lines."]
    assert rows[2]["type"] == "int > 0 or none"
    assert rows[2]["default"] == 4


def test_inherited_fields_are_described():
    # catches: half of a task's settings without a word, because they stand in the class it builds on
    from upright.tasks.private_next_item import PrivateNextItemConfig

    assert not [row["name"] for row in describe(PrivateNextItemConfig) if not row["doc"]]
