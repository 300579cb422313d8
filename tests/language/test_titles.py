"""Prior scores against one title at a time, and a prefix tree against all titles scored one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.language.titles import TEMPLATES, TitleTrie, natural_title, prior_scores, prior_table
from upright.models.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("transformers")

STARTS = [f"{first} {second}" for first in ("Alpha", "Beta", "The Gamma", "Delta") for second in ("One", "Two")]
TITLES = [start + end for start in STARTS for end in ("", " Returns", " of the Long Night", ": Part 2", "!")]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([*TITLES, *TEMPLATES], vocabulary=330)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_llama(tokenizer, hidden=32, layers=2, heads=2, seed=1)


def log_probs(model, tokenizer, prompt, ids):
    """log p of each of some tokens after a prompt, by one pass without a cache."""
    before = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(ids)), torch.tensor(ids)].double().numpy()


def ids_of(tokenizer, title):
    return tokenizer(f" {title}", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("title", "natural"),
    [
        ("Matrix, The", "The Matrix"),
        (" Matrix, The  (1999)", "The Matrix"),
        ("Good, the Bad and the Ugly, The (Buono, Il) (1966)", "The Good, the Bad and the Ugly (Buono, Il)"),
        ("Misérables, Les (1998)", "Les Misérables"),
        ("Atalante, L' (1934)", "L'Atalante"),
        ("Boot, Das", "Das Boot"),
        ("Paris, Texas (1984)", "Paris, Texas"),
        ("I, Robot", "I, Robot"),
        ("(1999)", ""),
        ("2001", "2001"),
        ("The Matrix", "The Matrix"),
    ],
)
def test_titles_as_people_write_them(title, natural):
    assert natural_title(title) == natural


def test_prior_scores_equal_one_title_at_a_time(model, tokenizer, monkeypatch):
    # Catches: keys and values that one batch leaves to the next, padding that is scored, a first token that is not,
    # places counted without the prefix, scores in another order. One title has a single token, two are the same.
    titles = [*TITLES, "A", "Gamma One, The"]
    monkeypatch.setattr("upright.language.titles._BATCH_TOKENS", 30)  # several batches
    model.train()
    found = prior_table(model, tokenizer, titles)
    assert model.training
    model.eval()
    for row, title in enumerate(map(natural_title, titles)):
        ids = ids_of(tokenizer, title)
        nothing = log_probs(model, tokenizer, "\n", ids).mean()
        expected = [log_probs(model, tokenizer, text, ids).mean() - nothing for text in TEMPLATES]
        np.testing.assert_allclose(found.scores[:, row], expected, rtol=0, atol=1e-4)
        assert found.tokens[row] == len(ids)
    assert min(found.tokens) < 3 < max(found.tokens)
    assert found.scores[0, -1] == found.scores[0, TITLES.index("The Gamma One")]
    np.testing.assert_array_equal(prior_scores(model, tokenizer, titles), found.scores.mean(0))
    assert found.scores.std(axis=1).min() > 1e-3  # else any order of titles would pass


@pytest.mark.parametrize(
    ("titles", "options", "got"),
    [
        ([], {}, "no titles"),
        (["Alpha", " "], {}, "an empty title of item 1"),
        (["Alpha", "one two three four five"], {"limit": 4}, "a title of"),
        (["Alpha"], {"templates": ()}, "templates = ()"),
        (["Alpha"], {"templates": "My favourite film is"}, "templates = 'My"),
    ],
)
def test_what_cannot_be_scored(model, tokenizer, titles, options, got):
    with pytest.raises(InputError) as error:
        prior_table(model, tokenizer, titles, **options)
    assert error.value.got.startswith(got)
    if titles and "templates" not in options:  # nor is it a tree
        with pytest.raises(InputError):
            TitleTrie(titles, tokenizer, **options)


def test_the_tree_knows_what_was_written(tokenizer):
    # Catches: a table by place, which lets "Alpha Two" through; a title that may not end where a longer one goes on.
    trie = TitleTrie(["Alpha One", "Beta Two", "Alpha One Returns", "Beta Two"], tokenizer)
    alpha, longer, beta = (ids_of(tokenizer, title) for title in ("Alpha One", "Alpha One Returns", "Beta Two"))
    end = tokenizer.eos_token_id
    allowed = trie.allowed(2)

    def after(*ids):
        return set(allowed(0, torch.tensor([9, 9, *ids])))

    assert after() == {alpha[0], beta[0]}
    common = next(k for k, (a, b) in enumerate(zip(alpha, beta, strict=False)) if a != b) + 1
    assert after(*alpha[:common]) == {alpha[common]}
    assert after(*alpha) == {end, longer[len(alpha)]}
    assert after(*longer) == after(*longer, end) == {end}
    assert (trie.shared, trie.longest) == (1, len(longer) + 1)
    assert trie.items([*beta, end, 0, 0]) == (1, 3)
    assert trie.items(torch.tensor([*longer, end])) == (2,)
    with pytest.raises(InputError, match="a title of item 0"):
        TitleTrie(["Alpha<eos>"], tokenizer)
    assert trie.items(beta) == trie.items([alpha[0], end]) == trie.items([]) == ()
