"""Kept states against whole models, masks, what is trained, the cache, and a language model as a task's backbone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from upright.contract import InputError, spec_of
from upright.data.interactions import synthetic
from upright.data.sequences import leave_last, windows
from upright.experiment.folders import ArmRun
from upright.language import titles as titles_module
from upright.language.item_head import ItemHead, KeptStates, TitleHead
from upright.language.titles import PriorTable, TitleTrie, natural_title
from upright.maths.ranks import rank_correlation
from upright.methods import eisam
from upright.methods.eisam import EISAMConfig
from upright.models.tiny import tiny_llama, tiny_tokenizer
from upright.tasks import sequence
from upright.tasks.sequence import NextInSequence, NextInSequenceConfig

pytest.importorskip("transformers")
pytest.importorskip("peft")

TITLES = [
    f"{first} {second}" for first in ("Alpha", "Beta", "The Gamma", "Delta of the Night") for second in ("I", "II")
]
TITLES.append("Alpha I")  # a title that two items share
HISTORY = torch.tensor([[-1, -1, -1, 4], [0, 1, 2, 3], [-1, 6, 7, 5], [7, 7, 8, 0]])
TARGET = torch.tensor([[-1, -1, -1, 5], [-1, -1, -1, 8], [-1, -1, -1, 2], [-1, -1, -1, 5]])
RUN = ArmRun(None, 0, "x")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([*TITLES, *(f"item {k} (community 0)" for k in range(80))], vocabulary=330)


def model_of(tokenizer, seed=1):
    model = tiny_llama(tokenizer, hidden=32, layers=3, heads=2, seed=seed)
    with torch.no_grad():  # away from the start, where norms are plain
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_of(tokenizer)


def kept_of(model, tokenizer, titles=TITLES, **options):
    return KeptStates(model, tokenizer, titles, **({"prompt_tokens": 96} | options))


def head_of(kept, trie=None, seed=0, **options):
    """Scores of items, or of titles where they have a tree, away from the start, where adapters do nothing."""
    options |= {"rank": 2, "generator": torch.Generator().manual_seed(seed)}
    head = ItemHead(kept, **options) if trie is None else TitleHead(kept, trie, **options)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in head.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return head


@pytest.fixture(scope="module")
def trie(tokenizer):
    return TitleTrie(TITLES, tokenizer)


@pytest.fixture(scope="module")
def kept(model, tokenizer):
    return kept_of(model, tokenizer)


def whole(model, ids):
    with torch.no_grad():
        return model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("layers", [1, 2])
def test_kept_states_and_adapters_are_the_whole_model_with_merged_weights(model, tokenizer, layers):
    # catches: a cut at another layer, padding that is looked at, the state of a place before the end, a norm left out,
    # adapters in the wrong layers, or in none
    kept, other = kept_of(model, tokenizer, layers=layers), model_of(tokenizer)
    head = head_of(kept)
    for own, layer in zip(head._last[0].layers, other.base_model.layers[-layers:], strict=True):
        for name in ("q_proj", "v_proj"):
            delta = getattr(own.self_attn, name).get_delta_weight("default").detach()
            layer.self_attn.get_submodule(name).weight.data += delta
    for found, history in zip(head.hidden(HISTORY).detach(), HISTORY.tolist(), strict=True):
        ids = kept.prompt(history)
        torch.testing.assert_close(found, whole(other, ids)[-1], rtol=0, atol=1e-5)
        assert (found - whole(model, ids)[-1]).abs().max() > 1e-3


def test_scores_and_losses_equal_the_formula(model, tokenizer, kept):
    head = head_of(kept).eval()
    means = []
    for title in TITLES:
        ids = tokenizer(f" {title}", add_special_tokens=False)["input_ids"]
        means.append(whole(model, [*kept.prompt([]), *ids])[-len(ids) :].mean(0))
    t = normalize(torch.stack(means) - torch.stack(means).mean(0), dim=1)
    h = head.hidden(HISTORY)
    wanted = torch.stack([(head.project @ one) @ t.T for one in h]) / 32**0.5 + head.bias
    torch.testing.assert_close(head.score_all(HISTORY), wanted, rtol=0, atol=1e-5)
    offset = torch.linspace(-1, 1, len(TITLES))
    for more in (None, offset):
        losses, item = head.target_losses(HISTORY, TARGET, masks=0, offset=more)
        torch.testing.assert_close(
            losses, cross_entropy(wanted + (0 if more is None else more), TARGET[:, -1], reduction="none")
        )
        assert item.tolist() == TARGET[:, -1].tolist()
    assert torch.equal(kept.title_vectors()[0], kept.title_vectors()[8])


def test_a_prompt_names_the_newest_titles_that_fit(model, tokenizer):
    # catches: titles cut in the middle, the oldest kept in place of the newest
    text = tokenizer.decode(kept_of(model, tokenizer, prompt_titles=2).prompt([0, 1, 2]))
    assert text.endswith(": Alpha II; Beta I;")
    roomy = kept_of(model, tokenizer)
    short = kept_of(model, tokenizer, prompt_tokens=len(roomy.prompt([2, 3])) + 1)
    assert short.prompt([0, 1, 2, 3]) == roomy.prompt([2, 3])


@pytest.mark.parametrize("titled", [False, True])
def test_masks_are_a_function_of_their_seed(kept, trie, titled):
    # catches: masks of the global generator, dropout in evaluation, adapters that are not dropped
    head = head_of(kept, trie if titled else None, dropout=0.4).train()
    before = torch.random.get_rng_state()
    first, second, other = (head.target_losses(HISTORY, TARGET, masks=m)[0] for m in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    some = torch.where(torch.tensor([[True], [False], [True], [False]]), TARGET, -1)
    torch.testing.assert_close(head.target_losses(HISTORY, some, masks=3)[0], first[::2])
    plain = head.score_all(HISTORY)
    head.eval()
    assert torch.equal(head.score_all(HISTORY), plain)
    assert torch.equal(head.target_losses(HISTORY, TARGET, masks=3)[0], head.target_losses(HISTORY, TARGET, masks=4)[0])
    if not titled:  # before W there is dropout too
        hidden = []
        for masks in (3, 4):
            head._masks.begin(masks)
            hidden.append(head.hidden(HISTORY))
        assert not torch.equal(*hidden)


def test_only_what_is_trained_is_stored_and_it_is_all(kept):
    head, other = head_of(kept), head_of(kept, seed=5)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    assert sorted({name.partition(".")[0] for name in state}) == ["adapter", "bias", "project"]
    assert sum(v.numel() for v in state.values()) == sum(p.numel() for p in head.parameters())
    assert len(head.adapter) == 2 * 2 * 2  # layers, queries and values, A and B
    assert not torch.equal(other.score_all(HISTORY), head.score_all(HISTORY))
    other.load_state_dict(state)
    assert torch.equal(other.score_all(HISTORY), head.score_all(HISTORY))


def test_training_moves_the_head_and_neither_model_nor_other_heads(model, tokenizer, kept):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head, still = head_of(kept, dropout=0.1), head_of(kept).eval()
    other, optimiser = still.score_all(HISTORY), torch.optim.Adam(head.parameters(), lr=0.05)
    found = []
    for step in range(30):
        losses, _ = head.train().target_losses(HISTORY, TARGET, masks=step)
        optimiser.zero_grad()
        losses.mean().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
        optimiser.step()
        found.append(float(losses.mean().detach()))
    assert found[-1] < 0.5 * found[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(still.score_all(HISTORY), other)


def test_the_cache_is_used_and_that_of_another_model_is_not(model, tokenizer, tmp_path, monkeypatch):
    # catches: a key without weights, without the layer, or without the prompts; a damaged file that is believed
    passes, real = [], KeptStates._below

    def counted(self, prompts, advance):
        passes.append(len(prompts))
        return real(self, prompts, advance)

    monkeypatch.setattr(KeptStates, "_below", counted)

    def states(model=model, history=HISTORY, **options):
        kept = kept_of(model, tokenizer, folder=tmp_path, **options)
        passes.clear()
        kept.prepare(history)
        kept.prepare(history[:2])  # known by now
        found = kept.batch(history)[0]
        return found, sum(passes)

    first, made = states()
    assert made == 4
    again, made = states()
    assert made == 0
    assert torch.equal(again, first)
    other, made = states(model_of(tokenizer, seed=2))
    assert made == 4
    assert not torch.equal(other, first)
    assert states(layers=1)[1] == 4
    assert states(history=HISTORY[:3])[1] == 3
    for path in tmp_path.glob("states-*"):
        path.write_bytes(path.read_bytes()[:200])
    again, made = states()
    assert made == 4
    assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"layers": 3}, "layers = 3 of a model with 3"),
        ({"prompt_tokens": 12}, "prompt_tokens = 12"),
        ({"titles": ["x" * 200]}, "a title of"),
    ],
)
def test_what_keeps_no_states(model, tokenizer, options, got):
    with pytest.raises(InputError) as error:
        kept_of(model, tokenizer, **options)
    assert error.value.got.startswith(got)


def test_histories_and_targets_that_do_not_fit_are_refused(kept):
    head = head_of(kept)
    early = torch.where(HISTORY >= 0, 1, -1)
    for target, got in ((early, "a target before the last"), (TARGET + 9, "item codes"), (TARGET * 0 - 1, "no target")):
        with pytest.raises(InputError, match=got):
            head.target_losses(HISTORY, target, masks=0)
    with pytest.raises(InputError, match="a history of shape"):
        head.score_all(torch.zeros(1, 11, dtype=torch.int64))
    with pytest.raises(InputError, match="rank = 0"):
        ItemHead(kept, rank=0, generator=torch.Generator())


def title_log_probs(model, tokenizer, kept, history, title):
    """log p of the tokens of a title and its end after the prompt of a history, by a pass without padding."""
    ids = [*tokenizer(f" {title}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = kept.prompt(history)
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(ids)), torch.tensor(ids)]


def test_titles_are_scored_by_their_log_probability_and_beams_find_the_best(model, tokenizer, kept, trie):
    # catches: an end that is not scored, adapters that are not in the model that writes, an item without its twin
    head = head_of(kept, trie, beams=99).eval()
    every = [
        [title_log_probs(head._model[0], tokenizer, kept, row, title) for title in TITLES] for row in HISTORY.tolist()
    ]
    sums = torch.tensor([[float(one.sum()) for one in row] for row in every])
    torch.testing.assert_close(head.score_all(HISTORY), sums, rtol=0, atol=1e-4)
    losses, item = head.target_losses(HISTORY, TARGET, masks=0)
    wanted = [-row[i].mean() for row, i in zip(every, TARGET[:, -1].tolist(), strict=True)]
    torch.testing.assert_close(losses.detach(), torch.stack(wanted), rtol=0, atol=1e-5)
    assert item.tolist() == TARGET[:, -1].tolist()
    plain = title_log_probs(model, tokenizer, kept, HISTORY[1].tolist(), TITLES[3])
    assert (plain - every[1][3]).abs().max() > 1e-2
    some = head_of(kept, trie, beams=3).eval().score_all(HISTORY)
    found = some > some.min(dim=1, keepdim=True).values
    assert found.sum(1).tolist() == [4 if row[0] else 3 for row in found.tolist()]
    assert torch.equal(some[:, 0], some[:, 8])


def test_a_title_head_is_trained_in_its_adapters_alone(kept, trie):
    head = head_of(kept, trie)
    head.target_losses(HISTORY, TARGET, masks=3)[0].mean().backward()
    assert all(bool(p.grad.any()) for p in head.parameters())
    assert len(head.state_dict()) == 2 * 2 * 2  # layers, queries and values, A and B
    trained = {name.split(".")[2] for name, p in head._model[0].named_parameters() if p.requires_grad}
    assert trained == {"1", "2"}  # of three layers
    with pytest.raises(InputError, match="logit adjustment"):
        head.target_losses(HISTORY, TARGET, masks=0, offset=torch.zeros(len(TITLES)))


# -- the task -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "little"
    model_of(tokenizer).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def settings_of(folder, **changes):
    return {
        "data": "synthetic",
        "backbone": "llm",
        "model_folder": folder,
        "prompt_titles": 4,
        "prompt_tokens": 96,
    } | changes


def agreeing(monkeypatch, rho):
    """Let two templates agree to a degree: ranks of 80 titles, some of them exchanged."""

    def table(model, tokenizer, titles, folder):
        rng, a = np.random.default_rng(0), np.arange(len(titles), dtype=np.float64)
        return PriorTable(np.array([a, rho * a + (1 - rho) * rng.permutation(a)]), np.full(len(titles), 3))

    monkeypatch.setattr(titles_module, "prior_table", table)


def test_training_has_the_last_target_of_a_user_and_counts_have_all(folder):
    # catches: counts of the last targets alone, which move head and tail; a held-out item among the targets
    split = leave_last(synthetic(), seed=0)
    task = NextInSequence(split, NextInSequenceConfig(**settings_of(folder)))
    _, _, every = windows(split.train, 20)
    assert task.item_count.tolist() == np.bincount(every[every >= 0], minlength=task.n_items).tolist()
    last = {int(u): int(i) for u, i in zip(split.train.user, split.train.item, strict=True)}
    assert task.target[:, -1].tolist() == [last[u] for u in range(task.n_users)]
    assert (task.target[:, :-1] == -1).all()
    own = split.train.item[split.train.user == 3]
    assert task.history[3].tolist() == own[-5:-1].tolist()


@pytest.mark.parametrize(("arm", "head"), [("none", "items"), ("eisam", "items"), ("eisam", "title")])
def test_a_run_with_a_language_model(folder, arm, head, monkeypatch):
    agreeing(monkeypatch, 0.9)
    task = NextInSequence.load(NextInSequenceConfig(**settings_of(folder, head=head, beams=4)))
    settings = next(dict(a.settings) for a in spec_of(eisam.run).arms if a.name == arm)
    config = EISAMConfig(epochs=1, check_every=1, batch_size=16, learning_rate=0.01, **settings)
    run = ArmRun(None, 0, arm)
    model = eisam.run(task, config, run)
    task.open_test()
    start = task.model(run).eval()
    assert not torch.equal(model.score_all(HISTORY), start.score_all(HISTORY))
    found = task.score(model, "test", run)
    assert np.isfinite(found.values["ndcg@10"]).all()
    assert set(found.by) == {"popularity", "prior", "cell"}
    targets = np.unique(task.target[:, -1])
    for row in run.notes["sharpness"]:
        own = np.array(task.popularity)[targets] == row["items"]
        assert 0 < row["n"] <= min(eisam.PROBED, own.sum())  # every item that is measured has a target
    assert task.facts["model"] == "little"
    written = task._written()
    assert task.facts["items_with_the_title_of_another"] == sum(written.count(one) > 1 for one in written)
    adjusted = next(a for a in spec_of(eisam.run).arms if a.name == "logit_adjust")
    assert bool(adjusted.unfit(task)) is (head == "title")
    states = len(task._keep_states(run)._states)
    task.score(model, "valid", run)
    assert len(task._keep_states(run)._states) == states  # every prompt was known before


def test_prior_scores_are_withheld_where_templates_do_not_agree(folder, monkeypatch):
    # catches: the largest of the agreements in place of the smallest, a withheld table that is shown
    for rho, withheld in ((0.9, False), (0.05, True)):
        agreeing(monkeypatch, rho)
        task = NextInSequence.load(NextInSequenceConfig(**settings_of(folder)))
        assert (task.facts["prior_agreement"] < sequence.MIN_AGREEMENT) is withheld
        assert (task.prior is None) is withheld
    assert f"{task.facts['prior_agreement']:.2f}" in task.without_prior
    scores = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]])
    assert PriorTable(scores, np.ones(4, dtype=np.int64)).agreement() == pytest.approx(-1)
    assert np.isnan(PriorTable(scores[:1], np.ones(4, dtype=np.int64)).agreement())


def test_prior_scores_are_those_of_the_model_and_come_from_the_cache(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(sequence, "MIN_AGREEMENT", -1.0)
    config = NextInSequenceConfig(**settings_of(folder, backbone="sasrec"))
    task = NextInSequence.load(config)
    names = [natural_title(one) for one in synthetic().item_titles]
    wanted = titles_module.prior_table(*task.language(), names)
    np.testing.assert_allclose(task.prior, wanted.scores.mean(0), atol=1e-12)
    plain, partial = (rank_correlation(task.prior, task.item_count, given) for given in (None, wanted.tokens))
    assert task.facts["prior_count_correlation"] == pytest.approx(plain)
    assert task.facts["prior_count_correlation_given_length"] == pytest.approx(partial) != pytest.approx(plain)
    with monkeypatch.context() as without:
        without.setattr(titles_module, "_mean_log_probs", None)
        assert np.array_equal(NextInSequence.load(config).prior, task.prior)
    model_of(tokenizer, seed=2).save_pretrained(folder)
    assert not np.allclose(NextInSequence.load(config).prior, task.prior)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"model_folder": None}, "no model_folder with backbone"),
        ({"precision": "float64"}, "precision = 'float64' with backbone"),
        ({"backbone": "sasrec", "head": "title"}, "head = 'title' with item codes"),
        ({"backbone": "sasrec", "prior": "prior.csv"}, "both prior and model_folder"),
        ({"model_folder": "someone/a-model"}, "no folder a-model"),
        ({"kept_layers": 3}, "layers = 3"),
    ],
)
def test_settings_that_cannot_be(folder, change, got):
    with pytest.raises(InputError) as error:
        NextInSequence.load(NextInSequenceConfig(**settings_of(folder, **change))).model(RUN)
    assert error.value.got.startswith(got)


def test_a_log_without_titles_is_refused(folder):
    split = dataclasses.replace(leave_last(synthetic(), seed=0), item_titles=None)
    for backbone in ("llm", "sasrec"):
        with pytest.raises(InputError, match="whose items have no titles"):
            NextInSequence(split, NextInSequenceConfig(**settings_of(folder, backbone=backbone)))
