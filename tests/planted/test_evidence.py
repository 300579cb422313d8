"""Planted defects of evidence: each check passes on the real code and is red with the defect."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t

from upright.contract import Arm, Metric, UnitScores
from upright.evidence import compute, verdict
from upright.evidence.records import Level
from upright.evidence.units import Block, Units
from upright.maths import resampling, simultaneous

ARMS = (Arm("none", "baseline"), Arm("mine", "remedy"), Arm("easy", "trivial"))


def measure(values, cluster=(), **more):
    """Return the evidence of x (arms, seeds, units) at a margin of 0.01, beside a cost of 0."""
    unit = [f"{u:05d}" for u in range(values.shape[-1])]
    found = [(a, s, {"x": x, "cost": 0 * x}) for a, own in zip(ARMS, values, strict=False) for s, x in enumerate(own)]
    units = Units(Block("run", a.name, s, UnitScores("row", unit, v, cluster=cluster)) for a, s, v in found)
    both = {m: Metric(m) for m in ("x", "cost")}
    return compute.evidence(units, arms=ARMS, statistics=["mean:x", "mean:cost"], metrics=both, draws=400, **more)


def compare(x, label, cluster):
    rng, groups = np.random.default_rng(0), int(label.max()) + 1
    return simultaneous.compare_groups(x.reshape(1, -1, 1), label[None], cluster, groups, rng=rng)


def audit(x, label):
    """Return pairs and verdict of an audit of groups, which are named by their number."""
    named = {"groups": list("012"), "metrics": [Metric("x")], "grouping": "g", "sizes": defaultdict(int)}
    pairs = compute.pair_levels(compare(x, label, np.arange(len(x))), arm="yours", **named)
    return pairs, verdict.audit_verdict("gap shown", pairs)


def three_groups():
    """800 of 2,000 men, 640 of 2,000 women, 13 of 25 others: a sure gap of 8 points, and an unsure one of 20."""
    sizes = (2_000, 2_000, 25)
    x = np.concatenate([np.arange(n) < k for n, k in zip(sizes, (800, 640, 13), strict=True)])
    return x.astype(float), np.repeat(np.arange(3), sizes)


# -- checks -----------------------------------------------------------------------------------------------------------


def a_small_group_hides_no_sure_gap():
    pairs, _ = audit(*three_groups())
    assert "0 minus 1" in [row.group for row in pairs if row.shown]


def the_surest_gap_leads():
    pairs, _ = audit(*three_groups())
    assert max(pairs, key=lambda row: row.value).group == "2 minus 1"
    assert pairs[0].group == "0 minus 1"


def five_units_that_scatter_show_nothing():
    # moves of labels leave a mean of 2 little chance among 200 units of deviation 1; the five could mean anything
    x = np.r_[norm.ppf((np.arange(200) + 0.5) / 200), [-4.0, -1.0, 2.0, 5.0, 8.0]]
    pairs, said = audit(x, np.repeat([0, 1], (200, 5)))
    assert pairs[0].p < 0.05
    assert said.word == "none shown"


def copies_leave_an_interval_as_it_is():
    x, cluster = np.random.default_rng(0).random(60), np.repeat(np.arange(30), 2).astype(str)
    once, twice = (measure(np.tile(x, k)[None, None], np.tile(cluster, k))["levels"][0] for k in (1, 2))
    assert (twice["low"], twice["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-12)


def copies_leave_a_p_as_it_is():
    rng, cluster = np.random.default_rng(0), np.repeat(np.arange(20), 6)
    label = rng.integers(0, 2, 120)
    x = (rng.random(120) < 0.4 + 0.15 * label).astype(float)
    once, twice = (compare(np.tile(x, k), np.tile(label, k), np.tile(cluster, k)) for k in (1, 2))
    assert 0.01 < once.p[0] < 0.5
    assert (twice.p[0], twice.low[0]) == pytest.approx((once.p[0], once.low[0]), abs=1e-12)


def six_seeds_are_as_wide_as_student_says():
    seed = np.array([0.1, 0.3, 0.4, 0.6, 0.7, 0.9])
    row = measure(np.broadcast_to(seed[None, :, None], (1, 6, 20)))["levels"][0]
    half = t.ppf(0.975, 5) * seed.std(ddof=1) / 6**0.5
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)


def a_sure_change_inside_the_margin_is_no_help():
    unit = np.random.default_rng(0).random(100)
    values = np.stack([unit, unit + 0.002, unit])[:, None].repeat(6, axis=1)
    said = measure(values, primary="mean:x", cost="mean:cost")["verdict"]
    assert (said["word"], said["answer"]) == ("no effect that matters", "do not use it")


# -- defects ----------------------------------------------------------------------------------------------------------


def raw_maxima(patch):
    patch.setattr(simultaneous, "_score", lambda value, error: np.nan_to_num(np.abs(value)))


def the_largest_gap_leads(patch):
    real = compute.pair_levels
    patch.setattr(compute, "pair_levels", lambda found, **k: real(replace(found, score=np.abs(found.value)), **k))


def p_alone_decides(patch):
    patch.setattr(Level, "shown", property(lambda self: self.p < 0.05))


def units_for_clusters(patch):
    alone = property(lambda self: np.arange(len(self.units)), lambda self, given: None)
    patch.setattr(Units, "cluster", alone, raising=False)


def labels_permuted_inside_clusters(patch):
    def null(self, stratum, i, j):
        rng, table = np.random.default_rng(0), zip(stratum.count, stratum.sum, strict=True)
        moved = [rng.multivariate_hypergeometric(n.astype(int), int(k.sum()), len(self.signs)) for n, k in table]
        rate = (np.sum(moved, axis=0) / stratum.n)[..., None]  # (P, G, 1)
        gap = rate[:, i] - rate[:, j]
        return gap, gap.std(0), rate.std(0), gap.std(0)[None], np.ones(self.groups, dtype=bool)

    patch.setattr(simultaneous._Moves, "null", null)


def unstretched_parts(patch):
    patch.setattr(resampling, "stretch", lambda n: 1.0)


def any_sure_change_helps(patch):
    real = verdict.effect_of
    patch.setattr(verdict, "effect_of", lambda change: real(change and replace(change, margin=0.0)))


PAIRS = [
    (a_small_group_hides_no_sure_gap, raw_maxima),
    (the_surest_gap_leads, the_largest_gap_leads),
    (five_units_that_scatter_show_nothing, p_alone_decides),
    (copies_leave_an_interval_as_it_is, units_for_clusters),
    (copies_leave_a_p_as_it_is, labels_permuted_inside_clusters),
    (six_seeds_are_as_wide_as_student_says, unstretched_parts),
    (a_sure_change_inside_the_margin_is_no_help, any_sure_change_helps),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
