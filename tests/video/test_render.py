"""Drawing of discs and polygons against areas, samples inside of a pixel, and the order of things."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.video.render import backdrop, draw, film, masks, polygon
from upright.video.scenes import KINDS, join, simulate


@pytest.fixture(scope="module")
def scenes():
    return join([simulate(kind, 10, 201, size=(64, 72), frames=12) for kind in KINDS])


def test_masks_have_the_area_and_the_centre_of_their_discs(scenes):
    # catches: an edge that adds to the radius, a centre half a pixel off, x and y exchanged
    position, radius = torch.as_tensor(scenes.position), torch.as_tensor(scenes.radius)
    alpha = masks(position, radius, (64, 72))
    area = alpha.sum((3, 4))
    error = area / (math.pi * radius**2)[:, None] - 1
    assert error[:, :, 0].abs().max() < 0.01  # of r from 5 px on
    assert error.mean(1).abs().max() < 0.01
    x, y = ((alpha.sum(axis) * torch.arange(side)).sum(3) / area for axis, side in ((3, 72), (4, 64)))
    away = (torch.stack([x, y], -1) - position).abs()
    assert away[:, :, 0].max() < 0.03
    assert away.max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.floats(9, 14), st.floats(9, 14), st.floats(2, 8), st.integers(4, 7), st.sampled_from([-1, 1]))
def test_a_pixel_is_covered_by_its_share_of_a_disc_or_a_polygon(x, y, radius, corners, way):
    # catches: a distance from the corner of a pixel, vertices that must go round one way, an edge two pixels wide
    fine = (torch.arange(24 * 16) + 0.5) / 16 - 0.5 - torch.tensor([[x], [y]])
    across, down = fine[0], fine[1, :, None]
    turns = way * 2 * math.pi * torch.arange(corners)[:, None, None] / corners
    edges = turns.cos() * across + turns.sin() * down  # of a polygon whose sides are so far from its centre
    vertices = radius / math.cos(math.pi / corners) * torch.polar(torch.ones(1), turns[:, 0, 0] + math.pi / corners)
    vertices = torch.view_as_real(vertices)[None] + torch.tensor([x, y])
    disc = masks(torch.tensor([x, y]).reshape(1, 1, 1, 2), torch.tensor([[radius]]), (24, 24))[0, 0, 0]
    drawn = disc, polygon(vertices, (24, 24))[0]
    for alpha, inside in zip(drawn, (across**2 + down**2 < radius**2, edges.amax(0) < radius), strict=True):
        share = inside.float().reshape(24, 16, 24, 16).mean((1, 3))
        assert (alpha - share).abs().max() < (0.15 if alpha is disc else 0.3)


def test_the_later_thing_lies_in_front_and_radius_and_colour_may_change():
    # catches: the order of things, colours of another frame, a thing of radius 0 that leaves a speck
    position, behind = torch.full((1, 3, 2, 2), 8.0), torch.full((1, 17, 17, 3), 0.5)
    colour = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(1, 3, 2, 3).clone()
    colour[:, 2, 1] = torch.tensor([0.0, 0.0, 1.0])
    clip = draw(position, torch.tensor([[[5.0, 3.0], [5.0, 0.0], [0.0, 3.0]]]), colour, behind)[0]
    assert clip[:, 8, 8].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert clip[:, 8, 12].tolist() == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]]
    assert (clip[:, 0] == 0.5).all()


def test_a_clip_does_not_depend_on_those_drawn_with_it(scenes):
    # catches: a backdrop or a colour of another clip where a part ends
    whole = film(scenes)
    assert whole.shape == (40, 12, 64, 72, 3)
    assert (whole.dtype, float(whole.min()) >= 0, float(whole.max()) <= 1) == (torch.float32, True, True)
    for i in (0, 17, 39):
        assert torch.equal(film(scenes, i)[0], whole[i])
    rows = torch.as_tensor(scenes.position).round().long()  # centres of pixels: the front thing is there
    bob = torch.stack([whole[i, t, rows[i, t, 1, 1], rows[i, t, 1, 0]] for i in range(40) for t in range(12)])
    assert torch.allclose(bob, torch.as_tensor(scenes.colour[:, 1]).float().repeat_interleave(12, 0), atol=1e-6)


def test_the_ground_fills_what_is_solid(scenes):
    # catches: ground above the line, none on one side of a slope, a ground in scenes without one
    made, columns, rows = backdrop(scenes), np.arange(72), np.arange(64)[:, None]
    a, b, c = scenes.ground.T[..., None, None]
    depth = torch.as_tensor(a * columns + b * rows - c)
    for where, colour in ((depth > 0.5, scenes.ground_colour), (~(depth > -0.5), scenes.background)):
        wanted = torch.as_tensor(colour).float()[:, None, None].expand_as(made)
        assert torch.allclose(made[where], wanted[where], atol=1e-5)


def test_a_camera_moves_all_that_is_drawn(scenes):
    # catches: a camera that moves the things alone, a sign, x for y
    camera = np.full_like(scenes.camera, [2.0, -3.0])
    moved, still = film(dataclasses.replace(scenes, camera=camera)), film(scenes)
    assert torch.allclose(moved[:, :, :-3, 2:], still[:, :, 3:, :-2], atol=1e-4)


@pytest.mark.parametrize(("x", "radius"), [(math.nan, 3.0), (math.inf, 3.0), (8.0, -1.0), (8.0, math.nan)])
def test_what_cannot_be_drawn_is_refused(x, radius):
    # catches: a clip of NaN
    with pytest.raises(InputError) as caught:
        masks(torch.full((1, 2, 1, 2), x), torch.tensor([[radius]]), (16, 16))
    got = "positions or radii that cannot be drawn"
    assert caught.value.args == (got, "finite positions, radii from 0", "correct them")
