"""Checks of mechanics on tracks of known motion, on true clips and on violations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import mannwhitneyu

from physics_floors import through_codec
from upright.contract import InputError
from upright.video.render import draw, film
from upright.video.scenes import KINDS, join, simulate
from upright.video.tracks import Meta, Tracks, find_objects, meta_of, track_colours
from upright.video.verifiers import NEWTON, TOLERANCES, newton, verify
from upright.video.violations import CHEATS, VIOLATIONS

SEED = 8101  # sets no tolerance


def tracks_of(position, radius=(3.0, 3.0), visible=None):
    """Tracks without noise of positions (B, T, K, 2)."""
    shape = position.shape[:3]
    axes = torch.tensor(radius).expand(*shape)[..., None].repeat(1, 1, 1, 2)
    visible = torch.ones(shape, dtype=torch.bool) if visible is None else visible
    none, whole = torch.zeros(shape, dtype=torch.bool), torch.ones(shape)
    position = torch.where(visible[..., None], position, torch.nan)
    area = torch.pi * axes[..., 0] ** 2
    return Tracks(position, area, axes, visible, none, whole * visible, whole.long(), torch.zeros(shape[:2]))


def known(n=1, kind="collision", gravity=(0.0, 0.0), ground=(torch.nan,) * 3, radius=(3.0, 3.0)):
    parts = (torch.tensor(one).expand(n, -1) for one in (radius, gravity, ground))
    radius, gravity, ground = parts
    return Meta(kind=(kind,) * n, radius=radius, mass=radius**2, gravity=gravity, ground=ground)


def head_on(frames=16, time=8.0, gap=0.0, into=1.0, out=1.0, share=1.0):
    """Two equal discs that meet on a line at a time, with a gap left between them, and part at another speed."""
    t = torch.arange(float(frames)) - time
    x = torch.where(t < 0, t * into, -t * out) - 3.0 - gap / 2
    right = torch.where(t < 0, -t * into, t * out * share) + 3.0 + gap / 2
    y = torch.zeros(frames)
    return torch.stack([torch.stack([x, y], -1), torch.stack([right, y], -1)], 1)[None] + 30.0


def ratios(checks):
    return {name: float(one.value[0]) for name, one in checks.items() if bool(one.decided[0])}


def test_a_true_collision_keeps_every_law():
    # catches: a contact that is taken for a fault, a law that holds for one frame rate
    for time in (6.5, 8.0, 9.3):
        values = ratios(verify(tracks_of(head_on(time=time)), known()))
        assert set(values) == set(TOLERANCES) - {"free_fall", "pendulum", "rolling"}
        assert all(value < 1e-4 for value in values.values()), values


def test_each_check_measures_its_own_fault_in_its_own_unit():
    # catches: a factor 2, a window that ends before the fault, a mean where the worst is meant
    faster = verify(tracks_of(head_on(out=1.2)), known())
    assert float(faster["restitution"].value) == pytest.approx(0.2, abs=1e-3)
    assert float(faster["energy"].value) == pytest.approx((1.2**2 - 1) / 2, rel=0.15)
    late = verify(tracks_of(head_on(gap=-2.0)), known())
    assert float(late["contact_time"].value) == pytest.approx(1.0, abs=1e-3)
    assert float(late["overlap"].value) == pytest.approx(2.0, abs=1e-3)
    lame = verify(tracks_of(head_on(share=0.5)), known())
    assert float(lame["momentum"].value) == pytest.approx(0.25, abs=1e-3)
    bent = head_on(time=30.0)
    bent[:, 9:, 0, 1] += 1.5
    assert float(verify(tracks_of(bent), known())["acceleration"].value) == pytest.approx(1.5, abs=1e-3)
    shrunk = tracks_of(head_on())
    shrunk.axes[:, 8:, 1] *= 0.5
    assert float(verify(shrunk, known())["rigidity"].value) == pytest.approx(1.5)


def test_falls_of_another_gravity_are_off_by_its_share():
    # catches: an error that is measured over the context as well, a tolerance that forgets how much was seen
    t = torch.arange(24.0)
    for g, off in ((0.1, 0.0), (0.12, 0.2), (0.05, 0.5)):
        y = 5 + torch.where(t < 4, 0.05 * t**2, 0.8 + 0.4 * (t - 4) + g / 2 * (t - 4) ** 2)
        p = torch.stack([torch.stack([10 + 0.3 * t, y], -1), torch.stack([40 - 0.2 * t, y], -1)], 1)[None]
        checks = verify(tracks_of(p), known(kind="fall", gravity=(0.0, 0.1), ground=(0.0, 1.0, 80.0)))
        assert float(checks["free_fall"].value) == pytest.approx(off, abs=0.02 + 0.2 * off)


def test_a_pendulum_of_another_period_and_a_disc_that_slips_are_measured():
    # catches: angles from another axis, a slip of the wrong sign
    scenes = join([simulate(kind, 8, 8103, size=(64, 64), frames=24) for kind in ("pendulum", "rolling")])
    meta, true = meta_of(scenes), torch.as_tensor(scenes.position, dtype=torch.float32)
    fit = tuple(scenes.radius[0].tolist())
    checks = verify(tracks_of(true, fit), meta)
    assert float(checks["pendulum"].value[:8].max()) < 0.03
    assert float(checks["rolling"].value[8:].max()) < 0.03
    lighter = replace(meta, gravity=meta.gravity * 0.7)
    assert float(verify(tracks_of(true, fit), lighter)["pendulum"].value[:8].min()) > 0.3
    still = true.clone()
    still[8:, :, 1] = true[8:, :, 0] + (true[8:, :1, 1] - true[8:, :1, 0])  # the mark does not turn
    way = (true[8:, -1, 0] - true[8:, 0, 0]).norm(dim=-1)
    assert torch.allclose(verify(tracks_of(still, fit), meta)["rolling"].value[8:], way, rtol=0.02)


@pytest.fixture(scope="module", params=[(32, 16, 60), (64, 24, 20)], ids=["32px", "64px"])
def true(request):
    side, frames, each = request.param
    scenes = join([simulate(kind, each, SEED, size=(side, side), frames=frames) for kind in KINDS])
    meta = meta_of(scenes)
    return scenes, meta, verify(track_colours(film(scenes), meta), meta)


def alarms(checks):
    return torch.stack([one.excess > 0 for one in checks.values()]).any(0)


@pytest.mark.parametrize(("side", "frames"), [(32, 16), (64, 24)])
def test_of_400_true_clips_at_most_12_raise_an_alarm(side, frames):
    # catches: tolerances below what the tracker shows, a law that leaves out contacts or the ground
    found = 0
    for kind in KINDS:
        scenes = simulate(kind, 100, SEED + 4, size=(side, side), frames=frames)
        meta = meta_of(scenes)
        found += int(alarms(verify(track_colours(film(scenes), meta), meta)).sum())
    assert found <= 12


def test_the_reward_is_nought_exactly_where_its_checks_are_kept(true):
    # catches: a reward that counts what is within its tolerance
    _, _, checks = true
    assert float((newton(checks) > 0).float().mean()) <= 0.03
    assert bool(torch.equal(newton(checks) > 0, torch.stack([checks[n].excess > 0 for n in NEWTON]).any(0)))


def test_true_clips_raise_no_alarm_after_h264():
    # catches: tolerances that hold for pictures as they were drawn alone
    scenes = join([simulate(kind, 10, SEED + 1, size=(64, 64), frames=24) for kind in KINDS])
    meta = meta_of(scenes)
    assert float(alarms(verify(track_colours(through_codec(scenes), meta), meta)).float().mean()) <= 0.03


@pytest.mark.parametrize("name", sorted(VIOLATIONS))
def test_a_violation_is_told_from_true_clips_by_its_own_verifier(true, name):
    # catches: a verifier that looks elsewhere, or is undecided where it is needed
    scenes, meta, honest = true
    violation = VIOLATIONS[name]
    clips, rows = violation.make(scenes, violation.bench, seed=3)
    rows = torch.as_tensor(rows)
    checks = verify(track_colours(clips, meta[rows]), meta[rows])
    assert len(rows) > 5
    for verifier in violation.verifiers:
        bad, good = (
            one.excess + one.value.nan_to_num(0.0) / one.tolerance for one in (checks[verifier], honest[verifier])
        )
        auc = mannwhitneyu(bad.numpy(), good[rows].numpy()).statistic / len(rows) ** 2
        assert auc >= 0.95, (verifier, auc)


def test_cheats_cost_more_than_honest_clips(true):
    # catches: a reward for vanishing, freezing, straight lines or a shaken camera
    scenes, meta, honest = true
    own = newton(honest)
    for name, cheat in CHEATS.items():
        cost = newton(verify(track_colours(cheat(scenes), meta), meta))
        share = float((cost > own).float().mean())
        assert share >= (0.9 if name == "do_nothing" else 0.99), (name, share)
        assert name != "vanish" or bool((cost >= 49.9).all())


@pytest.mark.parametrize("way", ["orbit", "tunnel"])
def test_what_happens_at_contacts_is_judged_too(way):
    # catches: a free pass for whoever stays in touch, or changes places between two frames
    scenes = simulate("collision", 24, SEED + 5)
    meta, p = meta_of(scenes), torch.as_tensor(scenes.position, dtype=torch.float32).clone()
    for i, hits in enumerate(scenes.contacts):
        first = int(hits[0].time) + 1
        t = torch.arange(float(p.shape[1] - first))
        share = torch.as_tensor(scenes.mass[i] / scenes.mass[i].sum(), dtype=torch.float32)
        middle = (share[:, None] * p[i]).sum(1)
        apart = p[i, first, 1] - p[i, first, 0]
        turn = 1.2 * t if way == "orbit" else torch.full_like(t, torch.pi)
        turned = torch.stack(
            [apart[0] * turn.cos() - apart[1] * turn.sin(), apart[0] * turn.sin() + apart[1] * turn.cos()], -1
        )
        p[i, first:, 0], p[i, first:, 1] = middle[first:] - share[1] * turned, middle[first:] + share[0] * turned
    kept = torch.tensor([len(hits) > 0 for hits in scenes.contacts])
    clips = draw(p[kept], meta.radius[kept], meta.colour[kept], meta.backdrop[kept])
    cost = newton(verify(track_colours(clips, meta[kept]), meta[kept]))
    assert float((cost > 0.1).float().mean()) > 0.8, cost


def test_a_worse_violation_costs_more(true):
    # catches: a value that only counts frames, one that is flat beyond its tolerance
    scenes, meta, _ = true
    for name in ("penetration", "rod", "slip", "momentum break", "wrong gravity"):
        violation, costs = VIOLATIONS[name], []
        for size in violation.sizes:
            clips, rows = violation.make(scenes, size, seed=3)
            costs.append(float(newton(verify(track_colours(clips, meta[rows]), meta[rows])).mean()))
        assert costs == sorted(costs)
        assert costs[0] < costs[-1]


def test_no_future_decides_which_checks_of_the_reward_are_made(true):
    # catches: a generator that leaves a check undecided by what it draws
    scenes, meta, honest = true
    clips = film(scenes)
    generator = torch.Generator().manual_seed(0)
    clips[:, scenes.context :] = torch.rand(clips[:, scenes.context :].shape, generator=generator)
    checks = verify(track_colours(clips, meta), meta)
    for name in NEWTON:
        assert torch.equal(checks[name].decided, honest[name].decided), name


def test_a_lost_frame_costs_fifty_tolerances_in_each_check():
    # catches: a lost frame that counts nothing because it has no position
    visible = torch.ones(1, 16, 2, dtype=torch.bool)
    visible[:, 10:12, 1] = False
    checks = verify(tracks_of(head_on(time=30.0), visible=visible), known())
    assert float(newton(checks)) == pytest.approx(50 * 2 / 11)
    assert float(checks["permanence"].value) == 1.0
    early = ~visible.roll(-9, 1)
    assert float(newton(verify(tracks_of(head_on(time=30.0), visible=~early), known()))) == 0.0


def test_what_is_not_known_to_be_free_is_not_judged_as_free(true):
    # catches: a bob, a disc on a slope and a mark that are taken for free bodies
    scenes, meta, _ = true
    tracks = track_colours(film(scenes), meta)
    checks = verify(tracks, Meta())
    free = torch.as_tensor([kind in ("collision", "fall") for kind in scenes.kind])
    for name in ("acceleration", "momentum", "energy", "free_fall", "restitution", "contact_time"):
        assert not checks[name].decided[~free].any(), name
    assert float(checks["acceleration"].decided[free].float().mean()) > 0.5
    assert float((newton(checks) > 0.05).float().mean()) <= 0.03
    assert not (checks["pendulum"].decided | checks["rolling"].decided | checks["free_fall"].decided).any()


def test_clips_of_which_nothing_is_known_are_judged_by_what_they_show():
    # catches: true clips that fail the audit of files, violations that pass it
    scenes = simulate("collision", 8, 8104, size=(64, 64), frames=24)
    own = [newton(verify(find_objects(clip), Meta())) for clip in film(scenes)]
    assert max(float(one) for one in own) < 0.2
    for name in ("vanish", "duplicate", "teleport"):
        clips, _ = VIOLATIONS[name].make(scenes, VIOLATIONS[name].bench, seed=3)
        bad = [float(newton(verify(find_objects(clip), Meta()))) for clip in clips]
        assert sum(bad) / len(bad) > 0.5, name


@pytest.mark.parametrize("frame", [0, -1])
def test_what_the_border_cuts_breaks_no_law(frame):
    # catches: a body cut by the border that is taken for one that brakes, shrinks, or is hit by nothing
    scenes = simulate("collision", 70, SEED + 6, size=(64, 64), frames=24)
    broken, motion = 0, 0
    for clip, place in zip(film(scenes), scenes.position, strict=True):
        middle = int(place[frame, :, 0].min())  # of the left one, then, is the new border
        checks = verify(find_objects(clip[:, :, max(middle, 0) :]), Meta())
        broken += any(bool(one.excess > 0) for one in checks.values())
        motion += bool(checks["acceleration"].decided)
    assert broken <= 2
    assert motion >= 20 * -frame


@pytest.mark.parametrize("alike", [False, True])
def test_what_comes_in_over_the_border_may_hit(alike):
    # catches: a hit by a body that the context does not show, which is taken for a fault, or the body for a copy
    t = torch.arange(24.0)[:, None]
    one = (
        torch.tensor([30.0, 20.0])
        + (t - 14).clamp(min=0) * torch.tensor([-2.0, 0.0])
        + 0.6 * t * torch.tensor([0, 1.0])
    )
    into = one[14] + torch.tensor([12.0, 0.0]) - (t - 14).clamp(max=0) * torch.tensor([2.0, 0.0])
    other = torch.tensor([8.0, 56.0]) + t * torch.tensor([1.0, -0.2])
    colour = torch.tensor([[[0.9, 0.1, 0.1], [0.1, 0.1, 0.9], [0.9, 0.1, 0.1] if alike else [0.1, 0.9, 0.1]]])
    place = torch.stack([one, other, into], 1)[None]
    clip = draw(place, torch.full((1, 3), 6.0), colour, torch.full((1, 64, 64, 3), 0.9))[0]
    checks = verify(find_objects(clip), Meta())
    assert bool(checks["acceleration"].decided)
    assert not [name for name, one in checks.items() if bool(one.excess > 0)]


def test_a_lone_body_is_judged_where_its_context_shows_a_free_one():
    # catches: a bob of a pendulum that is taken for a free body, a lone body that may do as it likes
    found = {}
    for kind in ("collision", "pendulum"):
        scenes = simulate(kind, 12, SEED + 7, size=(64, 64), frames=24, context=12, ghost=float(kind == "collision"))
        alone = replace(scenes, radius=scenes.radius * [1.0, 0.0])
        turned = alone.position.copy()
        turned[:, 16:] = 2 * turned[:, 15:16] - turned[:, 16:]
        for name, one in ((kind, alone), ("turned", replace(alone, position=turned))):
            each = [verify(find_objects(clip, context=12), Meta(12))["acceleration"] for clip in film(one)]
            found[kind, name] = [bool(x.excess > 0) for x in each if bool(x.decided)]
    assert len(found["collision", "collision"]) >= 10
    assert not any(found["collision", "collision"])
    assert sum(found["collision", "turned"]) >= 0.5 * len(found["collision", "turned"]) >= 5
    assert not found["pendulum", "pendulum"]
    short = verify(find_objects(film(alone)[0]), Meta())
    assert [name for name, one in short.items() if bool(one.decided)] == ["rigidity", "permanence"]


def test_some_clips_are_judged_as_they_are_among_all(true):
    # catches: a table whose names and functions do not match, a check that looks at other clips of the batch
    scenes, meta, honest = true
    rows = torch.arange(0, len(scenes), 10)
    some = verify(track_colours(film(scenes, rows.numpy()), meta[rows]), meta[rows])
    assert list(some) == list(honest) == list(TOLERANCES)
    for name, one in some.items():
        assert one.name == name
        assert torch.allclose(one.value, honest[name].value[rows], atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("things", [0, 1, 3])
def test_any_number_of_things_can_be_judged(things):
    # catches: pairs that are not there, a maximum over nothing
    t = torch.arange(12.0)[:, None, None]
    start = torch.tensor([[5.0, 5.0], [40.0, 40.0], [5.0, 40.0]])[:things]
    position = (start + t * torch.tensor([1.0, 0.5]))[None]
    checks = verify(tracks_of(position, (3.0,) * things), Meta())
    value = newton(checks)
    assert bool(value.isnan().all()) if things < 2 else float(value) == 0.0  # one thing may be bound
    assert bool(checks["acceleration"].decided.any()) == (things == 3)


def test_wrong_numbers_of_frames_and_kinds_are_refused():
    # catches: a bare index error
    cases = [
        (tracks_of(head_on()), Meta(context=16), "16 frames, 16 of them context"),
        (tracks_of(head_on()), Meta(context=2), "16 frames, 2 of them context"),
        (tracks_of(head_on()), Meta(kind=("fall", "fall")), "1 tracks and 2 kinds"),
    ]
    for tracks, meta, got in cases:
        with pytest.raises(InputError) as error:
            verify(tracks, meta)
        assert error.value.got == got
