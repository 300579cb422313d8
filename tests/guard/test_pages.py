"""Pages: all ink inside the margins, lines as given, sixteen greys that are near enough, looks that are drawn once."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from upright.contract import InputError
from upright.guard import pages
from upright.guard.pages import Look, draw_page, encode_page, vary

WORDS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFG.,;'", min_size=1, max_size=60)
FONTS, COLUMNS, SIZES = st.sampled_from(["serif", "sans", "mono"]), st.sampled_from([1, 2]), st.integers(9, 40)
LOOKS = st.builds(Look, font=FONTS, size=SIZES, width=st.integers(300, 900), columns=COLUMNS)


def inked(image, look, axis):
    """Whether there is ink, by rows (axis 1) or columns (axis 0) of pixels."""
    return (np.abs(np.asarray(image, int) - look.paper) > 40).any(axis)


def bands(rows):
    return int(np.diff(np.concatenate([[0], rows.astype(int)])).clip(0).sum())


@settings(max_examples=15, deadline=None)
@given(st.lists(WORDS, max_size=30), st.lists(WORDS, max_size=8), LOOKS)
def test_no_ink_leaves_the_margins_or_stands_between_the_columns(words, notice, look):
    # catches: a line that is wider than its column, a long word that is not cut, a page that is too low
    image = draw_page(" ".join(words), " ".join(notice), look)
    across, down, margin = inked(image, look, 0), inked(image, look, 1), max(16, look.width // 25)
    assert (image.mode, image.width) == ("L", look.width)
    edges = [across[: margin - 4], across[-margin + 4 :], down[: margin - 4], down[-4:]]
    if look.columns == 2 and not notice:
        edges.append(across[look.width // 2 - margin // 4 : look.width // 2 + margin // 4])
    assert not np.concatenate(edges).any()
    assert across.any() == bool(words or notice)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(["Thou art", "me too", ""]), min_size=1, max_size=12), st.sampled_from([1, 2]))
def test_line_breaks_stay_and_the_left_column_is_filled_first(lines, columns):
    # catches: verse that is set as prose, a line that is lost or drawn over another, columns of unequal length
    look = Look(columns=columns)
    image = draw_page("".join(f"{line}\n" for line in lines), "", look)
    rows = inked(np.asarray(image)[:, : look.width // columns], look, 1)
    first = lines[: -(-len(lines) // columns)]
    assert bands(rows) == sum(map(bool, first))


def test_a_long_line_is_wrapped_and_a_long_word_is_cut():
    look = Look(width=300)
    for text in ("in and " * 40, "n" * 200):  # catches: text that runs out of the page
        image = draw_page(text, "", look)
        assert 10 < len(text) / bands(inked(image, look, 1)) < 40
        assert np.flatnonzero(inked(image, look, 0)).max() > 240  # and the column is used


def test_the_notice_stands_below_the_same_text_in_its_own_size():
    # catches: a notice over the text, a notice in the size of the text, a page that differs by more than the notice
    look = Look()
    plain, noticed = (draw_page("Some words here\nand there", one, look) for one in ("", "Copyright 2021"))
    rows = [np.flatnonzero(inked(one, look, 1)) for one in (plain, noticed)]
    assert np.array_equal(np.asarray(plain)[: rows[0].max()], np.asarray(noticed)[: rows[0].max()])
    below = rows[1][rows[1] > rows[0].max()]
    assert 8 <= below.max() - below.min() + 1 <= 13


def test_a_turned_page_loses_no_ink():
    # catches: corners cut off by the turn, a black ground behind the turned page
    words = " ".join(["hamlet"] * 400)
    straight, turned = (np.asarray(draw_page(words, "", Look(angle=angle)), float) for angle in (0, -2))
    assert np.all(np.array(turned.shape) > straight.shape)
    assert (250 - turned).sum() == pytest.approx((250 - straight).sum(), rel=0.1)
    assert abs(turned[0, 0] - 250) < 1


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, (7, 9)))
def test_sixteen_greys_are_near_those_drawn(pixels):
    # catches: a palette in another order, levels that do not reach the darkest ink or the paper, eight bits a pixel
    data = encode_page(Image.fromarray(pixels))
    back = np.asarray(Image.open(io.BytesIO(data)).convert("L"), int)
    low, high = int(pixels.min()), int(pixels.max())
    assert np.abs(back - pixels).max() <= (high - low) / 30 + 0.5
    assert (back.min(), back.max(), data[24]) == (low, high, 4)


def test_a_look_is_a_function_of_seed_and_name():
    # catches: one stream for all names, a range that is never reached
    looks = [vary(3, str(i)) for i in range(60)]
    assert vary(3, "7") == looks[7] != vary(4, "7")
    assert len(set(looks)) == 60
    assert {one.font for one in looks} | {one.columns for one in looks} == {"serif", "sans", "mono", 1, 2}
    assert all(one.paper - one.ink > 100 for one in looks)


def test_without_installed_fonts_pillows_own_is_taken(monkeypatch):
    # catches: a system without DejaVu and Liberation that draws nothing, or in one size only
    monkeypatch.setattr(pages, "_FILES", {"serif": ("no such font.ttf",)})
    for kept in (pages._find_font, pages._text_width):
        kept.cache_clear()
    ink = [(np.asarray(draw_page("words", "", Look(size=size))) < 100).sum() for size in (12, 40)]
    pages._find_font.cache_clear()
    pages._text_width.cache_clear()
    assert 0 < 3 * ink[0] < ink[1]


def test_what_cannot_be_drawn_is_refused():
    # catches: letters of no height, a picture of any size
    with pytest.raises(InputError) as error:
        Look(size=8)
    assert error.value.args == ("Look.size = 8", "int >= 9 and <= 40", "set size to a value inside that range")
    with pytest.raises(InputError) as error:
        draw_page("a\n" * 2000)
    got = "a text that needs a page of 760 x 48,060 pixels"
    assert error.value.args == (got, "at most 33,554,432 pixels", "draw it as several pages")
