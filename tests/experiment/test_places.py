"""Places for results are judged before anything is computed."""

from __future__ import annotations

import pytest

from upright.contract import InputError
from upright.experiment.export import export_run
from upright.experiment.places import require_file, require_folder


def test_a_folder_may_be_there_or_not(tmp_path):
    # catches a check that refuses what mkdir would make
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep"):
        assert require_folder(path) == path
        assert path == tmp_path or not path.exists()


@pytest.mark.parametrize("below", [".", "x", "x/y"])
def test_a_file_is_no_folder(tmp_path, below):
    # catches NotADirectoryError or FileExistsError at the end of a run
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError) as caught:
        require_folder(tmp_path / "f" / below)
    assert caught.value.got == f"--out {tmp_path / 'f' / below}: {tmp_path / 'f'} is a file"
    assert caught.value.accepted == "a folder, new or there already"


def test_a_file_may_be_replaced_and_needs_a_folder(tmp_path):
    # catches a page that may not be written again, and a missing folder found out too late
    (tmp_path / "f").write_text("")
    assert require_file(tmp_path / "f") == tmp_path / "f"
    assert require_file(tmp_path / "new") == tmp_path / "new"
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "f", "is not there"),
        (tmp_path / "f" / "g", "is a file"),
    ):
        with pytest.raises(InputError) as caught:
            require_file(path)
        assert said in caught.value.got


def test_a_relative_path_is_judged_where_the_process_stands(tmp_path, monkeypatch):
    # catches a check of "" as the folder above a bare name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text("")
    from pathlib import Path

    assert require_file(Path("page.html")) == Path("page.html")
    assert require_folder(Path("runs")) == Path("runs")
    with pytest.raises(InputError, match="f is a file"):
        require_folder(Path("f"))


@pytest.mark.parametrize("kind", ["card", "parquet"])
def test_an_export_needs_a_place(tmp_path, kind):
    # catches an internal error for a target below a file
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "units.parquet").write_text("")
    (tmp_path / "run" / "summary.json").write_text(
        '{"schema": 2, "title": "t", "method": "m", "mends": "x", "data": {"name": "d"}, "deviations": [], '
        '"arms": [{"name": "a", "role": "remedy"}], '
        '"evidence": {"levels": [], "verdict": {"title": "t", "sentence": "s", "lines": {}, "next_steps": []}}}'
    )
    (tmp_path / "f").write_text("")
    for target, said in ((tmp_path / "f" / "g", "is a file"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=said):
            export_run(tmp_path / "run", kind, target)
    assert export_run(tmp_path / "run", kind, tmp_path / "f") == tmp_path / "f"
