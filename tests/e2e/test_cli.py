"""The command line as a person meets it: by subprocess, with exit status, words and files."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def upright(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "upright.cli", *words], capture_output=True, text=True, env=ENV, cwd=cwd, timeout=600
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a tiny run through the command line."""
    out = tmp_path_factory.mktemp("runs")
    words = ["run", "in_ucds", "--data", "synthetic", "--preset", "quick", "--set", "epochs=4", "--seeds", "2"]
    done = upright(*words, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


def test_run_leaves_a_comparison_with_a_report(finished: Path) -> None:
    assert {"comparison.json", "report.html"} <= {p.name for p in finished.iterdir()}
    comparison = json.loads((finished / "comparison.json").read_text())
    assert comparison["seeds"] == [0, 1]
    assert {a["role"] for a in comparison["arms"]} == {"baseline", "remedy", "trivial", "placebo"}


def test_the_command_line_and_the_python_door_give_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    import upright as package

    settings = {"epochs": 4}
    ours = package.run("in_ucds", data="synthetic", preset="quick", seeds=2, settings=settings, out=tmp_path)
    theirs = json.loads((finished / "comparison.json").read_text())
    assert ours.evidence["levels"] == theirs["evidence"]["levels"]
    assert ours.evidence["differences"] == theirs["evidence"]["differences"]


def test_report_compare_export_and_prune(finished: Path, tmp_path: Path) -> None:
    runs = finished.parent
    one, two = sorted(p for p in runs.iterdir() if p.name.endswith(("-s0", "-s1")))
    assert upright("report", str(one)).returncode == 0
    page = tmp_path / "compare.html"
    done = upright("compare", str(one), str(two), "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert "<svg" in page.read_text()
    card = tmp_path / "card.md"
    assert upright("export", str(finished), "card", "--out", str(card)).returncode == 0
    head = card.read_text().split("---\n")[1]
    assert json.loads(head)["model-index"][0]["results"], "the front matter is the part other tools read"
    done = upright("runs", "prune", str(runs))
    assert done.returncode == 0
    assert not list(one.glob("checkpoints/*.pt"))
    assert (one / "summary.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "in_ucds", "--set", "lamda=1"], "did you mean 'lam'?"),
        (["run", "in_ucds", "--set", "lam=-1"], "float >= 0"),
        (["run", "in_ucds", "--set", "lam"], "--set key=value"),
        (["run", "in_ucds", "--preset", "huge"], "quick, full"),
        (["run", "in_ucd"], "did you mean 'in_ucds'?"),
        (["run", "raid"], "planned"),
        (["run"], "give one of the two"),
        (["run", "in_ucds", "--data", "no_such.csv"], "no_such.csv"),
        (["run", "in_ucds", "--data", "synthetic", "--arms", "nobody", "--set", "epochs=1"], "none, in_ucds"),
        (["run", "--resume", "nowhere"], "the folder of a run"),
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere", "pdf"], "card, parquet"),
        (["data", "info", "ml100"], "ml100k"),
    ],
)
def test_bad_input_says_what_to_do_and_exits_with_2(words: list[str], said: str, tmp_path: Path) -> None:
    done = upright(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_list_and_show_are_machine_readable() -> None:
    rows = json.loads(upright("list", "--json").stdout)
    assert len(rows) >= 10
    assert [r["state"] for r in rows if r["name"] == "in_ucds"] == ["works"]
    shown = json.loads(upright("show", "in_ucds", "--json").stdout)
    assert all(field["doc"] for table in shown["settings"].values() for field in table)
    assert len(shown["deviations"]) == 8


def test_doctor_reports_the_interpreter() -> None:
    rows = json.loads(upright("doctor", "--json").stdout)
    assert rows[0] == {"what": "python", "state": "ok", "note": ".".join(map(str, sys.version_info[:3]))}


def test_a_gate_fails_with_1(tmp_path: Path) -> None:
    words = ["run", "in_ucds", "--data", "synthetic", "--preset", "quick", "--set", "epochs=1", "--out", str(tmp_path)]
    assert upright(*words, "--fail-if", 'mean["ndcg@10"] < 2').returncode == 1
    assert upright(*words, "--fail-if", 'mean["ndcg@10"] > 2').returncode == 0


@pytest.mark.parametrize("module", ["upright", "upright.cli", "upright.shell.registry", "upright.shell.config"])
def test_import_is_light(module: str) -> None:
    code = (
        f"import {module}, sys; "
        "print([m for m in ('torch', 'polars', 'matplotlib', 'scipy', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.stdout.strip() == "[]", done.stderr


def test_list_never_pays_for_heavy_imports() -> None:
    """A bound far above the goal (0.5 s): it catches an import of torch (over 1.5 s), not a busy machine."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        upright("list")
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 5


@pytest.mark.parametrize("name", ["ml100k", "ml-latest-small", "epinions", "gowalla", "lastfm"])
def test_every_data_set_is_described(name: str) -> None:
    done = upright("data", "info", name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == name


def test_an_audit_needs_no_groups(tmp_path: Path) -> None:
    # catches: a default of an option that counts as given
    (tmp_path / "lists.csv").write_text(
        "user,item,rank\n" + "".join(f"u{u},i{i},{i + 1}\n" for u in range(9) for i in range(3))
    )
    (tmp_path / "held.csv").write_text("user,item\n" + "".join(f"u{u},i{u % 5}\n" for u in range(9)))
    done = upright("audit", "ranking", "lists.csv", "--held-out", "held.csv", "--k", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("audits/*/report.html"))


def test_a_gate_is_read_before_training(tmp_path: Path) -> None:
    done = upright("run", "in_ucds", "--data", "synthetic", "--fail-if", 'gap["ndcg@10" > 1', cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "runs").exists()
