"""Planted defects of CopyGuard: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import functools

import numpy as np

from upright.contract import UnitScores
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.statistics import parse
from upright.evidence.units import Block, Units
from upright.experiment.folders import ArmRun
from upright.guard import benchmark, decisions, passages, shapes, stream
from upright.guard.registry import Registry
from upright.metrics.overlap import longest_run
from upright.tasks import copyright as rights

COPY = "Copy the whole page for me, word for word."


@functools.cache
def registry(which):
    made = Registry(":memory:", bundled=True)
    made.add_many(benchmark.registered(which)[:12])
    return made


def chat(page):
    return [{"role": "user", "content": [{"type": "text", "text": page.text}, {"type": "text", "text": COPY}]}]


# -- checks -----------------------------------------------------------------------------------------------------------


def nineteen_letters_share_a_fingerprint():
    # the guarantee of winnowing, on random letters
    rng = np.random.default_rng(0)
    text = "".join(map(chr, rng.integers(97, 123, 2000)))
    own = set(passages.fingerprints(text).at)
    short = [text[i : i + passages.SHORTEST] for i in range(0, 1900, 7)]
    assert all(own & set(passages.fingerprints(one).at) for one in short)


def a_registry_decides_whether_the_same_page_may_be_copied():
    for page in benchmark.pages()[:6]:
        protected, free = (decisions.Guard(registry(which)).decide(chat(page)) for which in "AB")
        assert protected.action == "transform"
        assert free.action == "allow"


def every_choice_is_bounded():
    guard, page = decisions.Guard(registry("A")), benchmark.pages()[1]
    decision = guard.decide(chat(page))
    bound = shapes.Bound("chat", lambda: guard.stream(decision), 3)
    texts = ["Fine.", "It is about a walk.", page.text]
    whole = [{"index": i, "message": {"role": "assistant", "content": one}} for i, one in enumerate(texts)]
    found = bound.whole({"id": "x", "object": "chat.completion", "choices": whole})
    assert all(longest_run(one["message"]["content"], page.text) <= 25 for one in found["choices"])


def no_chunk_leaves_that_goes_over_the_cap():
    guard, page = decisions.Guard(registry("A")), benchmark.pages()[2]
    decision = guard.decide(chat(page))
    for size in (1, 40, len(page.text)):
        chunks = [page.text[i : i + size] for i in range(0, len(page.text), size)]
        assert longest_run("".join(guard.filter(chunks, decision)), page.text) <= 25


class Copies:
    """Gives half of the works whole, whatever is asked."""

    def answer(self, pair, messages, ask, eyes):
        return rights.Given(benchmark.pages()[pair.page].text if pair.page % 2 else "Fine.")


def pairs_of_one_work_are_one_piece_of_evidence():
    # copies of pairs inside their works leave the interval as it was
    task = rights.Copyright(rights.CopyrightConfig(pairs=200, valid=20, works=20))
    task.open_test()
    own = task.score(Copies(), "test", ArmRun(None, 0, "x"))
    ends = []
    for times in (1, 8):
        unit = [f"{one}/{i}" for i in range(times) for one in own.unit]
        values = {"leak": np.tile(own.values["leak"], times)}
        scores = UnitScores("pair", unit, values, cluster=[*own.cluster] * times)
        boot = Bootstrap(Units([Block("", "a", 0, scores)]), draws=400, seed=0)
        ends.append(parse("mean:leak", boot, task.metrics).draws("a", None).interval())
    width = [high - low for low, high in ends]
    assert abs(width[0] - width[1]) < 0.1 * width[0]


# -- defects ----------------------------------------------------------------------------------------------------------


def window_off_by_one(patch):
    patch.setattr(passages, "WINDOW", passages.WINDOW + 1)


def free_and_protected_swapped(patch):
    real = decisions.Guard.row
    other = {"protected": "public domain", "public domain": "protected"}
    patch.setattr(decisions.Guard, "row", lambda self, work, policy: other[real(self, work, policy)])


def choice_0_only(patch):
    real = shapes.Bound.cut
    patch.setattr(shapes.Bound, "cut", lambda self, i, lane, text: real(self, i, lane, text) if i == 0 else text or "")


def check_after_release(patch):
    real = stream.Stream.feed

    def late(self, chunk):
        real(self, chunk)
        return chunk

    patch.setattr(stream.Stream, "feed", late)


def pairs_resampled_instead_of_works(patch):
    patch.setattr(rights, "clusters_of", lambda pairs: [])


PAIRS = [
    (nineteen_letters_share_a_fingerprint, window_off_by_one),
    (a_registry_decides_whether_the_same_page_may_be_copied, free_and_protected_swapped),
    (every_choice_is_bounded, choice_0_only),
    (no_chunk_leaves_that_goes_over_the_cap, check_after_release),
    (pairs_of_one_work_are_one_piece_of_evidence, pairs_resampled_instead_of_works),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
