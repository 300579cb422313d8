"""The wheel and the sdist are built, installed elsewhere and run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {p.suffix: p for p in out.iterdir()}


def _members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_the_wheel_carries_what_the_report_needs(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = wheel.namelist()
    for needed in ("upright/py.typed", "upright/report/template.html", "upright/report/style.css"):
        assert needed in names
    assert not [n for n in names if n.startswith("tests")]


def test_the_sdist_carries_licence_and_tests(built: dict[str, Path]) -> None:
    names = {n.partition("/")[2] for n in _members(built[".gz"])}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "tests/test_package.py"} <= names


@pytest.mark.parametrize("kind", [".whl", ".gz"])
def test_what_was_built_installs_and_runs(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    # dependencies come from this environment, so that the test needs no network; the package itself does not
    venv.create(tmp_path / "v", with_pip=False)
    python = tmp_path / "v" / "bin" / "python"
    site = tmp_path / "site"
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
             "--target", str(site), str(built[kind])]  # fmt: skip
    assert subprocess.run(words, capture_output=True).returncode == 0
    typer = importlib.util.find_spec("typer")
    assert typer is not None
    assert typer.origin is not None
    path = f"{site}:{Path(typer.origin).parent.parent}"
    code = "import upright.cli, upright; print(upright.__file__); upright.cli.app(['list'])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert str(site) in done.stdout, done.stderr
    assert "in_ucds" in done.stdout


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values(),
              *project["dependency-groups"].values()]  # fmt: skip
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = {re.split(r"[<>=\[]", r)[0].lower().replace("_", "-") for group in groups for r in group} - {"upright"}
    assert wanted <= pinned
    assert "torch==2.13.0" in lines


def test_the_lowest_versions_tried_are_the_lowest_allowed() -> None:
    # catches: a bound in the metadata that nobody has tried, or a pin that tries a version above the bound
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tried = [*project["dependencies"], *project["optional-dependencies"]["video"]]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", one).groups() for one in tried)
    lines = (ROOT / "constraints-minimum.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))

    def numbers(version: str) -> list[int]:
        found = [int(part) for part in version.split(".")]
        while found and found[-1] == 0:
            found.pop()
        return found

    assert pins.pop("torch") == "2.13.0"  # older builds for the CPU are not on the package index; see the file
    bounds.pop("torch")
    assert {name: numbers(v) for name, v in pins.items()} == {name: numbers(v) for name, v in bounds.items()}
