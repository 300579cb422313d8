"""Values of clips: equal to what can be counted, and the same however the picture is turned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import InputError
from upright.metrics.physics import METRICS, disc_iou, momentum_change, penetration, trajectory_offset

SEEDS = st.integers(0, 10_000)
FRAMES, CONTEXT = 9, 3


def path(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(5, 27, (4, FRAMES, 2, 2))


@given(SEEDS, st.floats(0.0, 6.0))
def test_a_shift_of_generated_frames_is_their_offset(seed, by):
    # catches: frames of the context counted, or a distance per axis
    true = path(seed)
    found = true.copy()
    found[:, CONTEXT:] += by * np.array([0.6, 0.8])
    np.testing.assert_allclose(trajectory_offset(found, true, CONTEXT), by, atol=1e-12)
    found[:, :CONTEXT] += 100.0
    np.testing.assert_allclose(trajectory_offset(found, true, CONTEXT), by, atol=1e-12)


@pytest.mark.parametrize("apart", [0.0, 2.0, 5.0, 7.9, 8.0, 20.0])
def test_iou_of_two_discs_is_that_of_a_fine_grid(apart):
    # catches: a lens of the wrong area, and NaN where discs do not touch
    true = np.zeros((1, 5, 1, 2))
    found = true + np.array([apart, 0.0])
    x, y = np.meshgrid(np.linspace(-6, 26, 1601), np.linspace(-6, 6, 601))
    one, other = x**2 + y**2 <= 16.0, (x - apart) ** 2 + y**2 <= 16.0
    counted = (one & other).sum() / (one | other).sum()
    assert disc_iou(found, true, [[4.0]], 2)[0] == pytest.approx(counted, abs=3e-3)


@given(SEEDS)
def test_free_fall_of_both_changes_no_momentum_and_a_push_on_one_does(seed):
    # catches: gravity taken for a force from nowhere, masses left out
    rng = np.random.default_rng(seed)
    t, mass, g = np.arange(FRAMES)[:, None, None], rng.uniform(1, 9, 2), np.array([0.0, 0.3])
    fall = rng.uniform(5, 27, (2, 2)) + t * rng.uniform(-1, 1, (2, 2)) + 0.5 * t**2 * g
    assert momentum_change(fall, mass, g, CONTEXT) == pytest.approx(0.0, abs=1e-9)
    pushed = fall + 0.5 * t**2 * np.array([[[1.0, 0.0], [0.0, 0.0]]])
    assert momentum_change(pushed, mass, g, CONTEXT) == pytest.approx(mass[0] / mass.sum())


@given(SEEDS)
def test_an_exchange_between_two_bodies_changes_no_momentum(seed):
    # catches: a collision counted as a break
    rng = np.random.default_rng(seed)
    mass, v = rng.uniform(1, 9, 2), rng.uniform(-1, 1, (2, 2))
    push = rng.uniform(-1, 1, 2)
    t = np.arange(FRAMES)[:, None, None]
    bump = np.maximum(t - 5, 0) * push * np.array([1 / mass[0], -1 / mass[1]])[None, :, None]
    assert momentum_change(10.0 + t * v + bump, mass, np.zeros(2), CONTEXT) == pytest.approx(0.0, abs=1e-9)


def test_penetration_is_the_deepest_overlap_of_a_generated_frame():
    # catches: an overlap inside the context, or a gap counted as a negative depth
    p = np.zeros((1, 6, 2, 2))
    p[0, :, 1, 0] = [1.0, 9.0, 9.0, 6.5, 7.0, 30.0]
    assert penetration(p, [[4.0, 3.0]], 1)[0] == pytest.approx(0.5)
    assert penetration(p, [[2.0, 3.0]], 1)[0] == 0.0


def test_bodies_that_change_places_between_two_frames_penetrate():
    # catches: a leap through each other that no frame shows
    p = np.zeros((1, 6, 2, 2))
    p[0, :, 0, 0], p[0, :, 1, 0] = [0, 0, 0, 10, 10, 10], [10, 10, 10, 0, 0, 0]
    assert penetration(p, [[4.0, 4.0]], 1)[0] == pytest.approx(8.0)
    assert penetration(p, [[4.0, 4.0]], 4)[0] == 0.0


def test_what_is_no_path_is_named():
    # catches: axes in another order read as bodies
    with pytest.raises(InputError) as error:
        trajectory_offset(np.zeros((4, 2)), np.zeros((4, 2)), 1)
    got = "positions of shape (4, 2) with 1 frames of context"
    assert (error.value.got, error.value.todo) == (got, "check the shape")
    with pytest.raises(InputError) as error:
        trajectory_offset(path(0), path(0)[:2], CONTEXT)
    assert error.value.got == "positions of shapes (4, 9, 2, 2) and (2, 9, 2, 2)"


def test_every_metric_is_called_by_its_name():
    # catches: a metric that a report looks for in vain
    assert all(name == metric.name for name, metric in METRICS.items())
