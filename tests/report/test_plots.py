"""Plots: their text, their ids, their colours, and what they do with odd numbers."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from upright.report.plots import COLOURS, Canvas, Mark, Point, Row, Series, Shade, colour_of, marker_of

NAN = math.nan


def rows(values=(0.1, 0.2, 0.3)) -> list[Row]:
    return [Row("heading"), *(Row(f"row {i}", (Mark(v, v - 0.05, v + 0.05, i),), f"{v}") for i, v in enumerate(values))]


def every(canvas: Canvas) -> list[str]:
    return [
        canvas.rows(rows(), "x", bars=True),
        canvas.rows(rows((-0.1, 0.2)), "x", zero=True, margin=0.01),
        canvas.front([Point(0.3, 0.2, (0.2, 0.4), (0.1, 0.3), 1)], "x", "y"),
        canvas.curves(
            [Series([1, 2, 3], [0.1, 0.2, 0.15], 0), Series([1, 2], [0.1, 0.3], 1, [0.0, 0.2], [0.2, 0.4])], "step", "y"
        ),
        canvas.histogram([0.0, 0.5, 1.0], [0.4, 0.6], 1, "x", "y"),
        canvas.dots([[0.1, 0.2], [0.5, 0.9]], "x", "y"),
        canvas.heat([("a", [Shade(0.1, "9"), Shade(NAN, "few")])], ["f", "m"], (0.02, 0.05)),
    ]


def test_plots_take_colours_and_fonts_from_the_page():
    # catches: black text in dark mode, matplotlib's style sheet ruling over the page, its font, not the reader's
    for svg in every(Canvas()):
        assert "var(--ink)" in svg
        assert "var(--soft)" in svg
        assert not re.search(r"#[0-9a-f]{6}", svg)
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "xmlns" not in svg


def test_letters_are_large_enough_for_a_phone():
    # catches: a plot drawn for a wide page and shrunk until nobody can read it
    for svg in every(Canvas()):
        root = ET.fromstring(svg)
        assert root.get("viewBox", "").startswith("0 0 360 ")
        sizes = [float(s) for s in re.findall(r"font-size: ([0-9.]+)px", svg)] + [
            float(s) for s in re.findall(r"font: (?:bold )?([0-9.]+)px", svg)
        ]
        assert sizes
        assert min(sizes) >= 11


def test_ids_of_figures_differ_even_when_the_figures_are_equal():
    # catches: hash salts that give equal ids to equal frames
    canvas = Canvas()
    first, second = (set(re.findall(r' id="([^"]+)"', canvas.rows(rows(), "x"))) for _ in range(2))
    assert first
    assert not first & second


def test_equal_input_gives_equal_bytes():
    # catches: a date, a random salt, set order
    assert every(Canvas()) == every(Canvas())


def test_text_is_escaped_and_never_read_as_mathematics_or_colour():
    # catches: markup through a label; "$x_1$" set as a formula; a label equal to a sentinel colour rewritten
    label = f'<b>$x_1$ & {COLOURS["ink"]} id="q"'
    svg = Canvas().rows([Row(label, (Mark(0.5, 0.4, 0.6),))], "<i>", bars=True)
    texts = [node.text for node in ET.fromstring(svg).iter("text")]
    assert label in texts
    assert "<i>" in texts


def test_undefined_values_leave_no_mark_and_do_not_stop_the_plot():
    # catches: "nan" coordinates, which browsers refuse without a word
    svgs = [
        Canvas().rows([Row("a", (Mark(NAN, NAN, NAN),)), Row("b", (Mark(0.2, NAN, NAN),))], "x"),
        Canvas().front([Point(NAN, 0.1, (NAN, NAN), (0, 1), 0), Point(0.1, 0.1, (NAN, NAN), (0, 1), 1)], "x", "y"),
        Canvas().rows([Row("a", (Mark(NAN, NAN, NAN),))], "x"),
    ]
    assert not any(re.search(r"\bnan\b", svg, re.IGNORECASE) for svg in svgs)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 1e6])
@pytest.mark.parametrize("bars", [True, False])
def test_equal_values_give_an_axis_without_warning(value, bars):
    # catches: an axis from zero to zero, which matplotlib warns of
    same = [Row("a", (Mark(value, value, value),)), Row("b", (Mark(value, value, value),))]
    assert Canvas().rows(same, "x", bars=bars, zero=not bars)


def test_bars_begin_at_zero():
    # catches: a truncated axis, which makes a small difference look large
    svg = Canvas().rows([Row("a", (Mark(0.90, 0.89, 0.91),)), Row("b", (Mark(0.95, 0.94, 0.96),))], "x", bars=True)
    bars = [n.get("d") for n in ET.fromstring(svg).iter("path") if "fill: var(--arm-0)" in (n.get("style") or "")]
    left, right = zip(*(sorted({float(x) for x in re.findall(r"[ML] ([0-9.]+) ", d)}) for d in bars), strict=True)
    assert left[0] == left[1]
    assert (right[0] - left[0]) / (right[1] - left[1]) == pytest.approx(0.90 / 0.95, rel=1e-4)


def test_arms_are_told_apart_without_colour():
    # catches: two arms with the same colour and the same marker
    looks = {(colour_of(i), marker_of(i)) for i in range(12)}
    assert len(looks) == 12
    assert all(colour_of(i) in COLOURS for i in range(40))
    assert colour_of(0) not in {colour_of(i) for i in range(1, 40)}  # grey is the baseline's alone
