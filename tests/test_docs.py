"""The documentation is executed, linked and true: README, pages and examples against the code."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import upright
from upright.evidence.statistics import STATISTICS
from upright.experiment.config import describe
from upright.experiment.registry import find, load_method, load_object, names
from upright.experiment.runner import deviations
from upright.maths.parity.rates import CRITERIA
from upright.metrics.membership import METRICS
from upright.tasks.next_item import NextItem

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAKE = runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))
METHODS = sorted(name for name, point in find().items() if point.value.startswith("upright."))

by_path = {"ids": lambda p: p.relative_to(ROOT).as_posix() if isinstance(p, Path) else None}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.S | re.M)


def without_code(page: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M))


def execute(page: str, name: str) -> None:
    """Run the Python blocks of a page from top to bottom in one namespace."""
    space: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, name, "exec", dont_inherit=True), space)


# -- what is shown runs ---------------------------------------------------------------------------------------------


def test_a_wrong_number_in_a_page_is_noticed() -> None:
    # catches: an executor that finds no block, or a Python that skips asserts (-O)
    with pytest.raises(AssertionError):
        execute("text\n```python\nassert 0.6934 == 0.6935\n```\n", "planted")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(text(p), "python")], **by_path)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # catches: a renamed function or argument that a page still shows
    monkeypatch.chdir(tmp_path)
    execute(text(page), str(page))


def test_readme_example_is_the_whole_way() -> None:
    # catches: a README whose block was reduced to something that does not touch the library
    block, native = blocks(text(ROOT / "README.md"), "python")
    assert "upright.run(" in block
    assert "report()" in block
    assert "FedFACTClassifier(" in native
    assert ".frontier(" in native
    assert max(len(one.splitlines()) for one in (block, native)) <= 10


@pytest.mark.parametrize("example", EXAMPLES, **by_path)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    # catches: an example that no longer runs, warns or needs files beside it; a method's that prints no group means
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(text(example).splitlines()) < 45
    if example.stem == "in_ucds":
        shown = re.findall(r"advantaged (\d\.\d+), disadvantaged (\d\.\d+)", done.stdout)
        assert shown, done.stdout
        assert all(0 < float(value) <= 1 for pair in shown for value in pair)
        assert not list(tmp_path.iterdir()), "the native door writes nothing"


@pytest.mark.parametrize("module", MAKE["MODULES"].values())
def test_examples_of_metrics_give_what_is_shown(module: str) -> None:
    # catches: a metric, or a number on its page, that was changed alone
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_the_page_of_metrics_is_current() -> None:
    # catches: a docstring that was changed without the page
    assert text(ROOT / "docs" / "metrics.md") == MAKE["page"](), "run `make docs`"


def test_every_metric_is_on_the_page() -> None:
    # catches: a metric without a word in a docstring, or without an example where one was taken away
    page = text(ROOT / "docs" / "metrics.md")
    named = {name.split("@")[0] for name in NextItem.metrics_of({"k": 10, "matched": 5})} | {*STATISTICS, *CRITERIA}
    named |= {name.removeprefix("mia_") for name in METRICS}
    assert not {name for name in named if not re.search(rf"`{name}(@k)?`|^### {name}$", page, re.M)}
    modules = [importlib.import_module(name) for name in MAKE["MODULES"].values() if ".metrics." in name]
    assert all(any(f"### {name}\n" in page for name in module.__all__) for module in modules)


# -- what is said is so ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_that_is_complete(name: str) -> None:
    # catches: a method without page or example, an arm that the page does not name; and, since the page leaves them to
    # `upright show`, a setting that does not say what it means, or no deviations
    page = text(ROOT / "docs" / "methods" / f"{name}.md")
    assert (ROOT / "examples" / f"{name}.py").exists()
    spec = load_method(name)
    assert f"$ upright show {name}" in page
    for arm in spec.arms:
        assert f"| `{arm.name}` | {arm.role} |" in page
    assert deviations(spec)
    assert not [f["name"] for c in (spec.config, load_object(spec.task).Config) for f in describe(c) if not f["doc"]]
    assert f"`{spec.task.partition(':')[0]}`" in text(ROOT / "docs" / "tasks.md")


def test_readme_lists_the_methods_in_their_state() -> None:
    # catches: a method that is built and still "not yet", or the other way round
    rows = re.findall(r"^\| \[?`(\w+)`[^|]*\| ([^|]+) \| (works|not yet) \|$", text(ROOT / "README.md"), re.M)
    assert rows == [(r["name"], r["mends"], r["state"]) for r in names() if r["state"] != "plugin"]


def test_versions_agree() -> None:
    # catches: a release in which one file was forgotten
    wanted = upright.__version__
    assert f'\nversion = "{wanted}"\n' in text(ROOT / "pyproject.toml")
    assert f"\nversion: {wanted}\n" in text(ROOT / "CITATION.cff")
    assert f"\n## [{wanted}]" in text(ROOT / "CHANGELOG.md")


@cache
def verbs_of(*group: str) -> frozenset[str]:
    """Return the verbs that the command line lists."""
    done = subprocess.run(
        [sys.executable, "-m", "upright.cli", *group, "--help"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}, check=True,
    )  # fmt: skip
    listed = done.stdout.split("Commands", 1)[1]
    return frozenset(re.findall(r"^[ │|]*([a-z][a-z-]*) {2,}\S", listed, re.M))


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `upright` command in the console blocks of a page."""
    lines = [line.split("#")[0] for block in blocks(text(page), "console") for line in block.splitlines()]
    return [line.split()[2:] for line in lines if line.startswith("$ upright ")]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], **by_path)
def test_shown_commands_exist(page: Path) -> None:
    # catches: a page that shows a verb which the command line does not have
    for words in commands(page):
        assert words[0] in verbs_of(), words
        if words[0] in ("data", "audit", "runs", "forget", "edit", "guard") and words[1] != "FILE":
            assert words[1] in verbs_of(words[0]), words


def test_readme_shows_every_verb() -> None:
    # catches: a verb that was added and not documented
    assert {words[0] for words in commands(ROOT / "README.md")} == verbs_of()


@pytest.mark.parametrize("page", PAGES, **by_path)
def test_make_targets_exist(page: Path) -> None:
    # catches: `make x` in a page without x in the Makefile
    shown = {m for block in blocks(text(page), "console") for m in re.findall(r"^\$ make ([\w-]+)", block, re.M)}
    assert shown <= set(re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), re.M))


# -- links and hygiene ----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text(page), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, **by_path)
def test_relative_links_resolve(page: Path) -> None:
    # catches: a page, picture or heading that was moved or renamed
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_every_page_is_reachable() -> None:
    # catches: a page that nothing links to
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", without_code(text(page)))
        todo += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    assert set(DOCS) <= seen


def tracked() -> list[Path]:
    """Return the files of the repository, or of the unpacked source where there is no git."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("src", "tests", "docs", "examples", "benchmarks")
        found = [*ROOT.glob("*.*"), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts]


# put together from parts, so that this file does not hold what it looks for
FORBIDDEN = {
    "a folder of one machine": r"(?<![\w.$})>-])/(?:" + "|".join(["home", "work", "root", "Users"]) + r")/\w",
    "a link to a package index": r"https?://[^\s\"'`)]*(?:" + "|".join(["py" + "pi", "python" + "hosted"]) + ")",
    "an index option": r"--(?:extra-)?index" + r"-url[ =]",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_machine_in_the_repository(what: str) -> None:
    # catches: a path of somebody's machine, or a registry that other people cannot reach
    found = []
    for path in tracked():
        try:
            words = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and tables
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in re.finditer(FORBIDDEN[what], words)]
    assert not found


def test_the_search_for_machines_finds_some() -> None:
    # catches: a pattern that matches nothing
    planted = {
        "a folder of one machine": "open('" + "/" + "home/me/data.csv')",
        "a link to a package index": "https" + "://" + "py" + "pi.org/project/x",
        "an index option": "pip install --index" + "-url x",
    }
    assert all(re.search(FORBIDDEN[what], words) for what, words in planted.items())
