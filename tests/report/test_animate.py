"""Moving pictures of a report: what they show, how large they are, and where they stand still."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from upright import declare
from upright.contract import InputError
from upright.report.build import write_page
from upright.report.kinds import draw
from upright.report.parts import Page, Section
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.video.animate import animate, still

RED, BLUE = (220, 20, 20), (20, 20, 220)


def clip(colour, frames=6, height=24, width=36):
    """A square of one colour that moves by two pixels a frame."""
    found = np.full((frames, height, width, 3), 240, np.uint8)
    for t in range(frames):
        found[t, 4:10, 2 * t : 2 * t + 6] = colour
    return found


def frames_of(data):
    with Image.open(io.BytesIO(data)) as picture:
        found = []
        for t in range(picture.n_frames):
            picture.seek(t)
            found.append(np.asarray(picture.convert("RGB")).astype(int))
        return found, picture.info


def test_clips_stand_where_they_belong_and_move(tmp_path):
    # catches: rows and columns exchanged, one clip in every place, frames in another order, a clip that ends black
    data = animate([[clip(RED), clip(BLUE, 3)], [clip(BLUE) / 255.0]], zoom=2, fps=5)
    frames, info = frames_of(data)
    assert (len(frames), info["loop"], info["duration"]) == (6, 0, 200)
    assert frames[0].shape == (2 * 48 + 3 * 4, 2 * 72 + 3 * 4, 3)
    for t, frame in enumerate(frames):
        for colour, y, x in ((RED, 4, 4 * t), (BLUE, 4, 76 + 4 * min(t, 2)), (BLUE, 56, 4 * t)):
            square = frame[y + 10 : y + 18, x + 6 : x + 14]
            assert np.abs(square - np.array(colour)).mean() < 25
            assert np.abs(frame[y + 40, x + 8] - 240).max() < 15


def test_labels_stand_above_their_columns():
    # catches: labels that cover clips, one that runs into the next
    plain, named = (frames_of(animate([[clip(RED)] * 2], labels=some))[0][0] for some in ((), ("one", "m" * 99)))
    assert named.shape[0] == plain.shape[0] + 16
    assert np.abs(named[16:] - plain).mean() < 3
    dark = (named[:16].min((0, 2)) < 120).nonzero()[0]
    assert dark.min() < 8
    assert named.shape[1] // 2 < dark.max() < named.shape[1]


@pytest.mark.parametrize("most", [300_000, 60_000, 9_000])
def test_no_picture_is_larger_than_it_may_be(most):
    # catches: a page that cannot be sent; frames are dropped before pixels, and the pace is kept
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    data = animate([[noise] * 3], fps=10, most=most)
    frames, info = frames_of(data)
    assert len(data) <= most
    assert len(frames) * info["duration"] == 2400
    assert frames[0].shape[1] == 3 * 128 + 16 or len(frames) <= 8


@pytest.mark.parametrize(
    "rows", [[], [[]], [[clip(RED)[0]]], [[np.zeros((0, 4, 4, 3))]], [[np.full((2, 4, 4, 3), np.nan)]]]
)
def test_what_is_no_clip_is_refused(rows):
    # catches: an empty picture, NaN drawn as black
    with pytest.raises(InputError):
        animate(rows)


def test_a_picture_that_can_never_be_small_is_refused():
    # catches: a loop without an end
    with pytest.raises(InputError, match="at most 40"):
        animate([[clip(RED)]], most=40)


def test_a_page_shows_the_first_frame_where_motion_is_not_wanted(sample, tmp_path):
    # catches: motion for somebody who asked for none, a still that is not counted, one for what does not move
    data = animate([[clip(RED), clip(BLUE)]])
    first = np.asarray(Image.open(io.BytesIO(still(data))).convert("RGB")).astype(int)
    assert np.abs(first - frames_of(data)[0][0]).mean() < 3
    place = sample.run_folder(tmp_path)
    sample.edit(place, sample.noting("in_ucds", clip="a.webp"))
    (place / "artifacts").mkdir(exist_ok=True)
    (place / "artifacts" / "a.webp").write_bytes(data)
    found = draw(declare.Picture("t", "clip"), read_folder(place), Canvas())
    assert found.still.startswith("data:image/webp;base64,")
    assert found.size == len(data) + len(still(data))
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    assert (still(held.getvalue()), still(b"no picture")) == (b"", b"")
    page = write_page(Page("run", "t", "t", [Section("s", "S", [found])]), tmp_path / "page.html").read_text("utf-8")
    assert f'<source media="(prefers-reduced-motion: reduce)" srcset="{found.still}"><img src="{found.source}"' in page
