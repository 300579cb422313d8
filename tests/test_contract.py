"""The lowest floor: configs that may not lie, declarations that may not be incomplete, named streams."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import Arm, Config, InputError, MethodSpec, PositiveInt, Range, accepted, method, spec_of, stream


class Sample(Config):
    rate: Annotated[float, Range(gt=0, le=1)] = 0.5
    steps: PositiveInt = 3
    kind: Literal["a", "b"] = "a"
    cap: PositiveInt | None = None
    flag: bool = False
    name: str = "x"
    widths: tuple[int, ...] = (1, 2)


def test_contract_imports_no_package_but_the_standard_library():
    # catches a heavy import on the floor that native doors stand on
    code = (
        "import sys, upright.contract; print([m for m in ('torch', 'numpy', 'pydantic', 'polars') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_input_error_says_three_things():
    error = InputError("got it", "that only", "do this")
    assert str(error).splitlines() == ["got it", "  accepted: that only", "  to do:    do this"]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", 0.0), ("rate", 1.0000001), ("rate", float("nan")), ("rate", "0.1"), ("rate", True), ("rate", None),
        ("steps", 0), ("steps", 1.0), ("steps", True), ("kind", "c"), ("kind", True), ("cap", 0), ("flag", 1),
        ("name", 3), ("widths", (1, "2")), ("widths", 3),
    ],
)  # fmt: skip
def test_a_value_outside_its_range_is_refused_by_name(field, value):
    # catches an open bound read as closed, NaN inside a range, and True read as 1
    with pytest.raises(InputError, match=rf"Sample\.{field} = "):
        Sample(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("rate", 1), ("rate", 1.0), ("cap", None), ("cap", 5), ("widths", ())])
def test_a_value_inside_its_range_is_kept(field, value):
    assert getattr(Sample(**{field: value}), field) == value


def test_a_config_is_frozen_and_checked_again_when_replaced():
    # catches settings that change after they were recorded
    config = Sample()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 4
    assert config.replace(steps=4).steps == 4
    assert config.steps == 3
    with pytest.raises(InputError):
        config.replace(steps=0)


def test_accepted_speaks_in_words():
    assert accepted(Annotated[float, Range(gt=0, le=1)]) == "float > 0 and <= 1"
    assert accepted(PositiveInt | None) == "int > 0 or none"
    assert accepted(Literal["a", "b"]) == "'a' | 'b'"


@given(st.integers(0, 2**40), st.lists(st.integers() | st.text(max_size=5), max_size=4))
def test_streams_are_functions_of_their_name(seed, name):
    # catches use of a counter, a salted hash, or of numbers too large for torch
    assert stream(seed, *name) == stream(seed, *name)
    assert 0 <= stream(seed, *name) < 2**63


def test_streams_differ_by_every_part_of_their_name():
    # catches parts that are joined without a border ("1", "23" against "12", "3"), or a type that is dropped
    names = [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", "1"), (0, "a1"), (0, "1", "23"), (0, "12", "3"), (0, "", "a")]
    assert len({stream(*n) for n in names}) == len(names)


def test_a_stream_never_changes_between_versions():
    # catches a new derivation, which would silently change every stored result
    import hashlib

    assert stream(0, "init") == int.from_bytes(hashlib.sha256(b'[0, "init"]').digest()[:8], "big") >> 1


def declare(**changes: Any) -> Any:
    arms = [Arm("none", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo")]
    settings: dict[str, Any] = {
        "task": "m:T", "config": Sample, "title": "X", "mends": "y", "neutral": [{"rate": 1.0}], "arms": arms,
        "statistics": ["mean:m"], "primary": "mean:m", "cost": "mean:m",
    }  # fmt: skip
    return method("x", **settings | changes)


@pytest.mark.parametrize("missing", ["baseline", "remedy", "trivial", "placebo"])
def test_a_method_without_one_of_four_roles_is_refused(missing):
    arms = [Arm(r, r) for r in ("baseline", "remedy", "trivial", "placebo") if r != missing]
    with pytest.raises(TypeError, match="at least one trivial and one placebo"):
        declare(arms=arms)


def test_a_method_with_two_baselines_or_no_neutral_setting_is_refused():
    arms = [Arm("a", "baseline"), Arm("b", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo")]
    with pytest.raises(TypeError, match="one baseline"):
        declare(arms=arms)
    with pytest.raises(TypeError, match="neutral"):
        declare(neutral=[])


def test_a_marked_function_stays_itself_and_an_unmarked_one_is_no_method():
    def f(task: Any, config: Any, run: Any) -> int:
        return 7

    assert declare()(f) is f
    assert spec_of(f).run is f
    assert spec_of(f).arm("placebo").name == "p"
    with pytest.raises(TypeError, match="not a method"):
        spec_of(lambda: None)


VARIED = MethodSpec(
    "m",
    task="x:Y",
    config=Config,
    title="M",
    mends="",
    neutral=[{}],
    arms=[Arm("a", "baseline"), Arm("b", "remedy"), Arm("c", "trivial"), Arm("d", "placebo")],
    statistics=["mean:x", "mean:y"],
    primary="mean:x",
    cost="mean:y",
    variants={"future=withheld": {"primary": "mean:y", "cost": "mean:x"}},
)


def test_a_variant_replaces_what_it_names_and_nothing_else():
    # catches: a verdict on the primary of the other question, or arms that vanish with it
    found = VARIED.under({"size": 3, "future": "withheld"})
    assert (found.primary, found.cost, found.arms, found.name) == ("mean:y", "mean:x", VARIED.arms, "m")


def test_other_settings_leave_the_declaration_as_it_is():
    # catches: a variant that is taken where its setting has another value
    assert VARIED.under({"future": "known"}) == VARIED.under({}) == VARIED
