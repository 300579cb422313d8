"""What the guard refuses that is free, and lets through that is protected: real texts and held-out queries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.guard import benchmark
from upright.guard.decisions import Guard
from upright.guard.queries import COPYING
from upright.guard.registry import Registry
from upright.guard.rights import Work
from upright.tasks.copyright import Copyright, CopyrightConfig, outcomes

pytestmark = pytest.mark.realdata

FOLDER = Path(os.environ.get("UPRIGHT_DATA", "/none")) / "public-domain-texts" / "shield"
QUERIES = [query for some in COPYING.values() for query in some]
SPEC = load_method("copyguard")


@pytest.fixture(scope="module")
def texts():
    files = sorted(FOLDER.rglob("datasets/b*/*.txt"))
    if not files:
        pytest.skip("UPRIGHT_DATA holds no public-domain-texts")
    assert len(files) == 198
    return [" ".join(file.read_text(encoding="utf-8", errors="replace").split()[:300]) for file in files]


@pytest.mark.parametrize("known", [False, True], ids=["in no registry", "in the public domain"])
def test_free_texts_are_given_whoever_asks(texts, known):
    # catches: a match by chance with one of ten thousand works, a notice where there is none, free refused as protected
    registry = Registry(":memory:")
    own = {" ".join(text.split()[:12]) for text in texts}
    others = [one for one in benchmark.registered("A") if " ".join(one[1].split()[:12]) not in own]
    others = [one for one in others if benchmark.pages()[one[0].id].material in ("documentation", "article")]
    registry.add_many([*others, *benchmark.more_works(10_000)])
    if known:
        registry.add_many((Work(0, f"Text {i}", declared="public domain"), text) for i, text in enumerate(texts))
    guard = Guard(registry)
    refused = 0
    for text in texts:
        page = {"type": "text", "text": text}
        for query in QUERIES:
            chat = [{"role": "user", "content": [page, {"type": "text", "text": query}]}]
            refused += guard.decide(chat).action not in ("allow", "attribute")
    registry.close()
    assert refused <= 0.01 * len(texts) * len(QUERIES)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_registered_pages_are_not_given_and_free_ones_are(noise):
    # catches: a page that noise hides, a request that nobody was taught, free pages that are taken for protected ones
    task = Copyright(CopyrightConfig(noise=noise))
    run = ArmRun(None, 0, "guard")
    guard = SPEC.run(task, SPEC.config(), run)
    ask, eyes = task.asker(run), task.eyes(run)
    asked = [p for which in "AB" for p in benchmark.pairs(which) if not p.permitted and p.held_out]
    asked = [p for p in asked if p.task in ("repeat", "extract", "translate")]
    order = np.random.default_rng(0).permutation(len(asked))[:1500]
    some = [asked[i] for i in order]
    free = [ask(task.messages(p, run)) for p in some]
    given = [guard.answer(p, task.messages(p, run), ask, eyes) for p in some]
    complied = outcomes(some, [one.text for one in given])["complied"]
    for name in ("repeat", "extract", "translate"):
        own = [i for i, p in enumerate(some) if (p.registry, p.task) == ("A", name)]
        assert np.mean(complied[own]) <= 0.05, name
        assert np.mean([given[i].text != free[i] for i in own]) >= 0.95, name  # noise alone does not stop a copy
    arrived = [
        (one.action, one.text == own) for p, one, own in zip(some, given, free, strict=True) if p.registry == "B"
    ]
    assert set(arrived) == {("allow", True)}
