"""The verdict of a run and of an audit: four lines, one word, one sentence, what to do next.

All of it is decided here, from stored intervals; page, terminal and gates repeat it. A *gain* g in [l, h] is a change
signed so that more is better, its *margin* m the smallest change that matters. Of the words of a run the first that
holds is said: backfires; nothing shown to mend; no effect that matters, undecided; levels down; helps, but so does;
works, at a price; works. What is lacking stands before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from upright.contract import Arm
from upright.evidence.records import Difference, Level

__all__ = ["AUDIT_WORDS", "TAGS", "WORDS", "Verdict", "audit_verdict", "effect_of", "percent", "price_of", "rival_of"]
__all__ += ["verdict"]

SEEDS, FAR, ZERO = 6, 10, 1e-12  # fewest paired seeds; times the data that are no advice; smaller changes are 0
NAMED = 3  # pairs that an audit names beside the headline
TAGS: Mapping[str, tuple[str, str]] = {  # what a page writes: colour and meaning
    "works": ("good", "a gain that matters, more than every control, within the budget"),
    "works, at a price": ("good", "a gain that matters, more than every control; not shown to be within the budget"),
    "helps, but so does": ("neutral", "a gain that matters, but not every control was beaten"),
    "levels down": ("bad", "the gap closes more by lowering one group than by lifting the other"),
    "no effect that matters": ("neutral", "a gain beyond the margin is ruled out"),
    "undecided": ("open", "the interval allows for no change and for one that matters"),
    "backfires": ("bad", "worse than no remedy, beyond the margin"),
    "nothing shown to mend": ("neutral", "without a remedy nothing beyond chance and margin was seen"),
    "gap shown": ("bad", "groups differ beyond chance and margin"),
    "leak shown": ("bad", "an attacker reads more than chance and margin explain"),
    "still known": ("bad", "more is left than in a model that never saw the records"),
    "over-unlearned": ("bad", "records are pushed below unseen ones, which gives them away as well"),
    "told apart": ("bad", "the records stand out from unseen ones, or the model from one that never saw them"),
    "none that matters": ("neutral", "the interval lies inside the margin, or a gain beyond it is ruled out"),
    "none shown": ("open", "nothing beyond chance was seen, which is no proof that nothing is there"),
    "measured": ("open", "nothing, or not everything, could be compared"),
    "clear": ("good", "the whole interval lies beyond the margin"),
    "present": ("good", "the interval excludes 0, and the point lies beyond the margin"),
    "none": ("neutral", "the interval lies inside the margin, or a gain beyond it is ruled out"),
    "worse": ("bad", "the interval excludes 0 on the wrong side, and the point lies beyond the margin"),
    "undefined": ("neutral", "no value, no interval, or no better side"),
    "gains too": ("good", "the cost metric gains more than its margin"),
    "within budget": ("good", "the whole interval is affordable; it may be a sure, small loss"),
    "costs": ("bad", "a sure loss, perhaps beyond the budget"),
    "not measured": ("open", "no value or no interval"),
    "dominates": ("good", "better on one axis, not worse than the margin on the other"),
    "dominated": ("bad", "the rival is better on one axis, and not worse than the margin on the other"),
    "trade-off": ("neutral", "better on one axis, worse on the other"),
    "tie": ("neutral", "equal within the margin on both axes"),
    "not told apart": ("open", "neither better, worse nor equal was shown"),
    "beats": ("good", "better than the control, beyond the margin"),
    "ties with": ("neutral", "equal to the control within the margin"),
    "loses to": ("bad", "worse than the control, beyond the margin"),
    "not told apart from": ("open", "neither better, worse nor equal was shown"),
    "not run": ("open", "declared, and not there"),
    "incomplete": ("open", "seeds, a control or the price are lacking"),
}
WORDS, AUDIT_WORDS = tuple(TAGS)[:8], tuple(TAGS)[8:16]
_ANSWERS = {"works": "use it", "works, at a price": "use it", "undecided": "not known yet"}
_BETTER = ("clear", "present")
_ORDER = ("loses to", "ties with", "not told apart from")
_BESIDE = {"worse": "loses to", "none": "ties with", "undefined": "not run"} | dict.fromkeys(_BETTER, "beats")
_AXIS = {"none": "equal within the margin", "clear": "better", "present": "better", "undefined": "not measured"}
_WITH = {"dominated": " by", "trade-off": " with", "tie": " with", "not told apart": " from"}


def percent(part: float, whole: float) -> str:
    """Write a change in percent, signed; what is not all of it is not rounded to 100."""
    value = 100 * part / whole
    whole_of = abs(round(value)) != 100 or abs(value) == 100
    return f"{round(value):+d}" if whole_of else f"{math.trunc(10 * value) / 10:+.1f}"


def _gain(change: Difference | None) -> tuple[float, float, float, float]:
    """Return (g, l, h, m), NaN where undefined; below 1e-12 in size a change is 0."""
    if change is None or change.direction == "none":
        return math.nan, math.nan, math.nan, 0.0
    ends = [0.0 if abs(x) < ZERO else x for x in (change.value, change.low, change.high)]
    value, low, high = ends if change.direction == "higher" else (-ends[0], -ends[2], -ends[1])
    known = all(map(math.isfinite, ends))
    return (value, low, high, change.margin) if known else (math.nan, math.nan, math.nan, change.margin)


def effect_of(change: Difference | None) -> str:
    """Return clear, present, none, undecided, worse or undefined: exactly one for every interval."""
    value, low, high, margin = _gain(change)
    if math.isnan(value):
        return "undefined"
    if -margin <= low and high <= margin:
        return "none"  # materiality first: also where 0 is excluded
    if low > 0 and value > margin:
        return "clear" if low > margin else "present"
    if high < 0 and value < -margin:
        return "worse"
    return "none" if high <= margin else "undecided"


def _beside(change: Difference | None) -> str:
    """Return the effect against another arm, where `no gain` is no tie."""
    _, low, _, margin = _gain(change)
    found = effect_of(change)
    return "no gain" if found == "none" and low < -margin else found


def price_of(change: Difference | None, budget: float) -> str:
    """Return gains too, within budget, costs, undecided or not measured."""
    value, low, high, margin = _gain(change)
    if math.isnan(value):
        return "not measured"
    if low > 0 and value > margin:
        return "gains too"
    return "within budget" if low >= -budget else "costs" if high < 0 else "undecided"


def rival_of(effect: Difference | None, cost: Difference | None) -> str:
    """Return how the remedy stands beside a rival, from simultaneous intervals of remedy minus rival."""
    words, axes = {effect_of(effect), effect_of(cost)}, (_gain(effect), _gain(cost))
    better, worse = not words.isdisjoint(_BETTER), "worse" in words
    no_worse = all(low >= -margin for _, low, _, margin in axes)
    no_better = all(high <= margin for _, _, high, margin in axes)
    if better and worse:
        return "trade-off"
    if better and no_worse:
        return "dominates"
    if worse and no_better:
        return "dominated"
    return "tie" if no_worse and no_better else "not told apart"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of a run or an audit; ``title`` is what a person reads.

    ``word`` is one of `WORDS` or `AUDIT_WORDS`, and counts once nothing is ``incomplete``; ``answer`` is use it, do not
    use it or not known yet, for audits mend it, fine or not known yet; ``lines`` are keyed effect, due, price, rivals,
    for audits effect; ``beside`` says how it stands beside each control and rival; within the budget ``breakeven`` the
    price is fine; ``headline`` is the comparison that decides an audit.
    """

    word: str
    incomplete: tuple[str, ...]
    title: str
    answer: str
    lines: Mapping[str, str]
    sentence: str
    next_steps: tuple[str, ...]
    breakeven: float | None
    margin: float
    budget: float | None
    declared_margin: float
    declared_budget: float | None
    primary: str
    cost_statistic: str
    headline: Level | None = None
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether it is shown to work, at a price or not, and nothing is lacking."""
        return self.word in ("works", "works, at a price") and not self.incomplete

    @property
    def colour(self) -> str:
        """That of the word, but open where the answer is not known, whatever the word so far."""
        return "open" if self.answer == "not known yet" else TAGS[self.word][0]

    def row(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``; an audit has no remedy that could work."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k != "headline"}
        return plain | {"colour": self.colour, "works": self.works if self.word in WORDS else None}


def _number(value: float, margin: float, sign: str = "", up: bool = False) -> str:
    """Write a number with one decimal more than the first of its margin: three at least, from a margin of 1 on one."""
    digits = 1 if margin >= 1 else min(max(1 - math.floor(math.log10(margin or 1.0)), 3), 6)
    if not math.isfinite(value):
        return "undefined"
    near = math.ceil(value * 10**digits - 1e-6) / 10**digits if up else round(value, digits)
    below = bool(sign) and value < -ZERO  # -0.000: less than nothing, by less than is shown
    return f"{near if near or below else 0.0:{sign}.{digits}f}"


def _moved(gain: float, margin: float) -> str:
    """Write a gain in words: 0.012 better, 0.004 worse, no change."""
    text = _number(abs(gain), margin)
    return "no change" if text == _number(0.0, margin) else f"{text} {'better' if gain > 0 else 'worse'}"


def _interval(row: Level | Difference, margin: float, sign: str = "") -> str:
    value, low, high = (_number(x, margin, sign) for x in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"


def _more_data(change: Difference | None, budget: float | None = None, *, tie: bool = False) -> str:
    """Say how much more data would decide on a change, on a tie or on a budget, if the point stays where it is."""
    value, low, high, margin = _gain(change)
    value, margin = (abs(value) if tie else value, margin) if budget is None else (value + budget, 0.0)
    room, share = value if value > margin else margin - value, change.seed_share if change else math.nan
    times = max(2, math.ceil(1.1 * ((high - low) / 2 / room) ** 2)) if room > ZERO else math.inf
    kind = "seeds" if share > 0.5 else "units" if share <= 0.5 else "seeds or units"
    far = f"more than {FAR} times the {kind} would be needed to decide, so change the setting"
    return far if times > FAR else f"about {times} times the {kind} would decide it"


class _Run:
    """The records of a run by name, and what they show of its arms and groups."""

    def __init__(
        self, levels: Sequence[Level], rows: Sequence[Difference], arms: Sequence[Arm], primary: str, cost: str
    ) -> None:
        self.levels = {(row.text, row.arm): row for row in levels}
        self.changes = {(row.statistic, row.arm, row.against): row for row in rows}
        self.none, self.mine = (next(a.name for a in arms if a.role == role) for role in ("baseline", "remedy"))
        self.primary, self.effect = primary, self.change(primary, self.none)
        self.before, self.after = self.level(primary, self.none), self.level(primary, self.mine)
        self.cost, unit = cost, self.level(cost, self.none).label
        self.unit = unit[:1].lower() + unit[1:] if unit[1:2].islower() else unit  # inside a sentence; NDCG stays
        row = self.after
        self.beyond = row.shown if math.isfinite(row.p) else row.null is not None and row.value > row.null.high

    def level(self, text: str, arm: str) -> Level:
        return self.levels.get((text, arm)) or Level(statistic=text, arm=arm, label=text)

    def change(self, statistic: str, against: str) -> Difference | None:
        return self.changes.get((statistic, self.mine, against))

    def groups(self, prefix: str) -> list[tuple[str, Difference]]:
        """Return groups and their changes against no remedy, of statistics ``<prefix>...=group``, lowest gain first."""
        rows = [row for (_, arm, against), row in self.changes.items() if (arm, against) == (self.mine, self.none)]
        rows = [row for row in rows if row.statistic.startswith(prefix) and effect_of(row) != "undefined"]
        return [(row.statistic.partition("=")[2], row) for row in sorted(rows, key=lambda row: _gain(row)[0])]

    def helps(self, arm: str) -> bool:
        """Whether an arm helps against no remedy: by its own difference, or by its point where none is stored."""
        own = self.changes.get((self.primary, arm, self.none))
        if own is None and self.effect is not None:
            value = self.level(self.primary, arm).value - self.before.value
            own = dataclasses.replace(self.effect, value=value, low=value, high=value)
        return effect_of(own) in _BETTER

    def mendable(self) -> bool:
        """Whether what the baseline does is shown and matters; nobody asks without a null, or where more is better."""
        row, margin = self.before, _gain(self.effect)[3]
        if row.null is None or math.isnan(row.value) or (self.effect is not None and self.effect.direction == "higher"):
            return True
        shown = row.shown if math.isfinite(row.p) else row.value > row.null.high and row.low > 0
        return shown and not (-margin <= row.low and row.high <= margin)

    def word_of_gap(self) -> str:
        """Say what is shown of a gap that decides nothing."""
        seen = f"{_interval(self.before, _gain(self.effect)[3] or 0.01)} without a remedy"
        return self.effect_line(effect_of(self.effect)) if self.mendable() else f"nothing shown to mend ({seen})"

    def split(self) -> tuple[str, list[str]]:
        """Say how far a gap closes by lifting and by lowering, and return who is levelled down, the furthest first."""
        name, _, rest = self.primary.partition(":")
        rows = dict(self.groups(f"mean:{rest}=")) if name in ("gap", "abs_gap") else {}
        start = {group: self.level(f"mean:{rest}={group}", self.none).value for group in rows}
        start = {g: -x if rows[g].direction == "lower" else x for g, x in start.items() if math.isfinite(x)}
        if len(start) < 2:
            return "", []
        worst, *_, best = sorted(start, key=lambda group: start[group])
        lift, fall = max(0.0, _gain(rows[worst])[0]), max(0.0, -_gain(rows[best])[0])
        up, down = (_number(x, rows[worst].margin) for x in (lift, fall))
        fallen = [group for group, row in rows.items() if _gain(row)[0] < -row.margin]
        return f"; {up} by lifting {worst}, {down} by lowering {best}", fallen if lift < 0.5 * (lift + fall) else []

    def moved(self) -> str:
        """Write the primary before and after; the percentage only where the start lies beyond the margin."""
        old, new, margin = self.before.value, self.after.value, _gain(self.effect)[3]
        share = f" ({percent(new - old, abs(old))} %)" if abs(old) > margin and math.isfinite(new) else ""
        return f"{_number(old, margin)} -> {_number(new, margin)}{share}"

    def effect_line(self, what: str) -> str:
        """Say class, levels, change, what stays open, what is left of a gap or leak, whom it lifts and lowers."""
        value, low, high, margin = _gain(self.effect)
        text = f"{'none that matters' if what == 'none' else what}: {self.moved()}"
        text += f", {_interval(self.effect, margin, '+')}" if self.effect else ""
        size = self.effect is not None and self.effect.direction == "lower"  # which ends at 0
        best, worst = (_moved(x, margin) for x in (min(high, self.before.value) if size else high, low))
        text += f"; at best {best}, at worst {worst}" if what == "undecided" else ""
        text += f"; up to {worst} is not excluded" if what == "none" and low < -margin else ""
        if self.after.null and math.isfinite(self.after.value) and what != "worse":
            text += f"; what is left is {'more than chance explains' if self.beyond else 'inside chance'}"
        text += self.split()[0] if value > 0 else ""
        paid = self.groups(f"{self.cost}:{self.primary.rpartition(':')[2]}=") if "disparity" in self.primary else []
        who = ", ".join(f"{group} {_interval(row, row.margin, '+')}" for group, row in paid)
        return f"{text}; {self.unit} of {who}" if who else text  # rates have no better side

    def price_line(self, pay: str, price: Difference, enough: str, spend: float) -> str:
        """Say class, change, break-even budget, and the group that pays more than the mean and more than its margin."""
        text = f"{pay}: {self.unit} {_interval(price, price.margin, '+')}"
        text += f"; the budget was {spend:g}" + (f", and one of {enough} would cover it" if _gain(price)[1] < 0 else "")
        for group, row in self.groups(f"{price.statistic}:")[:1]:
            worse = _gain(row)[0] < min(-row.margin, _gain(price)[0])
            text += f"; of the groups {group} loses most, {_number(row.value, row.margin, '+')}" if worse else ""
        return text


def verdict(
    levels: Sequence[Level],
    differences: Sequence[Difference],
    arms: Sequence[Arm],
    *,
    primary: str,
    cost: str,
    title: str,
    seeds: int,
    rivals: Mapping[str, tuple[Difference, Difference | None]] = MappingProxyType({}),
    margins_given: Mapping[str, float] = MappingProxyType({}),
    budget: float | None = None,
    declared_budget: float | None = None,
    not_run: Sequence[str] = (),
) -> Verdict:
    """Return the verdict of a run of ``seeds`` paired seeds, whose remedy is called ``title``.

    Parameters
    ----------
    levels, differences, arms : sequences
        The remedy minus every other arm, by group too; an arm minus the baseline says whether it helps by itself, else
        its point does. Arms are those that have a meaning for the task; any that is not there was not run.
    rivals : mapping of arm to (primary, cost)
        The remedy minus the rival, as simultaneous intervals.
    margins_given : mapping of statistic to margin
        Given after the run, as is a budget other than the declared one, by default the margin of the cost.
    not_run : sequence of str
        What was left out; a name that ``arms`` lacks is a control.
    """

    def judged(row: Difference) -> Difference:
        return dataclasses.replace(row, margin=margins_given.get(row.statistic.partition("=")[0], row.margin))

    changes, group = [*map(judged, differences)], primary.partition("=")[2]
    run = _Run(levels, changes, arms, primary, cost)
    between = [row for row in levels if group and row.arm == run.none and row.name == "abs_gap"]
    gaps = [_Run(levels, changes, arms, row.statistic, cost) for row in between if row.grouping == run.before.grouping]
    price, what, fallen = run.change(cost, run.none), effect_of(run.effect), run.split()[1]
    both = [row.n_seeds for row in (run.effect, price) if row and row.n_seeds and math.isfinite(row.value)]
    seeds = min([seeds, *both])
    (value, _, most, margin), (_, least, spare, cent) = _gain(run.effect), _gain(price)
    spend = cent if budget is None else budget
    pay, enough = price_of(price, spend), _number(max(0.0, -least), cent, up=True)
    names = {name: name for name in (*not_run, *rivals)} | {arm.name: arm.title or arm.name for arm in arms}
    roles = dict.fromkeys(not_run, "placebo") | {arm.name: arm.role for arm in arms}
    matched = [arm.name for arm in arms if arm.mix]
    controls = [name for name, role in roles.items() if role in ("trivial", "placebo")]
    tried = {n: None if n in not_run else run.change(cost if n in matched else primary, n) for n in controls}
    beside = {name: _BESIDE.get(_beside(change), "not told apart from") for name, change in tried.items()}
    pairs = {name: (judged(one), judged(two) if two else None) for name, (one, two) in rivals.items()}
    stand = {n: "not run" for n in names if roles.get(n) == "rival"} | {n: rival_of(*pairs[n]) for n in pairs}
    unbeaten = [name for how in _ORDER for name in beside if beside[name] == how]
    same = [name for name in unbeaten if run.helps(name) and beside[name] != "not told apart from"]
    better = [name for name in pairs if run.helps(name) and stand[name] == "dominated"]

    if what == "worse":
        word = "backfires"
    elif not run.mendable():
        word, better = "nothing shown to mend", []
    elif what not in _BETTER:
        word = "no effect that matters" if what == "none" else "undecided"
    elif fallen or unbeaten:
        word = "levels down" if fallen else "helps, but so does"
    else:
        word = "works, at a price" if pay in ("costs", "undecided") else "works"
    works = word.startswith("works")
    lacking = {f"{seeds} of {SEEDS} seeds": f"Run at least {SEEDS} seeds."} if seeds < SEEDS else {}
    idle = [names[name] for name in beside if beside[name] == "not run"] or ["any control"] * (not beside)
    lacking |= {"effect not measured": "Measure the effect."} if word == "undecided" and what == "undefined" else {}
    lacking |= {f"{name} not run": f"Run {name}." for name in idle if works}
    lacking |= {"price not measured": "Measure the price."} if works and pay == "not measured" else {}
    title_of = {"works, at a price": f"{word} of at most {enough} of {run.unit}"}
    rest = " and ".join(names[name] for name in same or unbeaten)
    title_of["helps, but so does"] = f"{word} {rest}" if same else f"helps, not shown to beat {rest}"
    read = (f"incomplete ({', '.join(lacking)}), so far: " if lacking else "") + title_of.get(word, word)
    several = f"and {len(better) - 1} more do" if len(better) > 1 else "does"
    read += "".join(f"; {names[name]} {several} better" for name in better[:1])

    declared = {row.statistic: row.margin for row in differences if (row.arm, row.against) == (run.mine, run.none)}
    was = declared.get(primary, margin)
    promised = declared.get(cost, spend) if declared_budget is None else declared_budget
    late = [
        f"; {name} {now:g} given after the run (declared {then:g})" if now != then else ""
        for name, now, then in (("margin", margin, was), ("budget", spend, promised))
    ]
    ran = [how for how in beside.values() if how != "not run"]
    count = f"beats {ran.count('beats')} of {len(ran)} controls" + " that ran" * (len(ran) < len(beside))
    due = [count if ran else "no control ran"]
    due += [f"{beside[name]} {names[name]}" for name in unbeaten] + [f"{name} not run" for name in idle]
    rows = []
    for name, how in stand.items():
        row = f"{how}{_WITH.get(how, '')} {names[name]}" if name in pairs else f"{names[name]} not run"
        axes = [_AXIS.get(one, one) for one in map(_beside, pairs[name])] if how == "not told apart" else []
        row += " (effect: {}; cost: {})".format(*axes) if axes else ""
        rows.append(row + (", which does not help by itself" if name in pairs and not run.helps(name) else ""))
    lines = {
        "effect": run.effect_line(what) + late[0],
        "due": "; ".join(due),
        "price": (run.price_line(pay, price, enough, spend) if price and pay != "not measured" else pay) + late[1],
        "rivals": "; ".join(rows) or "none run",
    }
    if gaps:  # the mean of one group says nothing of a gap
        lines["gaps"] = "; ".join(f"{gap.before.label}: {gap.word_of_gap()}" for gap in gaps)
    flat = [f" {gap.before.label} was inside chance without it" for gap in gaps if not gap.mendable()][:1]
    flat = [f"{x}: what is gained is a better model for {group}, not a gap closed." for x in flat if what in _BETTER]
    old, new = run.level(cost, run.none), run.level(cost, run.mine)
    spent = f"; {run.unit} {_number(old.value, cent)} -> {_number(new.value, cent)}" if math.isfinite(old.value) else ""

    useful = [name for name in same if roles.get(name) == "trivial" and word == "helps, but so does"]  # no placebo
    take = [*useful[:1], *(better[:1] if seeds >= SEEDS else ())]
    # one alone is advised: that to which the remedy loses by more
    take = sorted(take, key=lambda name: _gain(run.change(primary, name))[0])[:1]
    rather = [f"Take {names[name]} rather than {title}." for name in take if name in better]
    open_ = [_more_data(tried[n], tie=True) for n in unbeaten if not same and beside[n] == "not told apart from"]
    instead = f"Take {names[take[0]]} instead" if useful else " yet: ".join([f"Do not use {title}", *open_[:1]])
    dear = "it is too dear" if spare < -spend else _more_data(price, spend)
    unseen = _number(run.before.smallest_detectable, margin)
    advice = {
        "works": f"Take {title}.",
        "works, at a price": f"Take {title} if {enough} of {run.unit} may be spent; at a budget of {spend:g} {dear}.",
        "helps, but so does": f"{instead}.",
        "levels down": f"Do not use {title}: the gap closes by lowering {' and '.join(fallen)}.",
        "no effect that matters": f"Do not use {title}: it gains at most {_number(max(0.0, most), margin)}.",
        "undecided": f"Do not use {title} yet: {_more_data(run.effect)}.",
        "backfires": f"Do not use {title}: it makes matters worse.",
        "nothing shown to mend": f"Leave the model as it is (smallest detectable {unseen}).",
    }
    simple = [arm.name for arm in arms if arm.simpler]
    alike = [n for n in simple if (beside | stand).get(n) in ("not told apart from", "not told apart", "tie")]
    alike = [n for n in alike if _beside(run.change(cost, n) if cost else None) not in _BETTER]  # nor dearer
    steps = rather + (list(lacking.values()) or [advice[word]] * (not (rather and (works or useful))))
    steps += [f"Run {name} too." for name in idle if word == "undecided" and not lacking]
    steps += [f"{names[name][:1].upper()}{names[name][1:]} is simpler, and not shown to be worse." for name in alike]
    if works and not lacking:
        left = f"{_number(run.after.value, margin)} is left, beyond chance: do not call it gone."
        steps += [left] * run.beyond + ["Compare it with a rival."] * (not pairs)
    answer = "not known yet" if lacking else _ANSWERS.get(word, "do not use it")
    lowered = f", mostly by lowering {' and '.join(fallen)}" if fallen and value > 0 else ""
    sentence = f"{run.before.label} {run.moved()}{lowered}{spent}{''.join(late)}.{''.join(flat)}"
    free = None if pay == "not measured" else max(0.0, -least)
    facts = (free, margin, spend, was, promised, primary, cost)
    said = Verdict(word, tuple(lacking), read, answer, lines, sentence, tuple(steps[:3]), *facts)
    return dataclasses.replace(said, beside=beside | stand)


def audit_verdict(
    kind: str,
    pairs: Sequence[Level],
    *,
    margin: float | Mapping[str, float] = 0.0,
    ratio: tuple[float, str] | None = None,
    too_small: Sequence[tuple[str, float]] = (),
    unit: str = "unit",
    unmeasured: Sequence[str] = (),
) -> Verdict:
    """Return the verdict of an audit.

    Parameters
    ----------
    kind : str
        The word where something is shown: gap shown, leak shown, still known, over-unlearned, told apart.
    pairs : sequence of Level
        All, adjusted, the headline (largest T) first; the ``group`` "A minus B" names the sides of a gap.
    margin : float or mapping of metric to float
        The smallest that matters: metrics differ in scale.
    ratio : (float, str), optional
        Smallest over largest rate, and whose they are.
    too_small : sequence of (group, smallest detectable)
    unmeasured : sequence of str
        What no data measure, such as the true positives of a group without any.
    """

    def margin_of(row: Level) -> float:
        return margin.get(row.metric, 0.0) if isinstance(margin, Mapping) else margin

    def reach(row: Level) -> float:
        return max(abs(row.low), abs(row.high))

    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:NAMED]) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)

    judged = [row for row in pairs if all(map(math.isfinite, (row.low, row.high, row.p)))]
    large = [row for row in judged if reach(row) > margin_of(row)]
    seen, matter = [row for row in judged if row.shown], [row for row in large if row.shown]
    word = title = "none that matters" if seen else "none shown"
    if matter:
        word = title = kind
    elif unmeasured or not judged:
        word, title = "measured", f"{title} in what can be measured" if judged else "measured"
    answer = "mend it" if matter else "not known yet" if large or too_small or word == "measured" else "fine"
    top = [*matter, *seen, *pairs, Level(statistic="", arm="", label="Nothing to compare")][0]
    own, (first, _, second) = margin_of(top), (top.group or "").partition(" minus ")
    said = [f"{top.label} is {_interval(top, own)}" if pairs else top.label]
    near = bool(top in matter and abs(top.value) <= own)
    said += [f"its point is inside the margin of {own:g}, its interval is not"] * near
    said += [f"higher for {first if top.value > 0 else second}"] * (second != "" and top.shown)
    if ratio is not None and math.isfinite(ratio[0]):
        below = ", below four fifths" if ratio[0] < 0.8 - 1e-9 else ""
        said.append(f"smallest over largest rate {ratio[0]:.2f} ({ratio[1]}){below}")
    others = [f"{row.label} ({_number(row.value, margin_of(row))})" for row in seen if row is not top]
    said += [f"also shown: {some(others)}"] * bool(others)
    most = top
    if judged and not matter:
        most = max(judged, key=lambda row: reach(row) / (margin_of(row) or ZERO))
        where = "" if most is top else f" ({most.label})"
        said.append(f"up to {_number(reach(most), margin_of(most))} is not excluded{where}")
    for name, least in too_small:
        why = "fewer than six are drawn apart"
        why = f"less than {_number(least, own)} is often missed" if math.isfinite(least) else why
        said.append(f"{name} is too small to judge ({why})")
    said += [f"{name} cannot be measured" for name in unmeasured]
    unseen, more = _number(most.smallest_detectable, own), [*(name for name, _ in too_small), *unmeasured]
    advice = {
        "mend it": f"Mend it or justify it: {some([row.label for row in matter])}.",
        "fine": f"Nothing to do at a margin of {own:g}.",
        "not known yet": f"Take it for no proof of absence (smallest detectable {unseen}).",
    }
    steps = (advice[answer], *[f"Collect more {unit}s for {', '.join(more)}."] * bool(more))
    lacking, text = tuple(f"{name} not measured" for name in unmeasured), f"{'; '.join(said)}."
    facts = (None, own, None, own, None, top.statistic, "")
    every = {"shown": "; ".join(others)} if len(others) > NAMED else {}  # every pair that is shown is named
    return Verdict(word, lacking, title, answer, {"effect": text, **every}, text, steps, *facts, top)
