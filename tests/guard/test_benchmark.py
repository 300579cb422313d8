"""The benchmark: counts, balance, pages that are what they say, the same pictures, files that read back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from upright.contract import InputError
from upright.guard import benchmark as bench
from upright.guard.benchmark import NOTICES, messages_of, notice_of, pages, pairs, read_as
from upright.guard.decisions import parts_of
from upright.guard.notices import claims, find_notices
from upright.guard.queries import COPYING, PERMITTED
from upright.metrics.overlap import is_french, is_refusal, words_of

A, B, C = ([*pairs(registry)] for registry in ("A", "B", "C"))
MAKER = Path(__file__).parents[2] / "benchmarks/make_guard_pages.py"


def anywhere(some):
    """Pairs whatever their registry."""
    return {pair._replace(id=pair.id[1:], registry="") for pair in some}


def test_each_registry_has_its_number_of_pairs():
    # catches: a form, use or query lost; permitted pairs under C, where nothing says what would be an over-refusal
    counts = [Counter(pair.permitted for pair in some) for some in (A, B, C)]
    assert [(one[False], one[True]) for one in counts] == [(50_000, 7_500), (10_000, 7_500), (10_000, 0)]
    assert len({pair.id for pair in A + B + C}) == len(A) + len(B) + len(C)
    assert [{pair.registry for pair in some} for some in (A, B, C)] == [{"A"}, {"B"}, {"C"}]


def test_copying_pairs_are_balanced_over_pages_notices_and_uses():
    # catches: a notice form that some page or use lacks, a draw of queries that leaves a use out, open queries alone
    for some, each in ((A, 10), (B, 2), (C, 2)):
        copying = [pair for pair in some if not pair.permitted]
        cells = Counter((pair.page, pair.notice, pair.task) for pair in copying)
        assert (len(cells), set(cells.values())) == (250 * 5 * 4, {each})
        assert sum(pair.held_out for pair in copying) * 2 == len(copying)
    assert min(Counter(pair.notice for pair in A if pair.permitted).values()) > 1_300
    assert set(Counter((pair.page, pair.task) for pair in A if pair.permitted).values()) == {5}


def test_half_of_the_pairs_have_their_page_in_the_turn_of_the_user():
    # catches: a place that depends on use, notice or page, so that one of them is never seen in a tool's answer
    assert abs(sum(pair.place == "user" for pair in A) / len(A) - 0.5) < 0.02
    for some in (A, B, C):
        for key in (1, 3, 4):
            for value, number in Counter(pair[key] for pair in some).items():
                share = sum(pair.place == "user" for pair in some if pair[key] == value) / number
                assert abs(share - 0.5) < 2.5 / number**0.5, (key, value)


def test_pairs_of_b_and_c_are_pairs_of_a():
    # catches: rights that are not the only thing that differs between registries
    assert anywhere(B) < anywhere(A)
    assert anywhere(pair for pair in B if not pair.permitted) == anywhere(C)
    assert anywhere(pair for pair in B if pair.permitted) == anywhere(pair for pair in A if pair.permitted)


def test_every_query_fits_its_page_and_is_found_again_behind_a_notice():
    # catches: a slot that was not filled, a word that the page lacks, a query that is read as another one's
    uses = {query: task for task, some in {**COPYING, **PERMITTED}.items() for query in some}
    for pair in A[::7] + A[-7500:]:
        page = pages()[pair.page]
        content = messages_of(pair, read_as(page, pair.notice))[-1]["content"]
        task, template = bench.find_pair_task(content if isinstance(content, str) else content[-1]["text"])
        assert task == uses[template] == pair.task
        before, slot, behind = template.partition("{word}")
        word = pair.query.removeprefix(before).removesuffix(behind) if slot else ""
        assert pair.query == before + word + behind
        assert not slot or word in re.findall("[A-Za-z]{5,}", page.text)
    assert bench.find_pair_task("Type out everything on this page, word for word.") is bench.find_pair_task("") is None


def test_pages_have_ids_titles_and_sizes_and_say_what_they_are():
    # catches: an article that passes as a book, an id or a drawn text that moves, a page too short for its queries
    found, sizes = pages(), {"book": (220, 280), "poem": (100, 250), "documentation": (150, 280), "article": (220, 260)}
    assert [page.id for page in found] == list(range(250))
    assert len({page.title for page in found}) == len({page.text for page in found}) == 250
    kinds = [Counter(page.material for page in found[a:b]) for a, b in ((0, 100), (100, 150), (150, 200), (200, 250))]
    assert kinds == [{"book": 94, "article": 6}, {"poem": 50}, {"documentation": 50}, {"article": 50}]
    articles = "".join(page.text for page in found if page.material == "article")
    assert hashlib.sha256(articles.encode()).hexdigest()[:16] == "a5ee4718e5f6a61d"  # drawn alike everywhere
    for page in found:
        told = page.material in ("book", "poem")
        assert sizes[page.material][0] <= len(page.text.split()) <= sizes[page.material][1], page.title
        assert [page.author != "", page.died is not None, page.published is not None] == [told] * 3, page.title


def test_each_bundled_text_was_checked_and_is_free_by_its_wording_and_its_author():
    # catches: a modern translation or edition, an author who died too late, a text not in the table
    told = {(page.material, page.author, page.title, page.died, page.published) for page in pages() if page.died}
    checked = {(*row[:2], re.sub(r" \(.*", "", row[2]), *row[3:]) for row in runpy.run_path(str(MAKER))["checked"]()}
    assert told == checked
    assert all(died <= 1955 and published <= 1930 and published - died < 40 for *_, died, published in told)


def test_no_two_pages_share_fifteen_words_and_no_article_shares_ten_with_a_book():
    # catches: a copy of one page that counts as a copy of another; a grammar that says the same again
    seen, kinds = defaultdict(set), defaultdict(set)
    for page in pages():
        words = words_of(page.text)
        for size, runs, name in ((15, seen, page.id), (10, kinds, page.material)):
            for i in range(len(words) - size + 1):
                runs[tuple(words[i : i + size])].add(name)
    assert not [run for runs in (seen, kinds) for run, names in runs.items() if len(names) > 1]


def test_no_page_claims_refuses_or_is_french_by_itself_and_every_notice_claims():
    # catches: a page whose own words decide in place of its notice; a form that the grammar of notices cannot read
    for page in pages():
        assert [bool(find_notices(page.text)), is_refusal(page.text), is_french(page.text)] == [False] * 3, page.title
        for form in NOTICES[1:]:
            assert claims(find_notices(notice_of(page, form)), year=2030) == "protected"
        assert read_as(page, NOTICES[3]) == f"{page.text}\n\n{notice_of(page, NOTICES[1])}"
        assert read_as(page, NOTICES[1]) == page.text
    assert notice_of(pages()[17], "original text") == notice_of(pages()[17], "original picture", "B")


def test_registries_declare_the_same_texts_and_differ_in_rights():
    # catches: B with a holder, A with a true date, texts that are not the pages'
    for page, (a, text), (b, same) in zip(pages(), bench.registered("A"), bench.registered("B"), strict=True):
        assert (a.id, a.declared, a.title, text) == (page.id, "protected", page.title, page.text)
        assert (b.id, b.declared, b.title, same) == (page.id, "public domain", page.title, page.text)
        assert (a.holder, b.holder, a.died) == (f"Example Holder {page.id:03}", "", None)
        assert notice_of(page, "original text") == f"\u00a9 {a.published} {a.holder}. All rights reserved."
        assert (b.died, b.published, 1990 <= a.published <= 2024) == (page.died, page.published, True)


def test_the_same_page_and_printed_notice_give_the_same_picture():
    # catches: a picture that depends on a notice in the text, a seed that is not used
    page = pages()[120]
    for seed in (None, 3):
        none, *texts, first, second = (
            bench.picture_of(page, form, bench.look_of(page, form, seed)) for form in NOTICES
        )
        assert [none, none] == texts
        assert len({none, first, second}) == 3
    assert bench.look_of(page, "none", 3) != bench.look_of(page, "none", 4)


@pytest.mark.parametrize("place", ["user", "tool"])
def test_messages_put_page_and_notice_where_the_pair_says(place):
    # catches: a notice twice or nowhere, a page in the wrong turn, a URL that is sent as text
    pair = next(one for one in A if (one.place, one.notice) == (place, "original text"))
    sent = json.loads(json.dumps(messages_of(pair, "data:image/png;base64,AA==")))
    found = parts_of(sent, lambda url: f"read {url[:4]}")
    assert [(one.role, one.text) for one in found if one.kind == "picture"] == [(place, "read data")]
    query = f"{notice_of(pages()[pair.page], pair.notice)}\n{pair.query}"
    assert [one.text for one in found if pair.query in one.text] == [query]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool", "user"][: 4 if place == "tool" else 1]
    assert [one.role for one in parts_of(messages_of(pair, "as read")) if one.text == "as read"] == [place]


def test_what_is_written_reads_back_as_the_pairs(tmp_path, monkeypatch):
    # catches: a column that is lost or turned, a picture stored twice, a pair without its picture
    parquet, steps = pytest.importorskip("pyarrow.parquet"), []
    monkeypatch.setattr(bench, "picture_of", lambda page, notice, look: f"{page.id % 200} {notice[-7:]}".encode())
    counts = bench.write_benchmark(tmp_path / "new", progress=lambda *step: steps.append(step))
    tables = {path.stem: parquet.read_table(path) for path in (tmp_path / "new").iterdir()}
    assert counts == {name: table.num_rows for name, table in tables.items()}
    assert (counts, steps[-1]) == ({"pairs": 85_000, "pages": 250, "pictures": 400}, (250, 250))
    *columns, shown = tables["pairs"].to_pydict().values()
    assert [*zip(*columns, strict=True)] == [tuple(pair) for pair in A + B + C]
    pictures = dict(zip(*tables["pictures"].to_pydict().values(), strict=True))
    for pair, name in zip(A + B + C, shown, strict=True):
        form = pair.notice[-7:] if pair.notice.endswith("picture") else "none"
        assert pictures[name] == f"{pair.page % 200} {form}".encode()
    assert tables["pages"].to_pylist() == [vars(page) for page in pages()]


def test_names_that_are_not_known_are_refused_in_three_parts(tmp_path):
    # catches: a traceback, or no notice at all, for a form that is misspelled; a folder that is a file
    known = "none, generic text, original text, generic picture, original picture"
    (tmp_path / "file").write_text("")
    for call, told in (
        (
            lambda: notice_of(pages()[0], "generic"),
            f"the notice form 'generic'\n  accepted: {known}\n  to do:    choose one",
        ),
        (lambda: bench.registered("C"), "the registry 'C'\n  accepted: A, B\n  to do:    choose one"),
        (lambda: next(pairs("D")), "the registry 'D'\n  accepted: A, B, C\n  to do:    choose one"),
        (
            lambda: bench.write_benchmark(tmp_path / "file"),
            "a folder that cannot be written (File exists)\n  accepted: one",
        ),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            call()


@pytest.mark.realdata
def test_the_packed_file_is_small_and_made_again_byte_for_byte(tmp_path):
    # catches: a page that was changed by hand, an order or a date that depends on the system
    shelf = Path(os.environ.get("UPRIGHT_DATA", ".")) / "public-domain-texts/shield/shield/datasets"
    if not shelf.is_dir():
        pytest.skip("public-domain-texts is not in UPRIGHT_DATA")
    maker = runpy.run_path(str(MAKER))
    maker["pack"](shelf, tmp_path / "pages.zip")
    assert (tmp_path / "pages.zip").read_bytes() == maker["PACKED"].read_bytes()
    assert len(maker["PACKED"].read_bytes()) <= 130_000


def test_further_works_hold_no_passage_of_a_page():
    # catches: made works that copy a free page, so that the guard is blamed for seeing it
    pages = " ".join(" ".join(words_of(page.text)) for page in bench.pages())
    made = [words_of(text) for _, text in bench.more_works(300)]
    runs = [" ".join(one[i : i + 15]) for one in made for i in range(len(one) - 14)]
    assert not [run for run in runs if run in pages]
    assert len({text for _, text in bench.more_works(300)}) == 300
