"""Words from made intervals: every class, every order of precedence, every number of the advice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest

from upright.contract import Arm
from upright.evidence import verdict as v
from upright.evidence.records import Difference, Level, Null

GAP, MEANS, COST, NAN = "abs_gap:ndcg@10:activity", "mean:ndcg@10:activity", "mean:ndcg@10", math.nan
ARMS = tuple(
    Arm(name, role, title=title)  # type: ignore[arg-type]
    for name, role, title in (
        ("none", "baseline", "no remedy"), ("mine", "remedy", "Mine"), ("easy", "trivial", "the easy way"),
        ("sham", "placebo", "a sham"), ("peer", "rival", "Peer"),
    )
)  # fmt: skip
# gains (value, low, high) at a margin of 0.01
CLEAR, PRESENT, NONE = (0.05, 0.03, 0.07), (0.02, 0.005, 0.03), (0.001, -0.005, 0.008)
OPEN, WORSE, LOST = (0.015, -0.01, 0.04), (-0.05, -0.07, -0.03), (NAN, NAN, NAN)
FREE, DEAR, UNSURE, GAINS = (-0.001, -0.004, 0.002), (-0.03, -0.04, -0.02), (-0.005, -0.02, 0.01), (0.02, 0.01, 0.03)
NULL = Null(0.01, 0.0, 0.03)
START = Level(statistic=GAP, arm="none", label="Gap", value=0.1, low=0.08, high=0.12, p=0.01, null=NULL)
QUIET = dataclasses.replace(START, low=-0.01, high=0.2, p=0.3, smallest_detectable=0.15)


def diff(gain: Any, statistic: str = GAP, against: str = "none", **more: Any) -> Difference:
    """Return a difference of a gain; gaps and leaks are better when lower."""
    more = {"direction": "higher" if statistic.startswith("mean:") else "lower", "margin": 0.01, "arm": "mine"} | more
    value, low, high = gain if more["direction"] == "higher" else (-gain[0], -gain[2], -gain[1])
    return Difference(statistic=statistic, against=against, value=value, low=low, high=high, **more)


def judge(
    effect: Any = CLEAR, easy: Any = CLEAR, sham: Any = CLEAR, cost: Any = FREE, peer: Any = None, *, seeds: int = 6,
    arms: Any = ARMS, primary: str = GAP, start: Level = START, left: float = 0.02, point: float = 0.05,
    extra: Any = (), more: Any = (), **rest: Any,
) -> v.Verdict:  # fmt: skip
    """Judge a run from gains; controls and the rival help by themselves unless `extra` says otherwise."""
    rows = [diff(effect, primary), *extra, *([diff(cost, COST)] if cost else [])]
    rows += [diff(gain, primary, name) for name, gain in (("easy", easy), ("sham", sham)) if gain]
    levels = [start, Level(statistic=primary, arm="mine", value=left, null=NULL), *more]
    levels += [Level(statistic=primary, arm=name, value=point) for name in ("easy", "sham", "peer", "hull")]
    levels += [Level(statistic=COST, arm=a, label="NDCG@10", value=x) for a, x in (("none", 0.3), ("mine", 0.299))]
    rivals = {"peer": (diff(peer[0], primary, "peer"), diff(peer[1], COST, "peer"))} if peer else {}
    return v.verdict(levels, rows, arms, primary=primary, cost=COST, title="Mine", seeds=seeds, rivals=rivals, **rest)


@pytest.mark.parametrize("direction", ["higher", "lower"])
@pytest.mark.parametrize(
    ("gain", "margin", "word"),
    [
        (CLEAR, 0.01, "clear"), (PRESENT, 0.01, "present"), (NONE, 0.01, "none"), (OPEN, 0.01, "undecided"),
        (WORSE, 0.01, "worse"), (LOST, 0.01, "undefined"), ((0.1, 0.0, math.inf), 0.01, "undefined"),
        ((0.02, 0.01, 0.03), 0.01, "present"),  # an end on the margin is not beyond it
        ((0.00015, 0.0001, 0.0002), 0.01, "none"),  # [-0.0002, -0.0001] where lower is better
        ((0.01, -0.01, 0.01), 0.01, "none"),  # the ends belong to the margin
        ((0.008, 0.001, 0.015), 0.01, "undecided"),  # 0 is excluded, the point is inside the margin
        ((-0.008, -0.015, -0.001), 0.01, "none"), ((-0.02, -0.05, 0.005), 0.01, "none"),  # no gain that matters
        ((-0.02, -0.05, 0.011), 0.01, "undecided"), ((-0.02, -0.05, -0.001), 0.01, "worse"),
        (WORSE, 0.0, "worse"), ((1e-13, 1e-14, 2e-13), 0.0, "none"), ((1e-11, 5e-12, 2e-11), 0.0, "clear"),
    ],
)  # fmt: skip
def test_every_interval_has_its_effect(gain: Any, margin: float, word: str, direction: str) -> None:
    assert v.effect_of(diff(gain, margin=margin, direction=direction)) == word
    assert v.effect_of(diff(gain, margin=margin, direction="none")) == "undefined"


@pytest.mark.parametrize(
    ("gain", "budget", "word"),
    [
        (GAINS, 0.0, "gains too"), ((0.005, 0.001, 0.009), 0.01, "within budget"), (FREE, 0.01, "within budget"),
        ((-0.005, -0.008, -0.002), 0.01, "within budget"),  # a sure, small loss
        (DEAR, 0.01, "costs"), (DEAR, 0.04, "within budget"), (DEAR, 0.0399, "costs"), (UNSURE, 0.01, "undecided"),
        (LOST, 0.01, "not measured"),
    ],
)  # fmt: skip
def test_every_interval_has_its_price(gain: Any, budget: float, word: str) -> None:
    assert v.price_of(diff(gain, COST), budget) == word


@pytest.mark.parametrize(
    ("effect", "cost", "word"),
    [
        (CLEAR, FREE, "dominates"), (NONE, GAINS, "dominates"), (CLEAR, UNSURE, "not told apart"),
        (WORSE, FREE, "dominated"), (NONE, DEAR, "dominated"), (WORSE, (0.0, -0.1, 0.1), "not told apart"),
        (CLEAR, DEAR, "trade-off"), (WORSE, GAINS, "trade-off"), (NONE, FREE, "tie"), (OPEN, FREE, "not told apart"),
        ((-0.02, -0.05, 0.005), FREE, "not told apart"),  # that no gain is possible is no tie
        (CLEAR, LOST, "not told apart"), (NONE, LOST, "not told apart"), (WORSE, LOST, "not told apart"),
    ],
)  # fmt: skip
def test_rivals_stand_on_both_axes(effect: Any, cost: Any, word: str) -> None:
    assert v.rival_of(diff(effect), diff(cost, COST)) == word
    turned = [(-gain[0], -gain[2], -gain[1]) for gain in (effect, cost)]  # seen from the rival
    other = {"dominates": "dominated", "dominated": "dominates"}
    assert v.rival_of(diff(turned[0]), diff(turned[1], COST)) == other.get(word, word)


BUSY, IDLE = diff((-0.04, -0.06, -0.02), f"{MEANS}=busy"), diff((0.01, 0.0, 0.02), f"{MEANS}=idle")
SERVED = [Level(statistic=MEANS, arm="none", group=g, value=x) for g, x in (("idle", 0.2), ("busy", 0.3))]
DOWN: dict[str, Any] = {"extra": [BUSY, IDLE], "more": SERVED}
BEST: dict[str, Any] = {"peer": (WORSE, FREE)}
EASY, MEND, FLAT = "helps, but so does the easy way", "nothing shown to mend", "no effect that matters"
SO_FAR, PRICE, BEATEN = "so far: works", "works, at a price of at most", "helps, not shown to beat the easy way"


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({}, "works"), ({"effect": PRESENT, "cost": GAINS}, "works"), ({"cost": DEAR, "budget": 0.05}, "works"),
        ({"cost": DEAR}, f"{PRICE} 0.040 of NDCG@10"), ({"cost": UNSURE}, f"{PRICE} 0.020 of NDCG@10"),
        ({"easy": NONE}, EASY), ({"easy": WORSE, "sham": NONE}, f"{EASY} and a sham"),
        ({"easy": OPEN}, BEATEN), ({"easy": OPEN, "sham": NONE}, "helps, but so does a sham"),
        # what is not beaten, and does not help by itself
        ({"easy": NONE, "extra": [diff(NONE, arm="easy")]}, BEATEN),
        ({"effect": NONE}, FLAT), ({"effect": OPEN}, "undecided"),
        ({"effect": LOST}, "incomplete (effect not measured), so far: undecided"),
        ({"effect": LOST, "start": dataclasses.replace(QUIET, value=NAN, p=NAN)},
         "incomplete (effect not measured), so far: undecided"), ({"effect": LOST, "start": QUIET}, MEND),
        ({"easy": (-0.03, -0.2, 0.008)}, BEATEN),  # no gain, which is no tie

        ({"effect": WORSE}, "backfires"), ({"start": QUIET}, MEND), (DOWN, "levels down"),
        # nothing shown to mend unless it backfires
        ({"start": QUIET, "effect": WORSE}, "backfires"), ({"start": QUIET, "effect": OPEN}, MEND),
        ({"start": QUIET, "effect": NONE}, MEND), (DOWN | {"start": QUIET}, MEND),
        # then by the effect; among effects that are shown: levels down, helps, works
        (DOWN | {"easy": NONE}, "levels down"), (DOWN | {"effect": OPEN}, "undecided"),
        (DOWN | {"effect": WORSE}, "backfires"), ({"easy": NONE, "cost": DEAR}, EASY),
        # incomplete: few seeds before every word, a control or the price before the two works alone
        ({"seeds": 5}, f"incomplete (5 of 6 seeds), {SO_FAR}"),
        ({"cost": None}, f"incomplete (price not measured), {SO_FAR}"),
        ({"seeds": 3, "effect": WORSE}, "incomplete (3 of 6 seeds), so far: backfires"),
        ({"seeds": 1, "start": QUIET}, f"incomplete (1 of 6 seeds), so far: {MEND}"),
        ({"sham": None}, f"incomplete (a sham not run), {SO_FAR}"),
        ({"sham": LOST}, f"incomplete (a sham not run), {SO_FAR}"),
        ({"sham": None, "cost": DEAR, "seeds": 2},
         f"incomplete (2 of 6 seeds, a sham not run), so far: {PRICE} 0.040 of NDCG@10"),
        ({"not_run": ["hull"]}, f"incomplete (hull not run), {SO_FAR}"),
        ({"not_run": ["sham", "peer"]}, f"incomplete (a sham not run), {SO_FAR}"),
        ({"arms": ARMS[:2]}, f"incomplete (any control not run), {SO_FAR}"),
        ({"sham": None, "cost": None, "easy": NONE}, EASY), ({"sham": None, "cost": None, "effect": NONE}, FLAT),
        ({"sham": None, "effect": OPEN}, "undecided"), (DOWN | {"sham": None}, "levels down"),
        # a rival that does better is named, unless it does not help by itself, or there is nothing to mend
        (BEST, "works; Peer does better"), (BEST | {"effect": NONE}, f"{FLAT}; Peer does better"),
        (BEST | {"sham": None}, f"incomplete (a sham not run), {SO_FAR}; Peer does better"),
        (BEST | {"extra": [diff(OPEN, arm="peer")]}, "works"), (BEST | {"point": 0.095}, "works"),
        (BEST | {"start": QUIET}, MEND), ({"peer": (WORSE, GAINS)}, "works"), ({"peer": (CLEAR, FREE)}, "works"),
    ],
)  # fmt: skip
def test_every_word_and_every_order(given: Any, title: str) -> None:
    said = judge(**given)
    assert said.title == title
    core = title.rpartition("so far: ")[2].partition(";")[0]
    assert core.startswith(said.word.partition(",")[0])
    assert ("price" in core) == (said.word == "works, at a price")
    assert said.works == title.startswith("works")
    assert bool(said.incomplete) == title.startswith("incomplete")
    unknown = said.incomplete or said.word == "undecided"
    assert said.answer == ("not known yet" if unknown else "use it" if said.works else "do not use it")
    assert (said.colour == "open") == bool(unknown)
    assert 1 <= len(said.next_steps) <= 3


def test_every_combination_has_one_word_that_its_classes_allow() -> None:
    gains, seen = [CLEAR, PRESENT, NONE, OPEN, WORSE, LOST], set()
    controls, prices = [*gains[:5], None], [FREE, DEAR, UNSURE, GAINS, None]
    every = itertools.product(gains, controls, controls, prices, (5, 6), (START, QUIET), ({}, DOWN))
    for effect, easy, sham, cost, seeds, start, down in every:
        said = judge(effect, easy, sham, cost, seeds=seeds, start=start, **down)
        seen.add(said.word)
        beaten = all(x in (CLEAR, PRESENT, None) for x in (easy, sham))
        word = (
            "backfires" if effect is WORSE else MEND if start is QUIET else FLAT if effect is NONE else "undecided"
            if effect in (OPEN, LOST) else "levels down" if down else "helps, but so does" if not beaten
            else "works, at a price" if cost in (DEAR, UNSURE) else "works"
        )  # fmt: skip
        assert said.word == word
        complete = seeds == 6 and not (word.startswith("works") and None in (easy, sham, cost))
        complete = complete and not (word == "undecided" and effect is LOST)
        assert bool(said.incomplete) == said.title.startswith("incomplete") == (not complete)
        assert said.works == (word.startswith("works") and complete) == (said.answer == "use it")
    assert seen == set(v.WORDS)


def test_seeds_are_those_at_which_both_arms_have_a_value() -> None:
    for given in ({"effect": diff(CLEAR, n_seeds=1)}, {"effect": diff(CLEAR), "price": diff(FREE, COST, n_seeds=1)}):
        rows = [
            given["effect"],
            given.get("price", diff(FREE, COST)),
            diff(CLEAR, GAP, "easy"),
            diff(CLEAR, GAP, "sham"),
        ]
        said = v.verdict([START], rows, ARMS, primary=GAP, cost=COST, title="Mine", seeds=6)
        assert said.title == f"incomplete (1 of 6 seeds), {SO_FAR}"


def test_what_is_written_as_the_break_even_budget_is_enough() -> None:
    price = (-0.0142, -0.01704, -0.0114)
    said = judge(cost=price)
    assert said.breakeven == pytest.approx(0.01704)
    assert "at most 0.018" in said.title
    assert judge(cost=price, budget=0.018).title == judge(cost=price, budget=said.breakeven).title == "works"
    assert judge(cost=price, budget=0.017).word == "works, at a price"
    assert judge(cost=GAINS).breakeven == 0
    assert judge(cost=None).breakeven is None


def test_a_control_matched_on_the_primary_is_compared_on_the_cost() -> None:
    hull = Arm("hull", "trivial", title="the hull", mix=("none", "sham"))
    same = diff((0.0, -0.001, 0.001), GAP, "hull")  # equal on the primary, as it was made

    def title(gain: Any, **more: Any) -> str:
        return judge(arms=(*ARMS, hull), extra=[same, *([diff(gain, COST, "hull", **more)] if gain else [])]).title

    assert title(GAINS) == "works"
    assert title(GAINS, margin=0.05) == "helps, but so does the hull"  # the margin of the cost
    assert title(OPEN) == "helps, not shown to beat the hull"
    assert title(None) == "incomplete (the hull not run), so far: works"
    assert judge(arms=(*ARMS, dataclasses.replace(hull, mix=None)), extra=[same]).title == "helps, but so does the hull"


def test_controls_and_rivals_are_sorted() -> None:
    assert judge().lines["due"] == "beats 2 of 2 controls"
    said = judge(easy=NONE, sham=OPEN, not_run=["hull"]).lines["due"]
    assert said == "beats 0 of 2 controls that ran; ties with the easy way; not told apart from a sham; hull not run"
    assert judge(easy=WORSE).lines["due"] == "beats 1 of 2 controls; loses to the easy way"
    assert judge().lines["rivals"] == "Peer not run"
    assert judge(arms=ARMS[:4]).lines["rivals"] == "none run"
    assert judge(**BEST).lines["rivals"] == "dominated by Peer"
    weak = [diff(NONE, arm="peer")]
    assert judge(peer=(NONE, FREE), extra=weak).lines["rivals"] == "tie with Peer, which does not help by itself"
    assert (
        judge(peer=(OPEN, FREE)).lines["rivals"]
        == "not told apart from Peer (effect: undecided; cost: equal within the margin)"
    )


@pytest.mark.parametrize(
    ("gain", "share", "said"),
    [
        ((0.015, -0.01, 0.04), 0.2, "about 4 times the units"),  # 1.1 (0.025 / 0.015)^2 = 3.06: beyond the margin, to 0
        ((0.004, -0.01, 0.018), 0.9, "about 6 times the seeds"),  # 1.1 (0.014 / 0.006)^2 = 5.99: inside, to the margin
        ((-0.005, -0.03, 0.02), NAN, "about 4 times the seeds or units"),  # 1.1 (0.025 / 0.015)^2 = 3.06
        ((0.0, -0.03, 0.03), 0.5, "about 10 times the units"),  # 1.1 (0.03 / 0.01)^2 = 9.9
        ((0.0, -0.0302, 0.0302), 0.5, "more than 10 times the units"),  # 10.03
        ((0.01, -0.02, 0.04), 0.5, "more than 10 times the units"),  # the point is on the margin
        ((0.011, -0.0001, 0.0111), 0.5, "about 2 times the units"),  # 0.29, but once has not been enough
    ],
)
def test_how_much_more_data_would_decide(gain: Any, share: float, said: str) -> None:
    rows = [diff(gain, seed_share=share)]
    step = v.verdict([START], rows, ARMS, primary=GAP, cost=COST, title="Mine", seeds=6).next_steps[0]
    assert said in step
    assert ("change the setting" in step) == ("more than" in said)


@pytest.mark.parametrize(
    ("cost", "budget", "said"),
    [
        (UNSURE, 0.01, "about 10 times"),  # from -0.005 to -0.01, half of the interval 0.015: 1.1 x 9 = 9.9
        (UNSURE, 0.013, "about 4 times"),  # 1.1 (0.015 / 0.008)^2 = 3.87
        (DEAR, 0.025, "about 5 times"),  # 1.1 (0.01 / 0.005)^2 = 4.4
        (DEAR, 0.01, "too dear"), (DEAR, 0.0199, "too dear"),  # the whole interval is beyond
    ],
)  # fmt: skip
def test_how_much_more_data_would_decide_on_the_price(cost: Any, budget: float, said: str) -> None:
    assert said in judge(cost=cost, budget=budget).next_steps[0]


def test_advice_by_word() -> None:
    steps = judge(left=0.05).next_steps
    assert [step.split(" ")[0] for step in steps] == ["Take", "0.050", "Compare"]
    assert len(judge(left=0.03, peer=(CLEAR, FREE)).next_steps) == 1  # nothing is left beyond chance, and a rival ran
    assert "Peer" in judge(**BEST).next_steps[0]
    assert "the easy way" in judge(easy=NONE, sham=NONE).next_steps[0]
    assert judge(sham=NONE).next_steps[0] == "Do not use Mine."  # a placebo is nothing to take
    assert "about 4 times" in judge(easy=OPEN).next_steps[0]
    assert "0.150" in judge(start=QUIET).next_steps[0]
    assert "0.008" in judge(NONE).next_steps[0]
    assert "busy" in judge(**DOWN).next_steps[0]
    assert judge(sham=None, seeds=3).next_steps == ("Run at least 6 seeds.", "Run a sham.")
    simple = (*ARMS[:4], dataclasses.replace(ARMS[4], simpler=True))
    named = [any("Peer" in x for x in judge(peer=(x, FREE), arms=simple).next_steps) for x in (OPEN, NONE, CLEAR)]
    assert named == [True, True, False]
    assert not any("Peer" in step for step in judge(peer=(OPEN, FREE)).next_steps)
    easy = (*ARMS[:2], dataclasses.replace(ARMS[2], simpler=True), *ARMS[3:])
    for cost, advised in ((UNSURE, True), (GAINS, False)):  # what the easy way costs more than the remedy
        said = judge(NONE, easy=OPEN, arms=easy, extra=[diff(cost, COST, "easy")])
        assert any("is simpler" in step for step in said.next_steps) is advised


@pytest.mark.parametrize(
    ("easy", "peer", "seeds", "steps"),
    [
        (WORSE, (-0.02, -0.03, -0.011), 6, ("Take the easy way instead.",)),
        ((-0.02, -0.03, -0.011), WORSE, 6, ("Take Peer rather than Mine.",)),
        (WORSE, (-0.02, -0.03, -0.011), 3, ("Run at least 6 seeds.",)),
        (WORSE, CLEAR, 6, ("Take the easy way instead.",)),  # a rival that does not do better
    ],
)
def test_of_two_arms_to_take_one_is_said(easy: Any, peer: Any, seeds: int, steps: Any) -> None:
    # catches: "Take Peer rather than Mine. Take the easy way instead."
    beside = [diff(peer, against="peer")]
    assert judge(easy=easy, peer=(peer, FREE), seeds=seeds, extra=beside).next_steps == steps


def test_a_number_below_nothing_keeps_its_sign() -> None:
    lines = judge((-0.0004, -0.001, 0.0002)).lines["effect"]
    assert "+0.000 [-0.000, +0.001]" in lines  # of a gap, which grew by 0.0004


@pytest.mark.parametrize("direction", ["higher", "lower"])
@pytest.mark.parametrize(
    ("idle", "busy", "word"),
    [
        (0.03, -0.02, "works"), (0.02, -0.02, "works"), (0.019, -0.02, "levels down"),  # half is lifting: not down
        (0.0, -0.009, "works"), (-0.02, -0.06, "levels down"), (0.02, 0.01, "works"),
    ],
)  # fmt: skip
def test_levelling_down(idle: float, busy: float, word: str, direction: str) -> None:
    moved = {"idle": idle, "third": 0.0, "busy": busy}
    rows = [diff((x, x, x), f"{MEANS}={group}", direction=direction) for group, x in moved.items()]
    start = zip(moved, (0.2, 0.25, 0.3) if direction == "higher" else (0.3, 0.25, 0.2), strict=True)
    served = [Level(statistic=MEANS, arm="none", group=group, value=x) for group, x in start]
    said = judge(extra=rows, more=served)
    assert said.word == word
    assert f"{max(idle, 0):.3f} by lifting idle, {max(-busy, 0):.3f} by lowering busy" in said.lines["effect"]
    assert judge(extra=rows).word == "works"  # nobody knows who was worst off
    assert judge(extra=[dataclasses.replace(row, direction="none") for row in rows], more=served).word == "works"


@pytest.mark.parametrize(
    ("start", "mendable"),
    [
        ({}, True), ({"p": 0.05}, False), ({"low": 0.0}, False), ({"null": None, "p": 0.9}, True),
        ({"low": 0.002, "high": 0.01}, False), ({"low": 0.002, "high": 0.011}, True),  # shown, inside the margin or not
        ({"p": NAN}, True), ({"p": NAN, "value": 0.03}, False), ({"p": NAN, "low": -0.01}, False),
    ],
)  # fmt: skip
def test_what_is_there_to_mend(start: Any, mendable: bool) -> None:
    assert judge(start=dataclasses.replace(START, **start)).word == ("works" if mendable else MEND)
    more = dataclasses.replace(START, statistic="mean:recall@10", **start)  # where more is better, nothing is a fault
    assert judge(start=more, primary="mean:recall@10").word == "works"


def test_lines_and_sentence_give_the_numbers() -> None:
    rate, cost = "disparity:rate:sex", "mean:accuracy"
    values = ((rate, "none", 0.10178), (rate, "mine", 0.01742), (cost, "none", 0.845), (cost, "mine", 0.8308))
    names = {rate: "Gap", cost: "Accuracy"}
    levels = [dataclasses.replace(START, statistic=s, arm=a, value=x, label=names[s], p=0.001 if a == "none" else 0.4)
              for s, a, x in values]  # fmt: skip
    gains = {rate: (0.08436, 0.04667, 0.12), cost: (-0.0142, -0.017, -0.0114)}
    gains |= {f"{cost}:sex=Male": (-0.002, -0.003, 0.0), f"{cost}:sex=Female": (-0.03, -0.04, -0.02)}
    rows = [diff(gain, statistic) for statistic, gain in gains.items()]
    said = v.verdict(levels, rows, ARMS, primary=rate, cost=cost, title="Mine", seeds=6)
    assert said.sentence == "Gap 0.102 -> 0.017 (-83 %); accuracy 0.845 -> 0.831."
    assert said.lines["effect"].startswith(
        "clear: 0.102 -> 0.017 (-83 %), -0.084 [-0.120, -0.047]; what is left is inside chance"
    )
    assert "Female -0.030 [-0.040, -0.020]" in said.lines["effect"]  # rates have no better side: who pays stands there
    line = said.lines["price"]
    assert line.startswith("costs: accuracy -0.014 [-0.017, -0.011]; the budget was 0.01, and one of 0.017 would cover")
    assert line.endswith("of the groups Female loses most, -0.030")
    rows[3] = dataclasses.replace(rows[3], value=-0.0141)  # beyond the margin, and not below the mean
    assert "loses most" not in v.verdict(levels, rows, ARMS, primary=rate, cost=cost, title="", seeds=6).lines["price"]
    for value in (-0.009, -0.011):
        line = judge(extra=[diff((value, -0.1, 0.1), f"{MEANS}=idle")]).lines["price"]
        assert ("of the groups idle loses most" in line) == (value < -0.01)
    assert "%" not in judge(start=dataclasses.replace(START, value=0.009)).sentence  # of next to nothing
    assert "at best 0.040 better, at worst 0.010 worse" in judge(OPEN).lines["effect"]
    assert "at worst 0.001 better" in judge((0.008, 0.001, 0.015)).lines["effect"]
    assert "up to 0.050 worse is not excluded" in judge((-0.02, -0.05, 0.005)).lines["effect"]
    assert "what is left is more than chance explains" in judge(left=0.05).lines["effect"]
    levels[1] = dataclasses.replace(levels[1], p=0.001, null=Null(0.1, 0.0, 0.2))  # of one small group
    said = v.verdict(levels, rows, ARMS, primary=rate, cost=cost, title="Mine", seeds=6)
    assert "what is left is more than chance explains" in said.lines["effect"]


def test_what_was_given_after_the_run_is_marked_beside_what_was_declared() -> None:
    said = judge(NONE, margins_given={GAP: 0.0005}, budget=0.002)
    assert (said.margin, said.declared_margin, said.budget, said.declared_budget) == (0.0005, 0.01, 0.002, 0.01)
    assert said.word == "undecided"
    for text in (said.lines["effect"], said.sentence):
        assert "margin 0.0005 given after the run (declared 0.01)" in text
    assert "budget 0.002 given after the run (declared 0.01)" in said.lines["price"]
    assert judge(**BEST, margins_given={GAP: 0.08}).lines["rivals"].startswith("tie")
    assert "given" not in judge().sentence + judge(budget=0.02, declared_budget=0.02).sentence


def pair(value: float, low: float, high: float, p: float = 0.01, group: str = "a minus b") -> Level:
    return Level(statistic="gap:rate:sex", arm="yours", label=f"Rate: {group}", group=group, value=value, low=low,
                 high=high, p=p, smallest_detectable=0.07)  # fmt: skip


BIG, FAINT, WIDE = pair(0.1, 0.05, 0.15), pair(0.004, 0.001, 0.008, group="c minus d"), pair(0.1, 0.0, 0.2, p=0.06)
OPEN_ = "not known yet"


@pytest.mark.parametrize(
    ("pairs", "given", "title", "answer", "says"),
    [
        ([BIG], {}, "gap shown", "mend it", "0.100 [0.050, 0.150]"),
        ([BIG], {"margin": 0.14}, "gap shown", "mend it", "higher for a"),
        ([BIG], {"margin": 0.15}, "none that matters", "fine", "up to 0.150"),
        ([FAINT, BIG], {"margin": 0.01}, "gap shown", "mend it", "also shown: Rate: c minus d"),
        ([WIDE], {}, "none shown", OPEN_, "up to 0.200"),
        ([WIDE], {"margin": 0.2}, "none shown", "fine", "up to 0.200"),
        ([pair(0.1, 0.05, 0.15, p=0.05)], {}, "none shown", OPEN_, "up to 0.150"),  # shown needs both
        ([pair(0.1, -0.05, 0.15)], {}, "none shown", OPEN_, "up to 0.150"),
        ([WIDE], {"margin": 0.2, "too_small": [("e", 0.31)]}, "none shown", OPEN_, "e is too small to judge"),
        ([FAINT, WIDE], {"margin": 0.01}, "none that matters", OPEN_, "up to 0.200"),
        ([WIDE], {"unmeasured": ["odds of b"]}, "none shown in what can be measured", OPEN_, "odds of b"),
        ([FAINT], {"unmeasured": ["x"], "margin": 0.01}, "none that matters in what can be measured", OPEN_, "x"),
        ([BIG], {"unmeasured": ["x"]}, "gap shown", "mend it", "x cannot"), ([], {}, "measured", OPEN_, "Nothing"),
        ([pair(0.1, 0.05, 0.15, p=NAN)], {}, "measured", OPEN_, "0.100"),
        ([BIG], {"ratio": (0.79, "b over a")}, "gap shown", "mend it", "0.79 (b over a), below four fifths"),
        ([pair(-0.1, -0.15, -0.05)], {}, "gap shown", "mend it", "higher for b"),
    ],
)  # fmt: skip
def test_verdicts_of_audits(pairs: Any, given: Any, title: str, answer: str, says: str) -> None:
    said = v.audit_verdict("gap shown", pairs, unit="row", **given)
    assert (said.title, said.answer) == (title, answer)
    assert says in said.sentence == said.lines["effect"]
    assert said.word in v.AUDIT_WORDS
    assert said.word == ("measured" if "in what can" in title else title)  # never a clean word where parts are missing
    assert said.colour == "open" or answer != "not known yet"
    assert 1 <= len(said.next_steps) <= 3


def test_audits_of_leaks_and_of_forgetting() -> None:
    assert v.audit_verdict("leak shown", [BIG]).word == "leak shown"
    assert v.audit_verdict("still known", [BIG]).word == "still known"
    both = [pair(0.3, 0.2, 0.4), pair(-0.1, -0.15, -0.05)]
    assert v.audit_verdict("still known", both).word == "still known"
    assert "higher" not in v.audit_verdict("gap shown", [pair(0.0, -0.1, 0.1, p=1.0)]).sentence  # nobody is favoured
    assert "four fifths" not in v.audit_verdict("gap shown", [BIG], ratio=(0.32 / 0.4, "b over a")).sentence
    assert "four fifths" in v.audit_verdict("gap shown", [BIG], ratio=(0.799, "b over a")).sentence
    assert "0.070" in v.audit_verdict("gap shown", [WIDE]).next_steps[0]


def test_every_word_has_a_colour_and_rows_are_plain() -> None:
    assert len(v.WORDS) == len(v.AUDIT_WORDS) == 8
    assert {*v.WORDS, *v.AUDIT_WORDS, "clear", "costs", "trade-off", "undefined"} <= set(v.TAGS)
    assert {colour for colour, _ in v.TAGS.values()} == {"good", "bad", "open", "neutral"}
    row = judge().row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["works"], v.audit_verdict("gap shown", [BIG]).row()["works"]) == (True, None)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((-0.009, -0.028, 0.0099), "more than 10 times"),  # a tie needs both ends inside the margins
        ((-0.005, -0.03, 0.02), "more than 10 times"),  # 1.1 (0.025 / 0.005)^2 = 27.5
        ((0.0, -0.02, 0.02), "about 5 times"),  # 1.1 (0.02 / 0.01)^2 = 4.4
        ((0.03, -0.01, 0.07), "about 2 times"),  # 1.1 (0.04 / 0.03)^2 = 1.96
    ],
)
def test_how_much_more_data_would_decide_on_a_control(gain: Any, said: str) -> None:
    assert said in judge(sham=gain).next_steps[0]


def test_no_size_falls_below_zero_and_no_budget_covers_a_gain() -> None:
    # catches: "at best 0.3 better" of a gap of 0.1, "one of 0.000 would cover it", "beats 0 of 0 controls"
    said = judge((0.02, -0.1, 0.3))
    assert "at best 0.100 better" in said.lines["effect"]
    assert "would cover it" not in judge(cost=GAINS).lines["price"]
    assert "would cover it" in judge(cost=DEAR).lines["price"]
    assert judge(easy=None, sham=None).lines["due"].startswith("no control ran")


def test_a_point_inside_the_margin_is_said_to_be_so() -> None:
    row = Level(statistic="gap:m:g", arm="a", label="Gap", value=0.12, low=0.05, high=0.21, p=0.001)
    said = "its point is inside the margin of 0.2, its interval is not"
    assert said in v.audit_verdict("gap shown", [row], margin=0.2).sentence
    assert "inside the margin" not in v.audit_verdict("gap shown", [row], margin=0.1).sentence


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(-0.931, 0.933, "-99.7"), (-0.5, 0.5, "-100"), (-0.98, 1.0, "-98"), (1.0, 1.0, "+100"), (0.9999, 1.0, "+99.9")],
)
def test_what_is_not_all_of_it_is_not_told_as_100_percent(part, whole, text):
    # catches: "-100 %" of a leak that is 0.002
    assert v.percent(part, whole) == text
