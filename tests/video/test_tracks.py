"""Tracks against the states that clips were drawn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.video.render import draw, film
from upright.video.scenes import KINDS, join, simulate
from upright.video.tracks import Meta, find_objects, meta_of, ring, track_colours
from upright.video.verifiers import newton, verify

BACK = torch.full((1, 32, 32, 3), 0.9)
COLOUR = torch.tensor([[[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]]])
RADIUS = torch.tensor([[3.0, 4.0]])
META = Meta(colour=COLOUR, backdrop=BACK, radius=RADIUS)


def moving(frames=12, one=(6.0, 8.0), other=(22.0, 22.0), speed=(1.0, 0.2)):
    t = torch.arange(float(frames))[:, None]
    return torch.stack([torch.tensor(one) + t * torch.tensor(speed), torch.tensor(other).expand(frames, 2)], 1)[None]


def drawn(position, radius=RADIUS, colour=COLOUR, back=BACK):
    return draw(position, radius, colour, back)


@pytest.fixture(scope="module", params=[(32, 16), (64, 24)], ids=["32px", "64px"])
def scenes(request):
    side, frames = request.param
    return join([simulate(kind, 16, 4101, size=(side, side), frames=frames) for kind in KINDS])


def test_centroids_areas_and_axes_are_those_of_the_discs(scenes):
    # catches: x and y swapped, half a pixel off, a threshold that shifts or shrinks, a mark that holes its disc
    meta = meta_of(scenes)
    tracks = track_colours(film(scenes), meta)
    error = (tracks.position - torch.as_tensor(scenes.position)).norm(dim=-1)
    assert float(error.pow(2).mean().sqrt()) < 0.03
    assert float(error.max()) < 0.1
    size = (tracks.area / torch.pi).sqrt()
    assert float((size - meta.radius[:, None]).abs().max()) < 0.06
    assert float((tracks.axes - meta.radius[:, None, :, None])[:, :, 0].abs().max()) < 0.2
    assert tracks.visible.all()
    assert not tracks.border.any()
    assert (tracks.pieces == 1).all()
    assert float(tracks.confidence.min()) > 0.7
    assert float(tracks.background.max()) < 1e-3


def test_a_batch_gives_what_its_clips_give_one_by_one(scenes):
    # catches: clips that are mixed in a chunk, a backdrop that is taken for flat because another is
    meta, clips = meta_of(scenes), film(scenes)
    whole = track_colours(clips, meta)
    for i in (0, 17, 40, 63):
        one = track_colours((clips[i : i + 1] * 255).round().to(torch.uint8).numpy(), meta[[i]])
        assert torch.allclose(one.position, whole[[i]].position, atol=0.02)
        assert torch.allclose(one.area, whole[[i]].area, atol=0.3)


@settings(max_examples=20, deadline=None)
@given(st.integers(-2, 4), st.integers(-2, 4))
def test_a_shift_by_whole_pixels_shifts_positions_by_them(x, y):
    # catches: an origin that depends on the place, centroids pulled to the middle
    position = moving()
    shift = torch.tensor([float(x), float(y)])
    first = track_colours(drawn(position), META)
    second = track_colours(drawn(position + shift), META)
    assert torch.allclose(second.position, first.position + shift, atol=1e-3)
    assert torch.allclose(second.area, first.area, atol=1e-2)


def test_a_thing_at_the_back_is_where_it_is_though_its_edge_is_covered():
    # catches: centroids pushed away at contact, which alarms at every true collision
    position = moving(one=(6.0, 22.0), other=(18.3, 22.0), speed=(0.75, 0.0), frames=8)  # they touch in frame 7
    tracks = track_colours(drawn(position), META)
    assert float((tracks.position - position).norm(dim=-1).max()) < 0.06


def test_a_vanished_thing_is_lost_and_the_other_is_not():
    # catches: a position of noise, NaN that spreads, the order of things
    radius = RADIUS[:, None].repeat(1, 12, 1)
    radius[:, 6:9, 0] = 0
    tracks = track_colours(drawn(moving(), radius), META)
    assert tracks.visible[0, :, 0].tolist() == [True] * 6 + [False] * 3 + [True] * 3
    assert tracks.visible[0, :, 1].all()
    assert tracks.position[0, 6:9, 0].isnan().all()
    assert (tracks.confidence[0, 6:9, 0] == 0).all()
    assert not tracks.position[0, :, 1].isnan().any()


def test_a_mask_that_touches_the_border_is_marked():
    # catches: rows for columns, a border that no half disc reaches
    tracks = track_colours(drawn(moving(one=(20.0, 8.0), speed=(1.0, 0.0))), META)
    assert tracks.border[0, :, 0].tolist() == [x + 3 > 31 for x in range(20, 32)]
    assert not tracks.border[0, :, 1].any()


def test_a_copy_of_a_thing_is_a_second_piece():
    # catches: a mean of two places that passes for one thing
    position = torch.cat([moving(), moving(one=(6.0, 26.0), speed=(0.5, 0.0))[:, :, :1]], 2)
    colour = torch.cat([COLOUR, COLOUR[:, :1]], 1)
    tracks = track_colours(drawn(position, torch.cat([RADIUS, RADIUS[:, :1]], 1), colour), META)
    assert (tracks.pieces[0, :, 0] == 2).all()
    assert (tracks.pieces[0, :, 1] == 1).all()
    assert float(tracks.confidence[0, :, 0].max()) < 0.5


def test_background_is_the_mean_change_outside_of_the_things():
    # catches: a change that is counted inside things, a mean over another number
    clips = drawn(moving())
    clips[:, 7, 28:32, 0:8] -= 0.3
    background = track_colours(clips, META).background[0]
    assert 0.3 * 32 / 1024 < float(background[7]) < 0.3 * 32 / (1024 - 12**2 - 14**2)
    assert float(background[[6, 8]].max()) < 1e-6


def test_without_radii_the_context_says_how_large_a_thing_is():
    # catches: a size of its own for each frame, so that nothing is ever lost or long
    known, found = (track_colours(drawn(moving()), meta) for meta in (META, replace(META, radius=None)))
    assert torch.allclose(known.position, found.position, atol=1e-3)
    assert torch.allclose(known.confidence, found.confidence, atol=0.1)


def test_a_meta_is_indexed_as_its_clips_are():
    # catches: colours of another clip, kinds that stay behind
    scenes = join([simulate(kind, 2, 4103) for kind in KINDS])
    meta = meta_of(scenes)
    part = meta[torch.tensor([6, 1])]
    assert part.kind == ("rolling", "collision")
    assert torch.equal(part.radius, meta.radius[[6, 1]])
    assert meta[torch.arange(8) < 2].kind == ("collision", "collision")


def test_a_ring_is_around_its_thing_in_frames_of_another_size():
    # catches: rows for columns, half a pixel times the scale, a ring over the thing, the colour of another frame
    places = moving()
    tracks = track_colours(drawn(places), META)
    tracks = replace(tracks, visible=tracks.visible & torch.tensor([True, False]))
    frames = ring(np.zeros((12, 128, 128, 3), np.uint8), tracks, [False] * 11 + [True], 4.0)
    for t in range(12):
        y, x = np.nonzero(frames[t, ..., 0] > 128)
        middle = (places[0, t, 0].numpy() + 0.5) * 4 - 0.5
        assert np.abs(np.array([x.mean(), y.mean()]) - middle).max() < 0.7
        assert np.hypot(x - middle[0], y - middle[1]).min() > 4 * 3
        assert (frames[t, y, x, 2] > 128).all() == (t < 11)


def test_bad_clips_are_refused_in_three_parts():
    # catches: a bare traceback, NaN that passes for a lost thing, clips of 0 to 255 as floats
    good = drawn(moving())
    bad = good.clone()
    bad[0, 3, 4, 5, 1] = torch.nan
    cases = [
        (good[0], META, "clips of shape (12, 32, 32, 3)"),
        (good, replace(META, colour=None), "a meta without colours or backdrop"),
        (good.repeat(2, 1, 1, 1, 1), META, "2 clips of 32 x 32 with a backdrop of shape (1, 32, 32, 3)"),
        (bad, META, "clips of float32 with values outside [0, 1] or not finite"),
        (good * 255, META, "clips of float32 with values outside [0, 1] or not finite"),
        ((good * 255).long(), META, "clips of int64 with values outside [0, 1] or not finite"),
    ]
    for clips, meta, got in cases:
        with pytest.raises(InputError) as error:
            track_colours(clips, meta)
        assert error.value.got == got
    for clip, context, got in [
        (good, 5, "clips of shape (1, 1, 12, 32, 32, 3)"),
        (bad[0], 5, "clips of float32 with values outside [0, 1] or not finite"),
        (good[0, :5], 5, "5 frames, 5 of them context"),
    ]:
        with pytest.raises(InputError) as error:
            find_objects(clip, context=context)
        assert error.value.got == got


def test_moving_things_of_unknown_colour_are_found_and_followed():
    # catches: slow things and pivots left in the backdrop, things exchanged when they meet, a mark taken for a thing
    scenes = join([simulate(kind, 8, 4104, size=(64, 64), frames=24) for kind in KINDS])
    for i, clip in enumerate(film(scenes)):
        tracks = find_objects(clip)
        truth = torch.as_tensor(scenes.position[i], dtype=torch.float32)
        assert tracks.position.shape[2] == (1 if scenes.kind[i] == "rolling" else 2)
        assert tracks.visible.all()
        far = (tracks.position[0][:, :, None] - truth[:, None]).norm(dim=-1)
        assert float(far.median(0).values.min(1).values.max()) < 0.5
        assert float(far.amin(2).max()) < 1.5


def _leaves(t):
    return moving(t, one=(20.0, 8.0), speed=(1.5, 0.0)), None


def _merges(t):
    return moving(t, one=(8.0, 22.0), speed=(0.9, 0.0)), None


def _never_moves(t):
    return moving(t, speed=(0.0, 0.0)), None


def _changes_colour(t):
    colour = COLOUR[:, None].repeat(1, t, 1, 1)
    colour[:, 8:, 0] = torch.tensor([0.1, 0.9, 0.1])
    return moving(t), colour


@pytest.mark.parametrize("case", [_leaves, _merges, _never_moves, _changes_colour], ids=lambda f: f.__name__[1:])
def test_foreign_clips_lose_confidence_and_crash_nothing(case):
    # catches: a coasting guess that passes for a thing that was seen, shapes that need two things
    position, colour = case(16)
    clip = draw(position, RADIUS, COLOUR if colour is None else colour, BACK)[0]
    tracks = find_objects(clip)
    value = newton(verify(tracks, Meta()))
    assert value.shape == (1,)
    if case is _never_moves:
        assert tracks.position.shape[2] in (0, 2)
    elif case is _changes_colour:
        assert not tracks.visible[0, 8:].all(1).any()
    else:
        assert float(tracks.confidence[0, 10:].min()) < 0.6


def test_nothing_is_seen_after_a_cut_or_while_the_camera_moves():
    # catches: the new scene taken for things
    generator = torch.Generator().manual_seed(0)
    clip = drawn(moving(16))[0]
    clip[8:] = torch.rand(32, 32, 3, generator=generator)
    assert not find_objects(clip).visible[0, 8:].any()
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16, generator=generator), size=(64, 64))[0]
    pan = torch.stack([texture[:, 8:40, 2 * t : 2 * t + 32].movedim(0, -1) for t in range(16)])
    assert not find_objects(pan).visible.all(1).any()
    assert find_objects(np.zeros((8, 32, 32, 3), np.uint8)).position.shape == (1, 8, 0, 2)
